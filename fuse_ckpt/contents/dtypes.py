"""The types of a tensor's elements, by torch's names."""

from __future__ import annotations

import math

BITS: dict[str, int] = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float4_e2m1fn": 4,
    "float4_e2m1fn_x2": 8,  # two elements in one
    "complex128": 128,
    "complex64": 64,
    "complex32": 32,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint64": 64,
    "uint32": 32,
    "uint16": 16,
    "uint8": 8,
    "bool": 8,
    "qint32": 32,
    "qint8": 8,
    "quint8": 8,
    "quint4x2": 4,
    "quint2x4": 2,
}

# The storage classes of torch.storage._dtype_to_storage_type_map (torch 2.13.0); newer types lie in UntypedStorage.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt32Storage": "qint32",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "",
}

# safetensors 0.8.0, safetensors/src/tensor.rs
SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
    "F4": "float4_e2m1fn",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}

_NUMPY_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


def of_numpy(descr: str) -> tuple[str, bool]:
    """The type that numpy writes as "<f4", and whether it is big-endian; the text itself where we know none."""
    order, kind, width = descr[:1], descr[1:2], descr[2:]
    if order not in "<>|=" or not width.isdecimal():
        return descr, False
    if kind == "b":
        return "bool", False
    name = f"{_NUMPY_KINDS.get(kind, '?')}{8 * int(width)}"
    return (name if name in BITS else descr), order == ">"


def size_of(dtype: str, count: int) -> int:
    """Bytes of `count` elements; 0 where the type is unknown."""
    return math.ceil(BITS.get(dtype, 0) * count / 8)
