"""`fuse-ckpt training run`: a training command under the filesystem, in FlexAI's grammar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fuse_ckpt.cli import access, formats, listing
from fuse_ckpt.cli.grouping import grouping_options
from fuse_ckpt.cli.mounting import data_path_option, durability_option
from fuse_ckpt.cli.replicating import node_options, replicating_options
from fuse_ckpt.cli.rules import keeping_options
from fuse_ckpt.cli.settings import OUTPUT_VARIABLE, Settings, absolute
from fuse_ckpt.errors import FuseCkptError, NotStarted, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from fuse_ckpt.session import Finished, MountOptions

EXIT_CODES = (
    "Exit codes: COMMAND's own; 128 + n where signal n killed it; 126 COMMAND cannot be executed, 127 not found; "
    "125 this program failed before COMMAND began; 2 usage."
)
_MISSING = "COMMAND is missing: write it after --, as in -- python train.py"
_COMMAND_KEY = f"{__name__}.command"
_IGNORED_KEY = f"{__name__}.ignored"

# FlexAI's flags for its platform: where the sources, data, machines and secrets come from. Here they are all at hand.
_PLATFORM_VALUES = (
    ("--repository-url", "-u"),
    ("--repository-revision", "-b"),
    ("--requirements-path", "-q"),
    ("--dataset", "-D"),
    ("--accels", "-a"),
    ("--secret", "-S"),
    ("--build-secret",),
    ("--affinity",),
    ("--device-arch", "-d"),
    ("--runtime", "-r"),
)
_PLATFORM_FLAGS = (("--no-queue",),)


class _CommandAfterDashes(click.Command):
    """Everything after the first `--` is the training command and is never looked at for options of ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" not in args:
            return self._without_command(ctx, args)
        at = args.index("--")
        ctx.meta[_COMMAND_KEY] = args[at + 1 :]
        if not args[at + 1 :] and not ctx.resilient_parsing:
            raise click.UsageError(_MISSING, ctx)
        return super().parse_args(ctx, args[:at])

    def _without_command(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)  # --help ends here
        except click.UsageError as error:
            raise click.UsageError(f"{error.format_message()} {_MISSING}", ctx) from error
        if not ctx.resilient_parsing:
            raise click.UsageError(_MISSING, ctx)
        return rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if _COMMAND_KEY not in ctx.meta:
            return super().shell_complete(ctx, incomplete)
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


def _ignored(ctx: click.Context, param: click.Parameter, value: object) -> object:
    # "no value" is an empty tuple, or False: nothing else of these is false.
    if value and not ctx.resilient_parsing:
        ctx.meta.setdefault(_IGNORED_KEY, []).append(param.opts[0])
    return value


def _platform_flags(command: Callable[..., int]) -> Callable[..., int]:
    for names in _PLATFORM_VALUES:
        option = click.option(*names, multiple=True, hidden=True, expose_value=False, callback=_ignored)
        command = option(command)
    for names in _PLATFORM_FLAGS:
        command = click.option(*names, is_flag=True, hidden=True, expose_value=False, callback=_ignored)(command)
    return command


