from __future__ import annotations

import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save as save_safetensors

from fuse_ckpt.contents import Contents, Tensor, collecting, look, scan, summed
from tests.contents.samples import Checkpoint, legacy, pickled, saved, tensor, torch_zip, zipped

Write = Callable[[object], bytes]


def looked(files: Mapping[str, bytes]) -> Contents:
    checkpoint = Checkpoint(files)
    return look(checkpoint.entries, checkpoint.blobs)


def named(contents: Contents) -> dict[str, Tensor]:
    assert contents.problems == ()
    return {one.name: one for one in contents.tensors}


def described(contents: Contents) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (one.dtype, one.shape) for name, one in named(contents).items()}


both = pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])


# -- torch


@both
def test_tensors_are_named_by_the_way_to_them(write: Write) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "list": [torch.ones(1), {"x": torch.ones(2)}],
    }
    found = described(looked({"a.pt": write(state)}))
    assert found["model.0.weight"] == ("float32", (2, 3))
    assert found["model.1.num_batches_tracked"] == ("int64", ())
    assert found["optimizer.state.0.exp_avg"] == ("float32", (2, 3))
    assert found["list.0"] == ("float32", (1,))
    assert found["list.1.x"] == ("float32", (2,))
    assert len(found) == 7 + 4 * 3 + 2


@both
@pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning")
def test_every_type_has_its_name_and_its_bytes(write: Write) -> None:
    types = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16",
             "int8", "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "complex32"]  # fmt: skip
    tensors = {one: torch.zeros(3, 2, dtype=torch.float32).to(getattr(torch, one)) for one in types}
    found = named(looked({"a.pt": write(tensors)}))
    for kind, value in tensors.items():
        assert (found[kind].dtype, found[kind].size, found[kind].fault) == (kind, value.nbytes, "")


def test_a_whole_module_has_the_names_of_its_state() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    assert set(described(looked({"a.pt": saved(model)}))) == set(model.state_dict())


def test_parameters_subclasses_and_parts_of_sparse_ones_are_there() -> None:
    tensor = torch.ones(2)
    tensor.note = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = torch.eye(3).to_sparse_csr()
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    state = {
        "p": torch.nn.Parameter(torch.ones(2)),
        "s": torch.eye(3).to_sparse(),
        "r": rows,
        "a": tensor,
        "q": quantized,
    }
    found = described(looked({"a.pt": saved(state)}))
    assert found["p"] == found["a"] == ("float32", (2,))
    assert found["q"] == ("qint8", (3,))
    assert (found["s.indices"], found["s.values"]) == (("int64", (2, 3)), ("float32", (3,)))
    assert set(found) >= {"r.crow_indices", "r.col_indices", "r.values"}


def test_a_meta_tensor_has_no_elements_to_read() -> None:
    assert named(looked({"a.pt": saved(torch.ones(2, device="meta"))}))[""].fault


@both
def test_a_view_lies_in_its_storage(write: Write) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    found = named(looked({"a.pt": write({"base": base, "turned": base.T, "corner": base[2:, 3:]})}))
    [whole], [turned], [corner] = (found[one].pieces for one in ("base", "turned", "corner"))
    assert (turned.at, turned.shape, turned.strides) == (whole.at, (6, 4), (1, 6))
    assert (corner.at, corner.strides) == (whole.at + (2 * 6 + 3) * 4, (6, 1))


def test_tied_weights_are_two_names_and_counted_once() -> None:
    tied = torch.ones(10)
    contents = looked({"a.pt": saved({"embedding": tied, "head": tied})})
    assert len(contents.tensors) == 2
    assert (summed(contents.tensors).all.tensors, summed(contents.tensors).parameters) == (1, 10)


