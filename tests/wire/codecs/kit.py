"""What the tests of codecs share: a tensor through a codec as a cut does it, and contexts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wire.codecs import PLAIN, Codec, Context, Decoded, Direction, Encoded, decode_array, encode_array, parse_codec
from wire.manifest import TensorSpec
from wire.tensors import decode_tensors

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
FINITE = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6), elements=FLOATS)
FOR_RUNS = (
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "int4",
    "int2",
    "mxfp4",
    "topk:keep=0.3",
    "topk:keep=0.1,values=fp32",
    "randtopk:keep=0.2,alpha=0.3",
    "lowbit",
    "lowbit:levels=1,step=2",
    "lowbit:levels=15,step=0.1",
    "lowbit:bytes_per_sample=8",
)


def context(train: bool = True, direction: Direction = "forward", step: int = 0, support: Any = None) -> Context:
    return Context(seed=7, scope=("bottom>top", direction, 0, step, "x"), train=train, progress=0.5, support=support)


def read_any(data: bytes) -> dict[str, np.ndarray]:
    """A message of tensors of any codec, by name; of shapes, the receiver expects none."""
    found = decode_tensors(data, lambda header, piece: decode_array(header.codec, piece, header.dtype, header.shape, PLAIN))
    return {name: decoded.array for name, decoded in found.items()}


def spec(array: np.ndarray) -> TensorSpec:
    return TensorSpec(name="x", dtype="float32", shape=("batch", *array.shape[1:]) if array.ndim else ())


def sent(text: str | Codec, array: np.ndarray, about: Context | None = None) -> Encoded:
    codec = parse_codec(text) if isinstance(text, str) else text
    return encode_array(codec, codec.encoder(spec(array), "forward"), array, about or context())


def received(encoded: Encoded, array: np.ndarray, about: Context | None = None, *, marks_support: bool = False) -> Decoded:
    data = memoryview(b"".join(encoded.pieces))
    return decode_array(encoded.number, data, np.dtype(np.float32), array.shape, about or context(), marks_support=marks_support)


def through(text: str | Codec, array: np.ndarray, about: Context | None = None) -> np.ndarray:
    return received(sent(text, array, about), array, about).array


def payload(text: str | Codec, array: np.ndarray, about: Context | None = None) -> bytes:
    """By the codec itself, without the fallback."""
    codec = parse_codec(text) if isinstance(text, str) else text
    encoded = codec.encoder(spec(array), "forward").encode(array, about or context())
    assert encoded.number == codec.number
    return b"".join(encoded.pieces)


def decoded(text: str | Codec, data: bytes, shape: tuple[int, ...], about: Context | None = None) -> np.ndarray:
    codec = parse_codec(text) if isinstance(text, str) else text
    return codec.decode(memoryview(data), np.dtype(np.float32), shape, about or context()).array
