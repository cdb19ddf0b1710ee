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
        ("fuse-ckpt training run digits --replicate lake -- python train.py", "copied to an object store meanwhile"),
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
        (
            "fuse-ckpt checkpoint fetch digits/checkpoint-500 --include '*.safetensors' --include config.json",
            "some, into ./checkpoint-500",
        ),
    ),
    "checkpoint pull": (("fuse-ckpt checkpoint pull digits:best --destination best", "all its files into ./best"),),
    "checkpoint delete": (
        ("fuse-ckpt checkpoint delete f2c7e114 811d71a0", "asks first"),
        ("fuse-ckpt checkpoint delete digits/ckpt.pt@1 --dry-run", "only says what it would do"),
    ),
    "checkpoint commit": (
        ("fuse-ckpt checkpoint commit digits", "what is pending is finished: commit it now"),
        ("fuse-ckpt checkpoint commit digits/checkpoint-500", "this one alone"),
    ),
    "checkpoint promote": (("fuse-ckpt checkpoint promote digits/checkpoint-500", "whole, whatever made it failed"),),
    "checkpoint restore": (("fuse-ckpt checkpoint restore f2c7e114", "as long as list --status deleted shows it"),),
    "checkpoint tag": (
        ("fuse-ckpt checkpoint tag digits:best production", "then `production` means it"),
        ("fuse-ckpt checkpoint tag digits-2:best production --force", "and now another one"),
    ),
    "checkpoint untag": (("fuse-ckpt checkpoint untag production production", "the one that has it, and the tag"),),
    "checkpoint pin": (("fuse-ckpt checkpoint pin digits:best", "no policy removes it, and no delete"),),
    "checkpoint unpin": (("fuse-ckpt checkpoint unpin digits:best", "as before"),),
    "checkpoint gc": (
        ("fuse-ckpt checkpoint gc", "give back what has been in the trash long enough"),
        (
            "fuse-ckpt checkpoint gc --policy keep-last=3,keep-best=1:eval_loss --dry-run",
            "what a policy would keep and remove, and why",
        ),
        ("fuse-ckpt checkpoint gc --work", "and the working trees of jobs that have ended"),
    ),
    "checkpoint export": (
        (
            "fuse-ckpt checkpoint export digits:best --storage-provider s3 --destination-path models/digits",
            "plain objects, and a manifest",
        ),
    ),
    "checkpoint push": (
        ("fuse-ckpt checkpoint push base --file ./llama", "a directory of this machine"),
        (
            "fuse-ckpt checkpoint push base --storage-provider s3 --source-path models/llama",
            "what lies in an object store",
        ),
    ),
    "checkpoint show": (
        ("fuse-ckpt checkpoint show digits:latest", "what is in it"),
        ("fuse-ckpt checkpoint show digits:best --tensors --json | jq '.tensors[].name'", "each tensor"),
    ),
    "checkpoint diff": (
        ("fuse-ckpt checkpoint diff digits/checkpoint-500 digits/checkpoint-1000", "how far training has moved"),
        (
            "fuse-ckpt checkpoint diff digits:best digits:latest --json | jq '.tensors[] | select(.nan[1] > 0)'",
            "where it went wrong",
        ),
    ),
    "checkpoint scan": (
        ("fuse-ckpt checkpoint scan run-from-elsewhere && python evaluate.py", "load only what is safe to load"),
        (
            "fuse-ckpt checkpoint scan digits:latest --allow 'numpy.*' --json | jq '.files[].verdict'",
            "with what you know to be harmless",
        ),
    ),
    "checkpoint verify": (
        ("fuse-ckpt checkpoint verify digits:latest", "are its bytes what was written?"),
        ("fuse-ckpt checkpoint verify --all --from-disk", "everything, from the disk itself"),
    ),
    "storage create": (
        (
            "fuse-ckpt storage create s3 --provider s3 --bucket models --region eu-central-1",
            "credentials from the environment, a profile or the instance",
        ),
        (
            "fuse-ckpt storage create minio --provider minio --endpoint http://minio:9000 --credentials-file ~/.minio",
            "or from a file with mode 0600",
        ),
        ("fuse-ckpt storage create disk --provider file --root /mnt/archive", "a directory"),
    ),
    "storage list": (("fuse-ckpt storage list", "all connections, no secrets"),),
    "storage probe": (("fuse-ckpt storage probe s3", "can several machines share it?"),),
    "storage attach": (
        ("fuse-ckpt storage attach lake", "then: training run digits --replicate lake -- python train.py"),
        ("fuse-ckpt storage attach lake --path models/team-a", "not below models/fuse-ckpt, as by default"),
    ),
    "storage detach": (("fuse-ckpt storage detach lake", "what lies there stays"),),
    "storage sync": (
        ("fuse-ckpt storage sync lake", "what a run that was killed has left to copy"),
        ("fuse-ckpt storage sync lake --job digits", "also what it saved before it replicated"),
    ),
    "storage delete": (("fuse-ckpt storage delete s3", "the connection; its objects stay"),),
    "catalog sync": (
        ("fuse-ckpt catalog sync", "then: duckdb -c \"SELECT … FROM delta_scan('s3://models/fuse-ckpt/catalog')\""),
        ("fuse-ckpt catalog sync --rebuild", "where its files were lost"),
    ),
    "training delete": (("fuse-ckpt training delete digits --dry-run", "what goes, and what that frees"),),
    "training fetch": (("fuse-ckpt training fetch digits --destination logs", "what is in no checkpoint"),),
    "checkpoint wait": (
        ("fuse-ckpt checkpoint wait digits/checkpoint-500", "prints its id once it is there"),
        ("fuse-ckpt checkpoint wait digits/checkpoint-500 --status replicated", "once it is safe elsewhere"),
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
    "doctor": (
        ("fuse-ckpt doctor", "what is missing, and how to get it"),
        ("fuse-ckpt doctor --store --repair", "mend a store whose parts do not agree"),
    ),
    "index rebuild": (("fuse-ckpt index rebuild", "where the index is gone or damaged"),),
}


def epilog(words: str, exit_codes: str) -> str:
    """What stands below the options of the command `words`: its examples, and what it exits with."""
    shown = EXAMPLES.get(words, ())
    lines = [text for line, what in shown for text in (f"  # {what}", f"  {line}")]
    # "\b" keeps click from filling a paragraph.
    return "\n".join([*(["\b", f"Example{'s' * (len(shown) > 1)}:", *lines, ""] if shown else []), exit_codes])