def _pairs(ctx: click.Context, param: click.Parameter, values: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not of the form K=V.", ctx, param)
        pairs[key] = content
    return pairs


@click.command("run", cls=_CommandAfterDashes, short_help="Run a training command.", epilog=EXIT_CODES)
@click.argument("job")
@click.option(
    "-C", "--checkpoint", "reference", metavar="REF", help="Resume from it: its files are the input directory."
)
@click.option("--if-any", is_flag=True, help="With -C: start without input where there is no such checkpoint yet.")
@click.option("--force", is_flag=True, help="With -C: take a failed checkpoint, too.")
@click.option("--restart", is_flag=True, help="Continue a job that exists, in the output directory that it left.")
@click.option("--node", default="0", show_default=True, metavar="N", help="The NODE that its checkpoints carry.")
@click.option(
    "-E", "--env", "variables", multiple=True, callback=_pairs, metavar="K=V", help="Set for COMMAND; may be repeated."
)
@grouping_options
@data_path_option
@durability_option
@keeping_options
@replicating_options
@click.option("--prefetch", is_flag=True, help="With -C: fetch all of it from its object store before COMMAND begins.")
@click.option("--no-drain", is_flag=True, help="With --replicate: do not wait at the end until all is copied.")
@_platform_flags
@click.pass_context
def run(
    ctx: click.Context,
    /,
    job: str,
    reference: str | None,
    variables: dict[str, str],
    no_drain: bool,
    **chosen: Any,
) -> int:
    """Run COMMAND and keep every checkpoint that it saves.

    COMMAND finds its output directory in FLEXAI_OUTPUT_CHECKPOINT_DIR and, with -C, the checkpoint's files in
    FLEXAI_INPUT_CHECKPOINT_DIR, read-only. Flags of FlexAI's platform (--dataset, --accels, …) mean nothing here.
    """
    asked = {name: chosen.pop(name) for name in ("if_any", "force", "restart", "prefetch")}
    if reference is None and (asked["if_any"] or asked["force"]):
        raise click.UsageError("--if-any and --force say more about -C: give a checkpoint with -C REF.", ctx)
    settings = ctx.ensure_object(Settings)
    environment = {**settings.environment, **variables}
    chosen = _as_node(ctx, settings, chosen)
    _mention_ignored(ctx.meta.get(_IGNORED_KEY, []))
    with _nothing_started():
        from fuse_ckpt import session
        from fuse_ckpt.model import check_job_name

        place = environment.get(OUTPUT_VARIABLE)
        chosen |= {"mountpoint": absolute(Path(place)) if place else None, "verbose": settings.verbose}
        options = session.MountOptions(store=settings.store, job=check_job_name(job), **chosen)
        finished = session.run_training(
            options,
            ctx.meta[_COMMAND_KEY],
            checkpoint=reference,
            environment=environment,
            report=_say,
            drain=not no_drain,
            **asked,
        )
    _sum_up(settings, options, finished)
    return finished.exit_code


def _as_node(ctx: click.Context, settings: Settings, chosen: dict[str, Any]) -> dict[str, Any]:
    """`chosen` as the node that this is. Without --replicate, --nodes is a flag of FlexAI's platform."""
    if chosen["replicate"] is None:
        for flag in ("nodes", "rank", "attempt"):
            if chosen[flag] is not None:
                ctx.meta.setdefault(_IGNORED_KEY, []).append(f"--{flag}")
            chosen[flag] = None
    chosen = node_options(settings.environment, chosen)
    if chosen["nodes"] > 1 and ctx.get_parameter_source("node") is ParameterSource.DEFAULT:
        chosen["node"] = str(chosen["rank"])
    return chosen


@contextlib.contextmanager
def _nothing_started() -> Iterator[None]:
    """Our own exit codes could be COMMAND's: whatever keeps it from starting is 125, but a usage error stays one."""
    try:
        yield
    except (UsageError, NotStarted):
        raise
    except FuseCkptError as error:
        raise NotStarted(str(error)) from error
    except OSError as error:
        raise NotStarted(formats.system_error(error)) from error


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # whoever read our messages has gone; the command has not
        click.echo(f"fuse-ckpt: {formats.visible(line)}", err=True)


def _mention_ignored(flags: list[str]) -> None:
    if flags:
        _say(f"{', '.join(dict.fromkeys(flags))}: accepted for FlexAI's sake; COMMAND runs here, as it is")


def _sum_up(settings: Settings, options: MountOptions, finished: Finished) -> None:
    """Standard output is COMMAND's: the table goes to standard error."""
    for problem in finished.problems:
        _say(problem)
    with access.existing_store(settings) as store:
        saved = [] if store is None else store.checkpoints(options.job)
    if records := [listing.record(each) for each in saved if each.run == finished.run.id]:
        with contextlib.suppress(OSError):
            listing.show(listing.JOB_TITLE, listing.COLUMNS, records, colour=settings.colour, stream=sys.stderr)
    else:
        _say(f"no checkpoint was captured in ${OUTPUT_VARIABLE} ({finished.mountpoint})")
