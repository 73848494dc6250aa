"""The engine seam: one segment that runs and trains, numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wire.manifest import TensorSpec

__all__ = ["Array", "Engine", "Stateful"]

Array = NDArray[np.generic]


class Stateful(Protocol):
    """What is saved and handed over."""

    def state(self) -> dict[str, Array]:
        """Everything that training continues from, bit for bit: ``p.*``, ``b.*``, ``s.*`` as in the manifest. No steps in flight."""
        ...

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Take up a ``state()``; drops residuals. Raises CheckpointError for missing, surplus or misshapen tensors."""
        ...


class Engine(Stateful, Protocol):
    """A segment on one device. Not thread-safe. Steps are the run's global step numbers; several may be in flight."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The segment's inputs in order; of a segment with a loss the last is ``target``."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The segment's outputs in order; of a segment with a loss the first is ``loss``."""
        ...

    def forward(self, step: int, *inputs: Array) -> tuple[Array, ...]:
        """Training forward. Keeps the residuals of ``step`` until ``backward`` or ``discard``; advances buffers (BatchNorm).

        Raises DataError, with nothing changed, for a label that the network has no output for.

        Dropout masks are a function of the run's seed, the segment and ``step`` (``wire.rng.keep_mask``).
        """
        ...

    def backward(self, step: int, *grads: Array | None, lr: float | None = None) -> tuple[Array | None, ...]:
        """Gradients of the inputs (None where the manifest asks for none); updates the parameters once.

        ``grads`` has one gradient an output, in order; none of them with a loss. ``lr`` None: the optimizer's own.
        Raises FloatingPointError, with nothing updated and the step's residuals gone, where a gradient is not finite.
        """
        ...

    def discard(self, step: int) -> None:
        """Forget ``step``'s residuals. If it was the newest forward, the buffers return to what they were before it."""
        ...

    def infer(self, *inputs: Array) -> tuple[Array, ...]:
        """Evaluation forward: running statistics, no dropout, no residuals."""
        ...

    def parameters(self) -> dict[str, Array]:
        """Copies of parameters and buffers under PyTorch's names."""
        ...
