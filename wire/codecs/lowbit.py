"""``lowbit``: a few levels, entropy coded, trained through. About one bit an activation, and far less a gradient.

**Forward.** Dead-zone quantizer with a step a channel: the symbol of x is min(levels, floor(|x| / step + 0.35)) with x's sign; so what is
below 0.65 steps is 0. The server computes with, and the gradient is taken at, what the symbols stand for: each level's mean (centroid) in
this message, in steps. The quantizer stays on in evaluation and inference. Symbols are coded with ``wire.entropy``.

Steps are taken from the first training message (``step`` times a channel's root mean square); then they learn, at ``step_rate``, from the
gradient that comes back, as the network does; where hardly a symbol is not 0, they shrink until some are. ``rate_weight`` is the price of
a bit in units of the loss: the sender adds to the gradient that comes back the slope of what each symbol costs, on the support only (a
symbol that is 0 costs little, and has no gradient of its own with which to come back), and never more than the gradient itself. This is
rate-distortion optimisation by a straight-through gradient; it takes nothing from the line.

**Backward.** The gradient of a symbol that is 0 is not sent: both ends know where. The others are rounded at random, without bias, to 0, 1,
2, 4, … 2^14 times one unit, ``step`` times their mean magnitude in this message. One unit for all samples is what the least error asks for:
most samples of a trained network have hardly any gradient, and take hardly a bit then. Each sample's scale, a factor of 2 fine, goes along
and chooses the distribution that its symbols are coded with.

**Budget.** ``bytes_per_sample``, or ``rate_bps`` with ``deadline_s`` and ``samples``, bounds what a tensor's payloads in this
direction may take over the training: a message may use what is left of the allowance up to now, and is coded with coarser steps until it
fits.

The first byte of a payload is its kind: 0 activations, 1 those with negative values among them (``wire.codecs.lowbit_activations``), 2 a
gradient (``wire.codecs.lowbit_gradients``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wire.codecs.base import Codec, Context, Decoded, Direction, Encoder
from wire.codecs.budget import Allowance, bytes_per_sample
from wire.codecs.lowbit_activations import HEAD_BYTES, MOST_LEVELS, SIGNED, UNSIGNED, ActivationEncoder, decode_activations
from wire.codecs.lowbit_gradients import GRADIENT, GradientEncoder, decode_gradient
from wire.errors import CodecError
from wire.manifest import TensorSpec

__all__ = ["LowBit"]

_LEAST_BITS = 0.02  # an element: with less, next to nothing is not 0


@dataclass(frozen=True, kw_only=True)
class LowBit(Codec):
    """``levels``: of each sign but 0, 1 to 15. ``step``: by default 1 forward, 8 backward. ``rate_weight``: loss a bit;
    ``step_rate``: how fast steps learn; both mean nothing backward.

    The budget is ``bytes_per_sample``, or follows from ``rate_bps``, ``deadline_s`` and ``samples``: all training samples of the run, every
    epoch counted.
    """

    name = "lowbit"
    number = 16
    marks_support = True

    levels: int = 7
    step: float | None = None
    rate_weight: float = 0.0
    step_rate: float = 0.05
    bytes_per_sample: float | None = None
    rate_bps: float | None = None
    deadline_s: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MOST_LEVELS:
            raise ValueError(f"`levels` is {self.levels}; it must be 1 to {MOST_LEVELS}")
        if self.step is not None and not 0.01 <= self.step <= 1000:
            raise ValueError(f"`step` is {self.step}; it must be 0.01 to 1000")
        if not 0 <= self.rate_weight <= 1:
            raise ValueError(f"`rate_weight` is {self.rate_weight}; it must be 0 to 1")
        if not 0 <= self.step_rate <= 100:
            raise ValueError(f"`step_rate` is {self.step_rate}; it must be 0 to 100")
        _ = self.budget

    @property
    def budget(self) -> float | None:
        """Bytes a sample; None: no budget. Raises ValueError for options that make none together."""
        return bytes_per_sample(self.bytes_per_sample, self.rate_bps, self.deadline_s, self.samples)

    def check(self, tensor: TensorSpec, direction: Direction, batch_size: int) -> None:
        elements = tensor.bytes_at(1) // 4
        channels = int(tensor.shape[1]) if len(tensor.shape) > 2 else 1
        head = HEAD_BYTES + channels + 2 if direction == "forward" else HEAD_BYTES + batch_size / 2
        least = _LEAST_BITS * elements / 8 + head / batch_size
        if self.budget is not None and self.budget < least:
            raise ValueError(
                f"its budget of {self.budget:.3g} bytes a sample cannot be held for {elements} elements in batches of {batch_size}; "
                f"give it {least:.3g} or more"
            )

    def encoder(self, tensor: TensorSpec, direction: Direction) -> Encoder:
        if direction == "backward":
            return GradientEncoder(self.number, step=self.step or 8.0, allowance=Allowance(self.budget))
        return ActivationEncoder(
            self.number,
            levels=self.levels,
            step=self.step or 1.0,
            rate_weight=self.rate_weight,
            step_rate=self.step_rate,
            allowance=Allowance(self.budget),
            channels=tensor.shape[1] if len(tensor.shape) > 2 and isinstance(tensor.shape[1], int) else 1,
        )

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        if dtype != np.float32:
            raise CodecError(f"this codec carries float32, not {dtype}")
        if not len(data):
            raise CodecError("the payload is empty")
        if data[0] == GRADIENT:
            return Decoded(array=decode_gradient(data[1:], shape, context.support))
        if data[0] not in (UNSIGNED, SIGNED):
            raise CodecError(f"there is no kind {data[0]} of payload")
        return decode_activations(data, shape)
