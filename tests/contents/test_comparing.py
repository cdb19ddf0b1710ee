from __future__ import annotations

import io
import json
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from fuse_ckpt.contents import Change, Comparison, TensorChange, compare
from fuse_ckpt.contents.arrays import boxes
from fuse_ckpt.contents.pairing import paired
from fuse_ckpt.contents.tallies import numbers
from fuse_ckpt.contents.tensors import extent, strides_of
from tests.contents.samples import Checkpoint, legacy, pickled, saved, tensor, torch_zip

Write = Callable[[object], bytes]
both = pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])


class Pair(Checkpoint):
    def __init__(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        first, second = Checkpoint(before), Checkpoint(after)
        self.data = first.data | second.data
        self.read = []
        self.compared = compare(first.entries, second.entries, self.blobs)


def compared(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Comparison:
    return Pair(before, after).compared


def changed(before: object, after: object, write: Write = saved) -> dict[str, TensorChange]:
    """The comparison of two values that are saved as they are."""
    result = compared({"a.pt": write(before)}, {"a.pt": write(after)})
    assert result.problems == ()
    return {tensor.name: tensor for tensor in result.tensors}


def one_changed(before: torch.Tensor, after: torch.Tensor, write: Write = saved) -> TensorChange:
    return changed({"w": before}, {"w": after}, write)["w"]


def expect(before: torch.Tensor, after: torch.Tensor, found: TensorChange) -> None:
    """Compare what was found with what torch says, in 64 bits."""
    first, second = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (before, after))
    finite = torch.isfinite(first) & torch.isfinite(second)
    apart = (second - first)[finite].abs()
    far = found.distance
    assert found.change is Change.CHANGED
    assert far is not None
    assert far.max_abs == pytest.approx(float(apart.max()) if apart.numel() else 0.0, rel=1e-12)
    base = float(torch.linalg.vector_norm(first[finite]))
    assert far.relative_l2 == (pytest.approx(float(torch.linalg.vector_norm(apart)) / base, rel=1e-9) if base else None)
    assert far.nan == (int(first.isnan().sum()), int(second.isnan().sum()))
    assert far.infinite == (int(first.isinf().sum()), int(second.isinf().sum()))


FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
          "float8_e5m2fnuz", "complex64", "complex128"]  # fmt: skip
INTEGERS = ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"]


# -- what is told of tensors


@both
def test_added_removed_changed_and_unchanged(write: Write) -> None:
    same = torch.ones(3)
    found = changed(
        {"same": same, "gone": same, "moved": same, "shape": torch.ones(2), "type": same},
        {"same": same.clone(), "moved": same + 0.5, "new": same, "shape": torch.ones(3), "type": same.half() * 2},
        write,
    )
    assert {name: one.change for name, one in found.items()} == {
        "same": Change.UNCHANGED, "gone": Change.REMOVED, "moved": Change.CHANGED, "new": Change.ADDED,
        "shape": Change.CHANGED, "type": Change.CHANGED,
    }  # fmt: skip
    assert found["moved"].distance is not None
    assert (found["moved"].distance.max_abs, found["moved"].distance.relative_l2) == (0.5, 0.5)
    assert (found["shape"].distance, found["shape"].note) == (None, "has another shape")
    assert found["type"].distance is not None
    assert (found["type"].distance.max_abs, found["type"].note) == (1.0, "is of another type")


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_of_every_width(dtype: str) -> None:
    torch.manual_seed(1)
    kind = getattr(torch, dtype)
    wide = torch.complex128 if kind.is_complex else torch.float64
    before, after = (torch.randn(7, 5, dtype=wide).to(kind) for _ in range(2))
    expect(before, after, one_changed(before, after))


@pytest.mark.parametrize("dtype", FLOATS)
def test_not_numbers_and_infinities_are_counted(dtype: str) -> None:
    kind = getattr(torch, dtype)
    values = [math.nan, math.nan, 1.0, 2.0, 3.0, -1.0] + [math.inf, -math.inf] * (
        "8_e4m3" not in dtype and "fnuz" not in dtype
    )
    before = torch.tensor(values, dtype=torch.float64).to(kind)
    after = before.flip(0) if kind.itemsize > 1 else before[list(range(len(values)))[::-1]]
    expect(before, after, one_changed(before, after))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_of_every_width(dtype: str) -> None:
    kind = np.dtype(dtype)
    low, high = (0, 1) if dtype == "bool" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    found = one_changed(torch.from_numpy(np.array([low, high], kind)), torch.from_numpy(np.array([high, low], kind)))
    assert found.distance is not None
    assert found.distance.max_abs == float(high - low)
    assert found.distance.nan == found.distance.infinite == (0, 0)


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_every_pattern_of_eight_bits_has_torchs_value(dtype: str) -> None:
    patterns = torch.arange(256).to(torch.uint8)
    theirs = patterns.view(getattr(torch, dtype)).to(torch.float32).numpy()
    np.testing.assert_array_equal(numbers(patterns.numpy(), dtype).astype("f4"), theirs)


