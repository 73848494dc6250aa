"""Writes one ONNX graph: values, constants and shapes for the lowerings, which say what each ATen operation becomes.

A lowering is a function ``(graph, op) -> results`` registered under ATen's name; results are ONNX value names, one an ATen result.
Precondition of each: its inputs are in ``graph.names``. Postcondition: the values have the shapes and dtypes of ``op.results``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.ops import Affine, Op, Ratio, Ref, Value
from export.refusals import instead
from wire.errors import ExportError

__all__ = ["LOWERINGS", "OPSET", "GraphWriter", "Lowering", "lower", "lowers", "onnx_dtype"]

OPSET = 18
IR_VERSION = 9

_DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}

Lowering = Callable[["GraphWriter", Op], Sequence[str | None]]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*targets: str) -> Callable[[Lowering], Lowering]:
    """Register a lowering under ATen names with overload, like ``add.Tensor``."""

    def register(lowering: Lowering) -> Lowering:
        for target in targets:
            assert target not in LOWERINGS, f"{target} has two lowerings"
            LOWERINGS[target] = lowering
        return lowering

    return register


def onnx_dtype(dtype: torch.dtype) -> int:
    """ONNX's number of a dtype. Raises ExportError for one that a bundle cannot hold."""
    if dtype not in _DTYPES:
        raise ExportError(f"tensors of {dtype} cannot be put into a bundle; use float32")
    return int(_DTYPES[dtype])


def lower(graph: GraphWriter, op: Op) -> None:
    """Write ``op`` into the graph. Raises ExportError naming an operation that has no lowering."""
    if op.target not in LOWERINGS and op.kind.endswith("_"):
        # In place on what depends on no input, or within a recurrent cell in evaluation: what reads it later reads this result.
        op = replace(op, target=op.target.replace("_.", ".", 1))
    lowering = LOWERINGS.get(op.target)
    if lowering is None:
        raise ExportError(f"{op.where} has no ONNX form for training: {instead(op.kind)}")
    for index, name in enumerate(lowering(graph, op)):
        if name is not None:
            graph.names[Ref(op.name, index)] = name
            if not op.rewritten:
                graph.made[op.name, index] = name


