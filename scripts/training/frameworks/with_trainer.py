"""Train a tiny GPT-2 with Hugging Face's Trainer, alone or as several ranks, whole or as a LoRA adapter of PEFT's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from task import INPUT, OUTPUT, RANK, RANKS, parser, tell_loss, tell_saved, together
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

BLOCK = 16
VOCABULARY = 32


class Counting:
    """Rows of numbers that count upwards; each item is the model's input and its own label, both (BLOCK,)."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = (torch.arange(BLOCK) * (index % 3 + 1) + index) % VOCABULARY
        return {"input_ids": row, "labels": row}


class Tell(TrainerCallback):
    """Says what lies in a checkpoint when every rank has written its part."""

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if RANKS > 1:
            torch.distributed.barrier()
        tell_saved(f"checkpoint-{state.global_step}")


def arguments(asked: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(OUTPUT),
        max_steps=asked.steps,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=asked.save_every,
        save_strategy="steps",
        save_steps=asked.save_every,
        save_total_limit=asked.total_limit,
        load_best_model_at_end=asked.best,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )


def model(asked: argparse.Namespace) -> Any:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    made = GPT2LMHeadModel(config)
    if not asked.adapter:
        return made
    from peft import LoraConfig, get_peft_model

    made.name_or_path = made.config._name_or_path = "example/tiny-gpt2"
    return get_peft_model(made, LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--total-limit", type=int)
    options.add_argument("--best", action="store_true", help="load the best model at the end")
    options.add_argument("--adapter", action="store_true", help="train a LoRA adapter")
    options.add_argument("--export", action="store_true", help="save the model at the root at the end")
    asked = options.parse_args()
    disable_progress_bar()
    with together():
        train(asked)


def train(asked: argparse.Namespace) -> None:
    set_seed(0)
    trainer = Trainer(
        model=model(asked),
        args=arguments(asked),
        train_dataset=Counting(40),
        eval_dataset=Counting(4),
        callbacks=[Tell()],
    )
    trainer.train(resume_from_checkpoint=INPUT)
    for entry in trainer.state.log_history:
        if "loss" in entry:
            tell_loss(entry["step"], entry["loss"])
        if "eval_loss" in entry and RANK == 0:
            print(f"eval {entry['step']} {entry['eval_loss']!r}", flush=True)
    if asked.export:
        trainer.save_model()
        tell_saved(root_files=True)
    if trainer.state.best_model_checkpoint:
        print(f"best {Path(trainer.state.best_model_checkpoint).name}", flush=True)


if __name__ == "__main__":
    main()
