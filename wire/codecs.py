"""Codecs: one tensor to bytes and back. docs/protocol.md, section 5, states their arithmetic exactly.

======  ==========================================================================================================
raw     any dtype, as it is; for labels, ids and whatever must not change
fp32    float32, lossless
fp16    float32 rounded to the nearest IEEE half (ties to even); beyond ±65,504 it saturates
int8    one byte an element and, for each channel (axis 1), a scale and a zero point: q = round(x / scale) + zero,
        x' = (q - zero) * scale. Zero is always exact, as befits what comes out of a ReLU
======  ==========================================================================================================

A codec is a pure function of the tensor, so what is sent again is the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wire.engine import Array
from wire.errors import CodecError

__all__ = ["CODECS", "Codec", "check_codec"]

_F32 = np.dtype("<f4")
_F16 = np.dtype("<f2")
_F16_MAX = np.float32(65504.0)


class Codec(Protocol):
    """``number`` stands in the tensor's header. Tensors are C-contiguous."""

    number: int

    def encode(self, array: Array) -> tuple[bytes, ...]:
        """The payload in pieces. Raises CodecError for a tensor that the codec cannot carry."""
        ...

    def decode(self, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        """A fresh array. Raises CodecError where the bytes do not fit the shape."""
        ...


class _Raw:
    number = 0

    def encode(self, array: Array) -> tuple[bytes, ...]:
        return (array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(),)

    def decode(self, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        return _array(data, dtype.newbyteorder("<"), shape).astype(dtype)


class _Float32:
    number = 1

    def encode(self, array: Array) -> tuple[bytes, ...]:
        return (_finite(array).astype(_F32, copy=False).tobytes(),)

    def decode(self, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        return _finite(_array(data, _F32, shape).astype(np.float32))


class _Float16:
    number = 2

    def encode(self, array: Array) -> tuple[bytes, ...]:
        return (np.clip(_finite(array), -_F16_MAX, _F16_MAX).astype(_F16).tobytes(),)

    def decode(self, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        return _finite(_array(data, _F16, shape).astype(np.float32))


class _Int8:
    """Payload: float32 scales [C], uint8 zero points [C], then uint8 [shape]."""

    number = 3

    def encode(self, array: Array) -> tuple[bytes, ...]:
        values = _by_channel(_finite(array), array.shape)
        # The range always holds 0, so that the zero point is a whole number between 0 and 255 and 0 is exact.
        low = np.minimum(values.min(axis=(0, 2), initial=0.0), 0.0)
        high = np.maximum(values.max(axis=(0, 2), initial=0.0), 0.0)
        scale = (high / np.float32(255) - low / np.float32(255)).astype(np.float32)  # the difference itself might overflow
        scale[scale < np.finfo(np.float32).tiny] = 1.0  # nothing but zeros, or too small for a float32 with full precision
        zero = np.rint(-low / scale).astype(np.float32)
        quantized = values / scale[:, None]
        np.rint(quantized, out=quantized)
        quantized += zero[:, None]
        np.clip(quantized, 0, 255, out=quantized)
        return scale.astype(_F32).tobytes(), zero.astype(np.uint8).tobytes(), quantized.astype(np.uint8).tobytes()

    def decode(self, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        channels = _channels(shape)
        if len(data) < 5 * channels:
            raise CodecError(f"{len(data)} bytes are too few for the scales of {channels} channels")
        scale = np.frombuffer(data[: 4 * channels], _F32).astype(np.float32)
        zero = np.frombuffer(data[4 * channels : 5 * channels], np.uint8).astype(np.float32)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise CodecError("a scale is not a finite number above 0")
        values = _by_channel(_array(data[5 * channels :], np.dtype(np.uint8), shape), shape).astype(np.float32)
        values -= zero[:, None]
        with np.errstate(over="ignore"):
            values *= scale[:, None]
        return _finite(values.reshape(shape))


CODECS: Mapping[str, Codec] = {"raw": _Raw(), "fp32": _Float32(), "fp16": _Float16(), "int8": _Int8()}
_FOR_RUNS = ("fp32", "fp16", "int8")


def check_codec(name: str) -> str:
    """``name``, if a run may ask for it. Raises ValueError naming those that exist."""
    if name not in _FOR_RUNS:
        raise ValueError(f"there is no codec {name!r}; it must be one of {', '.join(_FOR_RUNS)}")
    return name


def _finite(array: Array) -> NDArray[np.float32]:
    """Raises CodecError for anything that is not finite, or not float32."""
    if array.dtype != np.float32:
        raise CodecError(f"this codec carries float32, not {array.dtype}")
    if not np.isfinite(array).all():
        raise CodecError("a value is not finite")
    return array  # type: ignore[return-value]


def _array(data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) != count * dtype.itemsize:
        raise CodecError(f"{len(data)} bytes do not make a tensor of shape {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1


def _by_channel(array: Array, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """[N, C, rest]; a tensor without channels has one."""
    batch = shape[0] if shape else 1
    return array.reshape(batch, _channels(shape), -1 if array.size else 0)  # type: ignore[return-value]
