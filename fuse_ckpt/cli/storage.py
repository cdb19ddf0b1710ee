"""`fuse-ckpt storage …`: ways to object stores, by name."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import click

from fuse_ckpt.cli import access, formats, render, replicating
from fuse_ckpt.cli.resumable import patience_option
from fuse_ckpt.cli.rules import GivenPath
from fuse_ckpt.cli.settings import Settings, absolute

if TYPE_CHECKING:
    from fuse_ckpt.model import Connection
    from fuse_ckpt.transfer import Place, Probed

Record = dict[str, object]

_PROVIDERS = ("s3", "gcs", "azure", "r2", "minio", "file")
_COLUMNS = {
    "NAME": "name",
    "PROVIDER": "provider",
    "ENDPOINT": "endpoint",
    "BUCKET": "bucket",
    "REGION": "region",
    "CREDENTIALS": "credentialsFile",
    "SHARED USE": "createsOnce",
    "ATTACHED": "attached",
}


@click.group("storage", short_help="Object stores that checkpoints go to.")
def storage() -> None:
    """Connections to object stores, for checkpoint export and push. A connection holds no credentials."""


@storage.command("create", short_help="Name one.")
@click.argument("name")
@click.option("--provider", type=click.Choice(_PROVIDERS), required=True, help="What it speaks; file: a directory.")
@click.option("--endpoint", metavar="URL", help="Its address; s3, gcs and azure know their own.")
@click.option("--bucket", metavar="B", help="The bucket (container) to test with; a path says its own.")
@click.option("--region", metavar="R", help="Its region; else AWS_REGION, or us-east-1.")
@click.option("--root", type=GivenPath(), metavar="DIR", help="With --provider file: its directory.")
@click.option("--credentials-file", type=GivenPath(), metavar="F", help="With mode 0600; not copied, only named.")
@click.option("--no-check", is_flag=True, help="Do not try whether it answers.")
@click.option("--exclusive", is_flag=True, help="One machine alone will replicate to it.")
@click.pass_obj
def create(
    settings: Settings,
    name: str,
    provider: str,
    endpoint: str | None,
    bucket: str | None,
    region: str | None,
    root: Path | None,
    credentials_file: Path | None,
    no_check: bool,
    exclusive: bool,
) -> None:
    """Give an object store a NAME, and try whether it answers.

    Credentials are looked for each time, where the provider's own tools look: in the environment (AWS_ACCESS_KEY_ID,
    GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, …), AWS's profiles, the machine's own role; or in
    --credentials-file, as lines KEY=VALUE, as AWS's own file, or Google's JSON.
    """
    from fuse_ckpt import transfer
    from fuse_ckpt.model import Connection, Provider
    from fuse_ckpt.store import Store

    connection = Connection(
        name=transfer.check_connection_name(name), provider=Provider(provider), created_ns=time.time_ns(),
        endpoint=endpoint, bucket=bucket, region=region, root=None if root is None else str(absolute(root)),
        credentials_file=None if credentials_file is None else str(absolute(credentials_file)), exclusive=exclusive,
    )  # fmt: skip
    transfer.check_connection(connection)
    connection, said = (connection, "not tried") if no_check else _reach(connection, settings)
    with Store.open(settings.store) as store:
        store.add_connection(connection)
    click.echo(formats.visible(f"Created storage connection {name} ({_leads_to(connection)}): {said}"))


def _reach(connection: Connection, settings: Settings) -> tuple[Connection, str]:
    """Try whether it answers, and whether machines can share it; what that says. Raises StorageFailed."""
    from msgspec.structs import replace

    from fuse_ckpt import transfer
    from fuse_ckpt.errors import BucketMissing, PermissionRefused, UsageError

    patience = min(transfer.PATIENCE, 10.0)
    if connection.bucket is not None or connection.root is not None:
        remote = transfer.Remote(connection, connection.bucket or "", settings.environment, patience)
        remote.reach()
        try:
            remote.refuse_ours("", settings.store, "--root")
        except UsageError:  # what is written there would become a checkpoint; whoever wants to write there is told
            return connection, "it answers"
        try:
            probed = transfer.probe(remote, transfer.Place(connection.bucket or "", ""))
        except PermissionRefused:
            return connection, "it answers, and does not let us write"
        found = replace(connection, creates_once=probed.creates_once, probed_ns=time.time_ns())
        return found, f"it answers; {_sharing(probed, connection)}"
    # No bucket to ask about: one that is not there tells as well that the endpoint answers and knows the credentials.
    with suppress(BucketMissing, PermissionRefused):
        transfer.Remote(connection, f"fuse-ckpt-{uuid4().hex}", settings.environment, patience).reach()
    return connection, "it answers; no --bucket was given to try"


def _sharing(probed: Probed, connection: Connection) -> str:
    if not probed.reads_parts:
        return "it sends whole objects where parts are asked for: only for checkpoint export --no-read-back"
    if probed.creates_once:
        return "several machines can share it"
    alone = "as was asked for" if connection.exclusive else "storage attach --exclusive"
    return f"of 16 that made one object {probed.winners} were told they had: for one machine's use alone ({alone})"


def _leads_to(connection: Connection) -> str:
    to = connection.root or connection.endpoint
    return f"{connection.provider} at {to}" if to else str(connection.provider)


@storage.command("list", short_help="List them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, by name.")
@click.pass_obj
def list_connections(settings: Settings, as_json: bool) -> None:
    """List the connections: where they lead, and where their credentials are looked for."""
    with access.existing_store(settings) as store:
        records = [] if store is None else [_record(each) for each in store.connections()]
    if as_json:
        click.echo(render.to_json(records))
        return
    rows = [[formats.cell(item[key]) for key in _COLUMNS.values()] for item in records]
    render.show_table("List of Storage Connections", list(_COLUMNS), rows, colour=settings.colour)


def _record(connection: Connection) -> Record:
    return {
        "name": connection.name,
        "provider": str(connection.provider),
        "endpoint": connection.root or connection.endpoint,
        "bucket": connection.bucket,
        "region": connection.region,
        "credentialsFile": connection.credentials_file,
        "createsOnce": connection.creates_once,
        "exclusive": connection.exclusive,
        "attached": connection.attached,
        "createdAt": formats.timestamp(connection.created_ns),
        "probedAt": None if connection.probed_ns is None else formats.timestamp(connection.probed_ns),
    }


@storage.command("probe", short_help="Find out what one can do.")
@click.argument("name")
@click.option("--path", metavar="PATH", help="BUCKET/PREFIX to try it at; default: the connection's bucket.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@patience_option
@click.pass_obj
def probe(settings: Settings, name: str, path: str | None, as_json: bool, patience: float) -> None:
    """Write, read, list and remove a few small objects, and see whether a conditional create has one winner.

    Several machines can share an object store only if it has: created twice, then by 16 at once.
    """
    from msgspec.structs import replace

    from fuse_ckpt import transfer
    from fuse_ckpt.errors import UnknownConnection

    with access.existing_store(settings) as store:
        if store is None:
            raise UnknownConnection(name)
        known = store.connection(name)
        place = _probed_place(known, path)
        probed = transfer.probe(transfer.Remote(known, place.bucket, settings.environment, patience), place)
        store.replace_connection(replace(known, creates_once=probed.creates_once, probed_ns=time.time_ns()))
    document = _probed(name, probed)
    click.echo(render.to_json(document) if as_json else render.to_yaml(document))


def _probed_place(known: Connection, path: str | None) -> Place:
    from fuse_ckpt import transfer

    if path is not None:
        return transfer.place_of(known, path, "--path")
    if known.root is not None:
        return transfer.Place("", "")
    if known.bucket is None:
        raise click.UsageError(f"Connection {known.name} names no bucket: give --path BUCKET or --path BUCKET/PREFIX.")
    return transfer.Place(known.bucket, "")


def _probed(name: str, probed: Probed) -> Record:
    return {
        "storage": name,
        "path": str(probed.place),
        "readsBack": probed.reads_back,
        "readsParts": probed.reads_parts,
        "removes": probed.removes,
        "secondCreateSucceeded": probed.second_create,
        "winnersOf16": probed.winners,
        "sharedUse": probed.creates_once,
    }


@storage.command("delete", short_help="Forget one.")
@click.argument("name")
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Forget a connection. What lies in the object store stays there."""
    from fuse_ckpt.errors import Busy, UnknownConnection

    with access.existing_store(settings) as store:
        if store is None:
            raise UnknownConnection(name)
        if store.connection(name).attached is not None:
            raise Busy(f"{name} is attached: storage detach {name} first.")
        store.drop_connection(name)
    click.echo(f"Deleted storage connection {formats.visible(name)}")


for _command in (replicating.attach, replicating.detach, replicating.sync):
    storage.add_command(_command)
