"""Codecs that take elements one by one, and whole numbers without loss."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire.codecs.kit import FINITE, FLOATS, decoded, through
from wire.codecs import CODECS, PLAIN, decode_array, encode_lossless
from wire.errors import CodecError
from wire.tensors import DTYPES

WHOLE = [np.dtype(name) for name in DTYPES if np.dtype(name).kind in "iub"]


@given(FINITE)
def test_fp32_is_lossless(array: np.ndarray) -> None:
    assert through("fp32", array).tobytes() == array.tobytes()


@given(FINITE)
def test_fp16_rounds_and_saturates(array: np.ndarray) -> None:
    np.testing.assert_array_equal(through("fp16", array), np.clip(array, -65504, 65504).astype(np.float16).astype(np.float32))


def nearest_bfloat16(value: float) -> float:
    """Of the two neighbours (the upper 16 bits, and one more), the nearer; of two as near, the one with the even last bit."""
    (bits,) = struct.unpack("<I", struct.pack("<f", abs(value)))
    below = bits >> 16
    low, high = (struct.unpack("<f", struct.pack("<I", at << 16))[0] if at < 0x7F80 else 2.0**128 for at in (below, below + 1))
    if abs(value) - low == high - abs(value):
        chosen = low if below % 2 == 0 else high
    else:
        chosen = low if abs(value) - low < high - abs(value) else high
    return float(np.copysign(min(chosen, 3.3895313892515355e38), value))


@given(FLOATS)
@example(1.00390625)  # half a step above 1: ties to the even below
@example(1.01171875)  # one and a half: ties to the even above
@example(3.4e38)
@example(-0.0)
@example(1e-45)
def test_bf16_rounds_to_the_nearest_even_and_saturates(value: float) -> None:
    found = decoded("bf16", b"".join(CODECS["bf16"]().encode(np.array([value], np.float32), PLAIN).pieces), (1,))
    assert struct.pack("<f", found[0]) == struct.pack("<f", nearest_bfloat16(float(np.float32(value))))


@given(hnp.arrays(st.sampled_from([np.dtype(name) for name in DTYPES]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_lossless_changes_nothing(array: np.ndarray) -> None:
    if array.dtype.kind == "f":
        array = np.nan_to_num(array)  # what is not finite never crosses
    encoded = encode_lossless(array)
    found = decode_array(encoded.number, memoryview(b"".join(encoded.pieces)), array.dtype, array.shape, PLAIN).array
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    assert found.shape == array.shape
    assert found.flags.writeable
    assert encoded.size_bytes <= array.nbytes


@given(st.data(), st.sampled_from(WHOLE))
def test_whole_numbers_take_the_bits_of_their_range(data: st.DataObject, dtype: np.dtype) -> None:
    low, high = (0, 1) if dtype == np.bool_ else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    bounds = sorted(data.draw(st.tuples(st.integers(low, high), st.integers(low, high))))
    values = data.draw(st.lists(st.integers(*bounds), min_size=1, max_size=50)) + bounds
    array = np.array(values, dtype)
    width = (bounds[1] - bounds[0]).bit_length()
    wanted = dtype.itemsize + 1 + -(-width * len(values) // 8)
    encoded = encode_lossless(array)
    assert encoded.size_bytes == min(wanted, array.nbytes)
    found = decode_array(encoded.number, memoryview(b"".join(encoded.pieces)), dtype, array.shape, PLAIN).array
    assert found.tolist() == array.tolist()


def test_labels_of_ten_classes_take_four_bits() -> None:
    assert encode_lossless(np.arange(64, dtype=np.int64) % 10).size_bytes == 9 + 64 // 2


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        (np.int8, b"\x7f\x01\x01"),  # 127 + 1
        (np.int64, b"\xff" * 7 + b"\x7f" + b"\x01\x01"),
        (np.bool_, b"\x01\x01\x01"),
        (np.uint8, b"\x00\x09\xff\xff"),  # 9 bits in a byte
        (np.uint8, b"\x00"),
        (np.uint8, b""),
        (np.int16, b"\x00\x00\x01\x00\x00"),
        (np.float64, b"\x00" * 9),
    ],
)
def test_packed_payloads_that_cannot_be(dtype: type, data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_array(10, memoryview(data), np.dtype(dtype), (1,), PLAIN)


def test_a_bool_is_0_or_1() -> None:
    assert decode_array(0, memoryview(b"\0\1"), np.dtype(np.bool_), (2,), PLAIN).array.tolist() == [False, True]
    with pytest.raises(CodecError, match="neither 0 nor 1"):
        decode_array(0, memoryview(b"\0\2"), np.dtype(np.bool_), (2,), PLAIN)


def test_raw_floats_are_finite_too() -> None:
    """A peer may send any tensor raw; what is not finite must not get to an encoder that learns."""
    array = np.array([1.0, np.nan], np.float32)
    with pytest.raises(CodecError, match="a value is not finite"):
        decode_array(0, memoryview(array.tobytes()), array.dtype, array.shape, PLAIN)
