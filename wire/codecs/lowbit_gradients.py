"""The backward half of ``wire.codecs.lowbit``: on the support only, rounded at random without bias, one unit for all samples.

What the support leaves, flattened, are n values. Symbol k stands for the magnitude 0 (k = 0) or 2^(k - 1) units. A sample's class is the
octave of its root mean square, in units: 11 at 1, limited to 0 to 15; of a sample without values, or with nothing but zeros, it is 0.

Payload, little endian: u8 kind 2, float32 unit, varint length and ``wire.entropy.encode`` of the classes [N], varint length and
``encode`` of the symbols in groups by class, in the order of the tensor within a class; then a bit for each symbol that is not 0, packed,
1 for negative. Where n is 0 the payload is the kind alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wire import entropy
from wire.codecs.base import Context, Encoded, Encoder, Support, count_of
from wire.codecs.bits import read_signs, read_varint, write_signs, write_varint
from wire.codecs.budget import Allowance
from wire.engine import Array
from wire.errors import CodecError

__all__ = ["GRADIENT", "GradientEncoder", "decode_gradient"]

Floats = NDArray[np.float32]
Symbols = NDArray[np.uint8]

GRADIENT = 2  # the kind of payload

_ALPHABET = 16
_MAGNITUDES = np.array([0.0, *(2.0**k for k in range(_ALPHABET - 1))], np.float32)
_UNIT_CLASS = 11
_SMALLEST, _LARGEST = np.float32(2.0**-100), np.float32(2.0**100)


class GradientEncoder(Encoder):
    """State: the budget's account."""

    def __init__(self, number: int, *, step: float, allowance: Allowance) -> None:
        """``step``: the unit, in mean magnitudes of what is sent."""
        self._number = number
        self._step = step
        self._allowance = allowance

    def encode(self, array: Floats, context: Context) -> Encoded:
        def attempt(factor: float) -> tuple[bytes]:
            return (bytes([GRADIENT]) + _encode(array, self._step * factor, context),)

        (payload,) = self._allowance.fit(attempt, array.shape[0] if array.shape else 1, context.train)
        return Encoded(number=self._number, pieces=(payload,))

    def state(self) -> dict[str, Array]:
        return self._allowance.state()

    def load_state(self, state: Mapping[str, Array]) -> None:
        self._allowance.load_state(state)


def _encode(array: Floats, multiple: float, context: Context) -> bytes:
    """``multiple``: the unit, in mean magnitudes of what is sent. float32 of any shape; its first dimension is the samples.

    Where the support leaves nothing, the payload is empty.
    """
    values, counts = _chosen(array, context.support)
    if not values.size:
        return b""
    magnitudes = np.abs(values)
    mean = float(magnitudes.mean(dtype=np.float64))
    unit = np.float32(min(max(mean * multiple, float(_SMALLEST)), float(_LARGEST)))
    scaled = np.divide(magnitudes, unit, dtype=np.float32)
    classes = _classes(scaled, counts)
    symbols = _rounded(scaled, context.uniform(values.shape))
    order = _by_class(classes, counts)
    coded_classes = entropy.encode(classes, (len(classes),), _ALPHABET)
    coded = entropy.encode(symbols[order], _class_counts(classes, counts), _ALPHABET)
    signs = write_signs(np.where(symbols, values, np.float32(0)))
    head = unit.astype("<f4").tobytes()
    return b"".join((head, write_varint(len(coded_classes)), coded_classes, write_varint(len(coded)), coded, signs))


def decode_gradient(data: memoryview, shape: tuple[int, ...], support: Support | None) -> Floats:
    """float32 of ``shape``, 0 outside the support. Raises CodecError."""
    if support is not None and support.shape != shape:
        raise CodecError(f"the support has the shape {list(support.shape)}, the gradient {list(shape)}")
    counts = _counts(shape, support)
    if not counts.any():
        return _nothing(data, shape)
    if len(data) < 4:
        raise CodecError("the unit is cut short")
    unit = np.frombuffer(data[:4], "<f4").astype(np.float32)[0]
    if not _SMALLEST <= unit <= _LARGEST:
        raise CodecError("the unit is out of range")
    size, at = read_varint(data, 4)
    classes = entropy.decode(bytes(data[at : at + size]), (len(counts),), _ALPHABET)
    size, at = read_varint(data, at + size)
    sorted_symbols = entropy.decode(bytes(data[at : at + size]), _class_counts(classes, counts), _ALPHABET)
    symbols = np.empty_like(sorted_symbols)
    symbols[_by_class(classes, counts)] = sorted_symbols
    values: Floats = np.multiply(_MAGNITUDES, unit, dtype=np.float32).take(symbols)
    read_signs(data[at + size :], values, symbols != 0)
    if support is None:
        return values.reshape(shape)
    array = np.zeros(shape, np.float32)
    array[support] = values
    return array


def _nothing(data: memoryview, shape: tuple[int, ...]) -> Floats:
    if len(data):
        raise CodecError("there is nothing to send, and yet something came")
    return np.zeros(shape, np.float32)


def _chosen(array: Floats, support: Support | None) -> tuple[Floats, NDArray[np.int64]]:
    """What is sent, flat, and how many of it each sample has."""
    values: Floats = array.reshape(-1) if support is None else array[support]
    return values, _counts(array.shape, support)


def _counts(shape: tuple[int, ...], support: Support | None) -> NDArray[np.int64]:
    samples = shape[0] if shape else 1
    if support is None:
        return np.full(samples, count_of(shape) // max(1, samples), np.int64)
    return np.asarray(np.count_nonzero(support.reshape(samples, -1 if support.size else 0), axis=1), np.int64)


def _classes(scaled: Floats, counts: NDArray[np.int64]) -> Symbols:
    owners = np.repeat(np.arange(len(counts)), counts)
    power = np.bincount(owners, weights=np.square(scaled, dtype=np.float64), minlength=len(counts)) / np.maximum(counts, 1)
    octaves = np.log2(np.maximum(power, 2.0**-60)) / 2
    return np.asarray(np.clip(np.rint(octaves) + _UNIT_CLASS, 0, _ALPHABET - 1), np.uint8)


def _class_counts(classes: Symbols, counts: NDArray[np.int64]) -> list[int]:
    return [int(counts[classes == number].sum()) for number in range(_ALPHABET)]


def _by_class(classes: Symbols, counts: NDArray[np.int64]) -> NDArray[np.intp]:
    """The order in which symbols are coded: by class, as they come within one."""
    return np.argsort(np.repeat(classes, counts), kind="stable")


def _rounded(scaled: Floats, uniform: Floats) -> Symbols:
    """The symbol below or above, at random, so that what it stands for is ``scaled`` on average."""
    _, exponents = np.frexp(scaled)
    below = np.clip(exponents, 0, _ALPHABET - 2)
    low, high = _MAGNITUDES.take(below), _MAGNITUDES.take(below + 1)
    symbols = below + (uniform * (high - low) < scaled - low)
    return symbols.astype(np.uint8)
