"""Which unit does a path of the output directory belong to? The final path alone decides, never what arrives first.

Paths are relative to the output directory's root, `/` between the parts, no leading or trailing slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from fuse_ckpt.model import Shape, Unit

_REMEMBERED = 1024  # paths
ROOT_UNIT = Unit("", Shape.ROOT)

_ANY_CASE = re.ASCII | re.IGNORECASE | re.DOTALL  # DOTALL: a name may hold a newline
_STEP_LIKE = re.compile(
    r"\d+|release|(.*[-_.=])?(checkpoint|ckpt|global_?step|step|iter|epoch|ep|ba)[-_=.]?\d.*", _ANY_CASE
)
_VERSION = re.compile(r"version_\d+", _ANY_CASE)
_TEMPORARY = re.compile(
    r"\A\.tmp|\Atmp[-_.\w]{6,}\Z|\.tmp\Z|\.tmp\.|\.part\Z|\.partial\Z|-tmp(-\d+)?\Z|\.incomplete\Z|~\Z"
    r"|-unfinished\Z"
)
# A LoRA's rank is a size, not a process: lora_rank8.pt and lora_rank16.pt are two checkpoints.
_RANK = re.compile(r"(?<![a-z])(?<!lora)(?<!lora[-_])rank([-_]?)\d+", _ANY_CASE)
_NUMBERED_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.\w+)", _ANY_CASE)
_KERAS_SHARD = re.compile(r"(?P<stem>.+)_\d{5}\.weights\.h5", _ANY_CASE)
_INDEX_SUFFIXES = (".index.json", ".weights.json", ".metadata")

_CONTAINERS = frozenset({"checkpoints", "ckpts", "ckpt", "models", "snapshots", "lightning_logs"})
_LOG_DIRECTORIES = frozenset({"runs", "tb", "tensorboard", "wandb", "mlruns", "logs"})
# Lightning and YOLO put checkpoints beside their logs: logs/net/version_0/checkpoints, runs/train/exp/weights. What
# lies in wandb and mlruns is a copy of what was logged.
_SAVES = frozenset({"checkpoints", "ckpts", "ckpt", "weights"})
_SAVES_IN = frozenset({"runs", "tb", "tensorboard", "logs"})
_LOG_SUFFIXES = (".csv", ".jsonl", ".txt", ".md", ".yaml", ".png")
CARD = "README.md"
SIBLING = "recipe_state"  # torchtune's optimizer state, beside the directory of each epoch
_UNFINISHED = "-unfinished"  # NeMo's mark beside a checkpoint while it is written
_NEMO_ENDINGS = (".nemo", ".ckpt", "-EMA")  # they share one mark
_COMPANIONS = frozenset(
    {
        "latest",
        "latest_checkpointed_iteration.txt",
        "last_checkpoint",
        "zero_to_fp32.py",
        "zero_to_torch.py",
        "checkpoint_manager_snapshot.json",
        ".validate_storage_marker",
    }
)
_HUGGING_FACE_SET = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
    "adapter_model*",
    "training_args.bin",
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state*.pth",
    "model_index.json",
    "modules.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)


def is_temporary(name: str) -> bool:
    """Whether a file or directory name says that its writer will rename it when it is done."""
    return _TEMPORARY.search(name) is not None


def is_companion(name: str, symlink: bool = False) -> bool:
    """Whether this is a pointer or a tool beside checkpoints, kept with each commit but starting none."""
    return symlink or name.rpartition("/")[2] in _COMPANIONS


def is_log(path: str) -> bool:
    """Whether a file is a record of training rather than its state; tables and texts are, unless a unit holds them."""
    parts = path.split("/")
    name = parts[-1].lower()
    if name.startswith("events.out.tfevents") or name.endswith(".log"):
        return True
    if _lies_with_logs(parts[:-1]):
        return True
    return name.endswith(_LOG_SUFFIXES) and _unit_directory(parts[:-1]) is None


def is_mark(name: str) -> bool:
    """Whether a file says by being there that what it is named after is not finished."""
    return name.endswith(_UNFINISHED)


def mark_of(unit: Unit) -> str:
    """The path of the mark that lies beside `unit` until it is finished, if its writer makes one."""
    name = unit.name
    for ending in _NEMO_ENDINGS:
        name = name.removesuffix(ending)
    return name + _UNFINISHED


def goes_on(path: str) -> bool:
    """Whether a unit's member may change after the commit and be no new version of it: a log, but no model card."""
    return path != CARD and is_log(path)


def is_step_like(name: str) -> bool:
    """Whether a name carries a training step's number, as `checkpoint-500`, `epoch=3.ckpt` or `10` do."""
    return _STEP_LIKE.fullmatch(name) is not None and _VERSION.fullmatch(name) is None


def is_set(unit: Unit) -> bool:
    """Whether a flat unit can be more than one file: the ranks of one save, or an index and its shards."""
    name = unit.name.rpartition("/")[2]
    return unit.shape is Shape.FLAT and (_RANK.search(name) is not None or name.endswith(_INDEX_SUFFIXES))