def test_minus_zero_and_another_nan_are_changes_of_no_distance() -> None:
    found = one_changed(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
    assert (found.change, found.distance and found.distance.max_abs) == (Change.CHANGED, 0.0)


def test_from_zero_there_is_no_relative_distance_and_from_afar_no_overflow() -> None:
    found = one_changed(torch.zeros(3), torch.ones(3))
    assert found.distance is not None
    assert (found.distance.max_abs, found.distance.relative_l2) == (1.0, None)
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64)
    expect(torch.tensor([1.0]), torch.tensor([2.0]), one_changed(torch.tensor([1.0]), torch.tensor([2.0])))
    far = one_changed(huge, huge * 1.5).distance
    assert far is not None
    assert far.relative_l2 == pytest.approx(0.5)
    beyond = one_changed(huge * 1e8, huge * -1e8).distance
    assert beyond is not None
    assert beyond.relative_l2 is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_tensors_are_compared_by_their_integers_and_parameters() -> None:
    same, other = (torch.quantize_per_tensor(torch.ones(3), scale, 0, torch.qint8) for scale in (0.1, 0.5))
    scaled = torch.quantize_per_tensor(torch.ones(3) * 5, 0.5, 0, torch.qint8)
    assert one_changed(same, same.clone()).change is Change.UNCHANGED
    assert one_changed(same, other).change is Change.CHANGED
    found = one_changed(same, scaled)  # the same integers
    assert (found.change, found.note) == (Change.CHANGED, "is quantized otherwise")


# -- however they lie in their files


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "in rows": lambda t: t.contiguous(),
    "in columns": lambda t: t.mT.contiguous().mT,
    "every third": lambda t: torch.stack([t, t * 7, t * 9], -1).contiguous()[..., 0],
    "a corner of more": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 4))[..., 3:-4, 1:-2],
    "permuted": lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
}


@both
@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_strides_make_no_difference(write: Write, before: str, after: str) -> None:
    torch.manual_seed(2)
    value, other = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    first, second = LAYOUTS[before], LAYOUTS[after]
    assert one_changed(first(value), second(value), write).change is Change.UNCHANGED
    expect(value, other, one_changed(first(value), second(other), write))


def test_tensors_larger_than_a_box_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.contents.comparing.BOX", 7)
    monkeypatch.setattr("fuse_ckpt.contents.arrays.SPAN_MAX", 64)
    torch.manual_seed(3)
    value, other = torch.randn(6, 5, 4), torch.randn(6, 5, 4)
    for first in LAYOUTS.values():
        for second in LAYOUTS.values():
            assert one_changed(first(value), second(value)).change is Change.UNCHANGED
            expect(value, other, one_changed(first(value), second(other)))


def test_expanded_tensors_count_each_element() -> None:
    before, after = torch.tensor([[1.0], [math.nan]]).expand(2, 1000), torch.tensor([[3.0], [math.inf]]).expand(2, 1000)
    expect(before, after, one_changed(before, after))
    expect(before, after, one_changed(before, after.contiguous()))


def test_a_small_file_that_claims_any_size_is_not_compared() -> None:
    def claim(fill: float) -> bytes:
        opcodes = tensor([2**31 - 1, 2**31 - 1], [0, 0], 1)
        return torch_zip(pickled(opcodes), {"archive/data/0": struct.pack("<f", fill)})

    [found] = compared({"a.pt": claim(1)}, {"a.pt": claim(2)}).tensors
    assert found.before is not None
    assert found.before.count > 2**61
    assert found.distance is not None  # all of it is one element
    assert found.distance.max_abs == 1.0


def test_views_that_slide_over_few_elements_are_compared_only_so_often() -> None:
    for count, change in ((2000, Change.CHANGED), (3000, Change.UNKNOWN)):
        before, after = (
            torch.as_strided(torch.arange(6000.0) + more, (count, count), (1, 1)) for more in (0, 1)
        )  # fmt: skip
        assert one_changed(before, after).change is change


def test_scalars_and_empty_tensors() -> None:
    found = changed({"s": torch.tensor(1.5), "e": torch.ones(0, 3)}, {"s": torch.tensor(2.0), "e": torch.zeros(0, 3)})
    assert found["e"].change is Change.UNCHANGED
    expect(torch.tensor(1.5), torch.tensor(2.0), found["s"])


