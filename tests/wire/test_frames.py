"""Frames survive any order, repetition and mixture of their parts; anything else that arrives is a FrameError, whatever it is."""

from __future__ import annotations

import dataclasses
import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import FrameError, OtherVersion
from wire.frames import HEADER_BYTES, Frame, Kind, Mode, Reassembler, encode, encode_part
from wire.holdings import Holdings
from wire.limits import LIMITS, Limits

TAG = 7
U32 = st.integers(0, 2**32 - 1)
FRAMES = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    mode=st.sampled_from(Mode),
    void=st.booleans(),
    epoch=U32,
    lane=st.integers(0, 2**16 - 1),
    step=U32,
    global_step=U32,
    payload=st.binary(max_size=300),
)


@given(frame=FRAMES, part_bytes=st.integers(HEADER_BYTES + 1, 400), data=st.data())
def test_parts_in_any_order_make_the_frame(frame: Frame, part_bytes: int, data: st.DataObject) -> None:
    parts = encode(frame, run_tag=TAG, part_bytes=part_bytes)
    assert all(len(part) <= part_bytes for part in parts)
    assert parts == encode(frame, run_tag=TAG, part_bytes=part_bytes), "sent again, it is the same bytes"
    order = data.draw(st.permutations(range(len(parts))))
    reassembler = Reassembler()
    for at in order[:-1]:
        assert reassembler.feed("t", parts[at], TAG) is None
        if len(parts) > 1:
            assert reassembler.feed("t", parts[at], TAG) is None, "a repetition adds nothing"
    assert reassembler.feed("t", parts[order[-1]], TAG) == frame
    assert reassembler.held_bytes == 0


@given(
    frames=st.lists(FRAMES, min_size=1, max_size=5, unique_by=lambda frame: (frame.kind, frame.mode, frame.epoch, frame.lane, frame.step))
)
def test_messages_mixed_with_each_other(frames: list[Frame]) -> None:
    parts = [part for frame in frames for part in encode(frame, run_tag=TAG, part_bytes=64)]
    random.Random(0).shuffle(parts)
    reassembler = Reassembler()
    found = [frame for part in parts if (frame := reassembler.feed("t", part, TAG)) is not None]
    assert sorted(map(repr, found)) == sorted(map(repr, frames))


def test_a_frame_cut_short_at_every_byte_is_refused() -> None:
    (whole,) = encode(Frame(kind=Kind.FORWARD, epoch=3, step=5, payload=bytes(range(64))), run_tag=TAG, part_bytes=1000)
    for length in range(len(whole)):
        with pytest.raises(FrameError):
            Reassembler().feed("t", whole[:length], TAG)
    with pytest.raises(FrameError):
        Reassembler().feed("t", whole + b"\0", TAG)


def test_a_frame_with_any_bit_turned_is_refused() -> None:
    (whole,) = encode(Frame(kind=Kind.BACKWARD, epoch=3, step=5, payload=bytes(range(40))), run_tag=TAG, part_bytes=1000)
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            Reassembler().feed("t", bytes(data), TAG)


@given(st.binary(max_size=200))
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        Reassembler().feed("t", data, TAG)


def test_a_frame_of_another_run_is_nobodys_error() -> None:
    (whole,) = encode(Frame(kind=Kind.ACK), run_tag=TAG, part_bytes=1000)
    assert Reassembler().feed("t", whole, TAG + 1) is None


def test_a_newer_version_says_what_to_do() -> None:
    (whole,) = encode(Frame(kind=Kind.ACK), run_tag=TAG, part_bytes=1000)
    head = whole[:2] + b"\x09" + whole[3:28]
    with pytest.raises(OtherVersion, match=r"version 9.*same Cutlayer version"):
        Reassembler().feed("t", head + struct.pack("<I", zlib.crc32(head)), TAG)
    with pytest.raises(FrameError, match="checksum"):  # damage alone must not pass for another version
        Reassembler().feed("t", head + whole[28:], TAG)


def test_parts_that_disagree_are_refused() -> None:
    frame = Frame(kind=Kind.FORWARD, payload=bytes(100))
    first = encode(frame, run_tag=TAG, part_bytes=64)[0]
    other = encode(dataclasses.replace(frame, void=True), run_tag=TAG, part_bytes=64)[1]
    reassembler = Reassembler()
    assert reassembler.feed("t", first, TAG) is None
    with pytest.raises(FrameError, match="disagree"):
        reassembler.feed("t", other, TAG)
    assert reassembler.held_bytes == 0


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    limits = Limits(reassembly_bytes=1000, unfinished_messages=50)
    reassembler = Reassembler(limits)
    messages = [encode(Frame(kind=Kind.FORWARD, step=step, payload=bytes(200)), run_tag=TAG, part_bytes=132) for step in range(40)]
    for parts in messages:
        assert reassembler.feed("t", parts[0], TAG) is None
        assert reassembler.held_bytes <= 1000
    assert reassembler.feed("t", messages[-1][1], TAG) is not None
    assert reassembler.feed("t", messages[0][1], TAG) is None, "its first part was dropped"


