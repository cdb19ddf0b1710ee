"""What the help of each command shows of its use: (line, what it does), by the words of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Examples = Sequence[tuple[str, str]]

EXAMPLES: Mapping[str, Examples] = {
    "training run": (
        ("fuse-ckpt training run digits -- python train.py", "save to $FLEXAI_OUTPUT_CHECKPOINT_DIR"),
        ("fuse-ckpt training run digits-2 -C digits:best -- python train.py", "a new job from the best one"),
        (
            "fuse-ckpt training run digits --restart -C digits:latest --if-any -- python train.py",
            "the same line for the first start and every other",
        ),
    ),
    "training checkpoints": (
        ("fuse-ckpt training checkpoints digits", "what can be used"),
        ("fuse-ckpt training checkpoints digits --all --wide", "what is pending or failed, too"),
        ("fuse-ckpt training checkpoints digits --json | jq -r '.[-1].id'", "the newest one's id"),
    ),
    "training list": (("fuse-ckpt training list", "all jobs, and how they stand"),),
    "training inspect": (
        ("fuse-ckpt training inspect digits", "its runs: command, revision, host, how they ended"),
        ("fuse-ckpt training inspect digits --json | jq -r .runtime.status", "how the newest one stands"),
    ),
    "checkpoint list": (
        ("fuse-ckpt checkpoint list --job digits --sort eval-loss --limit 3", "the three best ones"),
        ("fuse-ckpt checkpoint list --name 'checkpoint-*' --status failed", "of all jobs"),
    ),
    "checkpoint inspect": (
        ("fuse-ckpt checkpoint inspect digits:latest", "everything, with files and digests"),
        ("fuse-ckpt checkpoint inspect f2c7e114 --json | jq .status.status", "by the last 8 characters of its id"),
    ),
    "checkpoint fetch": (
        ("fuse-ckpt checkpoint fetch digits:best --destination best", "all its files into ./best"),
        ("fuse-ckpt checkpoint fetch digits/checkpoint-500 --include '*.json'", "some, into ./checkpoint-500"),
    ),
    "checkpoint pull": (("fuse-ckpt checkpoint pull digits:best --destination best", "all its files into ./best"),),
    "checkpoint delete": (
        ("fuse-ckpt checkpoint delete f2c7e114 811d71a0", "asks first"),
        ("fuse-ckpt checkpoint delete digits/ckpt.pt@1 --dry-run", "only says what it would do"),
    ),
    "checkpoint wait": (
        ("fuse-ckpt checkpoint wait digits/checkpoint-500", "prints its id once it is there"),
        ("fuse-ckpt checkpoint wait digits:latest --timeout 600 && python evaluate.py", "the first that can be used"),
    ),
    "checkpoint watch": (
        ("fuse-ckpt checkpoint watch digits | jq -c '{event, name, step}'", "what happens, as it happens"),
        (
            "fuse-ckpt checkpoint watch digits --until-end --exec 'python evaluate.py {path} > results/{id}.json'",
            "evaluate each one while training goes on",
        ),
    ),
    "checkpoint lineage": (
        ("fuse-ckpt checkpoint lineage digits:best", "which runs led to it, and what came of it"),
        ("fuse-ckpt checkpoint lineage digits:best --json | jq -r '.runs[].provenance.revision'", "of which sources"),
    ),
    "checkpoint plot": (
        ("fuse-ckpt checkpoint plot digits-2", "with the steps of what it was resumed from"),
        ("fuse-ckpt checkpoint plot digits other --output loss.svg", "both, as a picture"),
    ),
    "completion": (
        ('eval "$(fuse-ckpt completion bash)"', "in ~/.bashrc"),
        ('eval "$(fuse-ckpt completion zsh)"', "in ~/.zshrc, after compinit"),
        ("fuse-ckpt completion fish > ~/.config/fish/completions/fuse-ckpt.fish", "once"),
    ),
    "mount": (
        ('eval "$(fuse-ckpt mount digits /mnt/out)" && python train.py', "a job without `training run`"),
        ("fuse-ckpt mount digits /mnt/out --input digits:latest", "and an input to resume from"),
    ),
    "umount": (("fuse-ckpt umount /mnt/out", "commits what is pending first"),),
    "browse": (("fuse-ckpt browse /mnt/all && ls /mnt/all/digits/by-name", "everything, read-only"),),
    "stats": (("fuse-ckpt stats", "data path, commits, what is pending"),),
    "doctor": (("fuse-ckpt doctor", "what is missing, and how to get it"),),
}


def epilog(words: str, exit_codes: str) -> str:
    """What stands below the options of the command `words`: its examples, and what it exits with."""
    shown = EXAMPLES.get(words, ())
    lines = [text for line, what in shown for text in (f"  # {what}", f"  {line}")]
    # "\b" keeps click from filling a paragraph.
    return "\n".join([*(["\b", f"Example{'s' * (len(shown) > 1)}:", *lines, ""] if shown else []), exit_codes])
