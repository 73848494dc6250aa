"""What each ATen operation becomes in ONNX: a family of operations a file, in the form that onnxruntime runs fastest."""

from export.lowering import activations, convolution, elementwise, indexing, normalization, pooling, reductions, row_normalization, shapes
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
    "normalization",
    "pooling",
    "reductions",
    "row_normalization",
    "shapes",
]