def test_many_small_unfinished_messages_are_bounded_too() -> None:
    reassembler = Reassembler(Limits(unfinished_messages=3))
    messages = [encode(Frame(kind=Kind.FORWARD, step=step, payload=b"ab"), run_tag=TAG, part_bytes=33) for step in range(9)]
    for parts in messages:
        reassembler.feed("t", parts[0], TAG)
    held_bytes = reassembler.held_bytes
    reassembler.feed("t", messages[0][0], TAG)
    assert reassembler.held_bytes == held_bytes, "one goes for each that comes"
    assert len(reassembler.unfinished("t", 0)) == 3


def test_parts_as_good_as_empty_are_counted_by_what_they_take_of_memory() -> None:
    limits = Limits(reassembly_bytes=2 << 20)
    reassembler = Reassembler(limits)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(30):
        frame = Frame(kind=Kind.FORWARD, step=step, payload=bytes(65535))
        for part in range(1500):
            reassembler.feed("t", encode_part(frame, part, 65535, run_tag=TAG), TAG)
            assert reassembler.held_bytes <= limits.reassembly_bytes
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert reassembler.held_bytes > limits.reassembly_bytes // 2
    assert taken <= reassembler.held_bytes
    reassembler.forget_before(1)
    assert reassembler.held_bytes == 0


def test_an_empty_part_is_refused() -> None:
    """A message has no more parts than bytes, so 64 KB on the line do not open one of 65535 parts."""
    with pytest.raises(FrameError, match="part 3 of 9 is empty"):
        Reassembler().feed("t", encode_part(Frame(kind=Kind.FORWARD), 3, 9, run_tag=TAG), TAG)


def test_of_many_messages_in_many_parts_no_more_is_listed_than_a_resend_can_say() -> None:
    reassembler = Reassembler()
    for step, parts in enumerate([65535, *[9000] * 20, 300]):
        frame = Frame(kind=Kind.FORWARD, step=step, payload=bytes(parts))
        reassembler.feed("t", encode_part(frame, 1, parts, run_tag=TAG), TAG)
    found = reassembler.unfinished("t", 0)
    assert [(partial.step, partial.parts) for partial in found] == [(21, 300), (20, 9000), (19, 9000), (18, 9000)], "the newest first"
    assert Holdings.decode(Holdings(ranges={}, partial=found).encode()).partial == found
    without = reassembler.unfinished("t", 0, but=lambda kind, mode, step: step in (19, 21))
    assert [partial.step for partial in without] == [20, 18, 17]


def test_a_message_over_the_limit_is_refused() -> None:
    limits = Limits(message_bytes=150)
    parts = encode(Frame(kind=Kind.FORWARD, payload=bytes(200)), run_tag=TAG, part_bytes=132)
    reassembler = Reassembler(limits)
    reassembler.feed("t", parts[0], TAG)
    with pytest.raises(FrameError, match="over the limit of 150"):
        reassembler.feed("t", parts[1], TAG)


def test_an_epoch_that_is_over_is_forgotten() -> None:
    reassembler = Reassembler()
    parts = encode(Frame(kind=Kind.FORWARD, epoch=1, payload=bytes(200)), run_tag=TAG, part_bytes=132)
    reassembler.feed("t", parts[0], TAG)
    reassembler.forget_before(2)
    assert reassembler.held_bytes == 0


@pytest.mark.parametrize("field", [{"epoch": 2**32}, {"lane": 2**16}, {"step": -1}])
def test_fields_out_of_range_are_not_sent(field: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        encode(Frame(kind=Kind.ACK, **field), run_tag=TAG, part_bytes=100)


def test_each_of_many_lines_may_have_a_message_under_way() -> None:
    lanes = LIMITS.unfinished_messages + 50
    messages = [encode(Frame(kind=Kind.FORWARD, lane=lane, payload=b"abc"), run_tag=TAG, part_bytes=34) for lane in range(lanes)]
    few, many = Reassembler(), Reassembler(lines=lanes)
    for reassembler in (few, many):
        for lane, parts in enumerate(messages):
            assert reassembler.feed(f"t{lane}", parts[0], TAG) is None
    assert len(many.unfinished("t0", 0)) == 1
    assert not few.unfinished("t0", 0)
    whole = [many.feed(f"t{lane}", parts[1], TAG) for lane, parts in enumerate(messages)]
    assert [frame.lane for frame in whole if frame is not None] == list(range(lanes))
    assert many.held_bytes == 0
