"""Tensors through every codec: exact where they promise it, within half a step elsewhere, and never an error but CodecError."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wire.codecs import CODECS, check_codec
from wire.errors import CodecError
from wire.tensors import DTYPES, decode_tensors, encode_tensors

FINITE = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def through(array: np.ndarray, codec: str) -> np.ndarray:
    return decode_tensors(encode_tensors([("x", array, codec)]))["x"]


@given(hnp.arrays(st.sampled_from([np.dtype(name) for name in DTYPES]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_raw_changes_nothing(array: np.ndarray) -> None:
    found = through(array, "raw")
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    assert found.shape == array.shape
    assert found.flags.writeable


@given(FINITE)
def test_fp32_is_lossless(array: np.ndarray) -> None:
    assert through(array, "fp32").tobytes() == array.tobytes()


@given(FINITE)
def test_fp16_rounds_and_saturates(array: np.ndarray) -> None:
    np.testing.assert_array_equal(through(array, "fp16"), np.clip(array, -65504, 65504).astype(np.float16).astype(np.float32))


@given(FINITE)
@example(np.array(2.9386545e-37, np.float32))
def test_int8_is_within_half_a_step_of_each_channel(array: np.ndarray) -> None:
    found = through(array, "int8")
    if not array.size:
        return
    batch, channels = (array.shape[0], array.shape[1]) if array.ndim > 1 else (1, 1)
    values, decoded = (each.reshape(batch, channels, -1).astype(np.float64) for each in (array, found))
    low, high = np.minimum(values.min(axis=(0, 2)), 0), np.maximum(values.max(axis=(0, 2)), 0)
    step = (high - low) / 255
    # The zero point is rounded as well: up to half a step for it, where the end of the range is cut off. And a channel whose step
    # has no normal float32 becomes zeros: its values are below 255 such steps.
    allowed = np.where(step < np.finfo(np.float32).tiny * 1.001, high - low, step * 1.001)[:, None]
    assert (np.abs(values - decoded) <= allowed).all()
    assert (decoded[values == 0] == 0).all(), "zero is exact"


@given(st.sampled_from(["fp32", "fp16", "int8"]), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_is_not_sent(codec: str, value: float) -> None:
    with pytest.raises(CodecError, match="`act`: a value is not finite"):
        encode_tensors([("act", np.array([[1.0, value]], np.float32), codec)])


@given(st.sampled_from(["fp32", "fp16", "int8"]))
def test_only_float32_is_quantized(codec: str) -> None:
    with pytest.raises(CodecError, match="float64"):
        encode_tensors([("x", np.zeros(3), codec)])


def test_several_tensors_keep_their_order_and_layout() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    found = decode_tensors(encode_tensors([("b", array, "fp32"), ("@labels", np.array([1, 2]), "raw"), ("a", array, "int8")]))
    assert list(found) == ["b", "@labels", "a"]
    np.testing.assert_array_equal(found["b"], array)


MESSAGE = encode_tensors(
    [("act", np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4), codec) for codec in ("int8",)]
    + [("half", np.ones((2, 2), np.float32), "fp16"), ("@labels", np.array([1, 2]), "raw")]
)


def test_a_message_cut_short_at_every_byte_is_refused() -> None:
    for length in range(len(MESSAGE)):
        with pytest.raises(CodecError):
            decode_tensors(MESSAGE[:length])
    with pytest.raises(CodecError, match="left over"):
        decode_tensors(MESSAGE + b"\0")


@given(at=st.integers(0, len(MESSAGE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_gives_tensors_or_one_error(at: int, value: int) -> None:
    data = bytearray(MESSAGE)
    data[at] = value
    try:
        found = decode_tensors(bytes(data))
    except CodecError:
        return
    assert all(np.isfinite(each).all() for each in found.values() if each.dtype.kind == "f")


@given(st.binary(max_size=400))
def test_rubbish_is_refused_or_empty(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode_tensors(data)


def test_a_shape_that_promises_too_much_allocates_nothing() -> None:
    head = struct.pack("<BB1sBBB3I", 1, 1, b"x", 0, 0, 3, 2**16, 2**16, 2**16)
    with pytest.raises(CodecError, match="over the limit"):
        decode_tensors(head + struct.pack("<I", 0))


def test_a_name_that_stands_twice_is_refused() -> None:
    one = encode_tensors([("x", np.zeros(1, np.float32), "fp32")])[1:]
    with pytest.raises(CodecError, match="twice"):
        decode_tensors(bytes([2]) + one + one)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    data = bytearray(encode_tensors([("x", np.ones((1, 1), np.float32), "int8")]))
    data[-6:-2] = struct.pack("<f", scale)
    with pytest.raises(CodecError, match="scale"):
        decode_tensors(bytes(data))


def test_codecs_have_numbers_of_their_own() -> None:
    assert sorted(codec.number for codec in CODECS.values()) == list(range(len(CODECS)))


def test_a_codec_that_does_not_exist_is_named() -> None:
    assert check_codec("int8") == "int8"
    with pytest.raises(ValueError, match="no codec 'zip'; it must be one of fp32, fp16, int8"):
        check_codec("zip")
