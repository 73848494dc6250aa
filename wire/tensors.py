"""Named tensors as the payload of a FORWARD or BACKWARD frame (docs/protocol.md, section 4). Little endian:

u8            number of tensors; then for each, one after the other:
u8, name      length in bytes, and UTF-8
u8            codec
u8            dtype
u8, u32 each  number of dimensions, dimensions
u32, payload  length in bytes, and what the codec made
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from wire.codecs import CODECS
from wire.engine import Array
from wire.errors import CodecError
from wire.limits import LIMITS

__all__ = ["DTYPES", "decode_tensors", "encode_tensors"]

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_BY_NUMBER = {codec.number: codec for codec in CODECS.values()}
_U32 = struct.Struct("<I")


def encode_tensors(items: Sequence[tuple[str, Array, str]]) -> bytes:
    """(name, array, codec name) of each tensor, in order. Raises CodecError naming a tensor that its codec cannot carry."""
    if len(items) > LIMITS.tensors_per_message:
        raise CodecError(f"{len(items)} tensors are over the limit of {LIMITS.tensors_per_message} a message")
    pieces = [bytes([len(items)])]
    for name, array, codec in items:
        pieces += _encode(name, array, codec)
    return b"".join(pieces)


def _encode(name: str, array: Array, codec: str) -> list[bytes]:
    text, dtype = name.encode(), array.dtype.name
    if not 0 < len(text) < 256 or dtype not in DTYPES or array.ndim > LIMITS.tensor_dims:
        raise CodecError(f"`{name}` ({dtype}, {array.ndim} dimensions) cannot cross a cut")
    try:
        payload = CODECS[codec].encode(array if array.flags.c_contiguous else np.ascontiguousarray(array))
    except CodecError as exc:
        raise CodecError(f"`{name}`: {exc}") from exc
    head = struct.pack(
        f"<B{len(text)}sBBB{array.ndim}I", len(text), text, CODECS[codec].number, DTYPES.index(dtype), array.ndim, *array.shape
    )
    return [head, _U32.pack(sum(len(piece) for piece in payload)), *payload]


def decode_tensors(data: bytes) -> dict[str, Array]:
    """The inverse of ``encode_tensors``: fresh, writable arrays by name. Raises CodecError for anything else."""
    reader = _Reader(data)
    count = reader.byte()
    if count > LIMITS.tensors_per_message:
        raise CodecError(f"{count} tensors are over the limit of {LIMITS.tensors_per_message} a message")
    found: dict[str, Array] = {}
    for _ in range(count):
        name, array = _decode(reader)
        if name in found:
            raise CodecError(f"`{name}` stands twice in one message")
        found[name] = array
    if reader.left:
        raise CodecError(f"{reader.left} bytes are left over after the last tensor")
    return found


def _decode(reader: _Reader) -> tuple[str, Array]:
    try:
        name = bytes(reader.take(reader.byte())).decode()
    except UnicodeDecodeError as exc:
        raise CodecError("a tensor's name is not UTF-8") from exc
    codec, dtype, dims = _BY_NUMBER.get(reader.byte()), reader.byte(), reader.byte()
    if not name or codec is None or dtype >= len(DTYPES) or dims > LIMITS.tensor_dims:
        raise CodecError(f"the header of `{name[:40]}` names a codec, dtype or number of dimensions that does not exist")
    shape = tuple(reader.number() for _ in range(dims))
    elements = math.prod(shape)
    if elements > LIMITS.tensor_elements or max(shape, default=0) > LIMITS.tensor_elements:
        raise CodecError(f"`{name[:40]}` of shape {list(shape)} is over the limit of {LIMITS.tensor_elements} elements")
    payload = reader.take(reader.number())
    try:
        array = codec.decode(payload, np.dtype(DTYPES[dtype]), shape)
    except CodecError as exc:
        raise CodecError(f"`{name[:40]}`: {exc}") from exc
    if array.dtype != DTYPES[dtype]:
        raise CodecError(f"`{name[:40]}`: its codec makes {array.dtype}, its header says {DTYPES[dtype]}")
    return name, array


class _Reader:
    """Takes bytes from the front, and raises CodecError where there are too few."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._view) - self._at

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise CodecError(f"the message is cut short: {count} bytes are wanted, {self.left} are left")
        self._at += count
        return self._view[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int(_U32.unpack(self.take(4))[0])
