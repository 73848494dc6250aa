"""``mxfp4``: the MXFP4 format of the OCP Microscaling Formats (MX) Specification v1.0: blocks of 32 FP4 numbers that share a scale.

The tensor is flattened; its last block may be short. The scale of a block is E8M0, 2^(floor(log2 of its largest magnitude) - 2), limited to
2^-127 … 2^127; an element is x / scale, rounded to the nearest FP4 (E2M1: ±0, 0.5, 1, 1.5, 2, 3, 4, 6), ties to even, saturating (section
6.3 of the specification, with the rounding that it recommends). A block of zeros has the smallest scale.

Payload: u8 scale [blocks], its exponent plus 127, of which 255 is not a number; then sign and magnitude [elements], 4 bits each, the sign
in the highest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.codecs.base import Context, Decoded, Encoded, check_finite, count_of
from wire.codecs.bits import pack_bits, packed_bytes, unpack_bits
from wire.codecs.plain import Stateless
from wire.errors import CodecError

__all__ = ["MXFP4"]

_BLOCK = 32
_BIAS = 127
_LARGEST_EXPONENT = 2  # of E2M1: 4 and 6 are 1.0 and 1.5 times 2^2
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Between two neighbours, and whether the middle itself belongs to the upper one: it does where that one's last bit is 0.
_MIDDLES = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))


@dataclass(frozen=True)
class MXFP4(Stateless):
    name = "mxfp4"
    number = 7

    def encode(self, array: NDArray[np.float32], context: Context) -> Encoded:
        flat = array.reshape(-1)
        blocks = np.zeros((-(-flat.size // _BLOCK), _BLOCK), np.float32)
        blocks.reshape(-1)[: flat.size] = flat
        magnitudes = np.abs(blocks)
        _, exponent = np.frexp(magnitudes.max(axis=1, initial=0.0))  # x = m * 2^exponent with 0.5 <= m < 1
        scale = np.clip(exponent.astype(np.int64) - 1 - _LARGEST_EXPONENT, -_BIAS, _BIAS)
        scale[~magnitudes.any(axis=1)] = -_BIAS
        magnitudes *= _power_of_two(-scale)[:, None]  # exact, but for what is far below the smallest FP4
        codes = np.zeros(blocks.shape, np.uint8)
        for middle, upper in _MIDDLES:
            codes += magnitudes >= np.float32(middle) if upper else magnitudes > np.float32(middle)
        codes |= np.signbit(blocks).view(np.uint8) << np.uint8(3)
        pieces = ((scale + _BIAS).astype(np.uint8).tobytes(), pack_bits(codes.reshape(-1)[: flat.size], 4))
        return Encoded(number=self.number, pieces=pieces)

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        count = count_of(shape)
        blocks = -(-count // _BLOCK)
        if len(data) != blocks + packed_bytes(count, 4):
            raise CodecError(f"{len(data)} bytes do not make a tensor of shape {list(shape)} in MXFP4")
        exponents = np.frombuffer(data[:blocks], np.uint8).astype(np.int64)
        if (exponents == 255).any():
            raise CodecError("a block's scale is not a number")
        values = _VALUES[unpack_bits(data[blocks:], 4, count)]
        with np.errstate(over="ignore"):
            values *= np.repeat(_power_of_two(exponents - _BIAS), _BLOCK)[:count]
        return Decoded(array=check_finite(values.reshape(shape)))


def _power_of_two(exponent: NDArray[Any]) -> NDArray[np.float32]:
    return np.ldexp(np.float32(1), exponent.astype(np.int32)).astype(np.float32)
