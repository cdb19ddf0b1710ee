"""Load a checkpoint of digits.py and print how many of the test digits it reads right."""

from __future__ import annotations

import argparse

import torch
from digits import digits, network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="PATH")
    path = parser.parse_args().checkpoint

    state = torch.load(path, weights_only=True)
    model = network()
    model.load_state_dict(state["model"])
    _, images, _, labels = digits()
    with torch.no_grad():
        right = int((model(images).argmax(dim=1) == labels).sum())
    print(f"step {state['step']}: {right} of {len(labels)} test digits right ({right / len(labels):.1%})")


if __name__ == "__main__":
    main()
