"""``lowbit``: a few levels, entropy coded, trained through. About one bit an activation, and far less a gradient.

**Forward.** Dead-zone quantizer with a step a channel: the symbol of x is min(levels, floor(|x| / step + 0.35)) with x's sign; so what is
below 0.65 steps is 0. The server computes with, and the gradient is taken at, what the symbols stand for: each level's mean (centroid) in
this message, in steps. The quantizer stays on in evaluation and inference. Symbols are coded with ``wire.entropy``.

Steps are taken from the first training message (``step`` times a channel's root mean square) and then kept, so the network learns to live
with them, and its own scales (a BatchNorm before the cut, say) become what distributes bits among channels. ``rate_weight`` is the price of a bit in
units of the loss: the sender adds to the gradient that comes back the slope of what each symbol costs, on the support only (a symbol that
is 0 costs little, and has no gradient of its own with which to come back). This is rate-distortion optimisation by a straight-through
gradient; it takes nothing from the line.

**Backward.** The gradient of a symbol that is 0 is not sent: both ends know where. The others are rounded at random, without bias, to 0, 1,
2, 4, … 2^14 times one unit, ``step`` times their mean magnitude in this message. One unit for all samples is what the least error asks for:
most samples of a trained network have hardly any gradient, and take hardly a bit then. Each sample's scale, a factor of 2 fine, goes along
and chooses the distribution that its symbols are coded with.

**Budget.** ``bytes_per_sample``, or ``rate_bps`` with ``deadline_s`` and ``samples``, bounds what the payloads of this direction may
take over the training: a message may use what is left of the allowance up to now, and is coded with coarser steps until it fits.

Little endian. Forward payload: u8 kind (0; 1 where there are negative values), u8 levels, i16 base, u8 offset [C], float16 centroid [levels], then
the symbols' magnitudes as ``encode_maps`` writes them (length by varint where signs follow), then a bit for each that is not 0 (1: negative), packed. C is dimension
1 where there are three dimensions or more, otherwise 1. A channel's step is 2^((base + offset) / 8). Backward payload: u8 kind 2, float32
unit, varint length and ``encode`` of the samples' classes [N], varint length and ``encode`` of the magnitudes' symbols in groups by class,
in the order of the tensor within a class, then signs as above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire import entropy
from wire.codecs.base import Codec, Context, Decoded, Direction, Encoded, Encoder, Support, count_of
from wire.codecs.bits import pack_bits, packed_bytes, read_varint, unpack_bits, write_varint
from wire.codecs.budget import Allowance, bytes_per_sample
from wire.codecs.gradients import decode_gradient, encode_gradient
from wire.engine import Array
from wire.errors import CodecError
from wire.manifest import TensorSpec

__all__ = ["LowBit"]

Floats = NDArray[np.float32]
Symbols = NDArray[np.uint8]

_DEAD_ZONE = np.float32(0.35)  # added before rounding down: what is below 0.65 steps is 0
_UNSIGNED, _SIGNED, _GRADIENT = 0, 1, 2
_MOST_LEVELS = 15
_EIGHTHS = np.array([2.0 ** (k / 8) for k in range(8)], np.float32)  # a step is one of these times a power of two: exact everywhere
_LOWEST, _HIGHEST = -800, 800  # of a step's number
_HEAD_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class LowBit(Codec):
    """``levels``: of each sign but 0, 1 to 15. ``step``: by default 1 forward, 5 backward. ``rate_weight``: loss a bit, forward only.

    The budget is ``bytes_per_sample``, or follows from ``rate_bps``, ``deadline_s`` and ``samples``, all training samples of the run, every epoch
    counted.
    """

    name = "lowbit"
    number = 16
    marks_support = True

    levels: int = 4
    step: float | None = None
    rate_weight: float = 0.0
    bytes_per_sample: float | None = None
    rate_bps: float | None = None
    deadline_s: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= _MOST_LEVELS:
            raise ValueError(f"`levels` is {self.levels}; it must be 1 to {_MOST_LEVELS}")
        if self.step is not None and not 0.01 <= self.step <= 1000:
            raise ValueError(f"`step` is {self.step}; it must be 0.01 to 1000")
        if not 0 <= self.rate_weight <= 1:
            raise ValueError(f"`rate_weight` is {self.rate_weight}; it must be 0 to 1")
        bytes_per_sample(self.bytes_per_sample, self.rate_bps, self.deadline_s, self.samples)

    @property
    def budget(self) -> float | None:
        """Bytes a sample; None: no budget."""
        return bytes_per_sample(self.bytes_per_sample, self.rate_bps, self.deadline_s, self.samples)

    def check(self, tensor: TensorSpec, direction: Direction) -> None:
        elements = tensor.bytes_at(1) // 4
        least = max(1.0, elements / 800)
        if self.budget is not None and self.budget < least:
            raise ValueError(
                f"its budget of {self.budget:.3g} bytes a sample cannot be held for {elements} elements; give it {least:.3g} or more"
            )
        if direction == "backward" and self.rate_weight:
            raise ValueError("`rate_weight` prices the bits of activations; leave it out backward")

    def encoder(self, tensor: TensorSpec, direction: Direction) -> Encoder:
        if direction == "backward":
            return _GradientEncoder(self)
        static = [size for size in tensor.shape[1:2] if len(tensor.shape) > 2 and isinstance(size, int)]
        return _ActivationEncoder(self, static[0] if static else 1)

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        if dtype != np.float32:
            raise CodecError(f"this codec carries float32, not {dtype}")
        if not len(data):
            raise CodecError("the payload is empty")
        if data[0] == _GRADIENT:
            return Decoded(array=decode_gradient(data[1:], shape, context.support))
        if data[0] not in (_UNSIGNED, _SIGNED):
            raise CodecError(f"there is no kind {data[0]} of payload")
        return _decode_activations(data, shape)


# ---------------------------------------------------------------- steps


def _step_numbers(steps: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The nearest eighth of an octave of each, within what 8 bits above the least of them can say."""
    numbers = np.clip(np.rint(8 * np.log2(steps)), _LOWEST, _HIGHEST).astype(np.int64)
    return np.maximum(numbers, numbers.max(initial=_LOWEST) - 255)


