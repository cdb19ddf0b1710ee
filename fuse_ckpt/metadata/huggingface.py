"""trainer_state.json, all_results.json, config.json and adapter_config.json, as Hugging Face's libraries write them."""

from __future__ import annotations

from fuse_ckpt.metadata.values import Opener, Unreadable, cut, epoch_of, loss_of, read_json_object, step_of, text_of
from fuse_ckpt.model import Metadata

ARCHITECTURES_MAX = 20


def trainer_state(opener: Opener) -> Metadata:
    """STEP and losses. Raises Unreadable where the file is somebody else's."""
    state = read_json_object(opener)
    history = state.get("log_history")
    if not isinstance(history, list) and "global_step" not in state:
        raise Unreadable("holds no log_history and no global_step: it is not a Trainer's")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    notes: list[str] = []
    last = entries[-1] if entries else {}
    return Metadata(
        step=step_of(last.get("step", state.get("global_step")), "the step in trainer_state.json", notes),
        epoch=epoch_of(last.get("epoch", state.get("epoch"))),
        train_loss=loss_of(_newest(entries, "loss", "train_loss"), "the loss in trainer_state.json", notes),
        eval_loss=loss_of(_newest(entries, "eval_loss"), "eval_loss in trainer_state.json", notes),
        notes=tuple(notes),
    )


def _newest(entries: list[dict[str, object]], *keys: str) -> object:
    """The value in the newest entry that has the key; a later key only where no entry has an earlier one.

    The run's summary, last at the end of training, has the mean `train_loss` of the whole run: not the newest loss.
    """
    for key in keys:
        for entry in reversed(entries):
            if key in entry:
                return entry[key]
    return None


def all_results(opener: Opener) -> Metadata:
    """The losses of a run's end, as an example script's save_metrics leaves them. Raises Unreadable."""
    results = read_json_object(opener)
    notes: list[str] = []
    return Metadata(
        epoch=epoch_of(results.get("epoch")),
        train_loss=loss_of(results.get("train_loss"), "train_loss in all_results.json", notes),
        eval_loss=loss_of(results.get("eval_loss"), "eval_loss in all_results.json", notes),
        notes=tuple(notes),
    )


def model_config(opener: Opener) -> Metadata:
    """MODEL, VERSION and INFERENCE READY. Raises Unreadable."""
    config = read_json_object(opener)
    if "architectures" not in config and "_class_name" in config:  # a model of diffusers
        return Metadata(model=text_of(config["_class_name"]), version=text_of(config.get("_diffusers_version")))
    names = _names(config.get("architectures"))
    notes = () if names else ("config.json names no architectures: MODEL is not known",)
    return Metadata(
        model=cut(", ".join(names)) or None,
        version=text_of(config.get("transformers_version")),
        inference_ready=bool(names),
        notes=notes,
    )


def _names(architectures: object) -> list[str]:
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        return []
    return [shown for name in architectures[:ARCHITECTURES_MAX] if (shown := cut(name))]


def adapter_config(opener: Opener) -> Metadata:
    """MODEL: the base model's name; VERSION: PEFT's. Raises Unreadable."""
    config = read_json_object(opener)
    return Metadata(model=text_of(config.get("base_model_name_or_path")), version=text_of(config.get("peft_version")))
