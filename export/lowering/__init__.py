"""What each ATen operation becomes in ONNX: a family of operations a file, in the form that onnxruntime runs fastest."""

from export.lowering import convolution, elementwise, normalization, pooling, reductions, shapes
from export.lowering.context import LOWERINGS, OPSET, GraphWriter, lower

__all__ = ["LOWERINGS", "OPSET", "GraphWriter", "convolution", "elementwise", "lower", "normalization", "pooling", "reductions", "shapes"]
