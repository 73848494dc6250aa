"""The forward half of ``wire.codecs.lowbit``: a dead-zone quantizer with learned steps, and its payload.

Payload, little endian: u8 kind (0; 1 where there are negative values), u8 levels, i16 base, u8 offset [C], float16 centroid [levels],
then the magnitudes' symbols as ``wire.entropy.encode_maps`` writes them. Of kind 1, their length stands before them as a varint, and
after them a bit for each symbol that is not 0, packed, 1 for negative. C is dimension 1 where there are three dimensions or more, otherwise
1. A channel's step is 2^((base + offset) / 8). Of a tensor without elements the payload is the kind alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire import entropy
from wire.codecs.base import Context, Decoded, Encoded, Encoder, count_of
from wire.codecs.bits import read_signs, read_varint, write_signs, write_varint
from wire.codecs.budget import Allowance
from wire.engine import Array
from wire.errors import CodecError

__all__ = ["HEAD_BYTES", "MOST_LEVELS", "SIGNED", "UNSIGNED", "ActivationEncoder", "decode_activations"]

Floats = NDArray[np.float32]
Symbols = NDArray[np.uint8]

UNSIGNED, SIGNED = 0, 1
MOST_LEVELS = 15
HEAD_BYTES = 4

_DEAD_ZONE = np.float32(0.35)  # added before rounding down: what is below 0.65 steps is 0
_EIGHTHS = np.array([2.0 ** (k / 8) for k in range(8)], np.float32)  # a step is one of these times a power of two: exact everywhere
_LOWEST, _HIGHEST = -800, 800  # of a step's number
_SMALLEST, _LARGEST = 2.0**-99, 2.0**99  # steps
# Of what is not 0 in the tensor. With fewer symbols that are not 0 hardly a gradient comes back, and steps would stay too wide for ever.
_ALIVE = 0.02
_REVIVAL = np.float32(0.9)
# Of what is not 0. Elements beyond the last level are sent as their mean, which no step changes: with many of them steps shrink, and
# activations that nothing else bounds grow, until both are out of range.
_CROWDED = 0.02
_FASTEST = 0.05  # change of a step's logarithm in one training step


def _step_numbers(steps: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The nearest eighth of an octave of each, within what 8 bits above the least of them can say."""
    numbers = np.clip(np.rint(8 * np.log2(steps)), _LOWEST, _HIGHEST).astype(np.int64)
    found: NDArray[np.int64] = np.maximum(numbers, numbers.max(initial=_LOWEST) - 255)
    return found


