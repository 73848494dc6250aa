"""Does an ONNX file keep tensors in other files? A bundle's graphs never do, and one that did could read any file of the device.

Walks the protocol buffer itself (onnx.proto of ONNX, protobuf.dev/programming-guides/encoding): the device has no onnx, and onnxruntime
would have read the file by the time that it complains.
"""

from __future__ import annotations

from collections.abc import Iterator

from wire.errors import BundleError

__all__ = ["check_no_external_data"]

_TENSOR = "TensorProto"
# Message -> field number -> what is in it, as far as it leads to tensors.
_BELOW: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def check_no_external_data(data: bytes, *, what: str) -> None:
    """Raises BundleError where a tensor of the model lies in another file, whatever its name, or where this is no ONNX file."""
    left: list[tuple[str, memoryview]] = [("ModelProto", memoryview(data))]
    try:
        while left:
            kind, message = left.pop()
            for field, value in _fields(message):
                if kind == _TENSOR:
                    if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0):
                        raise BundleError(f"{what} keeps a tensor in another file, which no bundle does; do not trust it")
                elif isinstance(value, memoryview) and field in _BELOW[kind]:
                    left.append((_BELOW[kind][field], value))
    except ValueError as exc:
        raise BundleError(f"{what} is not an ONNX file ({exc}); export the bundle again") from exc


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field. Raises ValueError for what is no protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of type {kind}")
        if size > len(message) - at:
            raise ValueError("it is cut off")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it is cut off")
        value |= (message[at] & 0x7F) << shift
        at += 1
        if not message[at - 1] & 0x80:
            return value, at
    raise ValueError("a number without end")