def test_parameters_are_what_is_no_state_of_training() -> None:
    state = {"model": {"w": torch.ones(10)}, "optimizer": {"m": torch.ones(7)}, "lr_scheduler": torch.ones(1)}
    files = {
        "a.pt": saved(state),
        "optimizer.bin": saved({"0": torch.ones(5)}),
        "rng_state_0.pth": saved(torch.ones(9)),
    }
    total = summed(looked(files).tensors)
    assert (total.parameters, total.all.elements) == (10, 32)
    assert total.by_type["float32"].size == 4 * 32


# -- other formats


def test_shards_of_an_index_are_one() -> None:
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    contents = looked({
        "model-00001-of-00002.safetensors": save_safetensors({"a": torch.ones(3, dtype=torch.bfloat16)}),
        "model-00002-of-00002.safetensors": save_safetensors({"b": torch.ones(2, 2)}, {"format": "pt", "shape": "x"}),
        "model.safetensors.index.json": json.dumps(index).encode(),
    })  # fmt: skip
    assert described(contents) == {"a": ("bfloat16", (3,)), "b": ("float32", (2, 2))}
    assert {tensor.group for tensor in contents.tensors} == {"model.safetensors"}
    assert [file.format for file in contents.files] == ["safetensors", "safetensors", ""]


def test_numpys_files() -> None:
    packed, plain, one = io.BytesIO(), io.BytesIO(), io.BytesIO()
    arrays = {"a": np.ones((2, 3)), "b": np.asfortranarray(np.ones((4, 5), ">f2")), "c": np.array(["text"])}
    np.savez_compressed(packed, **arrays)
    np.savez(plain, **arrays)
    np.save(one, np.ones(3, "u8"))
    contents = looked({"packed.npz": packed.getvalue(), "plain.npz": plain.getvalue(), "one.npy": one.getvalue()})
    assert [file.format for file in contents.files] == ["numpy npy", "numpy npz", "numpy npz"]
    found = {(tensor.group, tensor.name): tensor for tensor in contents.tensors}
    for group in ("packed.npz", "plain.npz"):
        assert found[group, "a"].pieces[0].strides == (3, 1)
        assert (found[group, "b"].dtype, found[group, "b"].pieces[0].strides) == ("float16", (1, 4))
        assert found[group, "c"].fault
    assert (found["one.npy", ""].dtype, found["one.npy", ""].shape) == ("uint64", (3,))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_distributed_checkpoint_is_read_by_its_metadata(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(4, 2), "opt": {"m": [torch.zeros(3), 7]}}, checkpoint_id=str(tmp_path / "dcp"))
    files = {f"step/{path.name}": path.read_bytes() for path in (tmp_path / "dcp").iterdir()}
    contents = looked(files)
    assert described(contents) == {"w": ("float32", (4, 2)), "opt.m.0": ("float32", (3,))}
    assert {tensor.files for tensor in contents.tensors} == {("step/__0_0.distcp",)}
    assert [file.format for file in contents.files] == ["distributed", "distributed"]
    without = looked({path: data for path, data in files.items() if path.endswith(".metadata")})
    assert all("chunk" in tensor.fault for tensor in without.tensors)


def test_files_of_other_kinds_are_listed_without_tensors() -> None:
    contents = looked({"config.json": b"{}", "x.pkl": pickled(b"N"), "y.zip": zipped([("a", b"")]), "none": b""})
    assert [file.format for file in contents.files] == ["", "", "pickle", "zip"]
    assert (contents.tensors, contents.problems) == ((), ())


# -- files that ask for too much, or are broken


def header(length: int, text: bytes = b"{}") -> bytes:
    return struct.pack("<Q", length) + text


def entry(dtype: str = "F32", shape: str = "[1]", offsets: str = "[0,4]") -> bytes:
    said = f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}'.encode()
    return header(len(said), said) + bytes(4)


