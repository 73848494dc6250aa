"""Runs graphs that were just made on onnxruntime: the one place in this room that calls it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as faults

from export.built import BuiltGraph
from wire.errors import ExportError

__all__ = ["Array", "GraphSession", "exposed"]

Array = NDArray[Any]

# onnxruntime's own errors have no common base but Exception.
_FAULTS = (
    *(faults.EPFail, faults.Fail, faults.InvalidArgument, faults.InvalidGraph, faults.InvalidProtobuf, faults.NotImplemented),
    *(faults.RuntimeException, RuntimeError, ValueError),
)


class GraphSession:
    """A graph that is ready to run. Raises ExportError where onnxruntime refuses it."""

    def __init__(self, graph: BuiltGraph) -> None:
        self.graph = graph
        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except _FAULTS as exc:
            raise ExportError(f"onnxruntime {ort.__version__} refuses the graph that was made: {_first_line(exc)}") from exc

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name; ``feed`` may hold more than the graph reads. Raises ExportError where a node fails."""
        try:
            found = self._session.run(list(self.graph.outputs), {name: feed[name] for name in self.graph.inputs})
        except _FAULTS as exc:
            raise ExportError(f"onnxruntime {ort.__version__} cannot run the graph that was made: {_first_line(exc)}") from exc
        return dict(zip(self.graph.outputs, found, strict=True))


def exposed(graph: BuiltGraph, values: Iterable[str] | None = None) -> BuiltGraph:
    """The same graph with ``values`` (default: every result of a node) as outputs too."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    made = {each: None for node in model.graph.node for each in node.output if each}
    extra = [name for name in dict.fromkeys(made if values is None else values) if name in made and name not in graph.outputs]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
    return BuiltGraph(model, graph.inputs, (*graph.outputs, *extra), graph.made)


def _first_line(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0][:300] if str(exc).strip() else type(exc).__name__
