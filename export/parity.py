"""The parity gate: before a bundle is written, its graphs are run on onnxruntime and compared with PyTorch.

Three optimizer steps at three batch sizes: output, buffers, input gradient and the gradient of every parameter against autograd, every
update and optimizer slot against ``torch.optim``; then the inference graph. Where they differ, ``export.culprit`` names the operation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from export.built import BuiltGraph
from export.culprit import find_culprit
from export.graphs import TrainingGraphs
from export.losses import Loss, loss_of
from export.masks import Injected
from export.ops import Trace
from export.sessions import Array, GraphSession
from wire.errors import ExportError
from wire.optim import SGD, AdamW, Optimizer

__all__ = ["Backward", "Candidate", "check_parity"]

_BATCHES = (4, 3, 1)
_DRAWS = 4
# An error is allowed up to this share of the tensor's own largest value, and of the largest among its kind: a gradient that is zero but
# for rounding (of a bias before BatchNorm) has no size of its own.
_RELATIVE, _OF_KIND = 1e-4, 1e-5
# Running statistics: n for n - 1 in a variance must be seen although momentum makes a tenth of it.
_RELATIVE_BUFFERS = 2e-5
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
_SLOTS = {"momentum": "momentum_buffer"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to be written, and what it claims to be equal to."""

    module: nn.Module
    trace: Trace
    training: TrainingGraphs
    optimizer_graph: BuiltGraph | None
    inference_trace: Trace
    inference: BuiltGraph
    optimizer: Optimizer
    loss: Loss | None
    inputs: Mapping[str, Tensor]  # examples by name
    outputs: Sequence[str]
    trained: Sequence[str]
    input_gradients: Sequence[str]
    min_batch: int


