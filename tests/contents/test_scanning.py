from __future__ import annotations

import argparse
import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import _weights_only_unpickler

from fuse_ckpt.contents import scan
from fuse_ckpt.contents.allowed import WEIGHTS
from fuse_ckpt.contents.scanning import scan_file
from fuse_ckpt.model import Scan
from tests.contents.samples import (
    EVIL,
    Checkpoint,
    call,
    legacy,
    name,
    pickled,
    saved,
    text,
    torch_legacy,
    torch_zip,
    window,
    zipped,
)


def scanned(data: bytes, path: str = "model.pt") -> Scan:
    return scan_file(window(data), path)


def test_the_list_is_torchs_own() -> None:
    assert set(_weights_only_unpickler._get_allowed_globals()) == WEIGHTS


# -- what runs when it is loaded

RUNS = {
    "os.system": call("os", "system", "true"),
    "builtins.exec": call("builtins", "exec", "pass"),
    "builtins.eval of Python 2": call("__builtin__", "eval", "1"),
    "runpy": call("runpy", "_run_code", "pass"),
    "timeit": call("timeit", "timeit", "pass"),
    "subprocess": call("subprocess", "check_output", "true"),
    "pip": call("pip", "main", "--version"),
    "torch's collect_env": call("torch.utils.collect_env", "run", "true"),
    "torch's inductor": call("torch._inductor.codecache", "compile_file", "x"),
    "numpy's f2py": call("numpy.f2py.crackfortran", "getlincoef", "1"),
    "webbrowser": call("webbrowser", "open", "x"),
    "an import alone": name("antigravity", "nothing"),
    "a name with dots": name("torch", "serialization.os.system"),
    "an allowed module's other name": name("torch._utils", "_import_dotted_name"),
    "torch.load itself": call("torch", "load", "x"),
    "cloudpickle": call("cloudpickle.cloudpickle", "_make_function", "x"),
}
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "zip": torch_zip,
    "legacy": torch_legacy,
    "compressed zip": lambda data: torch_zip(data, compression=zipfile.ZIP_DEFLATED),
    "plain": lambda data: data,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", RUNS)
def test_what_runs_something_is_never_safe(what: str, form: str) -> None:
    found = scanned(FORMS[form](pickled(RUNS[what])))
    assert not found.safe
    assert len(found.others) == 1


def test_it_tells_what_is_called_and_what_only_imported() -> None:
    found = scanned(pickled(name("torch", "nothing") + b"0" + call("os", "system", "true")))
    assert (found.others, found.called) == (("torch.nothing", "os.system"), ("os.system",))


