"""The parity gate: before a bundle is written, its graphs are run on onnxruntime and compared with PyTorch.

Three optimizer steps, the last one on a partial batch: output, buffers, input gradient and the gradient of every parameter against
autograd, every updated parameter and optimizer slot against ``torch.optim``. Where they differ, the two are compared operation by operation
and the first that differs is named.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from export.graphs import BuiltGraph, TrainingGraphs
from export.trace import Loss, Trace, loss_formula
from wire.errors import ExportError
from wire.optim import SGD, AdamW, Optimizer

__all__ = ["Candidate", "check_parity"]

Array = NDArray[Any]
_STEPS = 3
_RELATIVE, _OF_ALL = 2e-4, 2e-5  # of the tensor's own largest value; of the largest among its kind


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is to be written, and what it claims to be equal to."""

    module: nn.Module
    trace: Trace
    training: TrainingGraphs
    optimizer_graph: BuiltGraph | None
    inference: BuiltGraph
    optimizer: Optimizer
    loss: Loss | None
    inputs: Mapping[str, Tensor]  # examples by name
    outputs: Sequence[str]
    input_gradients: Sequence[str]
    min_batch: int


def check_parity(candidate: Candidate) -> float:
    """The largest error found, relative to the tensor's largest value. Raises ExportError naming what is at fault."""
    return _Gate(candidate).run()


