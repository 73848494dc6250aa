"""int8, int4 and int2, against a plain quantizer written from the page, and by what they promise."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.codecs.kit import FINITE, decoded, payload
from tests.wire.foreign import read_affine
from wire.errors import CodecError

BITS = {"int8": 8, "int4": 4, "int2": 2}


@pytest.mark.parametrize("codec", BITS)
@given(array=FINITE)
@example(array=np.array(2.9386545e-37, np.float32))
@example(array=np.array([[3.4e38, -3.4e38]], np.float32).reshape(2, 1))
def test_within_a_step_of_each_channel_and_zero_is_exact(codec: str, array: np.ndarray) -> None:
    if not array.size:
        return
    found = decoded(codec, payload(codec, array), array.shape)
    np.testing.assert_array_equal(found, read_affine(payload(codec, array), array.shape, BITS[codec]), "the page says otherwise")
    batch, channels = (array.shape[0], array.shape[1]) if array.ndim > 1 else (1, 1)
    values, got = (each.reshape(batch, channels, -1).astype(np.float64) for each in (np.clip(array, -(2.0**127), 2.0**127), found))
    low, high = np.minimum(values.min(axis=(0, 2)), 0), np.maximum(values.max(axis=(0, 2)), 0)
    step = (high - low) / (2 ** BITS[codec] - 1)
    # Half a step for the value, up to half for the zero point, where an end of the range is cut off; a scale is rounded up by up to
    # 2^-7. A channel whose step has no normal float32 becomes zeros.
    tiny = step < np.finfo(np.float32).tiny * 1.001
    allowed = np.where(tiny, high - low, step * (1 + 2.0**-6))[:, None]
    assert (np.abs(values - got) <= allowed).all()
    assert (got[values == 0] == 0).all(), "zero is exact"


def test_by_hand() -> None:
    # Two channels: -1 … 2 in 2 bits is a step of 1 with zero point 1; 0 … 6 is a step of 2 with zero point 0.
    array = np.array([[-1.0, 6.0], [2.0, 0.9], [0.4, 3.1]], np.float32)
    data = payload("int2", array)
    one, two = (struct.pack("<f", step)[2:] for step in (1.0, 2.0))
    codes = [0, 3, 3, 0, 1, 2]
    assert data == one + two + bytes([0b0001]) + sum(code << (2 * at) for at, code in enumerate(codes)).to_bytes(2, "little")
    assert decoded("int2", data, (3, 2)).tolist() == [[-1, 6], [2, 0], [0, 4]]


def test_a_relu_keeps_its_zeros_and_its_largest_value() -> None:
    array = np.maximum(np.random.default_rng(3).normal(size=(32, 8, 5, 5)).astype(np.float32), 0)
    for codec, bits in BITS.items():
        found = decoded(codec, payload(codec, array), array.shape)
        assert ((found == 0) >= (array == 0)).all()
        assert found.max(axis=(0, 2, 3)) == pytest.approx(array.max(axis=(0, 2, 3)), rel=2.0**-7)
        assert len(payload(codec, array)) == 8 * 2 + bits + array.size * bits // 8


@pytest.mark.parametrize("codec", BITS)
@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused(codec: str, scale: float) -> None:
    data = bytearray(payload(codec, np.ones((4, 1), np.float32)))
    data[:2] = struct.pack("<f", scale)[2:]
    with pytest.raises(CodecError, match="scale"):
        decoded(codec, bytes(data), (4, 1))


@given(st.sampled_from(sorted(BITS)), st.integers(1, 40))
def test_what_does_not_fit_the_shape_is_refused(codec: str, more: int) -> None:
    data = payload(codec, np.ones((4, 3), np.float32))
    for wrong in (data + bytes(more), data[:-more]):
        with pytest.raises(CodecError, match="do not make"):
            decoded(codec, wrong, (4, 3))


def test_a_code_times_its_step_must_be_finite() -> None:
    with pytest.raises(CodecError, match="not finite"):
        decoded("int8", b"\x7f\x7f" + b"\x00" + b"\xff", (1, 1))
