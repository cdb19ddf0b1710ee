"""What torch's own functions make of their arguments: tensors, storages, sizes. After torch/_utils.py of torch 2.13.0.

Arguments that do not fit make something of which nothing is known, never an error: whoever scans must go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from fuse_ckpt.contents.dtypes import BITS, STORAGES
from fuse_ckpt.contents.symbols import Dict, Global, Made, SavedTensor, Storage

LENGTH_END = 2**63
RANK_MAX = 64  # dimensions; torch has no more

_Arguments = tuple[object, ...]


class _Unfit(Exception):
    """The arguments are not those that torch writes."""


def made_by(function: object, arguments: object) -> object:
    """The symbol of what a call returns."""
    if isinstance(function, Global) and isinstance(arguments, tuple):
        make = _MAKERS.get(str(function))
        try:
            if make is not None:
                return make(arguments)
        except (_Unfit, IndexError, RecursionError):
            pass
    return Made(function, arguments)


def storage_of(identity: object) -> Storage | None:
    """The storage that a persistent id of torch means; None where it is another's."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] not in ("storage", b"storage"):
        return None
    try:
        kind, key, _, count, *view = identity[1:]
        dtype = STORAGES[kind.name] if isinstance(kind, Global) else ""
        shift = _length(view[0][1]) if view and isinstance(view[0], tuple) else 0
        return Storage(_text(key), dtype, _length(count), shift)
    except (_Unfit, LookupError):
        return None


def lengths(value: object) -> tuple[int, ...]:
    """A tuple of sizes. Raises ValueError."""
    try:
        return _lengths(value)
    except _Unfit as error:
        raise ValueError("no sizes") from error


def dtype_of(value: object) -> str:
    """The name of torch's type that a symbol stands for; "" where it is none."""
    known = isinstance(value, Global) and value.module == "torch" and value.name in BITS
    return cast(Global, value).name if known else ""


def _length(value: object) -> int:
    if type(value) is not int or not 0 <= value < LENGTH_END:
        raise _Unfit
    return value


def _lengths(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > RANK_MAX:
        raise _Unfit
    return tuple(_length(each) for each in value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Unfit
    return value


def _tensor(arguments: _Arguments, dtype: str = "", more: str = "") -> SavedTensor:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise _Unfit
    storage, offset, shape, strides = arguments[:4]
    assert isinstance(storage, Storage)
    kind = dtype or storage.dtype or "uint8"
    tensor = SavedTensor(kind, _lengths(shape), _lengths(strides), _length(offset) + storage.shift, storage, more)
    if len(tensor.shape) != len(tensor.strides):
        raise _Unfit
    return tensor


def _tensor_of_dtype(arguments: _Arguments) -> SavedTensor:
    dtype = dtype_of(arguments[6])
    if not dtype:
        raise _Unfit
    return _tensor(arguments, dtype)


def _quantized(arguments: _Arguments) -> SavedTensor:
    parameters = arguments[4]
    plain = parameters if isinstance(parameters, tuple) else ()
    return _tensor(arguments, more=" ".join(str(each) for each in plain if isinstance(each, int | float | Global)))


def _meta(arguments: _Arguments) -> SavedTensor:
    return SavedTensor(dtype_of(arguments[0]), _lengths(arguments[1]), _lengths(arguments[2]))


def _first(arguments: _Arguments) -> object:
    return arguments[0]


def _sparse(arguments: _Arguments) -> Made:
    """A sparse tensor is its parts, by the names that torch gives them."""
    layout, data = arguments[0], arguments[1]
    if not (isinstance(layout, Made) and isinstance(layout.arguments, tuple) and isinstance(data, tuple)):
        raise _Unfit
    parts = Dict()
    parts.put(zip(_SPARSE_PARTS.get(_text(layout.arguments[0]), ()), data, strict=False))
    return Made(Global("torch", "sparse"), state=parts)


def _subclass(arguments: _Arguments) -> object:
    if len(arguments) != 4:
        raise _Unfit
    function, _, inner, state = arguments
    made = made_by(function, inner)
    return Made(made.maker, made.arguments, state) if isinstance(made, Made) else made


def _dict(arguments: _Arguments) -> Dict:
    """An empty dictionary; one of another (Counter); or one of pairs, as Python 2 wrote OrderedDict."""
    made = Dict()
    source = arguments[0] if arguments else ()
    if isinstance(source, Dict):
        made.put(source.pairs)
    elif isinstance(source, list | tuple):
        made.put(_pair(item) for item in source)
    return made


def _pair(item: object) -> tuple[object, object]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise _Unfit
    return item[0], item[1]


_ROWS = ("crow_indices", "col_indices", "values")
_COLUMNS = ("ccol_indices", "row_indices", "values")
_SPARSE_PARTS = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": _ROWS,
    "torch.sparse_bsr": _ROWS,
    "torch.sparse_csc": _COLUMNS,
    "torch.sparse_bsc": _COLUMNS,
}
_MAKERS: dict[str, Callable[[_Arguments], object]] = {
    "builtins.dict": _dict,
    "collections.Counter": _dict,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda arguments: Dict(),
    "copyreg._reconstructor": lambda arguments: Made(arguments[0]),
    "torch.Size": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch.nn.parameter.Parameter": _first,
}
