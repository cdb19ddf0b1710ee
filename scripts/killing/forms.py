"""The forms in which the victim saves, and what of each must be listed after a kill."""

from __future__ import annotations

from msgspec import Struct


class Form(Struct, frozen=True):
    """How a save lies in the output directory; its names are formatted with the step.

    `files`: in the order in which they are written. `aside`: each is written under a temporary name and renamed.
    `told`: the form itself says that a save is done. Where it does not, whoever is killed may have meant to write
    another file, until some quiet seconds have passed: `pause`, of training between two saves.
    """

    files: tuple[str, ...]
    aside: bool = False
    told: bool = True
    pause: float = 0.0

    @property
    def saves(self) -> int:
        """Among how many of a round's saves the one is chosen that is cut off."""
        return 2 if self.pause else 5


FORMS: dict[str, Form] = {
    "written over": Form(("ckpt.pt",)),
    "a file each": Form(("ckpt-{}.pt",)),
    "replaced": Form(("last.pt",), aside=True),
    "directory": Form(("step-{0}/model.pt", "step-{0}/optimizer.pt", "step-{0}/extra.pt"), told=False, pause=7.0),
    "marked": Form(
        ("checkpoint-{0}/model.safetensors", "checkpoint-{0}/optimizer.pt", "checkpoint-{0}/trainer_state.json")
    ),
}
