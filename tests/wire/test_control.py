"""Control messages: what goes in comes out, and what is not one is a FrameError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.control import Control, decode_control, encode_control
from wire.errors import FrameError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
CONTROLS = st.builds(
    Control,
    kind=st.sampled_from(["cmd", "done", "lost", "refuse", "hello"]),
    body=st.dictionaries(st.text(max_size=4), JSON, max_size=4),
    blobs=st.dictionaries(st.text(min_size=1, max_size=4), st.binary(max_size=40), max_size=3),
)


@given(CONTROLS)
def test_round_trip(control: Control) -> None:
    assert decode_control(encode_control(control)) == control


@given(CONTROLS)
def test_cut_short_or_longer_it_is_refused(control: Control) -> None:
    data = encode_control(control)
    for length in range(len(data)):
        with pytest.raises(FrameError):
            decode_control(data[:length])
    with pytest.raises(FrameError):
        decode_control(data + b"\0")


@given(st.binary(max_size=100) | st.builds(lambda text: len(text).to_bytes(4, "little") + text, st.binary(max_size=60)))
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode_control(data)


def test_a_head_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        decode_control((1 << 30).to_bytes(4, "little") + b"{")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity", "9" * 5000])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    head = b'{"kind":"hello","body":{"deep":[{"epoch":%s}]},"blobs":[]}' % number.encode()
    with pytest.raises(FrameError, match="not readable"):
        decode_control(len(head).to_bytes(4, "little") + head)


def test_no_number_that_is_not_finite_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_control(Control(kind="done", body={"result": {"metrics": {"loss": float("nan")}}}))
