"""Messages of named tensors: what they carry, and that whatever arrives is read or refused with one kind of error."""

from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.codecs.kit import FOR_RUNS, read_any, sent
from wire.codecs import encode_lossless
from wire.codecs.bits import write_varint
from wire.codecs.integers import Packed
from wire.errors import CodecError
from wire.limits import LIMITS
from wire.tensors import DTYPES, decode_plain, decode_tensors, encode_plain, encode_tensors


def one(name: str, array: np.ndarray, codec: str) -> bytes:
    return encode_tensors([(name, array, sent(codec, array))])


def test_several_tensors_keep_their_order_and_layout() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    labels = np.array([1, 2])
    found = read_any(
        encode_tensors([("b", array, sent("fp32", array)), ("@labels", labels, encode_lossless(labels)), ("a", array, sent("int8", array))])
    )
    assert list(found) == ["b", "@labels", "a"]
    np.testing.assert_array_equal(found["b"], array)


def test_a_header_takes_about_fifteen_bytes() -> None:
    array = np.ones((64, 16, 7, 7), np.float32)
    assert len(one("pool2", array, "int4")) - sent("int4", array).size_bytes == 1 + 15


def test_plain_tensors_come_back_as_they_were() -> None:
    tensors = {name: np.zeros((2, 0, 3), name) for name in DTYPES} | {"@ids": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    found = decode_plain(encode_plain(tensors))
    assert {name: (each.dtype, each.tobytes(), each.shape) for name, each in found.items()} == {
        name: (each.dtype, each.tobytes(), each.shape) for name, each in tensors.items()
    }


RAMP = np.linspace(-1, 1, 96, dtype=np.float32).reshape(4, 3, 8)
MESSAGE = encode_tensors(
    [(codec, RAMP, sent(codec, RAMP)) for codec in ("int8", "topk", "mxfp4")]
    + [("half", RAMP, sent("fp16", RAMP)), ("@labels", np.array([1, 2]), encode_lossless(np.array([1, 2])))]
)


def test_a_message_cut_short_at_every_byte_is_refused() -> None:
    for length in range(len(MESSAGE)):
        with pytest.raises(CodecError):
            read_any(MESSAGE[:length])
    with pytest.raises(CodecError, match="left over"):
        read_any(MESSAGE + b"\0")


@given(at=st.integers(0, len(MESSAGE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_gives_tensors_or_one_error(at: int, value: int) -> None:
    data = bytearray(MESSAGE)
    data[at] = value
    try:
        found = read_any(bytes(data))
    except CodecError:
        return
    assert all(np.isfinite(each).all() for each in found.values() if each.dtype.kind == "f")


@given(st.binary(max_size=400))
def test_rubbish_is_refused_or_empty(data: bytes) -> None:
    for read in (read_any, decode_plain):
        with contextlib.suppress(CodecError):
            read(data)


def header(name: bytes, codec: int, dtype: int, shape: tuple[int, ...], size: int) -> bytes:
    numbers = b"".join(write_varint(number) for number in (*shape, size))
    return bytes([len(name)]) + name + bytes([codec, dtype + 16 * len(shape)]) + numbers


@pytest.mark.parametrize("shape", [(2**16, 2**16, 2**16), (2**27,), (0, 2**31, 2**31), (0, *(2**26,) * 7)])
def test_a_shape_that_promises_too_much_allocates_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(CodecError, match="over the limit"):
        decode_plain(b"\1" + header(b"x", 0, 0, shape, 0))


def test_tensors_that_are_too_much_together_are_refused_before_they_are_made() -> None:
    count = LIMITS.unpacked_bytes // 8
    constant = b"".join(Packed().encode(np.zeros(1, np.int64), None).pieces)  # type: ignore[arg-type]
    data = b"\2" + b"".join(header(name, 10, 3, (count,), len(constant)) + constant for name in (b"a", b"b"))
    made = []
    with pytest.raises(CodecError, match=f"`b` takes the message over the limit of {LIMITS.unpacked_bytes} bytes"):
        decode_tensors(data, lambda header, payload: made.append(header.name))  # type: ignore[arg-type,return-value]
    assert made == ["a"]


LOSSY = [text for text in FOR_RUNS if sent(text, RAMP).number not in (0, 1)]


@pytest.mark.parametrize("codec", LOSSY)
def test_a_message_without_expected_shapes_takes_no_codec_of_a_run(codec: str) -> None:
    with pytest.raises(CodecError, match=r"`x`: codec number \d+ is not for it; it must be raw, fp32, packed"):
        decode_plain(one("x", RAMP, codec))


def constant(count: int) -> bytes:
    """So many zeros, int64, packed in nine bytes."""
    packed = b"".join(Packed().encode(np.zeros(1, np.int64), None).pieces)  # type: ignore[arg-type]
    return header(b"a" + bytes([97 + count % 26]), 10, 3, (count,), len(packed)) + packed


def test_packed_elements_of_unexpected_shapes_are_few_in_all() -> None:
    limit = LIMITS.packed_elements
    found = decode_plain(b"\2" + constant(limit - 3) + constant(3))
    assert [len(each) for each in found.values()] == [limit - 3, 3]
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=f"more than {limit} packed elements"):
            decode_plain(b"\1" + constant(LIMITS.unpacked_bytes // 8))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(CodecError, match=f"more than {limit} packed elements"):
        decode_plain(b"\2" + constant(limit - 3) + constant(4))


def test_plain_whole_numbers_over_the_limit_cross_raw() -> None:
    array = np.zeros(LIMITS.packed_elements + 1, np.uint8)
    data = encode_plain({"x": array, "y": np.ones(2, bool)})
    assert len(data) > array.size
    found = decode_plain(data)
    np.testing.assert_array_equal(found["x"], array)
    assert found["y"].tolist() == [True, True]


def test_a_name_that_stands_twice_is_refused() -> None:
    twice = one("x", np.zeros(1, np.float32), "fp32")[1:]
    with pytest.raises(CodecError, match="twice"):
        decode_plain(bytes([2]) + twice + twice)


def test_more_tensors_than_a_message_may_have() -> None:
    with pytest.raises(CodecError, match="over the limit of 64"):
        encode_plain({str(at): np.zeros(1) for at in range(65)})
    with pytest.raises(CodecError, match="over the limit of 64"):
        decode_plain(bytes([65]))


def test_a_header_that_names_what_does_not_exist() -> None:
    for data in (header(b"x", 0, 9, (1,), 0), header(b"", 0, 0, (1,), 0), header(b"x", 0, 0, (1,) * 9, 0)):
        with pytest.raises(CodecError, match="does not exist"):
            decode_plain(b"\1" + data)
    with pytest.raises(CodecError, match="`x`: codec number 77"):
        read_any(b"\1" + header(b"x", 77, 0, (1,), 0))


@pytest.mark.parametrize("array", [np.zeros(1, np.complex64), np.zeros(1, np.uint32), np.zeros((1,) * 9, np.float32)])
def test_what_cannot_cross_is_named(array: np.ndarray) -> None:
    with pytest.raises(CodecError, match=r"`x` .* cannot cross a cut"):
        encode_plain({"x": array})