def test_big_endian_files_are_turned_round() -> None:
    made = io.BytesIO()
    np.savez(made, w=np.array([1.0, 2.0], ">f4"))
    little = io.BytesIO()
    np.savez(little, w=np.array([1.0, 2.0], "<f4"))
    assert compared({"a.npz": made.getvalue()}, {"a.npz": little.getvalue()}).tensors[0].change is Change.UNCHANGED
    files = (("<", b"little", 1), (">", b"big", 1), (">", b"big", 3))
    one, turned, other = (
        torch_zip(
            pickled(tensor([2], [1], 2)),
            {"archive/byteorder": order, "archive/data/0": struct.pack(f"{mark}2f", value, 2)},
        )
        for mark, order, value in files
    )
    assert compared({"a.pt": one}, {"a.pt": turned}).tensors[0].change is Change.UNCHANGED
    expect(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), compared({"a.pt": one}, {"a.pt": other}).tensors[0])


# -- other formats, and one against another


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_numpys_files(pack: Callable[..., None]) -> None:
    def made(**arrays: object) -> bytes:
        target = io.BytesIO()
        pack(target, **arrays)
        return target.getvalue()

    before = np.arange(600.0).reshape(20, 30)
    after: Any = before * 2
    found = compared(
        {"a.npz": made(w=before, f=np.asfortranarray(before), s=before)},
        {"a.npz": made(w=after, f=np.asfortranarray(after), s=before.copy())},
    )
    assert [tensor.change for tensor in found.tensors] == [Change.CHANGED, Change.CHANGED, Change.UNCHANGED]
    assert [t.distance.max_abs for t in found.tensors if t.distance] == [599.0, 599.0]


def test_compressed_arrays_in_another_order_are_not_compared_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.contents.comparing.BOX", 1000)
    first, second = io.BytesIO(), io.BytesIO()
    array = np.random.default_rng(1).random((70, 300))
    np.savez_compressed(first, w=array)
    np.savez_compressed(second, w=np.asfortranarray(array))
    [found] = compared({"a.npz": first.getvalue()}, {"a.npz": second.getvalue()}).tensors
    assert found.change is Change.UNKNOWN
    assert "order" in found.note