class UnitRules:
    """The rules that say which file belongs to which unit.

    `globs` come first: a path, or the topmost directory above it, that matches one of them is the unit. `*` and `?`
    stay within one part of a path, `**` stands for any number of directories.
    """

    def __init__(self, globs: Sequence[str] = ()) -> None:
        self._globs = tuple(parts for parts in map(_parts_of, globs) if parts)
        # Each save asks the same of the same path several times, while the program waits.
        self.unit_of = lru_cache(_REMEMBERED)(self._unit_of)
        self.member_of = lru_cache(_REMEMBERED)(self._member_of)

    def _unit_of(self, path: str, *, symlink: bool = False) -> Unit | None:
        """The unit that the closed file at `path` starts or adds to; None: it starts nothing."""
        parts = path.split("/")
        if symlink or not path or any(map(is_temporary, parts)):
            return None
        chosen = self._chosen(parts)
        if chosen is not None:
            return chosen
        if len(parts) == 1 and _in_hugging_face_set(path):
            return ROOT_UNIT
        if is_log(path) or is_companion(parts[-1]):
            return None
        return _unit_directory(parts[:-1]) or _flat_unit(parts)

    def _member_of(self, path: str, *, symlink: bool = False) -> Unit | None:
        """The unit that the file at `path` is part of, even if it starts none: a log, link or temporary name inside."""
        started = self.unit_of(path, symlink=symlink)
        if started is not None:
            return started
        parts = path.split("/")
        if len(parts) == 1:
            return ROOT_UNIT if path == CARD or _in_hugging_face_set(path) else None
        unit = self._chosen(parts[:-1], directories=True) or _unit_directory(parts[:-1])
        # What lies above the unit must not be temporary or a log's: then nothing could have started it.
        above = unit.name.split("/") if unit is not None else []
        return None if any(map(is_temporary, above)) or _lies_with_logs(above) else unit

    def flat_members(self, unit: Unit, names: Iterable[str]) -> list[str]:
        """Which of the file names in the flat unit's directory belong to it: itself, its ranks, its shards; sorted."""
        head = f"{unit.prefix}/" if unit.prefix else ""
        return sorted(name for name in names if self.unit_of(head + name) == unit)

    def _chosen(self, parts: Sequence[str], *, directories: bool = False) -> Unit | None:
        """The topmost path in `parts` that a glob names; the last part is a file unless `directories`."""
        depth = min((depth for glob in self._globs if (depth := _depth_of(parts, glob))), default=0)
        if not depth:
            return None
        flat = depth == len(parts) and not directories
        return Unit("/".join(parts[:depth]), Shape.FLAT if flat else Shape.DIRECTORY)


def _parts_of(glob: str) -> tuple[str, ...]:
    """The parts of a glob, of `**` after `**` one."""
    parts = [part for part in glob.split("/") if part]
    return tuple(part for part, before in zip(parts, ["", *parts], strict=False) if (part, before) != ("**", "**"))


def _depth_of(parts: Sequence[str], glob: Sequence[str]) -> int:
    """How many of `parts` it takes for `glob` to fit; 0: none do. Every part is looked at once, whatever the glob."""
    places = _with_empty({0}, glob)  # in the glob, all that the parts so far may have come to
    for depth, part in enumerate(parts, 1):
        fitting = {place for place in places if place < len(glob) and _part_fits(part, glob[place])}
        places = _with_empty({place + (glob[place] != "**") for place in fitting}, glob)
        if len(glob) in places:
            return depth
    return 0


def _with_empty(places: set[int], glob: Sequence[str]) -> set[int]:
    """`places`, and those behind each `**` that stands for nothing."""
    found = set(places)
    for place in sorted(places):
        while place < len(glob) and glob[place] == "**":
            place += 1
            found.add(place)
    return found


def _part_fits(part: str, glob: str) -> bool:
    return glob == "**" or fnmatchcase(part, glob)


def _in_hugging_face_set(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _HUGGING_FACE_SET)


def _is_container(name: str) -> bool:
    return name.lower() in _CONTAINERS or _VERSION.fullmatch(name) is not None


def _lies_with_logs(directories: Sequence[str]) -> bool:
    names = [name.lower() for name in directories]
    return any(name in _LOG_DIRECTORIES for name in names) and _saves_depth(names) == 0


def _saves_depth(names: Sequence[str]) -> int:
    """How deep the topmost directory of saves below a directory of logs lies; 0: there is none."""
    logs = [depth for depth, name in enumerate(names) if name in _LOG_DIRECTORIES]
    if not logs or names[logs[0]] not in _SAVES_IN:
        return 0
    return next((depth for depth, name in enumerate(names, 1) if depth > logs[0] + 1 and name in _SAVES), 0)


def _unit_directory(directories: Sequence[str]) -> Unit | None:
    """The directory unit for a file below `directories`; None where such a file stands alone (root, container)."""
    depth = _unit_depth(directories)
    return Unit("/".join(directories[:depth]), Shape.DIRECTORY) if depth else None


def _unit_depth(directories: Sequence[str]) -> int:
    for depth, name in enumerate(directories, 1):
        if is_step_like(name):
            return depth
    saves = _saves_depth([name.lower() for name in directories])
    container = next((depth for depth, name in enumerate(directories) if _is_container(name)), saves - 1)
    if container < 0:
        return min(1, len(directories))
    below = container
    while below < len(directories) and (_is_container(directories[below]) or below < saves):
        below += 1
    return below + 1 if below < len(directories) else 0


def _flat_unit(parts: Sequence[str]) -> Unit:
    return Unit("/".join([*parts[:-1], _name_of_set(parts[-1])]), Shape.FLAT)


def _name_of_set(name: str) -> str:
    """The name under which a file's ranks and shards come together: rank 0's, or the index's."""
    if name.endswith((".distcp", ".metadata")):
        return ".metadata"
    name = _RANK.sub(r"rank\g<1>0", name)
    if shard := _NUMBERED_SHARD.fullmatch(name):
        return f"{shard['stem']}{shard['suffix']}.index.json"
    # epoch_00005.weights.h5 is a save of its own, model_00005.weights.h5 a shard of model.weights.json.
    if (shard := _KERAS_SHARD.fullmatch(name)) and not is_step_like(name):
        return f"{shard['stem']}.weights.json"
    return name
