"""What each ATen operation becomes in ONNX: a family of operations a file, in the form that onnxruntime runs fastest."""

from export.lowering import (
    activations,
    convolution,
    elementwise,
    indexing,
    masks,
    normalization,
    pooling,
    recurrent,
    reductions,
    row_normalization,
    shapes,
    strided,
)
from export.lowering.context import LOWERINGS, OPSET, GraphWriter, lower

__all__ = [
    "LOWERINGS",
    "OPSET",
    "GraphWriter",
    "activations",
    "convolution",
    "elementwise",
    "indexing",
    "lower",
    "masks",
    "normalization",
    "pooling",
    "recurrent",
    "reductions",
    "row_normalization",
    "shapes",
    "strided",
]