def test_shards_cut_elsewhere_and_one_file_are_the_same() -> None:
    a, b = torch.ones(3), torch.zeros(2)
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    sharded = {
        "model-1-of-2.safetensors": save_safetensors({"a": a}),
        "model-2-of-2.safetensors": save_safetensors({"b": b}),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    found = compared(sharded, {"model.safetensors": save_safetensors({"a": a, "b": b + 1})})
    assert {tensor.name: tensor.change for tensor in found.tensors} == {"a": Change.UNCHANGED, "b": Change.CHANGED}


def test_elements_of_less_than_a_byte_are_compared_by_their_bytes() -> None:
    def made(byte: int) -> bytes:
        header = b'{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}'
        return struct.pack("<Q", len(header)) + header + bytes([byte, 0])

    assert compared({"a.safetensors": made(1)}, {"a.safetensors": made(1) + b""}).identical
    [found] = compared({"a.safetensors": made(1)}, {"a.safetensors": made(2)}).tensors
    assert (found.change, found.distance) == (Change.CHANGED, None)


def distributed(directory: Path, value: dict[str, Any]) -> dict[str, bytes]:
    dcp.save(value, checkpoint_id=str(directory))
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_checkpoints(tmp_path: Path) -> None:
    torch.manual_seed(4)
    before, after = torch.randn(40, 3), torch.randn(40, 3)
    found = compared(
        distributed(tmp_path / "1", {"w": before, "s": before}), distributed(tmp_path / "2", {"w": after, "s": before})
    )
    assert found.problems == ()
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert tensors["s"].change is Change.UNCHANGED
    expect(before, after, tensors["w"])


def test_a_tensor_is_the_same_however_it_is_cut_into_chunks() -> None:
    torch.manual_seed(5)
    before, after = torch.randn(10, 8), torch.randn(10, 8)

    def cut(tensor: torch.Tensor, rows: int, columns: int) -> dict[str, bytes]:
        return chunked({
            (row, column): tensor[row : row + rows, column : column + columns]
            for row in range(0, 10, rows) for column in range(0, 8, columns)
        })  # fmt: skip

    ways = [(10, 8), (3, 8), (4, 3), (1, 1)]
    for first in ways:
        for second in ways:
            [same] = compared(cut(before, *first), cut(before, *second)).tensors
            assert same.change is Change.UNCHANGED
            [other] = compared(cut(before, *first), cut(after, *second)).tensors
            expect(before, after, other)


def chunked(chunks: Mapping[tuple[int, int], torch.Tensor]) -> dict[str, bytes]:
    """A distributed checkpoint of one tensor `w`, of 10 rows and 8 columns, in chunks by their origin."""
    from torch.distributed.checkpoint import metadata
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    data, places = b"", {}
    for origin, chunk in chunks.items():
        part = saved(chunk.clone())
        places[metadata.MetadataIndex("w", torch.Size(origin))] = _StorageInfo("__0_0.distcp", len(data), len(part))
        data += part
    pieces = [metadata.ChunkStorageMetadata(torch.Size(origin), chunk.shape) for origin, chunk in chunks.items()]
    properties = metadata.TensorProperties(dtype=torch.float32)
    said = metadata.Metadata(
        {"w": metadata.TensorStorageMetadata(properties, torch.Size([10, 8]), pieces)}, None, places
    )
    return {".metadata": pickle.dumps(said), "__0_0.distcp": data}


def test_chunks_that_are_missing_make_it_not_compared() -> None:
    whole, part = torch.ones(10, 8), {(0, 0): torch.ones(5, 8)}
    [found] = compared(chunked({(0, 0): whole}), chunked(part)).tensors
    assert (found.change, found.note) == (Change.UNKNOWN, "lacks a part of its elements")


def test_chunks_that_are_not_what_the_metadata_says_are_not_compared() -> None:
    good, bad = chunked({(0, 0): torch.ones(10, 8)}), chunked({(0, 0): torch.zeros(10, 8)})
    bad["__0_0.distcp"] = saved(torch.zeros(8, 10)).ljust(len(bad["__0_0.distcp"]), b"\0")
    [found] = compared(good, bad).tensors
    assert found.change is Change.UNKNOWN


# -- what is not read, and which file is which


def test_equal_files_are_not_read() -> None:
    same, before, after = (saved({"w": torch.full((1000,), float(n))}) for n in range(3))
    pair = Pair({"same.pt": same, "other.pt": before}, {"same.pt": same, "other.pt": after})
    [_, tensor] = pair.compared.tensors
    assert [one.change for one in pair.compared.tensors] == [Change.CHANGED, Change.UNCHANGED]
    assert not tensor.was_read
    assert not pair.compared.identical
    assert Pair({"a.pt": same}, {"a.pt": same}).compared.identical


def test_files_that_are_called_otherwise_belong_together() -> None:
    before, after = saved({"w": torch.zeros(2)}), saved({"w": torch.ones(2)})
    found = compared({"epoch=1-step=10.ckpt": before}, {"epoch=2-step=20.ckpt": after})
    assert [(file.change, file.before, file.after) for file in found.files] == [
        (Change.CHANGED, "epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt")
    ]
    assert [tensor.change for tensor in found.tensors] == [Change.CHANGED]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 2}, {"a": "a"}),
        ({"a": 1, "b": 2}, {"b": 1, "c": 2}, {"b": "b", "a": "c"}),
        ({"a": 1, "b": 2}, {"c": 2, "d": 1}, {"a": "d", "b": "c"}),
        ({"s1.pt": 1, "s2.pt": 2}, {"s3.pt": 3, "s4.pt": 4}, {}),
        ({"s1.pt": 1, "x": 2}, {"s3.pt": 3, "y": 4}, {"s1.pt": "s3.pt", "x": "y"}),
        ({}, {"a": 1}, {}),
    ],
)
def test_pairs_are_found_by_name_then_bytes_then_numbers_then_alone(
    before: dict[str, int], after: dict[str, int], expected: dict[str, str]
) -> None:
    assert paired(before, after) == expected


def test_a_file_that_cannot_be_read_is_a_problem_and_the_rest_is_compared() -> None:
    broken = torch_zip(b"\x80\x02}")
    found = compared(
        {"a.pt": broken, "b.pt": saved({"w": torch.ones(1)})},
        {"a.pt": b"PK\x03\x04", "b.pt": saved({"w": torch.zeros(1)})},
    )
    assert len(found.problems) == 2
    assert [tensor.change for tensor in found.tensors] == [Change.CHANGED]


# -- boxes


@given(st.lists(st.integers(0, 6), max_size=4), st.permutations(range(4)), st.integers(1, 50))
def test_boxes_cover_each_element_once(shape: list[int], order: list[int], limit: int) -> None:
    seen: Any = np.zeros(shape, int)
    strides = [strides_of(tuple(shape))[axis % len(shape)] for axis in order[: len(shape)]] if shape else []
    for start, size in boxes(shape, strides, limit):
        assert math.prod(size) <= limit
        seen[tuple(slice(at, at + length) for at, length in zip(start, size, strict=True))] += 1
    assert (seen == 1).all()


def test_the_extent_of_a_view() -> None:
    assert extent((), ()) == 1
    assert extent((2, 3), (3, 1)) == 6
    assert extent((2, 0), (3, 1)) == 0
    assert extent((5,), (0,)) == 1
