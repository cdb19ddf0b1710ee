"""Train a tiny sentence transformer on made-up words, and save it as the library does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from task import INPUT, OUTPUT, parser, tell_loss, tell_saved
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils.logging import disable_progress_bar

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


def encoder() -> SentenceTransformer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        Path(place, "vocab.txt").write_text("\n".join(WORDS))
        BertModel(config).save_pretrained(place)
        BertTokenizer(str(Path(place, "vocab.txt"))).save_pretrained(place)
        words = Transformer(place, max_seq_length=8)
    return SentenceTransformer(modules=[words, Pooling(16)], device="cpu")


def sentence(step: int, stride: int) -> str:
    return " ".join(WORDS[5 + (step + stride * place) % 8] for place in range(3))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--first", type=int, default=0, metavar="STEP", help="the step to go on after")
    asked = options.parse_args()
    disable_progress_bar()
    model = SentenceTransformer(INPUT, device="cpu") if INPUT else encoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)  # keeps no state
    model.train()
    for step in range(asked.first + 1, asked.steps + 1):
        pair = [
            " ".join(WORDS[5 + (step + k) % 8] for k in range(3)),
            " ".join(WORDS[5 + (step * k) % 8] for k in range(3)),
        ]
        features = model(model.preprocess(pair))["sentence_embedding"]
        loss = (nn.functional.cosine_similarity(features[0], features[1], dim=0) - step % 2).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tell_loss(step, loss.item())
        if step % asked.save_every == 0:
            model.save_pretrained(str(OUTPUT / f"step-{step}"))
            tell_saved(f"step-{step}")


if __name__ == "__main__":
    main()