class _Gate:
    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.module = copy.deepcopy(candidate.module).train()
        self.parameters = dict(self.module.named_parameters())
        self.trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        self.torch_optimizer = _torch_optimizer(candidate.optimizer, list(self.trained.values())) if self.trained else None
        self.forward = _session(candidate.training.forward)
        self.backward = _session(candidate.training.backward)
        self.optimizer = None if candidate.optimizer_graph is None else _session(candidate.optimizer_graph)
        self.state = self._initial_state()
        self.random = torch.Generator().manual_seed(20240607)
        self.worst = 0.0

    def run(self) -> float:
        for step in range(_STEPS):
            last = step == _STEPS - 1
            self._step(max(self.candidate.min_batch, 3 if last else 4))
        self._infer(2)
        return self.worst

    def _initial_state(self) -> dict[str, Array]:
        state = {f"p.{name}": value.detach().numpy().copy() for name, value in self.parameters.items()}
        state |= {f"b.{name}": value.numpy().copy() for name, value in self.module.named_buffers()}
        graph = self.candidate.optimizer_graph
        for name in () if graph is None else graph.inputs:
            if name.startswith("s."):
                like = state.get("p." + name.split(".", 2)[2]) if name != "s.step" else None
                state[name] = np.zeros((), np.int64) if like is None else np.zeros_like(like)
        return state

    # ------------------------------------------------------------ one step on both sides

    def _step(self, batch: int) -> None:
        inputs = self._draw(batch)
        for name in self.candidate.input_gradients:
            inputs[name].requires_grad_()
        outputs = self._torch_forward(inputs)
        tangents = [torch.ones(())] if self.candidate.loss else [self._normal(tuple(out.shape)) for out in outputs]
        for value in self.trained.values():
            value.grad = None
        torch.autograd.backward(outputs, tangents)
        feed = {f"in.{name}": value.detach().numpy() for name, value in inputs.items()} | self.state
        made = _run(self.forward, self.candidate.training.forward, feed)
        given = {f"g.{name}": value.numpy() for name, value in zip(self.candidate.outputs, tangents, strict=True)}
        feed |= given | {name: value for name, value in made.items() if name.startswith("r.")}
        grads = _run(self.backward, self.candidate.training.backward, feed)
        wanted = {f"out.{name}": value for name, value in zip(self.candidate.outputs, outputs, strict=True)}
        wanted |= {f"b.{name}.new": value for name, value in self.module.named_buffers()}
        gradients = {f"gin.{name}": _grad(inputs[name]) for name in self.candidate.input_gradients}
        gradients |= {f"gp.{name}": _grad(value) for name, value in self.trained.items()}
        self._compare(made, wanted, feed)
        self._compare(grads, gradients, feed)
        self._update(made, grads)

    def _update(self, made: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Both optimizers get the same gradients: where a gradient is all rounding, Adam would make two signs of it."""
        self.state |= {name.removesuffix(".new"): value for name, value in made.items() if name.startswith("b.")}
        if self.torch_optimizer is None or self.optimizer is None or self.candidate.optimizer_graph is None:
            return
        for name, value in self.trained.items():
            value.grad = torch.from_numpy(grads[f"gp.{name}"].copy())
        self.torch_optimizer.step()
        feed = self.state | grads | {"lr": np.array(self.candidate.optimizer.lr, np.float32)}
        updated = _run(self.optimizer, self.candidate.optimizer_graph, feed)
        self.state |= {name.removesuffix(".new"): value for name, value in updated.items()}
        for name, value in self.trained.items():
            error = _error(updated[f"p.{name}.new"], value.detach().numpy(), 0.0)
            if not error <= 1:
                raise ExportError(f"the {self.candidate.optimizer.kind} optimizer moves `{name}` otherwise than torch.optim does")

    def _infer(self, batch: int) -> None:
        module = self.module.eval()
        inputs = {name: value for name, value in self._draw(batch).items() if self.candidate.loss is None or name != "target"}
        with torch.no_grad():
            found = module(*inputs.values())
        outputs = (found,) if isinstance(found, Tensor) else tuple(found)
        feed = {f"in.{name}": value.numpy() for name, value in inputs.items()} | self.state
        made = _run(_session(self.candidate.inference), self.candidate.inference, feed)
        for name, value in zip(made, outputs, strict=True):
            if not _error(made[name], value.numpy(), 0.0) <= 1:
                raise ExportError(f"the inference graph gives another {name} than the module in eval mode")

    def _torch_forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if self.candidate.loss is None:
            found = self.module(*inputs.values())
            return (found,) if isinstance(found, Tensor) else tuple(found)
        found = self.module(*[value for name, value in inputs.items() if name != "target"])
        found = found if isinstance(found, Tensor) else found[0]
        return (loss_formula(self.candidate.loss, found, inputs["target"]),)

    def _draw(self, batch: int) -> dict[str, Tensor]:
        drawn = {}
        for name, example in self.candidate.inputs.items():
            shape = (batch, *example.shape[1:])
            if example.dtype.is_floating_point:
                drawn[name] = self._normal(shape).to(example.dtype)
            else:
                drawn[name] = torch.randint(0, 2, shape, generator=self.random).to(example.dtype)
        return drawn

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.random)

    # ------------------------------------------------------------ comparing

    def _compare(self, made: Mapping[str, Array], wanted: Mapping[str, Tensor], feed: Mapping[str, Array]) -> None:
        scale = max((float(value.detach().abs().max()) for value in wanted.values() if value.numel()), default=0.0)
        for name, value in wanted.items():
            error = _error(made[name], value.detach().numpy(), scale)
            if not error <= 1:
                raise ExportError(f"`{name}` differs from PyTorch: {self._culprit(feed)}")
            self.worst = max(self.worst, error * _RELATIVE)

    def _culprit(self, feed: Mapping[str, Array]) -> str:
        """The first operation whose ONNX form gives another result than PyTorch's."""
        trace = self.candidate.trace
        batch = next(iter(trace.inputs.values())).value  # traced at BATCHES[0]; values of that size are drawn anew
        del batch
        interpreter = _Recorder(trace, self._at_traced_size(feed))
        ops = {op.name: op for op in trace.ops}
        given = dict(interpreter.feed)
        for graph in (self.candidate.training.forward, self.candidate.training.backward):
            exposed = _exposed(graph)
            found = _run(_session(exposed), exposed, given)
            given |= {name: value for name, value in found.items() if name.startswith("r.")}
            for (name, index), value in graph.made.items():
                wanted = interpreter.results.get((name, index))
                if wanted is not None and value in found and not _error(found[value], wanted, 0.0) <= 1:
                    op = ops[name]
                    return f"aten.{op.target} of module `{op.module or '(the segment itself)'}` is at fault; please report it"
        return "no single operation is at fault; please report it"

    def _at_traced_size(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        sizes = {found.name: found.value for found in self.candidate.trace.inputs.values()}
        drawn = {}
        for name, value in sizes.items():
            shape = tuple(dim if isinstance(dim, int) else dim.at(_traced_batch()) for dim in value.shape)
            old = feed.get(name)
            if old is not None and old.shape == shape:
                drawn[name] = old
            elif value.dtype.is_floating_point:
                drawn[name] = self._normal(shape).numpy()
            else:
                drawn[name] = torch.randint(0, 2, shape, generator=self.random).to(value.dtype).numpy()
        return drawn


class _Recorder(fx.Interpreter):
    """Runs the traced graph in PyTorch and keeps every result."""

    def __init__(self, trace: Trace, feed: dict[str, Array]) -> None:
        super().__init__(trace.graph)
        self.feed = feed
        self.results: dict[tuple[str, int], Array] = {}
        self.run(*(torch.from_numpy(feed[key].copy()) for key in trace.keys))

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        for at, value in enumerate(found if isinstance(found, (tuple, list)) else (found,)):
            if isinstance(value, Tensor) and n.op == "call_function":
                self.results[n.name, at] = value.detach().numpy().copy()
        return found


def _traced_batch() -> int:
    from export.trace import BATCHES

    return BATCHES[0]


def _exposed(graph: BuiltGraph) -> BuiltGraph:
    """The same graph with every value that stands for an ATen result as an output."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    made = {each for node in model.graph.node for each in node.output}
    extra = [name for name in dict.fromkeys(graph.made.values()) if name in made and name not in graph.outputs]
    for name in extra:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    return BuiltGraph(model, graph.inputs, (*graph.outputs, *extra), graph.made)


def _error(found: Array, wanted: Array, scale: float) -> float:
    """The largest difference as a multiple of what is allowed; NaN and wrong shapes are too much."""
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    allowed = _RELATIVE * float(np.abs(wanted).max()) + _OF_ALL * scale + 1e-7
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()) / allowed


def _grad(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _run(session: ort.InferenceSession, graph: BuiltGraph, feed: Mapping[str, Array]) -> dict[str, Array]:
    found = session.run(list(graph.outputs), {name: feed[name] for name in graph.inputs})
    return dict(zip(graph.outputs, found, strict=True))


def _session(graph: BuiltGraph) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (RuntimeError, ValueError) as exc:
        raise ExportError(f"onnxruntime {ort.__version__} refuses the graph that was made: {str(exc).splitlines()[0][:300]}") from exc


def _torch_optimizer(optimizer: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(optimizer, SGD):
        return torch.optim.SGD(
            parameters, lr=optimizer.lr, momentum=optimizer.momentum, nesterov=optimizer.nesterov, weight_decay=optimizer.weight_decay
        )
    kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
    with warnings.catch_warnings():
        return kind(parameters, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay)
