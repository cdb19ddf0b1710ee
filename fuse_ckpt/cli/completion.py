"""`completion`: what a shell needs to complete commands, options, jobs and references, and what it is answered.

The scripts are click's, but for bash: readline breaks words at ":" and "@", which references are full of.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.types import StringParamType

from fuse_ckpt.cli.settings import Settings, absolute

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from fuse_ckpt.store import Store

PROGRAM = "fuse-ckpt"
VARIABLE = "_FUSE_CKPT_COMPLETE"  # what click calls it
_MOST = 200  # candidates; more are no help to a person, and slow
_ID_PART = re.compile(r"[0-9a-f-]{4,}")

# $1 is the program as it was typed. Readline replaces what follows the last of its break characters: that much is cut
# off each answer.
_BASH = r"""%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" type value
    local word="${line##*[[:space:]]}"
    [[ $word != -*=* ]] || word="${word#*=}"
    local cut="${word%%"${word##*["$COMP_WORDBREAKS"]}"}"
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
        dir) compopt -o dirnames ;;
        file) compopt -o default ;;
        plain)
            [[ $value != */ ]] || compopt -o nospace
            printf -v value %%q "${value#"$cut"}"
            COMPREPLY+=("$value")
            ;;
        esac
    done < <(COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@click.command("completion", short_help="Print a script that completes commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands, options, jobs and references."""
    from click.shell_completion import get_completion_class

    register()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source().rstrip("\n"))


def register() -> None:
    """Let click answer bash in our way."""
    from click.shell_completion import BashComplete, add_completion_class, split_arg_string

    class Bash(BashComplete):
        source_template = _BASH

        def get_completion_args(self) -> tuple[list[str], str]:
            line = os.environ["COMP_LINE"]
            words = split_arg_string(line)
            incomplete = "" if line[-1:].isspace() or len(words) < 2 else words.pop()
            return words[1:], incomplete

    add_completion_class(Bash)


class _Named(StringParamType):
    """Text that a shell can complete from what is in the store."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        candidates = self._candidates(ctx, incomplete)
        fitting = (text for text in candidates if text.startswith(incomplete) and text.isprintable())
        return [CompletionItem(text) for text in islice(dict.fromkeys(fitting), _MOST)]

    def _candidates(self, ctx: click.Context, incomplete: str) -> Iterator[str]:
        root = ctx.find_root()
        settings: Settings = root.obj
        chosen = root.params.get("store")  # the program itself is not run: its options are not in the settings yet
        path = absolute(Path(chosen)) if chosen is not None else settings.store
        if (path / "format").exists():
            from fuse_ckpt.errors import FuseCkptError
            from fuse_ckpt.store import Store

            try:
                with Store.open(path, create=False) as store:
                    yield from self.of(store, incomplete)
            except (FuseCkptError, OSError):  # nobody wants to read of it while typing
                return

    def of(self, store: Store, incomplete: str) -> Iterable[str]:
        """What may be meant, the likeliest first."""
        raise NotImplementedError


class JobName(_Named):
    """The name of a job."""

    def of(self, store: Store, incomplete: str) -> Iterable[str]:
        return (job.name for job in store.jobs())


class TagName(_Named):
    """A tag that somebody has given."""

    def of(self, store: Store, incomplete: str) -> Iterable[str]:
        return store.tags()


class ConnectionName(_Named):
    """The name of an object store."""

    def of(self, store: Store, incomplete: str) -> Iterable[str]:
        return (connection.name for connection in store.connections())


class Reference(_Named):
    """A REF: tags and pushed checkpoints, and step by step, first the job, then its checkpoints."""

    def of(self, store: Store, incomplete: str) -> Iterable[str]:
        job, slash, _ = incomplete.partition("/")
        if slash:
            yield from self._names(store, job, versions="@" in incomplete)
            yield from (one.name for one in store.checkpoints(""))  # a pushed one may have a "/" in its name
            return
        fitting = [one.name for one in store.jobs() if f"{one.name}:".startswith(incomplete.partition(":")[0])]
        yield from (f"{job}:{word}" for job in fitting for word in ("latest", "best"))
        if len(fitting) == 1 and ":" not in incomplete:
            yield from self._names(store, fitting[0], versions=False)
        else:
            yield from (f"{job}/" for job in fitting)
        yield from store.tags()
        yield from (one.name for one in store.checkpoints(""))
        if _ID_PART.fullmatch(incomplete):
            yield from store.ids(incomplete, _MOST)

    @staticmethod
    def _names(store: Store, job: str, *, versions: bool) -> Iterable[str]:
        newest = reversed(store.checkpoints(job))
        return dict.fromkeys(f"{job}/{one.name}{f'@{one.ordinal}' if versions else ''}" for one in newest)


def attach(command: click.Command, words: str = "") -> None:
    """Let every JOB, REF and TAG of `command`, and of the commands in it, be completed, and object stores' names."""
    for param in command.params:
        if param.type is click.STRING:
            param.type = _kind(param, words) or param.type
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            attach(inner, f"{words} {name}".strip())


def _kind(param: click.Parameter, words: str) -> click.ParamType[Any] | None:
    if param.name in ("connection", "replicate") or (words in _WITH_CONNECTION and isinstance(param, click.Argument)):
        return ConnectionName()
    shown = getattr(param, "metavar", None) or param.name or ""
    kind = _KINDS.get(shown.removesuffix("...").upper())
    return None if kind is None else kind()


_WITH_CONNECTION = ("storage probe", "storage delete", "storage attach", "storage detach", "storage sync")
_KINDS: dict[str, type[_Named]] = {"JOB": JobName, "REF": Reference, "TAG": TagName}
