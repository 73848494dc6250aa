"""Whole GRU and LSTM layers, one direction each, and their gradients (``export.recurrent`` has the formulas in PyTorch).

Forward is ONNX's own operator, which gives the states of all time steps. From them the backward makes the gates of all steps at once, in
two matrix products, so that nothing but the sequence itself is kept. Only what a step hands to the one before it is a loop (``Scan``),
five small nodes a step; the gradients of the weights are one product over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto, helper

from export.lowering.context import GraphWriter, lowers
from export.ops import Affine, Op, Ref
from wire.errors import ExportError

__all__: list[str] = []  # what is here is found by name in `context.LOWERINGS`

# ONNX's order of gates, as places in PyTorch's.
_GRU, _LSTM = (1, 0, 2), (0, 3, 1, 2)
_Step = Callable[[GraphWriter, Sequence[str], Sequence[str]], tuple[Sequence[str], Sequence[str]]]


@lowers("gru_layer.default")
def _gru_layer(graph: GraphWriter, op: Op) -> Sequence[str]:
    x, h0, *weights, reverse = op.args
    layer = _Layer(graph, op, x, h0, weights, reverse=reverse)
    (y,) = layer.run("GRU", [h0], _GRU, outputs=1, linear_before_reset=1)
    return [y]


@lowers("lstm_layer.default")
def _lstm_layer(graph: GraphWriter, op: Op) -> Sequence[str]:
    x, h0, c0, *weights, reverse = op.args
    layer = _Layer(graph, op, x, h0, weights, reverse=reverse)
    y, _, cell = layer.run("LSTM", [h0, c0], _LSTM, outputs=3)
    return [y, graph.emit("Squeeze", cell, graph.constant([0]))]


@lowers("gru_layer_backward.default")
def _gru_layer_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    dy, x, h0, y, *weights, reverse = op.args
    layer = _Layer(graph, op, x, h0, weights, reverse=reverse)
    before = layer.before(graph.name(y), graph.name(h0))
    i_r, i_z, i_n = layer.gates(layer.projected(), 3)
    h_r, h_z, h_n = layer.gates(layer.projected(before), 3)
    r, z = graph.emit("Sigmoid", graph.emit("Add", i_r, h_r)), graph.emit("Sigmoid", graph.emit("Add", i_z, h_z))
    n = graph.emit("Tanh", graph.emit("Add", i_n, graph.emit("Mul", r, h_n)))
    of_new = _product(graph, _rest(graph, z), _rest(graph, graph.emit("Mul", n, n)))
    of_update = _product(graph, graph.emit("Sub", before, n), z, _rest(graph, z))
    of_hidden = graph.emit("Mul", of_new, r)
    of_reset = _product(graph, of_hidden, h_n, _rest(graph, r))
    factors = graph.emit("Concat", of_reset, of_update, of_hidden, axis=1)

    def step(body: GraphWriter, states: Sequence[str], rows: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        grad, factor, kept = rows
        dh = body.emit("Add", states[0], grad)
        gates = body.emit("Mul", body.emit("Concat", dh, dh, dh, axis=1), factor)
        return [body.emit("Gemm", gates, layer.w_hh, body.emit("Mul", dh, kept))], [dh]

    rows = [graph.name(dy), layer.steps(factors, 3), layer.steps(z)]
    (dh0,), (found,) = _scan(graph, [layer.zeros()], rows, step, outputs=1, forwards=reverse)
    dh = layer.flat(found)
    parts = [graph.emit("Mul", dh, each) for each in (of_reset, of_update, of_hidden, of_new)]
    d_hh = graph.emit("Concat", *parts[:3], axis=1)
    d_ih = graph.emit("Concat", *parts[:2], parts[3], axis=1)
    return [layer.of_input(d_ih), dh0, *layer.of_weights(d_ih, d_hh, before)]


@lowers("lstm_layer_backward.default")
def _lstm_layer_backward(graph: GraphWriter, op: Op) -> Sequence[str]:
    dy, dc, x, h0, c0, y, *weights, reverse = op.args
    layer = _Layer(graph, op, x, h0, weights, reverse=reverse)
    before = layer.before(graph.name(y), graph.name(h0))
    gates = layer.gates(layer.joined(before), 4)
    i, f, g, o = (graph.emit(kind, gate) for kind, gate in zip(("Sigmoid", "Sigmoid", "Tanh", "Sigmoid"), gates, strict=True))

    def forget(body: GraphWriter, states: Sequence[str], rows: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        cell = body.emit("Add", body.emit("Mul", states[0], rows[0]), rows[1])
        return [cell], [body.emit("Identity", cell)]

    added = layer.steps(graph.emit("Mul", i, g))
    _, (cells,) = _scan(graph, [graph.name(c0)], [layer.steps(f), added], forget, outputs=1, forwards=not reverse)
    cell_before = layer.before(cells, graph.name(c0))
    t = graph.emit("Tanh", layer.flat(cells))
    of_input, of_forget = _product(graph, g, i, _rest(graph, i)), _product(graph, cell_before, f, _rest(graph, f))
    of_cell, of_output = graph.emit("Mul", i, _rest(graph, graph.emit("Mul", g, g))), _product(graph, t, o, _rest(graph, o))
    factors = graph.emit("Concat", of_input, of_forget, of_cell, of_output, axis=1)
    into_cell = graph.emit("Mul", o, _rest(graph, graph.emit("Mul", t, t)))

    def step(body: GraphWriter, states: Sequence[str], rows: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        grad, factor, into, kept = rows
        dh = body.emit("Add", states[0], grad)
        cell = body.emit("Add", states[1], body.emit("Mul", dh, into))
        gates = body.emit("Mul", body.emit("Concat", cell, cell, cell, dh, axis=1), factor)
        return [body.emit("MatMul", gates, layer.w_hh), body.emit("Mul", cell, kept)], [gates]

    rows = [graph.name(dy), layer.steps(factors, 4), layer.steps(into_cell), layer.steps(f)]
    (dh0, dc0), (found,) = _scan(graph, [layer.zeros(), graph.name(dc)], rows, step, outputs=1, forwards=reverse)
    grads = layer.flat(found, 4)
    return [layer.of_input(grads), dh0, dc0, *layer.of_joined(grads, before)]


class _Layer:
    """One layer in one direction: [time, batch, width] as matrices [time * batch, width] and back, and its products."""

    def __init__(self, graph: GraphWriter, op: Op, x: Ref, h0: Ref, weights: Sequence[Ref | None], *, reverse: bool) -> None:
        self.graph, self.reverse = graph, reverse
        self.shape, (self.batch, width) = graph.shape(x), graph.shape(h0)
        self.steps_in_all, self.width = self.shape[0], width
        if isinstance(self.steps_in_all, Affine):
            raise ExportError(f"{op.where} takes the batch for its time steps; set batch_first=True, or hand it [time, batch, width]")
        self.x = graph.name(x)
        w_ih, w_hh, b_ih, b_hh = (None if each is None else graph.name(each) for each in weights)
        assert w_ih is not None
        assert w_hh is not None
        self.w_ih, self.w_hh, self.b_ih, self.b_hh = w_ih, w_hh, b_ih, b_hh

    # ------------------------------------------------------------ forward

    def run(self, kind: str, states: Sequence[Ref], order: Sequence[int], *, outputs: int, **options: int) -> list[str]:
        """ONNX's operator: the sequence, and what else it gives."""
        graph, first = self.graph, self.graph.constant([0])
        wide = [str(graph.emit("Unsqueeze", self._ordered(each, order), first)) for each in (self.w_ih, self.w_hh)]
        bias = ""
        if self.b_ih is not None and self.b_hh is not None:
            both = graph.emit("Concat", self._ordered(self.b_ih, order), self._ordered(self.b_hh, order), axis=0)
            bias = str(graph.emit("Unsqueeze", both, first))
        begun = [str(graph.emit("Unsqueeze", graph.name(each), first)) for each in states]
        options |= {"hidden_size": int(self.width)}  # type: ignore[arg-type]
        direction = "reverse" if self.reverse else "forward"
        found = graph.emit(kind, self.x, *wide, bias, "", *begun, outputs=outputs, direction=direction, **options)
        y, *others = [found] if outputs == 1 else found
        return [str(graph.emit("Squeeze", y, graph.constant([1]))), *others]

    def _ordered(self, name: str, order: Sequence[int]) -> str:
        width = int(self.width)  # type: ignore[arg-type]
        rows = np.concatenate([np.arange(gate * width, (gate + 1) * width) for gate in order])
        return str(self.graph.emit("Gather", name, self.graph.constant(rows), axis=0))

    # ------------------------------------------------------------ backward

    def flat(self, name: str, times: int = 1) -> str:
        return self.graph.reshape(name, [self.graph_rows(), int(self.width) * times])  # type: ignore[arg-type]

    def graph_rows(self) -> int | Affine:
        batch, steps = self.batch, int(self.steps_in_all)  # type: ignore[arg-type]
        return Affine(batch.slope * steps, batch.offset * steps) if isinstance(batch, Affine) else batch * steps

    def steps(self, name: str, times: int = 1) -> str:
        return self.graph.reshape(name, [self.steps_in_all, self.batch, int(self.width) * times])  # type: ignore[arg-type]

    def zeros(self) -> str:
        return str(self.graph.emit("Expand", self.graph.scalar(0.0), self.graph.dims([self.batch, self.width])))

    def before(self, states: str, initial: str) -> str:
        """The states that the steps began with, as a matrix."""
        graph, last = self.graph, int(self.steps_in_all)  # type: ignore[arg-type]
        first = str(graph.emit("Unsqueeze", initial, graph.constant([0])))
        if self.reverse:
            return self.flat(graph.emit("Concat", graph.slice(states, [0], [1], [last], [1]), first, axis=0))
        return self.flat(graph.emit("Concat", first, graph.slice(states, [0], [0], [last - 1], [1]), axis=0))

    def projected(self, states: str | None = None) -> str:
        """What the gates are made of, before the activation: of the input, or of the states before."""
        weight, bias = (self.w_ih, self.b_ih) if states is None else (self.w_hh, self.b_hh)
        rows = self._input_rows() if states is None else states
        return str(self.graph.emit("Gemm", rows, weight, *([bias] if bias is not None else []), transB=1))

    def joined(self, states: str) -> str:
        """The sum of both: one product of rows of inputs and states, which is a tenth of the whole backward faster."""
        graph = self.graph
        weight = graph.emit("Concat", self.w_ih, self.w_hh, axis=1)
        bias = [] if self.b_ih is None or self.b_hh is None else [graph.emit("Add", self.b_ih, self.b_hh)]
        return str(graph.emit("Gemm", self._joined_rows(states), weight, *bias, transB=1))

    def _joined_rows(self, states: str) -> str:
        return str(self.graph.emit("Concat", self._input_rows(), states, axis=1))

    def _input_rows(self) -> str:
        return self.graph.reshape(self.x, [self.graph_rows(), self.shape[2]])

    def gates(self, name: str, count: int) -> Sequence[str]:
        found: Sequence[str] = self.graph.emit("Split", name, outputs=count, axis=1, num_outputs=count)
        return found

    def of_input(self, d_ih: str) -> str:
        return self.graph.reshape(self.graph.emit("MatMul", d_ih, self.w_ih), self.shape)

    def of_weights(self, d_ih: str, d_hh: str, before: str) -> list[str]:
        graph = self.graph
        products = [graph.emit("Gemm", d_ih, self._input_rows(), transA=1), graph.emit("Gemm", d_hh, before, transA=1)]
        return [*products, graph.reduce("ReduceSum", d_ih, [0], keep=False), graph.reduce("ReduceSum", d_hh, [0], keep=False)]

    def of_joined(self, grads: str, before: str) -> list[str]:
        """Of weights and biases, where both products have the same gradient."""
        graph = self.graph
        both = graph.emit("Gemm", grads, self._joined_rows(before), transA=1)
        parts = graph.emit("Split", both, graph.dims([self.shape[2], self.width]), outputs=2, axis=1)
        return [*parts, *[graph.reduce("ReduceSum", grads, [0], keep=False)] * 2]