@pytest.mark.parametrize(
    ("path", "data", "part", "corrupt"),
    [
        ("a.safetensors", header(2 << 30), "impossible length", True),
        ("a.safetensors", header(33 << 20, bytes(33 << 20)), "longer than 32 MiB", False),
        ("a.safetensors", header(2, b"[]"), "cannot be read", True),
        ("a.safetensors", header(60_000, b"[" * 60_000), "cannot be read", True),
        ("a.safetensors", header(60_001, b'{"a":' + b'{"a":' * 11_999 + b"1"), "cannot be read", True),
        ("a.safetensors", entry(shape="[-1]"), "cannot be read", True),
        ("a.safetensors", entry(shape=f"[{10**30}]"), "cannot be read", True),
        ("a.safetensors", b"", "cut off", True),
        ("a.pt", torch_zip(pickled(b"}"))[:-30], "cut off", True),
        ("a.pt", torch_zip(b"\x80\x02}"), "breaks off", True),
        ("a.pt", torch_zip(b"\x80\x02" + b"N0" * 1_500_001 + b"N."), "opcodes", False),
        ("a.pt", torch_zip(bytes(65 << 20), compression=zipfile.ZIP_DEFLATED), "68,157,440 bytes", False),
        ("a.pt", torch_zip(b"\x80\x02" + b"]" * 300 + b"a" * 299 + b"."), "nested more deeply", False),
        ("a.pt", legacy({"w": torch.ones(2)})[:-3], "cut off", True),
        ("dir/.metadata", pickled(b"}"), "no metadata", True),
        ("a.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30), "longer than 64 KiB", False),
        ("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000, "broken header", True),
        ("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"-" * 60_000, "broken header", True),
        ("m.safetensors.index.json", b"[" * 100_000, "no index", True),
    ],
)
def test_what_cannot_be_read_is_told(path: str, data: bytes, part: str, corrupt: bool) -> None:
    contents = looked({path: data, "good.safetensors": save_safetensors({"w": torch.ones(1)})})
    [problem] = contents.problems
    assert part in problem.what
    assert (problem.path, problem.corrupt) == (path, corrupt)
    assert contents.tensors[-1].name == "w"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (entry(offsets="[0,8]"), "beyond its file"),
        (entry(offsets="[4,0]"), "beyond its file"),
        (entry(offsets="[0,2]"), "another size"),
        (entry(dtype="F1"), "of a type"),
        (entry(shape=f"[{2**40}]"), "another size"),
    ],
)
def test_a_tensor_that_does_not_fit_its_file_is_listed_and_not_read(data: bytes, fault: str) -> None:
    [tensor] = looked({"a.safetensors": data}).tensors
    assert fault in tensor.fault
    assert tensor.pieces == ()


def test_a_tensor_that_reaches_beyond_its_storage_is_not_read() -> None:
    data = torch_zip(pickled(tensor([3], [1], 3)), {"archive/data/0": bytes(8)})
    [found] = looked({"a.pt": data}).tensors
    assert (found.shape, found.fault) == ((3,), "reaches beyond its storage")


def test_values_that_refer_to_each_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "VISITS_MAX", 10_000)
    laugh = b"]q\x00" + b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(90))
    [problem] = looked({"a.pt": torch_zip(pickled(laugh))}).problems
    assert "more often" in problem.what


@both
def test_a_mutilated_file_is_a_problem_or_not_and_never_an_error(write: Write) -> None:
    chosen = random.Random(2)
    files = {
        "a.pt": write({"a": torch.ones(3), "b": [torch.zeros(2, 2)]}),
        "b.safetensors": save_safetensors({"a": torch.ones(2)}),
    }
    for _ in range(150):
        for path, whole in files.items():
            data = bytearray(whole)
            for _ in range(chosen.randint(1, 6)):
                data[chosen.randrange(len(data))] = chosen.randrange(256)
            del data[chosen.randrange(len(data)) if chosen.random() < 0.2 else len(data) :]
            checkpoint = Checkpoint({path: bytes(data)})
            look(checkpoint.entries, checkpoint.blobs)
            assert list(scan(checkpoint.entries, checkpoint.blobs, {}))