def _steps(numbers: NDArray[np.int64]) -> Floats:
    if numbers.size and (numbers.min() < _LOWEST or numbers.max() > _HIGHEST):
        raise CodecError("a step is out of range")
    return np.ldexp(_EIGHTHS[numbers % 8], (numbers // 8).astype(np.int32)).astype(np.float32)


def _maps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(batch, channels, others); what has fewer than three dimensions has one channel."""
    batch, channels = (shape[0], shape[1]) if len(shape) > 2 else (shape[0] if shape else 1, 1)
    return batch, channels, count_of(shape) // max(1, batch * channels)


# ---------------------------------------------------------------- forward


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of a message, until its gradient is there: symbols with their signs [batch, channels, others], and what the next lower costs less."""

    symbols: NDArray[np.int8]
    slopes: Floats  # [channels, levels + 1]: loss, by symbol, that a unit of the tensor costs


class _ActivationEncoder(Encoder):
    """State: the steps (0: not taken yet), and the budget's account."""

    def __init__(self, codec: LowBit, channels: int) -> None:
        self._codec = codec
        self._steps = np.zeros(channels, np.float32)
        self._allowance = Allowance(codec.budget)

    def encode(self, array: Floats, context: Context) -> Encoded:
        batch, channels, others = _maps(array.shape)
        values = array.reshape(batch, channels, others)
        steps = self._steps
        if steps.shape != (channels,) or not steps.all():
            steps = self._first_steps(values, channels)
            if context.train:
                self._steps = steps
        signed = bool(array.size) and float(array.min()) < 0

        def attempt(factor: float) -> tuple[bytes, NDArray[np.int8], Floats]:
            numbers = _step_numbers(steps * np.float32(factor))
            used = _steps(numbers)
            symbols = self._quantized(values, used)
            return self._written(values, symbols, numbers, used, array.shape, signed), symbols, used

        payload, symbols, used = self._allowance.fit(attempt, batch, context.train)
        support = (symbols != 0).reshape(array.shape)
        kept = _Kept(symbols, self._slopes(symbols, used)) if context.train and self._codec.rate_weight else None
        return Encoded(number=LowBit.number, pieces=(payload,), support=support, kept=kept)

    def _first_steps(self, values: Floats, channels: int) -> Floats:
        """``step`` times the root mean square of each channel; of one that is all zero, of the others."""
        count = max(1, values.shape[0] * values.shape[2])
        power = np.square(values, dtype=np.float64).sum(axis=(0, 2)) / count
        mean = float(power.mean()) if power.size and power.any() else 1.0
        power = np.where(power > mean * 2.0**-20, power, mean)
        multiple = self._codec.step or 1.0
        return np.clip(np.sqrt(power) * multiple, 2.0**-99, 2.0**99).astype(np.float32)

    def _quantized(self, values: Floats, steps: Floats) -> NDArray[np.int8]:
        scaled = values * (np.float32(1) / steps)[:, None]
        magnitudes = np.minimum(np.abs(scaled) + _DEAD_ZONE, np.float32(self._codec.levels)).astype(np.int8)
        return np.where(scaled < 0, -magnitudes, magnitudes)

    def _written(
        self, values: Floats, symbols: NDArray[np.int8], numbers: NDArray[np.int64], steps: Floats, shape: tuple[int, ...], signed: bool
    ) -> bytes:
        magnitudes = np.abs(symbols).astype(np.uint8)
        levels = max(1, int(magnitudes.max(initial=0)))
        base = int(numbers.min(initial=_HIGHEST)) if numbers.size else 0
        head = bytes([_SIGNED if signed else _UNSIGNED, levels]) + base.to_bytes(2, "little", signed=True)
        pieces = [head, (numbers - base).astype(np.uint8).tobytes(), self._centroids(values, magnitudes, steps, levels).tobytes()]
        coded = entropy.encode_maps(magnitudes.reshape(_as_maps(shape)), levels + 1)
        if signed:
            pieces += [write_varint(len(coded)), coded, pack_bits((symbols[symbols != 0] < 0).view(np.uint8), 1)]
        else:
            pieces.append(coded)
        return b"".join(pieces)

    def _centroids(self, values: Floats, magnitudes: Symbols, steps: Floats, levels: int) -> NDArray[np.float16]:
        """The mean of each level, in steps, as float16 [levels]; of one that is empty, its number."""
        flat = magnitudes.reshape(-1)
        scaled = np.abs(values * (np.float32(1) / steps)[:, None]).reshape(-1)
        count = np.bincount(flat, minlength=levels + 1)[1:]
        total = np.bincount(flat, weights=scaled, minlength=levels + 1)[1:]
        mean = np.where(count > 0, total / np.maximum(count, 1), np.arange(1, levels + 1))
        return np.clip(mean, 0.01, 60000).astype("<f2")

    def _slopes(self, symbols: NDArray[np.int8], steps: Floats) -> Floats:
        """What a unit more costs: the difference of a symbol's bits to those of the next lower one, over the step, in loss a sample."""
        levels, (batch, channels, _) = self._codec.levels, symbols.shape
        keys = np.abs(symbols).astype(np.int64) + (levels + 1) * np.arange(channels)[:, None]
        found = np.bincount(keys.reshape(-1), minlength=channels * (levels + 1)).reshape(channels, levels + 1) + 0.5
        bits = -np.log2(found / found.sum(axis=1, keepdims=True))
        slopes = np.zeros((channels, levels + 1))
        slopes[:, 1:] = np.diff(bits, axis=1) / steps[:, None]
        return (slopes * (self._codec.rate_weight / max(1, batch))).astype(np.float32)

    def learn(self, kept: Any, grad: Floats, context: Context) -> Floats:
        symbols, slopes = kept.symbols, kept.slopes
        levels = slopes.shape[1]
        keys = np.abs(symbols).astype(np.int64) + levels * np.arange(len(slopes))[:, None]
        price = slopes.reshape(-1).take(keys) * np.sign(symbols)
        return grad + price.reshape(grad.shape).astype(np.float32)

    def state(self) -> dict[str, Array]:
        return {"steps": self._steps.copy(), **self._allowance.state()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        steps = state["steps"]
        if not np.isfinite(steps).all() or (steps < 0).any():
            raise ValueError("a step is not a finite number from 0")
        self._allowance.load_state(state)
        self._steps = steps.astype(np.float32)


def _as_maps(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) > 2 else (shape[0] if shape else 1, 1, count_of(shape[1:]))


def _decode_activations(data: memoryview, shape: tuple[int, ...]) -> Decoded:
    batch, channels, others = _maps(shape)
    levels = data[1] if len(data) > 1 else 0
    centroids_at = _HEAD_BYTES + channels
    at = centroids_at + 2 * levels
    if not 1 <= levels <= _MOST_LEVELS or len(data) < at:
        raise CodecError("the head of the payload is cut short, or has a number of levels that does not exist")
    base = int.from_bytes(data[2:4], "little", signed=True)
    steps = _steps(np.frombuffer(data[_HEAD_BYTES:centroids_at], np.uint8).astype(np.int64) + base)
    centroids = np.frombuffer(data[centroids_at:at], "<f2").astype(np.float32)
    if not (np.isfinite(centroids).all() and (centroids > 0).all()):
        raise CodecError("a level does not stand for a finite number above 0")
    coded, signs = data[at:], None
    if data[0] == _SIGNED:
        size, at = read_varint(data, at)
        coded, signs = data[at : at + size], data[at + size :]
    symbols = entropy.decode_maps(bytes(coded), _as_maps(shape), levels + 1).reshape(batch, channels, others)
    values = np.zeros((channels, levels + 1), np.float32)
    values[:, 1:] = steps[:, None] * centroids
    keys = symbols.astype(np.intp) + (levels + 1) * np.arange(channels)[:, None]
    array = values.reshape(-1).take(keys).reshape(shape)
    support = (symbols != 0).reshape(shape)
    if signs is not None:
        _negate(array, support, signs)
    return Decoded(array=array, support=support)


def _negate(array: Floats, support: Support, signs: memoryview) -> None:
    """Raises CodecError where there is not one sign an element of the support."""
    negative = unpack_bits(signs, 1, int(np.count_nonzero(support)))
    array[support] *= np.float32(1) - np.float32(2) * negative


# ---------------------------------------------------------------- backward


class _GradientEncoder(Encoder):
    """State: the budget's account."""

    def __init__(self, codec: LowBit) -> None:
        self._step = codec.step or 5.0
        self._allowance = Allowance(codec.budget)

    def encode(self, array: Floats, context: Context) -> Encoded:
        def attempt(factor: float) -> tuple[bytes]:
            return (bytes([_GRADIENT]) + encode_gradient(array, self._step * factor, context),)

        (payload,) = self._allowance.fit(attempt, array.shape[0] if array.shape else 1, context.train)
        return Encoded(number=LowBit.number, pieces=(payload,))

    def state(self) -> dict[str, Array]:
        return self._allowance.state()

    def load_state(self, state: Mapping[str, Array]) -> None:
        self._allowance.load_state(state)