OS, SYSTEM = b"\x8c\x02os", b"\x8c\x06system"
HIDDEN = {
    "STACK_GLOBAL": OS + SYSTEM + b"\x93",
    "names from the memo": OS + b"\x940" + SYSTEM + b"\x940h\x00h\x01\x93",
    "names from the memo by large numbers": OS + b"r\x00\x00\x01\x000" + SYSTEM + b"j\x00\x00\x01\x00" + b"2\x93",
    "names in text": b"S'os'\np7\n0S'system'\np8\n0g7\ng8\n\x93",
    "names in escapes": b"S'\\x6f\\x73'\nV\\u0073ystem\n\x93",
    "names of eight bytes of length": b"\x8d" + struct.pack("<Q", 2) + b"os" + SYSTEM + b"\x93",
    "names swapped by POP and marks": OS + b"(" + SYSTEM + b"1" + SYSTEM + b"\x93",
    "a name made by rot13": OS
    + b"0"
    + name("_codecs", "encode")
    + text("bf")
    + text("rot13")
    + b"\x86R"
    + SYSTEM
    + b"\x93",
    "a name put together by an allowed call": name("builtins", "bytearray") + b")R" + SYSTEM + b"\x93",
    "INST": b"(S'true'\nios\nsystem\n",
    "OBJ": b"(cos\nsystem\nS'true'\no",
    "NEWOBJ": name("subprocess", "Popen") + b")\x81",
    "NEWOBJ_EX": name("subprocess", "Popen") + b")}\x92",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "a call of what a call returned": name("torch", "device") + text("cpu") + b"\x85R" + b")R",
    "a call of a memoized function": name("os", "system") + b"q\x05" + b"0h\x05" + text("true") + b"\x85R",
    "state for an allowed class": name("torch", "Tensor") + b"}S'__reduce__'\nNsb",
    "something the loader is asked for": b"("
    + text("module")
    + name("torch", "Tensor")
    + text("x")
    + text("y")
    + b"tQ",
    "something the loader is asked for by name": b"Pos.system\n",
    "a pickle in bytes": b"C" + bytes([len(EVIL)]) + EVIL,
    "a pickle in text": b"S'" + b"".join(b"\\x%02x" % byte for byte in EVIL) + b"'\n",
    "a list that reduces": b"]" + name("os", "system") + b"a",
    "a key": b"}" + name("os", "system") + b"Ns",
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_hides_is_found(what: str) -> None:
    for protocol in (2, 4):
        found = scanned(torch_zip(pickled(HIDDEN[what], protocol)))
        assert not found.safe
        assert found.others or found.oddities


def test_text_forms_have_no_mark_and_are_found() -> None:
    for data in (b"cos\nsystem\n(S'true'\ntR.", b"(S'true'\nios\nsystem\n.", b"(dp0\nS'a'\np1\ncos\nsystem\np2\ns."):
        assert scanned(data, "state.pkl").others == ("os.system",)


def tarred(kind: str) -> bytes:
    """A tar file as torch's loader looks for one before all else, with a name that begins no pickle."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("\u00ff")
        member.size = len(EVIL)
        archive.addfile(member, io.BytesIO(EVIL))
    data = bytearray(made.getvalue())
    if kind == "v7":
        data[257:265] = bytes(8)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


FILES = {
    "two pickles": pickle.dumps({}) + EVIL,
    "a pickle behind plain bytes": pickle.dumps({}) + b"\0\0\0" + EVIL,
    "a pickle behind the tensors": legacy({"w": torch.ones(2)}) + EVIL,
    "a pickle in front of a zip": EVIL + torch_zip(pickled(b"N")),
    "a zip in a zip": torch_zip(pickled(b"N"), {"archive/extra/policy.pth": torch_zip(EVIL)}),
    "a zip in a zip in a zip": zipped([("a.zip", zipped([("b.pt", torch_zip(EVIL))]))]),
    "another pickle of the zip": torch_zip(pickled(b"N"), {"archive/constants.pkl": EVIL}),
    "a pickle of another directory": torch_zip(pickled(b"N"), {"other/data.pkl": EVIL}),
    "the same name in capitals": torch_zip(pickled(b"N"), {"archive/DATA.PKL": EVIL}),
    "gzip": gzip.compress(EVIL),
    "zlib": zlib.compress(EVIL),
    "bz2": bz2.compress(EVIL),
    "xz": lzma.compress(EVIL),
    "a text pickle in gzip": gzip.compress(b"cos\nsystem\n(S'true'\ntR."),
    "a frame that is longer than its pickle": b"\x80\x04\x95\x20" + bytes(7) + b"N.C" + bytes([90]) + bytes(28) + EVIL,
    "tar": tarred("ustar"),
    "tar of the oldest kind": tarred("v7"),
    "a zip at the end": b"\xff" + torch_zip(EVIL),
    "a broken pickle": EVIL[:-1],
    "a pickle that ends in nothing": EVIL[:-1] + b"\xff\xff",
}


@pytest.mark.parametrize("what", FILES)
def test_no_place_in_a_file_hides_it(what: str) -> None:
    found = scanned(FILES[what], "model.pkl")
    assert not found.safe
    assert "os.system" in found.others or found.doubts


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, bz2.compress, lzma.compress])
def test_a_broken_compression_is_not_known(pack: Callable[[bytes], bytes]) -> None:
    whole = pack(pickle.dumps(list(range(1000))))
    assert scanned(whole, "x.pkl").safe
    for data in (whole[:-20], whole[:20] + bytes(20) + whole[40:], whole + b"more", pack(EVIL) + pack(EVIL)):
        found = scanned(data, "x.pkl")
        assert found.doubts, data


@pytest.mark.parametrize("path", ["a.nemo", "a.tar", "b.pkl.gz", "c.tgz", "d.npz", "e.zip"])
def test_files_of_files_are_at_least_not_known(path: str) -> None:
    data = {"a": tarred("ustar"), "b": FILES["a text pickle in gzip"], "c": gzip.compress(tarred("v7"))}
    assert not scanned(data.get(path[0], b"x" + torch_zip(EVIL)), path).safe


@pytest.mark.parametrize(
    "path", ["model.bin", "model.pth", "last.ckpt", "model.JOBLIB", "a/b.pickle", "weights", "x.txt"]
)
def test_binary_pickles_are_found_by_their_bytes(path: str) -> None:
    for data in (EVIL, torch_zip(EVIL), torch_legacy(EVIL)):
        assert scanned(data, path).others == ("os.system",)


def test_arrays_of_objects_are_pickles() -> None:
    made = io.BytesIO()
    np.save(made, np.zeros(1))
    header = made.getvalue()[:128].replace(b"'<f8'", b"'|O' ")
    assert scanned(header + EVIL, "a.npy").others == ("os.system",)
    assert scanned(zipped([("a.npy", header + EVIL)], zipfile.ZIP_DEFLATED), "a.npz").others == ("os.system",)


# -- zip files that can be read in two ways


def duplicate() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped([("a/data.pkl", EVIL), ("a/data.pkl", pickled(b"N"))])


def other_header() -> bytes:
    """The directory says data.pkl of what calls itself data.pkX."""
    data = torch_zip(pickled(b"N"))
    at = data.index(b"archive/data.pkl")
    return data[: at + 15] + b"X" + data[at + 16 :]


def hidden_member() -> bytes:
    """A member that only its own header names, between two others."""
    first, second = zipped([("a/data.pkl", pickled(b"N"))]), zipped([("a/data.pkl", EVIL)])
    end = second.index(b"PK\x01\x02")
    directory = first[first.index(b"PK\x01\x02") :]
    data = first[: first.index(b"PK\x01\x02")] + second[:end]
    return data + directory[:-6] + struct.pack("<LH", len(data), 0)


def two_ends() -> bytes:
    """Behind the first end, as its comment, is a second directory with an end."""
    good = zipped([("a/data.pkl", pickled(b"N"))])
    bad = zipped([("a/data.pkl", EVIL)])
    return good[:-2] + struct.pack("<H", len(bad)) + bad


def shifted() -> bytes:
    return b"PK\x03\x04 and more" + torch_zip(pickled(b"N"))


def script() -> bytes:
    made = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), made)
    return made.getvalue()


@pytest.mark.parametrize("make", [duplicate, other_header, hidden_member, two_ends, shifted, script])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_zip_that_can_be_read_in_two_ways_is_not_safe(make: Callable[[], bytes]) -> None:
    found = scanned(make())
    assert not found.safe
    assert found.oddities or "broken" in found.doubts[0]


def test_a_zip_that_torch_did_not_write_is_not_known() -> None:
    found = scanned(zipped([("data", b"{}"), ("policy.pth", saved({"w": torch.ones(1)}))]), "agent.zip")
    assert (found.others, found.pickles) == ((), 1)
    assert found.doubts


# -- what is harmless


def optimizer_state() -> object:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "lr": schedule.state_dict()}


def with_attributes() -> object:
    tensor = torch.ones(2)
    tensor.note = "kept"
    return {"w": tensor, "p": torch.nn.Parameter(torch.ones(2))}


VALUES: dict[str, Callable[[], object]] = {
    "a training state": optimizer_state,
    "tensors with attributes": with_attributes,
    "sparse tensors": lambda: [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()],
    "a quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "half precision": lambda: torch.ones(2, dtype=torch.bfloat16),
    "a meta tensor": lambda: torch.ones(2, device="meta"),
    "bytes": lambda: b"\x80\x02}.",
    "plain values": lambda: {"a": [1, 2.5, None, True, "x", (1, 2), {1, 2}, 1 + 2j, 2**70, -1], 3: Counter("aab")},
    "torch's own": lambda: [torch.float32, torch.device("cpu"), torch.Size([1]), bytearray(b"x"), OrderedDict(b=1)],
    "numpy's": lambda: {"rng": np.arange(3)},
    "a namespace": lambda: argparse.Namespace(lr=1),
    "a module": lambda: torch.nn.Linear(1, 1),
    "a function": lambda: print,
    "an exception": lambda: ValueError("x"),
    "a path": lambda: Path("x"),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_safe_is_what_weights_only_accepts(value: str, write: Callable[[object], bytes]) -> None:
    data = write(VALUES[value]())
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        accepted = False
    else:
        accepted = True
    found = scanned(data)
    assert found.safe == accepted
    assert found.pickles
    assert not found.doubts


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_safe_in_any_protocol(protocol: int) -> None:
    value = {"a": [1, 2.5, None, True, "x" * 300, "ü", b"y", (1,), -(2**40)], "b": {"c": 2**2000}}
    found = scanned(pickle.dumps(value, protocol), "x.pkl")
    assert found.safe
    assert found.pickles == 1


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("config.json", b'{"a": 1}'),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        ("raw.bin", b"\x00\x01\x02\x03" * 100),
        ("empty.pt", b""),
        ("weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
        ("image.png", b"\x89PNG\r\n\x1a\n"),
        ("notes.txt", b"cos\nsystem\n"),
        ("model.gguf", b"GGUF" + bytes(50)),
    ],
)
def test_what_holds_no_pickle_is_safe(path: str, data: bytes) -> None:
    found = scanned(data, path)
    assert found.safe
    assert not found.pickles


def test_an_array_without_objects_is_safe() -> None:
    made = io.BytesIO()
    np.savez_compressed(made, a=np.ones(3), b=np.array(["x"]))
    assert scanned(made.getvalue(), "a.npz").safe


# -- distributed checkpoints


def distributed(directory: Path, value: object) -> dict[str, bytes]:
    dcp.save({"w": torch.ones(4), "more": value}, checkpoint_id=str(directory))
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_part_of_a_shard_is_scanned(tmp_path: Path) -> None:
    good = Checkpoint(distributed(tmp_path / "good", {"lr": 0.5}))
    assert all(one.scan.safe for one in scan(good.entries, good.blobs, {}))
    bad = Checkpoint(distributed(tmp_path / "bad", argparse.Namespace(lr=1)))
    found = {one.path: one.scan for one in scan(bad.entries, bad.blobs, {})}
    assert found[".metadata"].safe
    assert found["__0_0.distcp"].others == ("argparse.Namespace",)


def test_the_records_of_a_metadata_are_allowed_there_alone() -> None:
    data = pickled(name("torch.distributed.checkpoint.metadata", "Metadata") + b")\x81")
    assert scanned(data, "dir/.metadata").safe
    assert scanned(data, "dir/model.pt").others == ("torch.distributed.checkpoint.metadata.Metadata",)


# -- what is kept


def test_what_was_kept_is_not_read_again() -> None:
    checkpoint = Checkpoint({"a.pt": EVIL, "b.json": b"{}"})
    first = list(scan(checkpoint.entries, checkpoint.blobs, {}))
    assert all(one.fresh for one in first)
    checkpoint.read.clear()
    again = list(scan(checkpoint.entries, checkpoint.blobs, {one.digest: one.scan for one in first}))
    assert [one.scan for one in again] == [one.scan for one in first]
    assert not any(one.fresh for one in again)
    assert checkpoint.read == []


def test_what_was_read_as_another_kind_of_file_is_read_again() -> None:
    harmless = Checkpoint({"notes.txt": b"cos\nsystem\n(S'true'\ntR."})
    kept = {one.digest: one.scan for one in scan(harmless.entries, harmless.blobs, {})}
    assert all(one.safe for one in kept.values())
    pickles = Checkpoint({"notes.pkl": b"cos\nsystem\n(S'true'\ntR."})
    [found] = scan(pickles.entries, pickles.blobs, kept)
    assert found.scan.others == ("os.system",)
