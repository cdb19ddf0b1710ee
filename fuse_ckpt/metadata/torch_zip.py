"""The zip file that torch.save writes, as far as its pickle and single numbers, without reading the tensors."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import BinaryIO

from fuse_ckpt.metadata.symbols import Scalar
from fuse_ckpt.metadata.values import MIB, Unreadable

PICKLE_MAX = 64 * MIB
START = b"PK\x03\x04"
_NAME_LENGTHS_AT = 26  # in the header before a zip member's data
_LOCAL_HEADER = 30
_NUMBERS = {
    "DoubleStorage": "<d",
    "FloatStorage": "<f",
    "HalfStorage": "<e",
    "LongStorage": "<q",
    "IntStorage": "<i",
    "ShortStorage": "<h",
    "CharStorage": "<b",
    "ByteStorage": "<B",
}
_HALF_A_FLOAT = "BFloat16Storage"  # the upper two bytes


class TorchZip:
    """An archive in `file`, which must stay open. Raises Unreadable where it is no whole zip file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            members = zipfile.ZipFile(_Frugal(file)).infolist()
        except zipfile.BadZipFile as error:
            raise Unreadable("is a zip file that is cut off or broken") from error
        self._members = {member.filename: member for member in members}
        self._pickle = next((name for name in self._members if name.endswith("/data.pkl")), "")

    def pickle(self) -> BinaryIO | None:
        """The saved value's pickle; None where this is no archive of torch's. Raises Unreadable."""
        member = self._members.get(self._pickle)
        if member is None or member.compress_type != zipfile.ZIP_STORED:
            return None
        if member.file_size > PICKLE_MAX:
            raise Unreadable("has a pickle longer than 64 MiB, which was not read")
        return io.BytesIO(self._read(member, 0, member.file_size))

    def number(self, scalar: Scalar) -> int | float | None:
        """The number that the tensor is; None where it is of a kind that is not read, or was moved elsewhere."""
        kind = scalar.storage.kind
        code = "<H" if kind == _HALF_A_FLOAT else _NUMBERS.get(kind)
        member = self._members.get(f"{self._pickle.removesuffix('data.pkl')}data/{scalar.storage.key}")
        if code is None or member is None or member.compress_type != zipfile.ZIP_STORED or scalar.offset < 0:
            return None
        size = struct.calcsize(code)
        data = self._read(member, scalar.offset * size, size)
        if kind == _HALF_A_FLOAT:
            code, data = "<f", b"\0\0" + data
        value: int | float = struct.unpack(code, data)[0]
        return value

    def _read(self, member: zipfile.ZipInfo, offset: int, size: int) -> bytes:
        """Not by ZipFile.open: it checks the CRC, which torch can be told to leave out."""
        if offset + size > member.file_size:
            raise Unreadable("has a tensor that reaches beyond its data")
        self._file.seek(member.header_offset + _NAME_LENGTHS_AT)
        name_length, extra_length = struct.unpack("<2H", self._file.read(4))
        self._file.seek(member.header_offset + _LOCAL_HEADER + name_length + extra_length + offset)
        return self._file.read(size)


class _Frugal(io.RawIOBase):
    """A file that refuses to be read in one piece: a zip's directory may claim any length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size if 0 <= size <= PICKLE_MAX else PICKLE_MAX + 1)
        if len(data) > PICKLE_MAX:
            raise Unreadable("has a zip directory longer than 64 MiB, which was not read")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
