"""The program: its options before the command, and how everything that goes wrong is said in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.exceptions import NoArgsIsHelpError

from fuse_ckpt.cli import completion, examples, formats
from fuse_ckpt.cli.cataloguing import catalog
from fuse_ckpt.cli.checkpoint import checkpoint
from fuse_ckpt.cli.contents import diff, show
from fuse_ckpt.cli.doctor import doctor
from fuse_ckpt.cli.following import wait, watch
from fuse_ckpt.cli.indexing import index
from fuse_ckpt.cli.lineage import lineage
from fuse_ckpt.cli.mounting import browse, mount, umount
from fuse_ckpt.cli.plotting import plot
from fuse_ckpt.cli.rules import GivenPath
from fuse_ckpt.cli.scanning import scan
from fuse_ckpt.cli.settings import Settings, absolute
from fuse_ckpt.cli.statistics import stats
from fuse_ckpt.cli.storage import storage
from fuse_ckpt.cli.training import training
from fuse_ckpt.cli.verifying import verify
from fuse_ckpt.errors import FuseCkptError

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 corrupt,"
    " 5 busy (leased, pinned, locked, mounted, still bound)."
)
_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


@click.group("fuse-ckpt", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--store", type=GivenPath(), metavar="DIR", help="The store; else FUSE_CKPT_STORE says.")
@click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of a bug.")
@click.version_option(package_name="fuse-ckpt")
@click.pass_obj
def program(settings: Settings, store: Path | None, verbose: bool) -> None:
    """Keep every checkpoint that training saves, list them, and resume from any of them.

    The store is at ${XDG_DATA_HOME:-~/.local/share}/fuse-ckpt unless --store or FUSE_CKPT_STORE says otherwise.
    """
    settings.verbose = verbose
    if store is not None:
        settings.store = absolute(store)
    if verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="fuse-ckpt: %(message)s")


for _command in (
    training,
    checkpoint,
    storage,
    catalog,
    mount,
    umount,
    browse,
    stats,
    doctor,
    index,
    completion.completion,
):
    program.add_command(_command)
for _command in (show, diff, scan, verify, wait, watch, lineage, plot):
    checkpoint.add_command(_command)


def _add_epilogs(command: click.Command, words: str = "") -> None:
    """Examples and exit codes; a command whose exit codes are its own has them as its epilog already."""
    command.epilog = examples.epilog(words, command.epilog or EXIT_CODES)
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            _add_epilogs(inner, f"{words} {name}".strip())


_add_epilogs(program)
completion.attach(program)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program (on `sys.argv` unless arguments are given) and return its exit code; it prints all there is."""
    for stream in (sys.stdout, sys.stderr):
        # A locale without "│", or a name that is no UTF-8, must not turn a listing into a traceback.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    settings = Settings.from_environment(os.environ)
    if completion.VARIABLE in os.environ:
        completion.register()
    try:
        code = program.main(
            None if arguments is None else list(arguments), prog_name="fuse-ckpt", standalone_mode=False, obj=settings
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has gone; Python's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _explain(error, settings)
    return code if isinstance(code, int) else 0


def _explain(error: Exception, settings: Settings) -> int:
    """Say in one line on standard error what went wrong; return the exit code."""
    if isinstance(error, click.Abort):
        return _INTERRUPTED
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        return _complain(_one_line(error), error.exit_code)
    if isinstance(error, FuseCkptError):
        return _complain(str(error), error.exit_code)
    if settings.verbose:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError) and error.strerror:
        return _complain(formats.system_error(error), 1)
    hint = "" if settings.verbose else " (run with -v for the traceback)"
    return _complain(f"This is a bug in fuse-ckpt: {type(error).__name__}: {error}{hint}", 1)


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message} (see {context.command_path} --help)"


def _complain(line: str, code: int) -> int:
    click.echo(formats.visible(line), err=True)
    return code
