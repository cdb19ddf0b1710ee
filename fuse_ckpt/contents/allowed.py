"""The names that a pickle may import and call, and is still safe to load. Our own copy: torch is never imported.

`WEIGHTS` is what `torch.load(weights_only=True)` of torch 2.13.0 accepts where nobody has added to it: the result of
`_get_allowed_globals()` in torch/_weights_only_unpickler.py, which tests compare. `RECORDS` is what the `.metadata` of
torch.distributed.checkpoint (same version) is made of besides: plain records, an enumeration and the path it was
saved to, which a loader reads with an ordinary unpickler.
"""

from __future__ import annotations

_INTEGERS = frozenset(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64))

_FLOATS = frozenset(
    f"torch.{name}"
    for name in """
    bfloat16 bool complex128 complex32 complex64 float16 float32 float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2
    float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 bits8 bits16 bits1x8 bits2x4 bits4x2 qint32 qint8 quint8 quint4x2
    quint2x4
    """.split()  # noqa: SIM905 - one a line would be longer than all the rest
)

_QUANTIZATIONS = frozenset(
    f"torch.per_{name}"
    for name in (
        "tensor_affine",
        "tensor_symmetric",
        "channel_affine",
        "channel_symmetric",
        "channel_affine_float_qparams",
    )
)

_SPARSE = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_DENSE = (*_SPARSE, "Bool")
_TENSORS = frozenset(f"torch.{place}{kind}Tensor" for place in ("", "cuda.") for kind in _DENSE) | frozenset(
    f"torch.{place}sparse.{kind}Tensor" for place in ("", "cuda.") for kind in _SPARSE
)

_COMPLEX = ("ComplexDouble", "ComplexFloat")
_QUANTIZED = ("QInt32", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4")
_STORAGES = frozenset(
    f"torch.{place}{kind}Storage" for place in ("", "cuda.") for kind in (*_DENSE, *_COMPLEX)
) | frozenset(f"torch.{kind}Storage" for kind in _QUANTIZED)

_REBUILDERS = frozenset(
    f"torch._utils._rebuild_{name}"
    for name in (
        "device_tensor_from_cpu_tensor",
        "device_tensor_from_numpy",
        "meta_tensor_no_storage",
        "nested_tensor",
        "parameter",
        "parameter_with_state",
        "qtensor",
        "sparse_tensor",
        "tensor",
        "tensor_v2",
        "tensor_v3",
        "wrapper_subclass",
    )
)

_OTHERS = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)

WEIGHTS = _INTEGERS | _FLOATS | _QUANTIZATIONS | _TENSORS | _STORAGES | _REBUILDERS | _OTHERS

RECORDS = frozenset({"pathlib.PosixPath", "pathlib._local.PosixPath"}) | frozenset(
    f"torch.distributed.checkpoint.{name}"
    for name in (
        "metadata.BytesStorageMetadata",
        "metadata.ChunkStorageMetadata",
        "metadata.Metadata",
        "metadata.MetadataIndex",
        "metadata.StorageMeta",
        "metadata.TensorProperties",
        "metadata.TensorStorageMetadata",
        "metadata._MEM_FORMAT_ENCODING",
        "filesystem._StorageInfo",
    )
)
