"""The engine that trains a segment in PyTorch.

Each forward keeps its autograd graph until its backward. Parameters are updated in place while no other step is in flight; otherwise the
update goes into fresh tensors, so that the graphs of other steps keep the weights that they have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from server.losses import LossKind, loss_of
from server.masks import masks_of
from server.optimizers import OptimizerState
from wire.engine import Array
from wire.errors import CheckpointError, DataError
from wire.manifest import TensorSpec
from wire.optim import Optimizer

__all__ = ["TorchEngine"]


@dataclass(frozen=True, slots=True)
class _InFlight:
    number: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]  # as they were before this forward


class TorchEngine:
    """Implements ``wire.engine.Engine`` for a ``torch.nn.Module`` on the CPU. Not thread-safe.

    ``inputs`` and ``outputs`` describe the segment as a bundle's manifest would: with a ``loss``, the last input is ``target`` and the
    first output ``loss``; ``unlabelled`` as in ``server.losses``. ``clip_norm``: the norm to which the segment's gradient is clipped.
    ``accumulate``: parameters are updated by
    every so many backwards, with the mean of their gradients. Dropout masks are those that a device draws
    (``wire.rng.keep_mask``); other random numbers are a function of (``seed``, ``segment``, step) too.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        optimizer: Optimizer,
        loss: LossKind | None = None,
        unlabelled: bool = False,
        clip_norm: float | None = None,
        accumulate: int = 1,
        seed: int = 0,
        segment: str = "segment",
    ) -> None:
        self._module = module
        self._inputs, self._outputs = inputs, outputs
        self._loss = loss
        self._unlabelled = unlabelled
        self._base_lr = optimizer.lr
        self._clip_norm = clip_norm
        self._seed = (seed, segment)
        self._parameters = {name: _leaf(value, value.requires_grad) for name, value in module.named_parameters()}
        self._buffers = {name: value.detach().clone() for name, value in module.named_buffers()}
        self._optimizer = OptimizerState(optimizer, self._trained())
        self._accumulate = accumulate
        self._sums = {name: torch.zeros_like(value) for name, value in self._trained().items()} if accumulate > 1 else {}
        self._summed = 0
        self._in_flight: dict[int, _InFlight] = {}
        self._forwards = 0
        self._draws = False  # whether a forward was seen to draw random numbers

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    # ------------------------------------------------------------ a step

    def forward(self, step: int, *inputs: Array) -> tuple[Array, ...]:
        """See ``Engine.forward``."""
        if step in self._in_flight:
            raise ValueError(f"step {step} is in flight already")
        tensors = tuple(torch.from_numpy(array) for array in inputs)
        for spec, tensor in zip(self._inputs, tensors, strict=True):
            if spec.gradient:
                tensor.requires_grad_()
        before = _copies(self._buffers)
        try:
            outputs = self._run_training(step, tensors, before)
        except DataError:
            self._buffers = before
            raise
        self._forwards += 1
        self._in_flight[step] = _InFlight(self._forwards, tensors, outputs, self._parameters, before)
        return tuple(output.detach().numpy() for output in outputs)

    def backward(self, step: int, *grads: Array | None, lr: float | None = None) -> tuple[Array | None, ...]:
        """See ``Engine.backward``."""
        kept = self._in_flight[step]
        trained = {name: value for name, value in kept.parameters.items() if value.requires_grad}
        wanted = [tensor for tensor in kept.inputs if tensor.requires_grad]
        found = self._differentiate(kept, [*trained.values(), *wanted], grads)
        gradients, backwards = found[: len(trained)], found[len(trained) :]
        if not all(_is_finite(grad) for grad in found):
            self.discard(step)
            raise FloatingPointError("a gradient is not finite")
        del self._in_flight[step]
        named = dict(zip(trained, gradients, strict=True))
        if not all(_is_finite(total + named[name]) for name, total in self._sums.items()):
            self._in_flight[step] = kept
            self.discard(step)
            raise FloatingPointError("a sum of gradients is not finite")
        if self._accumulated(named):
            self._clip(list(named.values()))
            self._update(named, self._base_lr if lr is None else lr)
        rest = iter(backwards)
        return tuple(next(rest).numpy() if tensor.requires_grad else None for tensor in kept.inputs)

    def discard(self, step: int) -> None:
        """See ``Engine.discard``."""
        kept = self._in_flight.pop(step, None)
        if kept is not None and kept.number == self._forwards:
            self._buffers = kept.buffers

    def infer(self, *inputs: Array) -> tuple[Array, ...]:
        """See ``Engine.infer``; a segment with a loss takes no target here and returns the network's output."""
        with torch.no_grad():
            self._module.eval()
            given = tuple(torch.from_numpy(array) for array in inputs)
            output = functional_call(self._module, self._parameters | self._buffers, given)
        return tuple(tensor.numpy() for tensor in _tuple(output))

    def _run_training(self, step: int, tensors: tuple[Tensor, ...], before: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Masks cost each operation a few microseconds, so they wait until the segment is seen to draw; that forward is run again."""
        if not self._draws:
            with _drawing(self._draw(step)) as has_drawn:
                outputs = self._run(tensors, training=True)
                self._draws = has_drawn()
            if not self._draws:
                return outputs
            self._buffers = _copies(before)
        with _drawing(self._draw(step)), masks_of(*self._seed, step):
            return self._run(tensors, training=True)

    def _run(self, tensors: tuple[Tensor, ...], *, training: bool) -> tuple[Tensor, ...]:
        self._module.train(training)
        # An operation that works in place may come first behind a cut; PyTorch refuses it on what a gradient is asked of.
        given = tuple(tensor.clone() if tensor.requires_grad else tensor for tensor in (tensors if self._loss is None else tensors[:-1]))
        outputs = _tuple(functional_call(self._module, self._parameters | self._buffers, given))
        return outputs if self._loss is None else (loss_of(self._loss, outputs[0], tensors[-1], unlabelled=self._unlabelled),)

    def _differentiate(self, kept: _InFlight, wanted: list[Tensor], grads: tuple[Array | None, ...]) -> list[Tensor]:
        if self._loss is not None:
            pairs: list[tuple[Tensor, Tensor | None]] = [(kept.outputs[0], None)]
        else:
            pairs = [(out, torch.from_numpy(grad)) for out, grad in zip(kept.outputs, grads, strict=True) if grad is not None]
        pairs = [(output, grad) for output, grad in pairs if output.requires_grad]
        if not pairs or not wanted:
            return [torch.zeros_like(tensor) for tensor in wanted]
        found: Sequence[Tensor | None] = torch.autograd.grad(
            [output for output, _ in pairs], wanted, [grad for _, grad in pairs], allow_unused=True
        )
        return [torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(wanted, found, strict=True)]

    def _accumulated(self, gradients: dict[str, Tensor]) -> bool:
        """Whether it is time for an update: then ``gradients`` are the means since the last."""
        if self._accumulate == 1:
            return True
        self._summed += 1
        due = self._summed == self._accumulate
        for name, total in self._sums.items():
            total += gradients[name]
            if due:
                gradients[name] = total / self._accumulate
                total.zero_()
        self._summed = 0 if due else self._summed
        return due

    def _clip(self, gradients: list[Tensor]) -> None:
        if self._clip_norm is not None and gradients:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in gradients]))
            scale = min(1.0, self._clip_norm / (float(norm) + 1e-6))
            for grad in gradients:
                grad.mul_(scale)

    def _update(self, gradients: dict[str, Tensor], lr: float) -> None:
        if self._in_flight:
            self._parameters = {name: _leaf(value, value.requires_grad) for name, value in self._parameters.items()}
            self._optimizer.exchange(self._trained())
        trained = self._trained()
        for name, value in trained.items():
            value.grad = gradients[name]
        self._optimizer.step(lr)
        for value in trained.values():
            value.grad = None

    def _trained(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._parameters.items() if value.requires_grad}

    def _draw(self, step: int) -> int:
        seed, segment = self._seed
        text = f"{seed}/{segment}/{step}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7, person=b"cutlayer drop").digest(), "little")

    # ------------------------------------------------------------ state

    def parameters(self) -> dict[str, Array]:
        """See ``Engine.parameters``."""
        return {name: value.detach().numpy().copy() for name, value in (self._parameters | self._buffers).items()}

    def state(self) -> dict[str, Array]:
        """See ``Engine.state``. Raises RuntimeError with steps in flight."""
        if self._in_flight:
            raise RuntimeError(f"steps {sorted(self._in_flight)} are in flight; a state is taken between steps")
        return {name: array.numpy().copy() for name, array in self._tensors().items()} | self._optimizer.state() | self._sums_state()

    def load_state(self, state: Mapping[str, Array]) -> None:
        """See ``Engine.load_state``."""
        self._check_state(state)
        self._in_flight.clear()
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.from_numpy(np.array(state[name])))
        self._optimizer.load(state)
        if self._sums:
            self._summed = int(state["a.count"])

    def _sums_state(self) -> dict[str, Array]:
        return {"a.count": np.array(self._summed, np.int64)} if self._sums else {}

    def _tensors(self) -> dict[str, Tensor]:
        parameters = {f"p.{name}": value.detach() for name, value in self._parameters.items()}
        sums = {f"a.{name}": value for name, value in self._sums.items()}
        return parameters | {f"b.{name}": value for name, value in self._buffers.items()} | sums

    def _check_state(self, state: Mapping[str, Array]) -> None:
        segment = self._seed[1]
        mine = {name: tuple(value.shape) for name, value in self._tensors().items()}
        mine |= {name: value.shape for name, value in (self._optimizer.state() | self._sums_state()).items()}
        for name in sorted(set(mine) ^ set(state)):
            fault = "missing from" if name in mine else "surplus in"
            raise CheckpointError(f"`{name}` is {fault} the state of segment {segment}; it is of another network")
        for name, shape in mine.items():
            if state[name].shape != shape:
                raise CheckpointError(
                    f"`{name}` of segment {segment} has the shape {list(shape)}, in the state {list(state[name].shape)}; "
                    "it is of another network"
                )


@contextmanager
def _drawing(seed: int) -> Iterator[Callable[[], bool]]:
    """Random numbers of the CPU follow from ``seed`` inside. ``torch.manual_seed`` would prepare every absent GPU too: 0.3 ms.

    Gives a function that tells whether any were drawn.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    seeded = generator.get_state()
    try:
        yield lambda: not torch.equal(seeded, generator.get_state())
    finally:
        generator.set_state(before)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def _leaf(value: Tensor, trained: bool) -> Tensor:
    return value.detach().clone().requires_grad_(trained)


def _tuple(output: Tensor | tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _is_finite(grad: Tensor) -> bool:
    # The sum is finite unless a value is not, or the sum overflows; only then is each value looked at.
    return bool(torch.isfinite(grad.sum())) or bool(torch.isfinite(grad).all())