class GraphWriter:
    """Nodes and constants of a graph in the making. ``names`` maps what is known to ONNX values; ``values`` has shapes and dtypes."""

    def __init__(self, values: Mapping[Ref, Value], batch_from: str | None, prefix: str = "") -> None:
        self._prefix = prefix
        self.names: dict[Ref, str] = {}
        self.made: dict[tuple[str, int], str] = {}  # by ATen operation and result, as first made: for the parity gate
        self.values = values
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._batch_from = batch_from
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._shared: dict[tuple[Any, ...], str] = {}
        self._count = 0

    # ------------------------------------------------------------ nodes

    def emit(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; its output's name, or a tuple of them. Equal nodes are written once."""
        key = (kind, inputs, outputs, tuple(sorted((name, repr(value)) for name, value in attributes.items())))
        if outputs == 1 and key in self._shared:
            return self._shared[key]
        names = [self.fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        if outputs == 1:
            self._shared[key] = names[0]
            return names[0]
        return tuple(names)

    def fresh(self) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{self._prefix}v{self._count}"

    def body(self) -> GraphWriter:
        """A writer for a graph inside a node of this one. Its values have names of their own; it has no constants of its own."""
        return GraphWriter({}, None, prefix=f"{self.fresh()}.")

    def constant(self, array: NDArray[Any] | Sequence[int]) -> str:
        """An initializer; equal ones are stored once. A sequence of whole numbers becomes int64."""
        value = np.asarray(array, dtype=np.int64) if not isinstance(array, np.ndarray) else array
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self.initializers[name] = numpy_helper.from_array(value, name)
            self._constants[key] = name
        return self._constants[key]

    # ------------------------------------------------------------ operands

    def name(self, ref: Ref) -> str:
        return self.names[ref]

    def value(self, ref: Ref) -> Value:
        return self.values[ref]

    def shape(self, ref: Ref) -> tuple[int | Affine, ...]:
        return self.values[ref].shape

    def operand(self, argument: Any, dtype: torch.dtype) -> str:
        """A tensor or a number as a value of ``dtype``."""
        if isinstance(argument, Ref):
            return self.cast(self.name(argument), self.value(argument).dtype, dtype)
        if isinstance(argument, Affine):
            return self._scalar(self.cast(self.dim(argument), torch.int64, dtype))
        if isinstance(argument, Ratio):
            below = self.cast(self.dim(argument.denominator), torch.int64, dtype)
            return self._scalar(self.emit("Div", self.scalar(argument.numerator, dtype), below))
        return self.scalar(argument, dtype)

    def scalar(self, number: float | bool, dtype: torch.dtype = torch.float32) -> str:
        return self.constant(np.asarray(number, dtype=_numpy(dtype)))

    def cast(self, name: str, source: torch.dtype, target: torch.dtype) -> str:
        return name if source == target else str(self.emit("Cast", name, to=onnx_dtype(target)))

    def _scalar(self, name: str) -> str:
        return str(self.emit("Reshape", name, self.constant(np.zeros(0, np.int64))))

    # ------------------------------------------------------------ shapes

    def dim(self, number: int | Affine) -> str:
        """A whole number as int64 [1]."""
        if not isinstance(number, Affine):
            return self.constant([number])
        if self._batch_from is None:
            raise ExportError("a part of the segment needs the batch size, but no tensor tells it")
        found = str(self.emit("Shape", self._batch_from, start=0, end=1))
        if number.slope != 1:
            found = str(self.emit("Mul", found, self.constant([number.slope])))
        if number.offset:
            found = str(self.emit("Add", found, self.constant([number.offset])))
        return found

    def elements(self, shape: Sequence[int | Affine], axes: Sequence[int]) -> str:
        """How many elements a reduction over ``axes`` takes together, float32 []."""
        count: int | Affine = 1
        for dim in (shape[axis] for axis in axes):
            if isinstance(dim, Affine) and isinstance(count, Affine):
                raise ExportError("a part of the segment reduces over two dimensions that both follow the batch size")
            (wide, number) = (dim, count) if isinstance(dim, Affine) else (count, dim)
            assert isinstance(number, int)
            count = Affine(wide.slope * number, wide.offset * number) if isinstance(wide, Affine) else wide * number
        return self.operand(count, torch.float32)

    def dims(self, shape: Sequence[int | Affine]) -> str:
        """A shape as int64 [rank]."""
        fixed = [dim for dim in shape if not isinstance(dim, Affine)]
        if len(fixed) == len(shape):
            return self.constant(fixed)
        return str(self.emit("Concat", *(self.dim(dim) for dim in shape), axis=0))

    def reshape(self, name: str, shape: Sequence[int | Affine]) -> str:
        """Reshape; one dimension that follows the batch is left to the runtime."""
        symbols = sum(isinstance(dim, Affine) for dim in shape)
        if symbols == 1 and all(dim != 0 for dim in shape):
            return str(self.emit("Reshape", name, self.constant([-1 if isinstance(dim, Affine) else dim for dim in shape])))
        return str(self.emit("Reshape", name, self.dims(shape)))

    def transpose(self, name: str, order: Sequence[int]) -> str:
        return name if list(order) == sorted(order) else str(self.emit("Transpose", name, perm=list(order)))

    def slice(self, name: str, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> str:
        return str(self.emit("Slice", name, *(self.constant(list(each)) for each in (starts, ends, axes, steps))))

    def reduce(self, kind: str, name: str, axes: Sequence[int], *, keep: bool) -> str:
        return str(self.emit(kind, name, self.constant(list(axes)), keepdims=int(keep)))


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    return found
