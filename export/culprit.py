"""Names the operation at fault where a graph and PyTorch differ.

Both compute every intermediate result; the first that differs is it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from export.built import BuiltGraph
from export.ops import Trace, Value
from export.sessions import Array, GraphSession, exposed

__all__ = ["find_culprit"]


def find_culprit(
    trace: Trace, graphs: Sequence[BuiltGraph], state: Mapping[str, Array], differ: Callable[[Array, Array], bool]
) -> str | None:
    """The first operation whose ONNX form gives another result than PyTorch's, with its module; None where each agrees.

    ``graphs`` run one after the other, each on what the one before gave (forward, backward). ``state``: parameters and buffers by name.
    """
    random = torch.Generator().manual_seed(7)
    feed = {found.name: state.get(found.name, _drawn(found.value, trace.batch, random)) for found in trace.inputs.values()}
    wanted = _Recorder(trace, feed).results
    ops = {op.name: op for op in trace.ops}
    for graph in graphs:
        found = GraphSession(exposed(graph, graph.made.values())).run(feed)
        feed |= found
        for (name, index), value in graph.made.items():
            expected = wanted.get((name, index))
            if expected is not None and value in found and differ(found[value], expected):
                return ops[name].where
    return None


def _drawn(value: Value, batch: int, random: torch.Generator) -> Array:
    shape = tuple(dim if isinstance(dim, int) else dim.at(batch) for dim in value.shape)
    if value.dtype.is_floating_point:
        return torch.randn(shape, generator=random).to(value.dtype).numpy()
    return torch.randint(0, 2, shape, generator=random).to(value.dtype).numpy()


class _Recorder(fx.Interpreter):
    """Runs the traced graph in PyTorch and keeps every result."""

    def __init__(self, trace: Trace, feed: Mapping[str, Array]) -> None:
        super().__init__(trace.graph)
        self.results: dict[tuple[str, int], Array] = {}
        self.run(*(torch.from_numpy(np.array(feed[key])) for key in trace.keys))

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        for at, value in enumerate(found if isinstance(found, (tuple, list)) else (found,)):
            if isinstance(value, Tensor) and n.op == "call_function":
                self.results[n.name, at] = value.detach().numpy().copy()
        return found
