"""How much memory a bundle's training takes: every tensor's size is measured at two batch sizes, and what lives at once is counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.built import BuiltGraph
from export.ops import Value
from export.parity import Candidate
from export.sessions import Array, GraphSession, exposed
from export.subgraphs import reads
from wire.manifest import MemoryMode, MemoryUse

__all__ = ["memory_of"]

_MEASURED = (3, 5)  # batch sizes; every size is a line through these two
_AT = (32, 64)  # batch sizes at which what lives at once is counted
# These name memory anew and take none of their own.
_FREE = ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


def memory_of(candidate: Candidate) -> dict[MemoryMode, MemoryUse]:
    """Peak bytes of training in each mode. Raises ExportError where a graph does not run."""
    graphs = candidate.training
    sizes = _Sizes(candidate)
    fast = [sizes.measure(graph) for graph in (graphs.forward, graphs.step) if graph.outputs]
    low = [sizes.measure(graph) for graph in (graphs.forward_low, graphs.step_low) if graph.outputs]
    return {"fast": _use(fast), "low": _use(low)}


@dataclass(frozen=True, slots=True)
class _Line:
    """Bytes of a tensor as they follow the batch size."""

    fixed: float
    slope: float

    def at(self, batch: int) -> float:
        return max(0.0, self.fixed + self.slope * batch)


@dataclass(frozen=True, slots=True)
class _Measured:
    graph: BuiltGraph
    sizes: Mapping[str, _Line]

    def peak(self, batch: int) -> float:
        """The most that lives at once: inputs and outputs all the time, what is in between from its node to its last reader."""
        nodes = list(self.graph.model.graph.node)
        roots = _roots(nodes)
        last = {roots.get(each, each): at for at, node in enumerate(nodes) for each in reads(node)}
        held = {*self.graph.inputs, *(roots.get(each, each) for each in self.graph.outputs)}
        live = peak = sum(self._bytes(each, batch) for each in held)
        for at, node in enumerate(nodes):
            made = [each for each in node.output if roots.get(each, each) == each and each not in held]
            live += sum(self._bytes(each, batch) for each in made)
            peak = max(peak, live)
            gone = {roots.get(each, each) for each in (*node.input, *node.output)} - held
            live -= sum(self._bytes(each, batch) for each in gone if last.get(each, at) == at and each in self.sizes)
        return peak

    def _bytes(self, name: str, batch: int) -> float:
        return self.sizes[name].at(batch) if name in self.sizes else 0.0


def _roots(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """Of each value that is another one under a new name: that one."""
    roots: dict[str, str] = {}
    for node in nodes:
        if node.op_type in _FREE:
            roots[node.output[0]] = roots.get(node.input[0], node.input[0])
    return roots


class _Sizes:
    """Runs graphs on zeros at two batch sizes, all values shown, and fits each one's bytes."""

    def __init__(self, candidate: Candidate) -> None:
        self._values: dict[str, Value] = {found.name: found.value for found in candidate.trace.inputs.values()}
        self._values |= candidate.training.residuals

    def measure(self, graph: BuiltGraph) -> _Measured:
        found: list[dict[str, float]] = []
        for batch in _MEASURED:
            feed = {name: self._zeros(name, batch) for name in graph.inputs}
            made = GraphSession(exposed(graph)).run(feed)
            found.append({name: float(array.nbytes) for name, array in (feed | made).items()})
        low, high = found
        width = _MEASURED[1] - _MEASURED[0]
        lines = {}
        for name, size in low.items():
            slope = (high[name] - size) / width
            lines[name] = _Line(size - slope * _MEASURED[0], slope)
        return _Measured(graph, lines)

    def _zeros(self, name: str, batch: int) -> Array:
        if name == "lr":
            return np.zeros((), np.float32)
        if name == "s.step":
            return np.zeros((), np.int64)
        value = self._values["p." + name.split(".", 2)[2] if name.startswith("s.") else name]
        shape = tuple(dim if isinstance(dim, int) else dim.at(batch) for dim in value.shape)
        return np.zeros(shape, str(value.dtype).removeprefix("torch."))


def _use(measured: Sequence[_Measured]) -> MemoryUse:
    """That of the larger of the two graphs; both versions of a parameter, its input and its output, are in the second."""
    low, high = (max(each.peak(batch) for each in measured) for batch in _AT)
    slope = max(0.0, (high - low) / (_AT[1] - _AT[0]))
    return MemoryUse(fixed_bytes=max(0, round(low - slope * _AT[0])), sample_bytes=round(slope))
