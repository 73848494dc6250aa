"""Codecs without options or state: elements one by one, as they are or rounded.

=====  ==========================================================================================================
raw    any dtype, as it is
fp32   float32, lossless; also what is sent where another codec's payload would not be smaller
fp16   rounded to the nearest IEEE half, ties to even; beyond ±65,504 it saturates
bf16   rounded to the nearest bfloat16, ties to even; saturates at its largest number
=====  ==========================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire.codecs.base import Codec, Context, Decoded, Direction, Encoded, Encoder, as_array, check_finite
from wire.engine import Array
from wire.errors import CodecError
from wire.manifest import TensorSpec

__all__ = ["BFloat16", "Float16", "Float32", "Raw", "Stateless"]

_F32 = np.dtype("<f4")
_F16 = np.dtype("<f2")
_U16 = np.dtype("<u2")
_F16_MAX = np.float32(65504.0)
_BF16_MAX = np.uint32(0x7F7F)


class Stateless(Codec, Encoder):
    """A codec that is its own encoder: what it makes depends on the tensor and the context alone."""

    def encoder(self, tensor: TensorSpec, direction: Direction) -> Encoder:
        return self


@dataclass(frozen=True)
class Raw(Stateless):
    name = "raw"
    number = 0
    for_runs = False

    def encode(self, array: Array, context: Context) -> Encoded:
        return Encoded(number=self.number, pieces=(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(),))

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        array = as_array(data, dtype.newbyteorder("<"), shape)
        if dtype == np.bool_ and (np.frombuffer(data, np.uint8) > 1).any():
            raise CodecError("a bool is neither 0 nor 1")
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise CodecError("a value is not finite")
        return Decoded(array=array.astype(dtype))


@dataclass(frozen=True)
class Float32(Stateless):
    name = "fp32"
    number = 1

    def encode(self, array: NDArray[np.float32], context: Context) -> Encoded:
        return Encoded(number=self.number, pieces=(array.astype(_F32, copy=False).tobytes(),))

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        return Decoded(array=check_finite(as_array(data, _F32, shape).astype(np.float32)))


@dataclass(frozen=True)
class Float16(Stateless):
    name = "fp16"
    number = 2

    def encode(self, array: NDArray[np.float32], context: Context) -> Encoded:
        return Encoded(number=self.number, pieces=(np.clip(array, -_F16_MAX, _F16_MAX).astype(_F16).tobytes(),))

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        return Decoded(array=check_finite(as_array(data, _F16, shape).astype(np.float32)))


@dataclass(frozen=True)
class BFloat16(Stateless):
    """The upper half of a float32: its exponent, and 8 bits of precision."""

    name = "bf16"
    number = 4

    def encode(self, array: NDArray[np.float32], context: Context) -> Encoded:
        bits = array.view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # a tie goes up only where the last bit kept is 1
        rounded = (bits + half) >> np.uint32(16)
        sign = rounded & np.uint32(0x8000)
        rounded = sign | np.minimum(rounded ^ sign, _BF16_MAX)
        return Encoded(number=self.number, pieces=(rounded.astype(_U16).tobytes(),))

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        bits = as_array(data, _U16, shape).reshape(-1).astype(np.uint32) << np.uint32(16)
        return Decoded(array=check_finite(bits.view(np.float32).reshape(shape)))