class Backward(Protocol):
    """Another way to the gradients than the candidate's own backward graph."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """``gin.*`` and ``gp.*`` of one step; ``feed`` has ``in.* p.* b.* g.*`` and what the forward graph gave."""
        ...


def check_parity(candidate: Candidate, *, backward: Backward | None = None) -> float:
    """The largest error found, relative to the tensor's largest value. Raises ExportError naming what is at fault.

    ``backward`` takes the place of the candidate's backward graph.
    """
    gate = _Gate(candidate, backward)
    for batch in _BATCHES:
        # Statistics of two samples are nearly all rounding, so BatchNorm over [N, C] gets three.
        gate.step(batch if candidate.min_batch == 1 else max(batch, candidate.min_batch + 1))
    gate.infer(2)
    return gate.worst


class _Differs(Exception):
    """Carries the name of the tensor that differs."""


class _Gate:
    """Both sides of the comparison: the module with PyTorch's optimizer, and the graphs with their state."""

    def __init__(self, candidate: Candidate, backward: Backward | None) -> None:
        self.candidate = candidate
        self.other = backward is not None
        self.module = copy.deepcopy(candidate.module).train()
        self.trained = {name: value for name, value in self.module.named_parameters() if name in candidate.trained}
        self.torch_optimizer = _torch_optimizer(candidate.optimizer, self.trained.values()) if self.trained else None
        training = candidate.training
        self.forward, self.forward_low = GraphSession(training.forward), GraphSession(training.forward_low)
        self.backwards: list[Backward] = []
        self.steps: list[GraphSession] = []
        if backward is not None:
            self.backwards = [backward]
        elif training.backward.outputs:
            self.backwards = [GraphSession(training.backward), GraphSession(training.backward_low)]
            self.steps = [GraphSession(training.step), GraphSession(training.step_low)]
        self.optimizer = None if candidate.optimizer_graph is None else GraphSession(candidate.optimizer_graph)
        self.state = self._initial_state()
        self.random = torch.Generator().manual_seed(20240607)
        logits = next(iter(candidate.inference_trace.outputs.values()))
        self.classes = int((*candidate.inference_trace.value(logits).shape, 1)[1])  # type: ignore[arg-type]
        self.worst = 0.0
        self.fed: dict[str, Array] = {}

    def _initial_state(self) -> dict[str, Array]:
        state: dict[str, Array] = {f"p.{name}": value.detach().numpy().copy() for name, value in self.module.named_parameters()}
        state |= {f"b.{name}": value.numpy().copy() for name, value in self.module.named_buffers()}
        graph = self.candidate.optimizer_graph
        slots = [name for name in (graph.inputs if graph else ()) if name.startswith("s.")]
        return state | {name: np.zeros((), np.int64) if name == "s.step" else np.zeros_like(state[_owner(name)]) for name in slots}

    # ------------------------------------------------------------ one step on both sides

    def step(self, batch: int) -> None:
        """Both sides take one step. Raises ExportError where they differ.

        A fault differs on any data. But a value so near to zero that rounding decides its sign passes a ReLU on one side only, and with
        millions of values one will: so what differs is tried again on other data before it is called a fault.
        """
        for draw in range(_DRAWS):
            try:
                made, gradients = self._differentiate(batch)
                break
            except _Differs as found:
                if draw + 1 == _DRAWS:
                    raise self._fault(str(found)) from None
        self.state |= {name.removesuffix(".new"): value for name, value in made.items() if name.startswith("b.")}
        self._update(gradients)

    def _differentiate(self, batch: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """What the forward and the backward graph give. Raises _Differs."""
        candidate, inputs = self.candidate, self._draw(batch)
        for name in candidate.input_gradients:
            inputs[name].requires_grad_()
        for name, buffer in self.module.named_buffers():
            buffer.copy_(torch.from_numpy(self.state[f"b.{name}"]))
        masks = self._masks(batch)
        with Injected(masks):
            outputs = self._torch_forward(inputs)
        tangents = [torch.ones(())] if candidate.loss else [self._normal(out.shape) for out in outputs]
        feed = {f"in.{name}": value.detach().numpy() for name, value in inputs.items()} | self.state
        feed |= {name: mask.numpy() for name, mask in masks.items()}
        made = self.forward.run(feed)
        for each in (made, self.forward_low.run(feed)):
            self._compare(each, _named("out.", candidate.outputs, outputs))
            self._compare(each, {f"b.{name}.new": value for name, value in self.module.named_buffers()}, _RELATIVE_BUFFERS)
        wanted = {f"gin.{name}": inputs[name] for name in candidate.input_gradients}
        wanted |= {f"gp.{name}": value for name, value in self.trained.items()}
        if not self.backwards:  # nothing is trained, and no gradient goes further back
            return made, {}
        gradients = _gradients(outputs, tangents, wanted)
        feed |= made | {name: value.numpy() for name, value in _named("g.", candidate.outputs, tangents).items()}
        found = [each.run(feed) for each in self.backwards]
        for each in found:
            self._compare(each, gradients)
        self.fed = feed
        return made, found[0]

    def _update(self, gradients: Mapping[str, Array]) -> None:
        """Both optimizers get the same gradients: where a gradient is all rounding, Adam would make two signs of it."""
        if self.torch_optimizer is None or self.optimizer is None:
            return
        for name, value in self.trained.items():
            value.grad = torch.from_numpy(gradients[f"gp.{name}"].copy())
        before = {name: value.detach().numpy().copy() for name, value in self.trained.items()}
        self.torch_optimizer.step()
        updated = self.optimizer.run(self.state | dict(gradients) | {"lr": np.array(self.candidate.optimizer.lr, np.float32)})
        for key, found in updated.items():
            name = _owner(key).removeprefix("p.").removesuffix(".new")
            if key.startswith("p."):
                same = _moves_alike(before[name], found, self.trained[name].detach().numpy())
            elif key == "s.step.new":
                same = True  # a wrong count moves the parameters otherwise
            else:
                slot = key.split(".", 2)[1]
                same = _error(found, self.torch_optimizer.state[self.trained[name]][_SLOTS.get(slot, slot)].numpy(), 0.0) <= 1
            if not same:
                raise ExportError(
                    f"the {self.candidate.optimizer.kind} optimizer's `{key}` is not what torch.optim makes; please report it"
                )
        self._check_steps(updated, gradients)
        self.state |= {name.removesuffix(".new"): value for name, value in updated.items()}
        with torch.no_grad():  # the next update is compared from one beginning: rounding does not add up
            for name, value in self.trained.items():
                value.copy_(torch.from_numpy(self.state[f"p.{name}"]))

    def _check_steps(self, updated: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """The graphs that differentiate and update in one give what the two do. Where a gradient is all rounding, so is Adam's update."""
        feed = self.fed | {name: value for name, value in self.state.items() if name.startswith("s.")}
        scale = 1e-4 * max(float(np.abs(value).max(initial=0.0)) for value in gradients.values())
        for session in self.steps:
            made = session.run(feed | {"lr": np.array(self.candidate.optimizer.lr, np.float32)})
            for key, wanted in updated.items():
                gradient = gradients.get(f"gp.{_owner(key).removeprefix('p.').removesuffix('.new')}", np.ones(()))
                sure = np.abs(gradient) > max(scale, 1e-3 * float(np.abs(gradient).max(initial=0.0)))
                if not _error(made[key] * sure, wanted * sure, 0.0, 10 * _RELATIVE) <= 1:
                    raise ExportError(f"`{key}` of {session.graph.model.graph.name}.onnx is not what its two halves make; please report it")

    def infer(self, batch: int) -> None:
        """Compares the inference graph with the module in evaluation. Raises ExportError."""
        self.module.eval()
        session = GraphSession(self.candidate.inference)
        names = [name.removeprefix("out.") for name in session.graph.outputs]
        for draw in range(_DRAWS):
            inputs = {name: value for name, value in self._draw(batch).items() if self.candidate.loss is None or name != "target"}
            with torch.no_grad():
                outputs = _tensors(self.module(*inputs.values()))
            try:
                self._compare(session.run(_numpy("in.", inputs) | self.state), _named("out.", names, outputs))
                return
            except _Differs as found:
                if draw + 1 == _DRAWS:
                    culprit = find_culprit(self.candidate.inference_trace, [session.graph], self.state, _differs)
                    raise ExportError(_text(f"{found} of the inference graph", culprit)) from None

    def _torch_forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        try:
            found = _tensors(self.module(*[value for name, value in inputs.items() if self.candidate.loss is None or name != "target"]))
        except (RuntimeError, IndexError, ValueError) as exc:
            shapes = ", ".join(f"`{name}` {value.dtype} {list(value.shape)}" for name, value in inputs.items())
            raise ExportError(f"the segment does not run on drawn data ({shapes}): {str(exc).splitlines()[0][:200]}") from exc
        if self.candidate.loss is None:
            return found
        return (loss_of(self.candidate.loss, found[0], inputs["target"]),)

    # ------------------------------------------------------------ data and comparing

    def _draw(self, batch: int) -> dict[str, Tensor]:
        drawn = {}
        for name, example in self.candidate.inputs.items():
            shape = (batch, *example.shape[1:])
            if self.candidate.loss == "cross_entropy" and name == "target":
                drawn[name] = torch.randint(0, self.classes, shape, generator=self.random)
            elif not example.dtype.is_floating_point:
                drawn[name] = torch.randint(0, int(example.max()) + 1 if example.numel() else 1, shape, generator=self.random).to(
                    example.dtype
                )
            elif self.candidate.loss == "bce" and name == "target":
                drawn[name] = torch.rand(shape, generator=self.random)
            else:
                drawn[name] = self._normal(shape).to(example.dtype)
        return drawn

    def _masks(self, batch: int) -> dict[str, Tensor]:
        """Dropout masks for one forward: both sides get the same."""
        trace = self.candidate.trace
        shapes = {found.name: found.value.shape for found in trace.inputs.values()}
        drawn = {}
        for name, keep in trace.masks.items():
            shape = [dim if isinstance(dim, int) else dim.at(batch) for dim in shapes[name]]
            drawn[name] = (torch.rand(shape, generator=self.random) < keep).to(torch.uint8)
        return drawn

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random)

    def _compare(self, made: Mapping[str, Array], wanted: Mapping[str, Tensor], relative: float = _RELATIVE) -> None:
        arrays = {name: value.detach().numpy() for name, value in wanted.items()}
        scale = max((float(np.abs(value[np.isfinite(value)]).max(initial=0.0)) for value in arrays.values()), default=0.0)
        for name, value in arrays.items():
            error = _error(made[name], value, scale, relative)
            if not error <= 1:
                raise _Differs(f"`{name}`")
            self.worst = max(self.worst, error * relative)

    def _fault(self, what: str) -> ExportError:
        if self.other:
            return ExportError(f"{what} of the other engine differs from PyTorch; export with `--engines stock`, and please report it")
        training = self.candidate.training
        graphs = [training.forward, training.backward] if self.backwards else [training.forward]
        return ExportError(_text(what, find_culprit(self.candidate.trace, graphs, self.state, _differs)))


def _text(what: str, culprit: str | None) -> str:
    return f"{what} differs from PyTorch: {culprit or 'no single operation'} is at fault; move it behind the cut, and please report it"


def _error(found: Array, wanted: Array, scale: float, relative: float = _RELATIVE) -> float:
    """The largest difference as a multiple of what is allowed; NaN and wrong shapes are too much. Infinity (of a mask) must be infinity."""
    if found.shape != wanted.shape:
        return float("inf")
    endless = np.isinf(wanted)
    if endless.any():
        if not np.array_equal(found[endless], wanted[endless]):
            return float("inf")
        found, wanted = found[~endless], wanted[~endless]
    if not wanted.size:
        return 0.0
    allowed = relative * float(np.abs(wanted).max()) + _OF_KIND * scale + 1e-7
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()) / allowed


