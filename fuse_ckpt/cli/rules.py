"""How paths, sizes, durations and retention policies are given, and the options that say what a job's mounts remove."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    Number = click.ParamType[int]
else:
    Number = click.ParamType  # before click 8.4 it takes no parameter

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:I?B)?", re.IGNORECASE)


class GivenPath(click.Path):
    """A pathlib.Path. What a script's unset variable leaves of one is refused: "" would be the working directory."""

    def __init__(self, **more: Any) -> None:
        super().__init__(path_type=Path, **more)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: give a path, or . for the working directory.", param, ctx)
        return super().convert(value, param, ctx)


class Bytes(Number):
    """`20GB`, `512M`, `1.5TiB` or a number of bytes, 1024-based."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no size: write bytes, or a number and KB, MB, GB or TB, as in 20GB.", param, ctx)
        return int(float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " "))


class Duration(Number):
    """`90s`, `30m`, `12h`, `7d`, `2w` or 0, as nanoseconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from fuse_ckpt.store import parse_duration

        return value if isinstance(value, int) else parse_duration(str(value))


def checked_policy(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The policy as it was written, once it is known to be one."""
    if value is not None and not ctx.resilient_parsing:
        from fuse_ckpt.store import NO_POLICY, parse_policy

        if value != NO_POLICY or param.name != "retain":
            parse_policy(value)
    return value


def keeping_options(command: F) -> F:
    """`--retain`, `--trash-ttl` and `--min-free`, recorded with the job."""
    options = (
        click.option(
            "--retain", metavar="POLICY", callback=checked_policy,
            help="Move what it does not keep to the trash, after each commit; e.g. keep-last=3,keep-every=1000,"
            "keep-best=2:eval_loss,keep-within=7d. Recorded with the job; none takes it back.",
        ),
        click.option(
            "--trash-ttl", "trash_ttl_ns", type=Duration(), metavar="D",
            help="How long its deleted checkpoints can be restored: 12h, 7d (the default), 0. Recorded with the job.",
        ),
        click.option(
            "--min-free", type=Bytes(), metavar="BYTES",
            help="Free the trash, then the oldest checkpoints, while the disk has less room than this: 20GB. Never the "
            "newest whole one, nor what --retain keeps. Recorded with the job; 0 takes it back.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
