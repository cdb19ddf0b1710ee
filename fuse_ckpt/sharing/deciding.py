"""What follows from the parts that are there. Pure: the same parts give the same decision, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from blake3 import blake3
from msgspec import Struct

from fuse_ckpt.model import Kind, Metadata

from . import keys
from .values import Decision, GroupState, Part, PartFile, PartRef, Standing, Union, Verdict

NOTES_MAX = 20  # of all parts together
SHOWN_MAX = 5  # missing ranks that are named


class Missing(Struct, frozen=True):
    """The parts of these ranks are not there yet. `nodes` is 0 where there is no part to tell."""

    nodes: int
    ranks: tuple[int, ...]


def decide(parts: Mapping[int, tuple[Part, str]]) -> Decision | Missing:
    """COMMIT where the parts (by rank; each with its object's digest) are all there and fit together; ABORT, with the
    reason, where they contradict each other; else what is missing."""
    if not parts:
        return Missing(0, ())
    found = [part for _, (part, _) in sorted(parts.items())]
    contradiction = _contradiction(found)
    if contradiction is not None:
        return aborted(found[0].job, found[0].group, contradiction)
    missing = tuple(rank for rank in range(found[0].nodes) if rank not in parts)
    if missing:
        return Missing(found[0].nodes, missing)
    clash = _clash(found) or _lack(found)
    if clash is not None:
        return aborted(found[0].job, found[0].group, clash)
    return _committed(found, [digest for _, (_, digest) in sorted(parts.items())])


def aborted(job: str, group: str, reason: str, by: str = "", at_ns: int = 0) -> Decision:
    """The decision that a group never will be a checkpoint."""
    return Decision(Verdict.ABORT, job, group, reason=reason, by=by, at_ns=at_ns)


def union_of(decision: Decision, parts: Sequence[Part]) -> Union:
    """The files of all parts as one directory; where ranks differ about a path, the lowest one's counts."""
    ordered = sorted(parts, key=lambda part: part.rank)
    files, overlaps = _merged([part.files for part in ordered])
    companions, more = _merged([part.companions for part in ordered])
    return Union(decision, files, companions, tuple(sorted({*overlaps, *more})))


def state_of(standing: Standing) -> str:
    """In words: "partial 3/4 (missing rank 2)", "replicated", "aborted", "deleted", "absent"."""
    if standing.state is not GroupState.PARTIAL or not standing.nodes:
        return str(standing.state)
    missing = [rank for rank in range(standing.nodes) if rank not in standing.present]
    shown = ", ".join(str(rank) for rank in missing[:SHOWN_MAX]) + (", …" if len(missing) > SHOWN_MAX else "")
    tally = f"{len(standing.present)}/{standing.nodes}"
    return f"partial {tally} (missing rank{'s' if len(missing) > 1 else ''} {shown})" if missing else f"partial {tally}"


def _contradiction(parts: Sequence[Part]) -> str | None:
    """In what the parts, complete or not, contradict each other."""
    first = parts[0]
    for part in parts[1:]:
        if part.nodes != first.nodes:
            return f"rank {part.rank} says that there are {part.nodes} nodes, rank {first.rank} says {first.nodes}"
        if part.shape is not first.shape:
            return f"rank {part.rank} wrote a {part.shape} checkpoint, rank {first.rank} a {first.shape} one"
    return None


def _clash(parts: Sequence[Part]) -> str | None:
    """Which path is a directory to one rank and none to another: no directory could hold both."""
    for files in ([part.files for part in parts], [part.companions for part in parts]):
        leaves = {file.path: rank for rank, one in enumerate(files) for file in one if file.kind is not Kind.DIRECTORY}
        for rank, one in enumerate(files):
            for file in one:
                above = next((path for path in _directories(file) if path in leaves), None)
                if above is not None:
                    return f"{above!r} is a directory to rank {rank}, and none to rank {leaves[above]}"
    return None


def _lack(parts: Sequence[Part]) -> str | None:
    """What a part's files say that another wrote, and none did."""
    if not any(part.awaits for part in parts):
        return None
    sizes = {file.path: file.size for file in _merged([part.files for part in parts])[0]}
    for part in parts:
        for path, size in sorted(part.awaits.items()):
            if path not in sizes:
                return f"rank {part.rank} has files that need {path!r}, which no rank has written"
            if sizes[path] < size:
                return f"rank {part.rank} says that {path!r} has {size} bytes, it has {sizes[path]}"
    return None


def _directories(file: PartFile) -> list[str]:
    """The paths that are directories, if the file is there."""
    names = file.path.split("/")
    count = len(names) if file.kind is Kind.DIRECTORY else len(names) - 1
    return ["/".join(names[: end + 1]) for end in range(count)]


def _merged(ranks: Iterable[Sequence[PartFile]]) -> tuple[tuple[PartFile, ...], tuple[str, ...]]:
    """One directory's files, by path, and the paths that ranks do not agree about."""
    found: dict[str, PartFile] = {}
    overlaps = set()
    for files in ranks:
        for file in files:
            first = found.setdefault(file.path, file)
            if (first.kind, first.digest, first.target) != (file.kind, file.digest, file.target):
                overlaps.add(file.path)
    return tuple(found[path] for path in sorted(found)), tuple(sorted(overlaps))


def _committed(parts: Sequence[Part], digests: Sequence[str]) -> Decision:
    first = parts[0]
    files, _ = _merged([part.files for part in parts])
    sealed_ns = max(part.sealed_ns for part in parts)
    return Decision(
        Verdict.COMMIT,
        first.job,
        first.group,
        id=first.local if len(parts) == 1 else _id(first.group, sealed_ns, digests),
        name=first.name,
        shape=first.shape,
        generation=first.generation,
        attempt=first.attempt,
        nodes=first.nodes,
        created_ns=max(part.created_ns for part in parts),
        sealed_ns=sealed_ns,
        size=sum(file.size for file in files),
        files=_count(files),
        metadata=_said([part.metadata for part in parts]),
        parts=tuple(_ref(part, digest) for part, digest in zip(parts, digests, strict=True)),
        borrowed=tuple(sorted({group for part in parts for group in borrowed(part)})),
        parent=next((part.parent for part in parts if part.parent is not None), None),
        run=next((part.run for part in parts if part.run is not None), None),
    )


def borrowed(part: Part) -> set[str]:
    """The earlier groups whose data objects a part names."""
    return {group for group, _, _ in map(keys.source_of, named_keys(part))} - {part.group}


def named_keys(part: Part) -> set[str]:
    """The keys of the data that a part consists of."""
    return {file.key for files in (part.files, part.companions) for file in files if file.key}


def _ref(part: Part, digest: str) -> PartRef:
    return PartRef(part.rank, part.node, part.local, digest, sum(file.size for file in part.files), _count(part.files))


def _count(files: Sequence[PartFile]) -> int:
    return sum(file.kind is Kind.FILE for file in files)


def _said(all_said: Sequence[Metadata]) -> Metadata:
    """What the parts say together: of each thing what the lowest rank says that says anything."""
    notes = dict.fromkeys(note for said in all_said for note in said.notes)

    def first(name: str) -> object:
        return next((value for said in all_said if (value := getattr(said, name)) is not None), None)

    chosen = {name: first(name) for name in Metadata.__struct_fields__}
    for name in ("inference_ready", "resumable", "weights"):
        chosen[name] = any(getattr(said, name) for said in all_said)
    chosen["notes"] = tuple(notes)[:NOTES_MAX]
    return Metadata(**chosen)  # type: ignore[arg-type]


def _id(group: str, sealed_ns: int, digests: Sequence[str]) -> str:
    """The UUIDv7 of a checkpoint of several nodes: the last seal's millisecond, the rest from what it consists of."""
    rest = int.from_bytes(blake3("\n".join([group, *digests]).encode()).digest(length=10), "big")
    milliseconds = sealed_ns // 10**6 & (1 << 48) - 1
    random_a, random_b = rest >> 62 & 0xFFF, rest & (1 << 62) - 1
    return str(UUID(int=milliseconds << 80 | 7 << 76 | random_a << 64 | 0b10 << 62 | random_b))
