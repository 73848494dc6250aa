"""``packed``: whole numbers and bools without loss, in as many bits as their range needs. Labels of ten classes take 4 bits each.

Payload: the smallest value (an element of the dtype, little endian; a bool is 0 or 1), u8 width, then value - smallest of each element in
``width`` bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wire.codecs.base import Context, Decoded, Encoded, count_of
from wire.codecs.bits import pack_bits, packed_bytes, unpack_bits
from wire.codecs.plain import Stateless
from wire.engine import Array
from wire.errors import CodecError

__all__ = ["Packed"]


@dataclass(frozen=True)
class Packed(Stateless):
    name = "packed"
    number = 10
    for_runs = False

    def encode(self, array: Array, context: Context) -> Encoded:
        whole = _whole(array.dtype)
        values = array.astype(whole, copy=False).reshape(-1)
        low = values.min() if values.size else whole.type(0)
        # In the unsigned dtype of the same size the difference is right, whatever the range: it wraps around twice.
        unsigned = np.dtype(f"u{whole.itemsize}")
        above = values.view(unsigned) - np.asarray(low).view(unsigned)
        width = int(above.max()).bit_length() if above.size else 0
        head = np.asarray(low).astype(whole.newbyteorder("<")).tobytes() + bytes([width])
        return Encoded(number=self.number, pieces=(head, pack_bits(above, width)))

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        if dtype.kind not in "iub":
            raise CodecError(f"this codec carries whole numbers, not {dtype}")
        whole, count = _whole(dtype), count_of(shape)
        size = whole.itemsize
        if len(data) <= size:
            raise CodecError(f"{len(data)} bytes are too few for the smallest value and the width")
        low, width = np.frombuffer(data[:size], whole.newbyteorder("<")).astype(whole), data[size]
        if width > 8 * size or len(data) != size + 1 + packed_bytes(count, width):
            raise CodecError(f"{len(data)} bytes do not make {count} numbers of {width} bits")
        above = unpack_bits(data[size + 1 :], width, count)
        highest = 1 if dtype == np.bool_ else int(np.iinfo(whole).max)
        if int(low[0]) + (int(above.max()) if count else 0) > highest:
            raise CodecError(f"a value is beyond {dtype}")
        unsigned = np.dtype(f"u{size}")
        values = (above.astype(unsigned) + low.view(unsigned)).view(whole)
        return Decoded(array=values.astype(dtype, copy=False).reshape(shape))


def _whole(dtype: np.dtype[np.generic]) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype.newbyteorder("=")
