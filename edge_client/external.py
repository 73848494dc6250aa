"""Does an ONNX file keep tensors in other files? A bundle's graphs never do, and one that did could read any file of the device.

Walks the protocol buffer itself (onnx.proto of ONNX, protobuf.dev/programming-guides/encoding): the device has no onnx, and onnxruntime
would have read the file by the time that it complains.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wire.errors import BundleError

__all__ = ["check_file", "check_no_external_data"]

_TENSOR = "TensorProto"
# Message -> field number -> what is in it, as far as it leads to tensors.
_BELOW: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a TensorProto
_PAGE_BYTES = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def check_no_external_data(data: bytes, *, what: str) -> None:
    """Raises BundleError where a tensor of the model lies in another file, whatever its name, or where this is no ONNX file."""
    _check(data, what=what)


def check_file(path: Path, *, what: str) -> None:
    """The same of a file, of which little is held in memory at a time. Raises OSError, too."""
    with open(path, "rb") as file:
        _check(_Paged(file), what=what)


class _Paged:
    """A file's bytes by their place, as ``bytes`` has them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size_bytes = file, os.fstat(file.fileno()).st_size
        self._number, self._page = -1, b""

    def __len__(self) -> int:
        return self._size_bytes

    def __getitem__(self, at: int) -> int:
        if at // _PAGE_BYTES != self._number:
            self._number = at // _PAGE_BYTES
            self._file.seek(self._number * _PAGE_BYTES)
            self._page = self._file.read(_PAGE_BYTES)
        if at % _PAGE_BYTES >= len(self._page):
            raise ValueError("it is cut off")
        return self._page[at % _PAGE_BYTES]


def _check(data: bytes | _Paged, *, what: str) -> None:
    left = [("ModelProto", range(len(data)))]
    try:
        while left:
            kind, message = left.pop()
            for field, value in _fields(data, message):
                if kind == _TENSOR:
                    if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0):
                        raise BundleError(f"{what} keeps a tensor in another file, which no bundle does; do not trust it")
                elif isinstance(value, range) and field in _BELOW[kind]:
                    left.append((_BELOW[kind][field], value))
    except ValueError as exc:
        raise BundleError(f"{what} is not an ONNX file ({exc}); export the bundle again") from exc


def _fields(data: bytes | _Paged, message: range) -> Iterator[tuple[int, int | range]]:
    """(number, value, or the places of its bytes) of each field. Raises ValueError for what is no protocol buffer."""
    at, end = message.start, message.stop
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at, end)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of type {kind}")
        if size > end - at:
            raise ValueError("it is cut off")
        yield tag >> 3, range(at, at + size)
        at += size


def _varint(data: bytes | _Paged, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError("a number without end")
