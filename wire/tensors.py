"""Named tensors as the payload of a FORWARD or BACKWARD frame (docs/protocol.md, section 4):

u8               number of tensors; then for each, one after the other:
u8, name         length in bytes, and UTF-8
u8               codec
u8               dtype, and 16 times the number of dimensions
varint each      dimensions
varint, payload  length in bytes, and what the codec made
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wire.codecs import LOSSLESS, PLAIN, Decoded, Encoded, decode_lossless, encode_lossless
from wire.codecs.bits import read_varint, write_varint
from wire.codecs.plain import Raw
from wire.engine import Array
from wire.errors import CodecError
from wire.limits import LIMITS

__all__ = ["DTYPES", "Header", "decode_plain", "decode_tensors", "encode_plain", "encode_tensors"]

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a tensor's payload; within the limits, but otherwise as the peer says."""

    name: str
    codec: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


def encode_tensors(items: Sequence[tuple[str, Array, Encoded]]) -> bytes:
    """(name, tensor, what its codec made of it), in order. Raises CodecError naming a tensor that cannot cross."""
    if len(items) > LIMITS.tensors_per_message:
        raise CodecError(f"{len(items)} tensors are over the limit of {LIMITS.tensors_per_message} a message")
    pieces = [bytes([len(items)])]
    for name, array, encoded in items:
        pieces += [_head(name, array, encoded), *encoded.pieces]
    return b"".join(pieces)


def encode_plain(tensors: Mapping[str, Array]) -> bytes:
    """Tensors without loss, for ``decode_plain``: whole numbers packed, unless there are more of them than it unpacks."""
    packs = sum(array.size for array in tensors.values() if array.dtype.kind in "iub") <= LIMITS.packed_elements
    return encode_tensors([(name, array, encode_lossless(array) if packs else _raw(array)) for name, array in tensors.items()])


def _raw(array: Array) -> Encoded:
    return Raw().encode(np.ascontiguousarray(array), PLAIN)


def _head(name: str, array: Array, encoded: Encoded) -> bytes:
    text, dtype = name.encode(), array.dtype.name
    if not 0 < len(text) < 256 or dtype not in DTYPES or array.ndim > LIMITS.tensor_dims:
        raise CodecError(f"`{name}` ({dtype}, {array.ndim} dimensions) cannot cross a cut")
    numbers = b"".join(write_varint(number) for number in (*array.shape, encoded.size_bytes))
    return bytes([len(text), *text, encoded.number, DTYPES.index(dtype) + 16 * array.ndim]) + numbers


def decode_tensors(data: bytes, decode: Callable[[Header, memoryview], Decoded]) -> dict[str, Decoded]:
    """The tensors of a message by name. ``decode`` may refuse a header with CodecError before anything of its size is made.

    Raises CodecError, naming the tensor where there is one, for anything that is not such a message.
    """
    reader = _Reader(data)
    count = reader.byte()
    if count > LIMITS.tensors_per_message:
        raise CodecError(f"{count} tensors are over the limit of {LIMITS.tensors_per_message} a message")
    found: dict[str, Decoded] = {}
    room = LIMITS.unpacked_bytes
    for _ in range(count):
        header = _header(reader)
        room -= math.prod(header.shape) * header.dtype.itemsize
        if header.name in found or room < 0:
            what = "stands twice in one message" if room >= 0 else f"takes the message over the limit of {LIMITS.unpacked_bytes} bytes"
            raise CodecError(f"`{header.name[:40]}` {what}")
        payload = reader.take(reader.number())
        try:
            found[header.name] = decode(header, payload)
        except CodecError as exc:
            raise CodecError(f"`{header.name[:40]}`: {exc}") from exc
    if reader.left:
        raise CodecError(f"{reader.left} bytes are left over after the last tensor")
    return found


def decode_plain(data: bytes) -> dict[str, Array]:
    """The inverse of ``encode_plain``: fresh, writable arrays by name. Raises CodecError, also for codecs that may lose something.

    Nothing is known of the shapes, so what is made is at most as large as ``data``, but for ``LIMITS.packed_elements``.
    """
    room = LIMITS.packed_elements

    def decode(header: Header, payload: memoryview) -> Decoded:
        nonlocal room
        if header.codec == LOSSLESS["packed"]:
            room -= math.prod(header.shape)
            if room < 0:
                raise CodecError(f"more than {LIMITS.packed_elements} packed elements in one message; such a message must be raw")
        return decode_lossless(header.codec, payload, header.dtype, header.shape)

    return {name: decoded.array for name, decoded in decode_tensors(data, decode).items()}


def _header(reader: _Reader) -> Header:
    try:
        name = bytes(reader.take(reader.byte())).decode()
    except UnicodeDecodeError as exc:
        raise CodecError("a tensor's name is not UTF-8") from exc
    codec, (dims, dtype) = reader.byte(), divmod(reader.byte(), 16)
    if not name or dtype >= len(DTYPES) or dims > LIMITS.tensor_dims:
        raise CodecError(f"the header of `{name[:40]}` names a dtype or number of dimensions that does not exist")
    shape = tuple(reader.number() for _ in range(dims))
    # Empty dimensions must not hide how large the others are: numpy would refuse such a shape.
    if math.prod(max(1, dim) for dim in shape) > LIMITS.tensor_elements:
        raise CodecError(f"`{name[:40]}` of shape {list(shape)} is over the limit of {LIMITS.tensor_elements} elements")
    return Header(name, codec, np.dtype(DTYPES[dtype]), shape)


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
        found, self._at = read_varint(self._view, self._at)
        return found
