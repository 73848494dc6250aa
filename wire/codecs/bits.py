"""Whole numbers in few bits.

Packed: each of a fixed number of bits, one after the other without gaps, the lowest bit first, the first byte first. Varint: LEB128, 7 bits
a byte, the lowest first, the top bit set on all bytes but the last; at most 32 bits, and no longer than needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.errors import CodecError

__all__ = ["pack_bits", "packed_bytes", "read_signs", "read_varint", "unpack_bits", "write_signs", "write_varint"]


def packed_bytes(count: int, width: int) -> int:
    """What ``count`` numbers of ``width`` bits take."""
    return -(-count * width // 8)


def pack_bits(values: NDArray[np.unsignedinteger[Any]], width: int) -> bytes:
    """``values`` below 2^``width``, flattened; ``width`` is 0 to 64. Unused bits of the last byte are 0."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if width == 0 or not flat.size:
        return b""
    dtype = _dtype(width)
    flat = flat.astype(dtype, copy=False)
    if width == 8 * dtype.itemsize:
        return flat.tobytes()
    if width == 1:
        return np.packbits(flat, bitorder="little").tobytes()
    if width in (2, 4):
        return _pack_small(flat.astype(np.uint8, copy=False), width)
    octets = flat.view(np.uint8).reshape(len(flat), dtype.itemsize)
    return np.packbits(np.unpackbits(octets, axis=1, count=width, bitorder="little"), bitorder="little").tobytes()


def unpack_bits(data: memoryview, width: int, count: int) -> NDArray[np.unsignedinteger[Any]]:
    """``count`` numbers of ``width`` bits (0 to 64), in the smallest unsigned dtype. Raises CodecError for any other length."""
    if len(data) != packed_bytes(count, width):
        raise CodecError(f"{len(data)} bytes do not hold {count} numbers of {width} bits")
    dtype = _dtype(width)
    if width == 0 or count == 0:
        return np.zeros(count, dtype.newbyteorder("="))
    if width == 8 * dtype.itemsize:
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    octets = np.frombuffer(data, np.uint8)
    if width in (2, 4):
        return _unpack_small(octets, width, count)
    bits = np.unpackbits(octets, count=count * width, bitorder="little")
    if width == 1:
        return bits
    packed = np.packbits(bits.reshape(count, width), axis=1, bitorder="little")
    whole = np.zeros((count, dtype.itemsize), np.uint8)
    whole[:, : packed.shape[1]] = packed
    return whole.view(dtype).reshape(count).astype(dtype.newbyteorder("="), copy=False)


def write_signs(values: NDArray[Any]) -> bytes:
    """A bit for each of ``values`` that is not 0, flattened and packed: 1 for those below."""
    return pack_bits((values[values != 0] < 0).view(np.uint8), 1)


def read_signs(data: memoryview, magnitudes: NDArray[np.float32], nonzero: NDArray[np.bool_]) -> None:
    """Negate what ``write_signs`` told of, in place. Raises CodecError where there is not one sign for each that is not 0."""
    negative = unpack_bits(data, 1, int(np.count_nonzero(nonzero)))
    magnitudes[nonzero] *= np.float32(1) - np.float32(2) * negative


def write_varint(number: int) -> bytes:
    """0 to 2^32 - 1."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """(number, where it ends). Raises CodecError where none begins at ``at``."""
    found = 0
    for length, byte in enumerate(data[at : at + 5]):
        found |= (byte & 0x7F) << (7 * length)
        if byte < 0x80:
            if found >> 32 or (byte == 0 and length):
                break
            return found, at + length + 1
    raise CodecError("a number is cut short, over 32 bits, or longer than needed")


def _dtype(width: int) -> np.dtype[Any]:
    return np.dtype("u1" if width <= 8 else "<u2" if width <= 16 else "<u4" if width <= 32 else "<u8")


def _pack_small(flat: NDArray[np.uint8], width: int) -> bytes:
    """2 or 4 bits: shifts, many times as fast as bits one by one."""
    each = 8 // width
    padded = np.zeros(-(-len(flat) // each) * each, np.uint8)
    padded[: len(flat)] = flat
    columns = padded.reshape(-1, each)
    packed = columns[:, 0].copy()
    for at in range(1, each):
        packed |= columns[:, at] << np.uint8(width * at)
    return packed.tobytes()


def _unpack_small(octets: NDArray[np.uint8], width: int, count: int) -> NDArray[np.uint8]:
    each = 8 // width
    found = np.empty((len(octets), each), np.uint8)
    for at in range(each):
        found[:, at] = (octets >> np.uint8(width * at)) & np.uint8((1 << width) - 1)
    return found.reshape(-1)[:count]
