"""What each ATen operation becomes in ONNX: a family of operations a file, in the form that onnxruntime runs fastest."""

from export.lowering import (
    along,
    averaging,
    choosing,
    convolution,
    elementwise,
    indexing,
    normalization,
    padding,
    patches,
    pooling,
    pooling_adaptive,
    reductions,
    resizing,
    row_normalization,
    shapes,
    strided,
)
from export.lowering.context import LOWERINGS, OPSET, GraphWriter, lower

__all__ = [
    "LOWERINGS",
    "OPSET",
    "GraphWriter",
    "along",
    "averaging",
    "choosing",
    "convolution",
    "elementwise",
    "indexing",
    "lower",
    "normalization",
    "padding",
    "patches",
    "pooling",
    "pooling_adaptive",
    "reductions",
    "resizing",
    "row_normalization",
    "shapes",
    "strided",
]