def _steps(numbers: NDArray[np.int64]) -> Floats:
    if numbers.size and (numbers.min() < _LOWEST or numbers.max() > _HIGHEST):
        raise CodecError("a step is out of range")
    return np.ldexp(_EIGHTHS[numbers % 8], (numbers // 8).astype(np.int32)).astype(np.float32)


def _maps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(batch, channels, others); what has fewer than three dimensions has one channel."""
    batch, channels = (shape[0], shape[1]) if len(shape) > 2 else (shape[0] if shape else 1, 1)
    return batch, channels, count_of(shape) // max(1, batch * channels)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of a message, until its gradient is there. Elements are [batch, channels, others]."""

    symbols: NDArray[np.int8]  # with their signs
    slopes: Floats  # [channels, levels + 1]: loss, by level, that a unit of the tensor costs
    levels: Floats  # [levels + 1]: what they stand for, in steps
    scaled: Floats  # the tensor, in steps, without signs
    steps: Floats  # [channels]


class ActivationEncoder(Encoder):
    """State: the steps (0: not taken yet), and the budget's account."""

    def __init__(
        self, number: int, *, levels: int, step: float, rate_weight: float, step_rate: float, allowance: Allowance, channels: int
    ) -> None:
        self._number = number
        self._levels = levels
        self._step = step
        self._rate_weight = rate_weight
        self._step_rate = step_rate
        self._allowance = allowance
        self._steps = np.zeros(channels, np.float32)

    def encode(self, array: Floats, context: Context) -> Encoded:
        if not array.size:
            return Encoded(number=self._number, pieces=(bytes([UNSIGNED]),), support=np.zeros(array.shape, np.bool_))
        batch, channels, others = _maps(array.shape)
        values = array.reshape(batch, channels, others)
        if len(self._steps) != channels:
            raise CodecError(f"{channels} channels; it is made for {len(self._steps)}")
        steps = self._steps if self._steps.all() else self._first_steps(values)
        if context.train:
            self._steps = steps
        signed = float(array.min()) < 0

        def attempt(factor: float) -> tuple[bytes, _Quantized]:
            found = _quantize(values, steps * np.float32(factor), self._levels)
            return _written(found, array.shape, signed), found

        payload, found = self._allowance.fit(attempt, batch, context.train)
        if context.train:
            self._keep_useful(values, found)
        learns = context.train and (self._rate_weight or self._step_rate)
        kept = self._kept(found) if learns else None
        return Encoded(number=self._number, pieces=(payload,), support=(found.symbols != 0).reshape(array.shape), kept=kept)

    def _keep_useful(self, values: Floats, found: _Quantized) -> None:
        """Where nearly all is 0, or much is beyond the last level, the gradient says nothing of which way steps should go."""
        used = np.count_nonzero(found.symbols)
        if used < _ALIVE * np.count_nonzero(values):
            self._steps = np.maximum(self._steps * _REVIVAL, _SMALLEST).astype(np.float32)
        elif np.count_nonzero(found.scaled > self._levels + 1) > _CROWDED * used:
            self._steps = np.minimum(self._steps / _REVIVAL, _LARGEST).astype(np.float32)

    def _first_steps(self, values: Floats) -> Floats:
        """``step`` times the root mean square of each channel; of one that is all zero, of the others."""
        count = values.shape[0] * values.shape[2]
        power = np.square(values, dtype=np.float64).sum(axis=(0, 2)) / count
        mean = float(power.mean()) or 1.0
        power = np.where(power > mean * 2.0**-20, power, mean)
        steps: Floats = np.clip(np.sqrt(power) * self._step, _SMALLEST, _LARGEST).astype(np.float32)
        return steps

    def _kept(self, found: _Quantized) -> _Kept:
        levels = np.arange(self._levels + 1, dtype=np.float32)
        levels[1 : 1 + len(found.centroids)] = found.centroids
        return _Kept(symbols=found.symbols, slopes=self._slopes(found), levels=levels, scaled=found.scaled, steps=found.steps)

    def _slopes(self, found: _Quantized) -> Floats:
        """What a unit more costs: the difference of a level's bits to those of the next lower one, over the step, in loss a sample."""
        levels, (batch, channels, _) = self._levels, found.symbols.shape
        keys = found.magnitudes + np.intp(levels + 1) * np.arange(channels)[:, None]
        counts = np.bincount(keys.reshape(-1), minlength=channels * (levels + 1)).reshape(channels, levels + 1) + 0.5
        bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
        slopes = np.zeros((channels, levels + 1))
        slopes[:, 1:] = np.diff(bits, axis=1) / found.steps[:, None]
        priced: Floats = (slopes * (self._rate_weight / batch)).astype(np.float32)
        return priced

    def learn(self, kept: _Kept, grad: Floats, context: Context) -> Floats:
        """Moves the steps along the gradient of loss and price, and adds the price of the bits to the tensor's gradient."""
        symbols, signs = kept.symbols, np.sign(kept.symbols)
        magnitudes = np.abs(symbols).astype(np.intp)
        keys = magnitudes + kept.slopes.shape[1] * np.arange(len(kept.slopes))[:, None]
        price = _affordable(kept.slopes.reshape(-1).take(keys), grad)
        if self._step_rate:
            self._move_steps(kept, magnitudes, grad.reshape(symbols.shape) * signs, price)
        if not self._rate_weight:
            return grad
        priced: Floats = grad + (price * signs).reshape(grad.shape)
        return priced

    def _move_steps(self, kept: _Kept, magnitudes: NDArray[np.intp], grad: Floats, price: Floats) -> None:
        """Learned step sizes (Esser et al., arXiv 1902.08153); their logarithms learn, so that the tensor's scale does not matter.

        ``grad``, ``price``: what a unit more of an element's magnitude changes in the loss, and what it costs. A wider step makes all
        elements smaller, in steps, and so cheaper.
        """
        levels = np.float32(self._levels)
        error = kept.levels.take(magnitudes) - np.where(kept.scaled > levels, np.float32(0), kept.scaled)
        with np.errstate(over="ignore", invalid="ignore"):  # a peer's gradient may be anything finite
            slope = (grad * error - price * kept.scaled).sum(axis=(0, 2), dtype=np.float64) * kept.steps
        change = np.clip(self._step_rate * np.nan_to_num(slope), -_FASTEST, _FASTEST)
        self._steps = np.clip(self._steps * np.exp(-change), _SMALLEST, _LARGEST).astype(np.float32)

    def state(self) -> dict[str, Array]:
        return {"steps": self._steps.copy(), **self._allowance.state()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        steps = state["steps"]
        if not (np.isfinite(steps).all() and np.greater_equal(steps, 0).all()):
            raise ValueError("a step is not a finite number from 0")
        self._allowance.load_state(state)
        self._steps = steps.astype(np.float32)


def _affordable(price: Floats, grad: Floats) -> Floats:
    """``price`` pulls no harder than the loss does, by their norms over the message; usually it is a thousandth.

    The smaller a step, the more a unit costs. Without a bound, activations that the price has made small are driven to nothing, and the
    network never comes back.
    """
    pull, limit = (float(np.sqrt(np.square(each, dtype=np.float64).sum())) for each in (price, grad))
    return price if pull <= limit else price * np.float32(limit / pull)


@dataclass(frozen=True, slots=True)
class _Quantized:
    """A tensor [batch, channels, others], quantized."""

    numbers: NDArray[np.int64]  # [channels]: of the steps
    steps: Floats  # [channels]
    scaled: Floats  # magnitudes in steps
    symbols: NDArray[np.int8]  # with their signs
    magnitudes: Symbols
    centroids: NDArray[np.float16]  # of the levels that occur, from 1


def _quantize(values: Floats, wanted: Floats, levels: int) -> _Quantized:
    """``wanted``: the steps; those that can be written are taken."""
    numbers = _step_numbers(wanted)
    steps = _steps(numbers)
    scaled = np.abs(values) * (np.float32(1) / steps)[:, None]
    magnitudes = np.minimum(scaled + _DEAD_ZONE, np.float32(levels)).astype(np.uint8)
    symbols = np.where(values < 0, -magnitudes.view(np.int8), magnitudes.view(np.int8))
    highest = max(1, int(magnitudes.max(initial=0)))
    flat = magnitudes.reshape(-1)
    count = np.bincount(flat, minlength=highest + 1)[1:]
    total = np.bincount(flat, weights=scaled.reshape(-1), minlength=highest + 1)[1:]
    mean = np.where(count > 0, total / np.maximum(count, 1), np.arange(1, highest + 1))  # an empty one stands for its number
    centroids = np.clip(mean, 0.01, 60000).astype("<f2")
    return _Quantized(numbers=numbers, steps=steps, scaled=scaled, symbols=symbols, magnitudes=magnitudes, centroids=centroids)


def _written(found: _Quantized, shape: tuple[int, ...], signed: bool) -> bytes:
    levels, base = len(found.centroids), int(found.numbers.min())
    head = bytes([SIGNED if signed else UNSIGNED, levels]) + base.to_bytes(2, "little", signed=True)
    pieces = [head, (found.numbers - base).astype(np.uint8).tobytes(), found.centroids.tobytes()]
    coded = entropy.encode_maps(found.magnitudes.reshape(_as_maps(shape)), levels + 1)
    if signed:
        pieces.append(write_varint(len(coded)))
    pieces.append(coded)
    if signed:
        pieces.append(write_signs(found.symbols))
    return b"".join(pieces)


def _as_maps(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) > 2 else (shape[0] if shape else 1, 1, count_of(shape[1:]))


def decode_activations(data: memoryview, shape: tuple[int, ...]) -> Decoded:
    batch, channels, others = _maps(shape)
    if not batch * channels * others and len(data) > 1:
        raise CodecError("there is nothing to send, and yet something came")
    if not batch * channels * others:
        return Decoded(array=np.zeros(shape, np.float32), support=np.zeros(shape, np.bool_))
    levels = data[1] if len(data) > 1 else 0
    centroids_at = HEAD_BYTES + channels
    at = centroids_at + 2 * levels
    if not 1 <= levels <= MOST_LEVELS or len(data) < at:
        raise CodecError("the head of the payload is cut short, or has a number of levels that does not exist")
    base = int.from_bytes(data[2:4], "little", signed=True)
    steps = _steps(np.frombuffer(data[HEAD_BYTES:centroids_at], np.uint8).astype(np.int64) + base)
    centroids = np.frombuffer(data[centroids_at:at], "<f2").astype(np.float32)
    if not (np.isfinite(centroids).all() and (centroids > 0).all()):
        raise CodecError("a level does not stand for a finite number above 0")
    coded, signs = data[at:], None
    if data[0] == SIGNED:
        size, at = read_varint(data, at)
        coded, signs = data[at : at + size], data[at + size :]
    symbols = entropy.decode_maps(bytes(coded), _as_maps(shape), levels + 1).reshape(batch, channels, others)
    values = np.zeros((channels, levels + 1), np.float32)
    values[:, 1:] = steps[:, None] * centroids
    keys = symbols.astype(np.intp) + (levels + 1) * np.arange(channels)[:, None]
    array = values.reshape(-1).take(keys).reshape(shape)
    support = (symbols != 0).reshape(shape)
    if signs is not None:
        read_signs(signs, array, support)
    return Decoded(array=array, support=support)