def _rest(graph: GraphWriter, name: str) -> str:
    """1 - x"""
    return str(graph.emit("Sub", graph.scalar(1.0), name))


def _product(graph: GraphWriter, first: str, *others: str) -> str:
    for other in others:
        first = graph.emit("Mul", first, other)
    return first


def _scan(
    graph: GraphWriter, states: Sequence[str], rows: Sequence[str], step: _Step, *, outputs: int, forwards: bool
) -> tuple[Sequence[str], Sequence[str]]:
    """A loop over the first dimension of ``rows``, from its end unless ``forwards``; the final states, and the outputs in the rows' order.

    ``step(body, states, rows)`` gives the next states and the step's outputs; it may read values of the graph around it.
    """
    body = graph.body()
    names = [body.fresh() for _ in (*states, *rows)]
    after, made = step(body, names[: len(states)], names[len(states) :])
    inside = helper.make_graph(
        body.nodes,
        "step",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*after, *made)],
    )
    found = graph.emit(
        "Scan",
        *states,
        *rows,
        outputs=len(states) + outputs,
        body=inside,
        num_scan_inputs=len(rows),
        scan_input_directions=[int(not forwards)] * len(rows),
        scan_output_directions=[int(not forwards)] * outputs,
    )
    return found[: len(states)], found[len(states) :]
