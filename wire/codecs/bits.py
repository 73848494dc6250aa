"""Whole numbers of a fixed number of bits, one after the other without gaps: the lowest bit first, the first byte first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.errors import CodecError

__all__ = ["pack_bits", "packed_bytes", "unpack_bits"]


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
    bits = np.unpackbits(octets, count=count * width, bitorder="little").reshape(count, width)
    packed = np.packbits(bits, axis=1, bitorder="little")
    whole = np.zeros((count, dtype.itemsize), np.uint8)
    whole[:, : packed.shape[1]] = packed
    return whole.view(dtype).reshape(count).astype(dtype.newbyteorder("="), copy=False)


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