def _differs(found: Array, wanted: Array) -> bool:
    return not _error(found, wanted, 0.0) <= 1


def _moves_alike(before: Array, found: Array, wanted: Array) -> bool:
    """Compares what an update adds, but for the rounding of the sum: a small learning rate would hide a wrong one."""
    moved = float(np.abs(wanted.astype(np.float64) - before).max()) if wanted.size else 0.0
    return bool((np.abs(found.astype(np.float64) - wanted) <= _RELATIVE * moved + _ROUNDING * np.abs(wanted) + 1e-12).all())


def _gradients(outputs: Sequence[Tensor], tangents: Sequence[Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    led = [(out, tangent) for out, tangent in zip(outputs, tangents, strict=True) if out.requires_grad]
    if not led:
        return {name: torch.zeros_like(value) for name, value in wanted.items()}
    found = torch.autograd.grad([out for out, _ in led], list(wanted.values()), [tangent for _, tangent in led], materialize_grads=True)
    return dict(zip(wanted, found, strict=True))


def _owner(name: str) -> str:
    """``s.{slot}.{name}`` to ``p.{name}``."""
    return "p." + name.split(".", 2)[2] if name.startswith("s.") and name.count(".") > 1 else name


def _tensors(found: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _named(prefix: str, names: Sequence[str], values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in zip(names, values, strict=True)}


def _numpy(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Array]:
    return {f"{prefix}{name}": value.detach().numpy() for name, value in values.items()}


def _torch_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(optimizer, SGD):
        return torch.optim.SGD(
            parameters, lr=optimizer.lr, momentum=optimizer.momentum, nesterov=optimizer.nesterov, weight_decay=optimizer.weight_decay
        )
    kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
    return kind(parameters, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay)
