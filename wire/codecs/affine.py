"""``int8``, ``int4``, ``int2``: uniform affine quantization with a step and a zero point for each channel (axis 1).

With L = 2^bits - 1: q = round(x / scale) + zero, limited to 0 … L, and x' = (q - zero) * scale, as in Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018), with the range taken from the tensor itself. The range
always holds 0, so zero is exact, as befits what comes out of a ReLU.

Payload: scale [C] as bfloat16, rounded up so that the range stays covered; zero [C] and q [shape], packed in ``bits`` bits each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wire.codecs.base import Context, Decoded, Encoded, check_finite, count_of
from wire.codecs.bits import pack_bits, packed_bytes, unpack_bits
from wire.codecs.plain import Stateless
from wire.errors import CodecError

__all__ = ["Int2", "Int4", "Int8"]

_U16 = np.dtype("<u2")
_LARGEST = np.float32(2.0**127)  # beyond this a code times its step might overflow
_TINY = np.finfo(np.float32).tiny


class _Affine(Stateless):
    bits: ClassVar[int]

    def encode(self, array: NDArray[np.float32], context: Context) -> Encoded:
        levels = np.float32((1 << self.bits) - 1)
        values = _by_channel(np.clip(array, -_LARGEST, _LARGEST), array.shape)
        low = np.minimum(values.min(axis=(0, 2), initial=0.0), 0.0)
        high = np.maximum(values.max(axis=(0, 2), initial=0.0), 0.0)
        scale, half = _rounded_up(high / levels - low / levels)  # the difference itself might overflow
        zero = np.rint(-low / scale).astype(np.float32)
        codes = values / scale[:, None]
        np.rint(codes, out=codes)
        codes += zero[:, None]
        np.clip(codes, 0, levels, out=codes)
        pieces = (half.astype(_U16).tobytes(), pack_bits(zero.astype(np.uint8), self.bits), pack_bits(codes.astype(np.uint8), self.bits))
        return Encoded(number=self.number, pieces=pieces)

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        channels, count = _channels(shape), count_of(shape)
        zeros = packed_bytes(channels, cls.bits)
        if len(data) != 2 * channels + zeros + packed_bytes(count, cls.bits):
            raise CodecError(f"{len(data)} bytes do not make a tensor of shape {list(shape)} in {cls.bits} bits")
        scale = (np.frombuffer(data[: 2 * channels], _U16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise CodecError("a scale is not a finite number above 0")
        zero = unpack_bits(data[2 * channels : 2 * channels + zeros], cls.bits, channels).astype(np.float32)
        values = _by_channel(unpack_bits(data[2 * channels + zeros :], cls.bits, count).astype(np.float32), shape)
        values -= zero[:, None]
        with np.errstate(over="ignore"):
            values *= scale[:, None]
        return Decoded(array=check_finite(values.reshape(shape)))


@dataclass(frozen=True)
class Int8(_Affine):
    name, number, bits = "int8", 3, 8


@dataclass(frozen=True)
class Int4(_Affine):
    name, number, bits = "int4", 5, 4


@dataclass(frozen=True)
class Int2(_Affine):
    name, number, bits = "int2", 6, 2


def _rounded_up(scale: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """``scale`` rounded up to a bfloat16, and its 16 bits; 1 where it is 0 or too small for full precision."""
    scale = np.where(scale < _TINY, np.float32(1.0), scale).astype(np.float32)
    half = (scale.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)
    return (half << np.uint32(16)).view(np.float32), half


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1


def _by_channel(array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """[N, C, rest]; a tensor without channels has one."""
    batch = shape[0] if shape else 1
    return array.reshape(batch, _channels(shape), -1 if array.size else 0)
