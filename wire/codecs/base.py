"""The seam of the codecs: one float32 tensor to bytes and back.

A **codec** is what a run names for a cut and a direction: a frozen dataclass of options, made from text like ``topk:keep=0.05``. It
checks that it fits a tensor, makes encoders, and decodes.

**State lives in the encoder alone**, on the sending side: one encoder a cut, lane, direction and tensor. A decoder is a function of the
payload and the ``Context``; whatever else it needs (steps, tables) stands in the message. So a message that is lost, repeated or sent
again after a restart desynchronises nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wire import rng
from wire.engine import Array
from wire.errors import CodecError
from wire.manifest import TensorSpec

__all__ = [
    "DIRECTIONS",
    "PLAIN",
    "Codec",
    "Context",
    "Decoded",
    "Direction",
    "Encoded",
    "Encoder",
    "Support",
    "as_array",
    "check_finite",
    "count_of",
]

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
Support = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a codec may know beyond the tensor; the same at both ends of the cut.

    ``scope`` is (cut, direction, lane, global step, tensor): what ``uniform`` is a function of, with ``seed``. ``train``: a step of
    training; otherwise (evaluation, inference) an encoder must not change, and draws nothing at random. ``progress``: how much of the
    training is through, 0 to 1; 1 in inference. ``support``, backward only, shaped like the tensor: where the forward message of this step
    had a symbol that is not zero; None where the forward codec marks none.
    """

    seed: int = 0
    scope: tuple[str | int, ...] = ()
    train: bool = False
    progress: float = 1.0
    support: Support | None = None

    def uniform(self, shape: tuple[int, ...], *purpose: str | int) -> NDArray[np.float32]:
        """float32 of ``shape`` in [0, 1), multiples of 2^-24. The same for the same ``purpose``, at both ends, on every machine."""
        return rng.uniform(shape, self.seed, "codec", *self.scope, *purpose)


PLAIN = Context()  # for codecs that need to know nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A payload, and what the sender keeps of the step until its gradient is there.

    ``number`` is the codec's in the tensor's header; ``pieces`` joined are the payload. ``support``, shaped like the tensor: see
    ``Context``; a codec that ``marks_support`` always gives one in training. ``kept``: whatever ``Encoder.learn`` needs, None: nothing.
    """

    number: int
    pieces: tuple[bytes, ...]
    support: Support | None = None
    kept: Any = None

    @property
    def size_bytes(self) -> int:
        return sum(len(piece) for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A fresh, writable array, and the ``support`` that its sender has, too."""

    array: Array
    support: Support | None = None


class Encoder(ABC):
    """One tensor of one cut, lane and direction, on the sending side. Tensors are float32, C-contiguous, finite, and fit the spec."""

    @abstractmethod
    def encode(self, array: NDArray[np.float32], context: Context) -> Encoded:
        """May change the encoder where ``context.train``. Forward, it raises CodecError for a tensor that cannot be carried, which makes
        the step VOID. Backward it must not: the segment has been updated by then.

        Where the payload is not smaller than float32 elements, those are sent in its place: the caller sees to it, and drops ``kept``.
        """

    def learn(self, kept: Any, grad: NDArray[np.float32], context: Context) -> NDArray[np.float32]:
        """The gradient of a tensor that this encoder sent has come back; what is returned goes to the engine in its place.

        Forward direction only, before the engine's backward, in the order of the steps; ``kept`` and ``context`` are those of its
        ``encode``. Not called where ``kept`` is None, the payload was sent as fp32 instead, or the step is VOID. May change the encoder.
        """
        return grad

    def state(self) -> dict[str, Array]:
        """All that the encoder continues from, bit for bit. Names, dtypes and shapes must be the same from the start on."""
        return {}

    def load_state(self, state: Mapping[str, Array]) -> None:  # noqa: B027 - most have none
        """Take up a ``state()``; the caller has checked names, dtypes and shapes. Raises ValueError for values that cannot be."""


class Codec(ABC):
    """A codec with its options. Subclasses are frozen dataclasses; bad options are a ValueError of ``__post_init__``.

    ``name``: in run files. ``number``: in tensor headers. ``version``: of what the bytes mean; both ends must have the same. ``for_runs``:
    a run may ask for it. ``marks_support``: its messages say where the gradient is wanted (``Context.support``); of a fallback to fp32
    that is where the tensor is not 0.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    version: ClassVar[int] = 1
    for_runs: ClassVar[bool] = True
    marks_support: ClassVar[bool] = False

    def check(self, tensor: TensorSpec, direction: Direction, batch_size: int) -> None:  # noqa: B027 - most fit any tensor
        """Called when a process starts, before the first step. Raises ValueError: does not fit the tensor, or cannot hold a budget.

        ``batch_size``: samples of a full message.
        """

    @abstractmethod
    def encoder(self, tensor: TensorSpec, direction: Direction) -> Encoder:
        """A fresh encoder for a float32 tensor."""

    @classmethod
    @abstractmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        """``data`` is from outside: any bytes. ``shape`` is within the limits; allocate no more than a few arrays of it.

        Raises CodecError, and nothing else, where the bytes do not fit the shape or a value is not finite.
        """


def check_finite(array: Array) -> NDArray[np.float32]:
    """Raises CodecError for anything that is not finite, or not float32."""
    if array.dtype != np.float32:
        raise CodecError(f"this codec carries float32, not {array.dtype}")
    if not np.isfinite(array).all():
        raise CodecError("a value is not finite")
    return array  # type: ignore[return-value]


def count_of(shape: tuple[int, ...]) -> int:
    """How many elements."""
    return int(np.prod(shape, dtype=np.int64))


def as_array(data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    """``data`` as elements, not copied. Raises CodecError where its length is another."""
    if len(data) != count_of(shape) * dtype.itemsize:
        raise CodecError(f"{len(data)} bytes do not make a tensor of shape {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape)
