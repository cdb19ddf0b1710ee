"""Train a tiny GPT-2, letter by letter, on a text file, with Hugging Face's Trainer; some seconds on two cores.

An ordinary training program: the Trainer writes checkpoints where one environment variable says, and resumes from
another.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

BLOCK = 128


class Letters:
    """A text's bytes in blocks of BLOCK; each item is the model's input and its own label, both (BLOCK,)."""

    def __init__(self, text: bytes) -> None:
        self.blocks = torch.tensor(list(text[: len(text) // BLOCK * BLOCK])).view(-1, BLOCK)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def arguments(output: str, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=6,
        save_strategy="steps",
        save_steps=6,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="any text file of some kilobytes")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()

    disable_progress_bar()
    set_seed(0)
    text = options.text.read_bytes()
    cut = len(text) * 4 // 5
    config = GPT2Config(
        vocab_size=256, n_positions=BLOCK, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=arguments(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], options.steps),
        train_dataset=Letters(text[:cut]),
        eval_dataset=Letters(text[cut:]),
    )
    trainer.train(resume_from_checkpoint=os.environ.get("FLEXAI_INPUT_CHECKPOINT_DIR"))
    trainer.save_model()
    trainer.save_state()
    print(f"finished at step {trainer.state.global_step}", flush=True)


if __name__ == "__main__":
    main()
