"""Whole numbers in few bits: against Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.codecs.bits import pack_bits, packed_bytes, read_varint, unpack_bits, write_varint
from wire.errors import CodecError


@given(st.data(), st.integers(0, 64))
def test_packed_numbers_are_one_large_number(data: st.DataObject, width: int) -> None:
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    packed = pack_bits(np.array(values, np.uint64), width)
    assert len(packed) == packed_bytes(len(values), width)
    assert int.from_bytes(packed, "little") == sum(value << (width * at) for at, value in enumerate(values))
    assert unpack_bits(memoryview(packed), width, len(values)).tolist() == values
    for wrong in (packed + b"\0", packed[:-1]):
        if wrong != packed:
            with pytest.raises(CodecError, match="do not hold"):
                unpack_bits(memoryview(wrong), width, len(values))


@given(st.integers(0, 2**32 - 1), st.binary(max_size=3))
def test_varints(number: int, before: bytes) -> None:
    written = write_varint(number)
    assert len(written) == max(1, -(-number.bit_length() // 7))
    assert read_varint(memoryview(before + written + b"\xff"), len(before)) == (number, len(before) + len(written))
    for length in range(len(written)):
        with pytest.raises(CodecError):
            read_varint(memoryview(written[:length]), 0)


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff\xff\xff\xff\x10", b"\xff\xff\xff\xff\xff\x01", b"\x80" * 9, b""])
def test_what_is_no_varint(data: bytes) -> None:
    with pytest.raises(CodecError, match="cut short, over 32 bits, or longer than needed"):
        read_varint(memoryview(data), 0)
