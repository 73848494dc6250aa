"""Which parts go out when, and what a RESEND frame says."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import FrameError
from wire.frames import Frame, Kind, Mode, Partial, encode, encode_part, parts_needed
from wire.graph import Line
from wire.holdings import Holdings, Whole
from wire.limits import LIMITS
from wire.selection import Selection, key_of

LINE = Line("bottom>top", 0, True)
U32 = st.integers(0, 2**32 - 1)
KINDS, MODES = st.sampled_from(Kind), st.sampled_from(Mode)
LONG = Frame(kind=Kind.FORWARD, epoch=1, step=5, payload=bytes(40_000))


@st.composite
def partials(draw: st.DrawFn) -> Partial:
    parts = draw(st.integers(2, 300))
    held = draw(st.frozensets(st.integers(0, parts - 1)))
    return Partial(kind=draw(KINDS), mode=draw(MODES), step=draw(U32), parts=parts, held=held)


HOLDINGS = st.builds(
    Holdings,
    asks=st.booleans(),
    fresh=st.booleans(),
    number=st.integers(0, 255),
    part_bytes=U32,
    ranges=st.dictionaries(st.tuples(KINDS, MODES), st.tuples(U32, U32), max_size=18),
    partial=st.lists(partials(), max_size=20).map(tuple),
)


@given(HOLDINGS)
def test_holdings_come_back_as_they_were(holdings: Holdings) -> None:
    assert Holdings.decode(holdings.encode()) == holdings


@given(st.binary(max_size=200))
def test_rubbish_is_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        found = Holdings.decode(data)
        assert found == Holdings.decode(found.encode())


@given(HOLDINGS, st.data())
def test_holdings_cut_short_are_refused(holdings: Holdings, data: st.DataObject) -> None:
    whole = holdings.encode()
    with pytest.raises(FrameError):
        Holdings.decode(whole[: data.draw(st.integers(1, len(whole) - 1))])
    with pytest.raises(FrameError):
        Holdings.decode(whole + b"\0")


def test_holdings_are_bounded() -> None:
    many = tuple(Partial(kind=Kind.FORWARD, mode=Mode.TRAIN, step=at, parts=10_000, held=frozenset({at})) for at in range(300))
    data = Holdings(ranges={}, partial=many).encode()
    assert len(data) <= LIMITS.resend_bytes
    assert Holdings.decode(data).partial == many[:3]
    with pytest.raises(FrameError, match="over the limit"):
        Holdings.decode(bytes(LIMITS.resend_bytes + 1))


@given(st.lists(st.integers(0, 12), max_size=60))
def test_what_is_said_to_be_here_was_here(steps: list[int]) -> None:
    whole, seen = Whole(), set()
    for step in steps:
        whole.add(Frame(kind=Kind.BACKWARD, step=step))
        seen.add(step)
        assert all(step in seen for step in range(13) if whole.has(Kind.BACKWARD, Mode.TRAIN, step))
    assert not whole.has(Kind.FORWARD, Mode.TRAIN, 0)
    if steps == sorted(set(range(len(steps)))):
        assert all(whole.has(Kind.BACKWARD, Mode.TRAIN, step) for step in steps)


@given(st.integers(0, 5000), st.integers(33, 400), st.integers(33, 400))
def test_two_cuts_into_as_many_parts_are_the_same_cut(size: int, one: int, two: int) -> None:
    frame = Frame(kind=Kind.FORWARD, payload=bytes(at % 251 for at in range(size)))
    first, second = (encode(frame, run_tag=1, part_bytes=part_bytes) for part_bytes in (one, two))
    assert (first == second) == (len(first) == len(second))
    assert all(len(part) <= one for part in first)
    assert all(encode_part(frame, at, len(first), run_tag=1) == part for at, part in enumerate(first))


# ------------------------------------------------------------ what goes out


def answer(number: int, *, partial: tuple[Partial, ...] = (), ranges: dict | None = None, fresh: bool = False) -> Holdings:
    return Holdings(asks=fresh, fresh=fresh, number=number, ranges=ranges or {}, partial=partial)


def sent_once(frame: Frame = LONG, part_bytes: int = 4096) -> tuple[Selection, int]:
    """Everything went out the first time; a question is asked after it. Returns its number."""
    found = Selection()
    parts = parts_needed(len(frame.payload), part_bytes=part_bytes)
    assert found.choose(LINE, frame, part_bytes=part_bytes).chosen == tuple(range(parts))
    found.taken(key_of(LINE, frame))
    found.link_up()
    again = found.choose(LINE, frame, part_bytes=part_bytes)
    assert (again.chosen, again.ask) == ((), True)
    return found, found.ask(LINE)


def partial(parts: int, *held: int) -> Partial:
    return Partial(kind=LONG.kind, mode=LONG.mode, step=LONG.step, parts=parts, held=frozenset(held))


def test_only_what_is_missing_goes_again() -> None:
    found, number = sent_once()
    found.told(LINE, answer(number, partial=(partial(10, 0, 1, 2, 9),)), epoch=1)
    assert found.choose(LINE, LONG, part_bytes=4096).chosen == (3, 4, 5, 6, 7, 8)
    found.settled(LINE)
    assert found.choose(LINE, LONG, part_bytes=4096).ask


def test_what_is_there_does_not_go_again() -> None:
    found, number = sent_once()
    found.told(LINE, answer(number, ranges={(Kind.FORWARD, Mode.TRAIN): (3, 5)}), epoch=1)
    assert found.choose(LINE, LONG, part_bytes=4096).chosen == ()


def test_what_moves_is_left_alone_and_what_stands_still_goes_again() -> None:
    found = Selection()
    found.choose(LINE, LONG, part_bytes=4096)
    sent = []
    for held in ((0,), (0, 1), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2)):
        found.taken(key_of(LINE, LONG))
        number = found.ask(LINE)
        found.told(LINE, answer(number, partial=(partial(10, *held),)), epoch=1)
        sent.append(len(found.choose(LINE, LONG, part_bytes=4096).chosen))
        found.settled(LINE)
    assert sent == [0, 0, 0, 7, 0, 7]
    assert "the other end does not get it" in found.warnings[0][1]


def test_a_new_connection_at_the_other_end_has_lost_what_was_on_its_way() -> None:
    found = Selection()
    found.choose(LINE, LONG, part_bytes=4096)
    found.taken(key_of(LINE, LONG))
    found.told(LINE, answer(0, fresh=True, partial=(partial(10, 4),)), epoch=1)
    assert len(found.choose(LINE, LONG, part_bytes=4096).chosen) == 9


def test_a_message_keeps_its_cut_while_that_will_do() -> None:
    for part_bytes, parts in ((65536, 10), (2048, 10), (1000, 42)):
        found, number = sent_once()
        found.told(LINE, answer(number, partial=(partial(10, 0),)), epoch=1)
        choice = found.choose(LINE, LONG, part_bytes=part_bytes)
        assert choice.parts == parts
        assert choice.chosen == tuple(range(1 if parts == 10 else 0, parts))


def test_a_cut_that_is_not_ours_is_not_continued() -> None:
    found, number = sent_once()
    found.told(LINE, answer(number, partial=(partial(9, 0, 1),)), epoch=1)
    assert found.choose(LINE, LONG, part_bytes=4096).chosen == tuple(range(10))


def test_an_answer_says_nothing_of_what_was_sent_after_the_question() -> None:
    found, number = sent_once()
    later = Frame(kind=Kind.FORWARD, epoch=1, step=6, payload=bytes(9000))
    assert len(found.choose(LINE, later, part_bytes=4096).chosen) == 3
    found.told(LINE, answer(number), epoch=1)
    assert len(found.choose(LINE, LONG, part_bytes=4096).chosen) == 10
    assert found.choose(LINE, later, part_bytes=4096).chosen == ()
    found.told(LINE, answer(0, fresh=True), epoch=1)
    assert len(found.choose(LINE, later, part_bytes=4096).chosen) == 3, "it has just connected: what it had not by now is lost"


def test_of_another_epoch_nothing_goes_and_nobody_asks() -> None:
    found, number = sent_once()
    found.told(LINE, answer(number), epoch=2)
    choice = found.choose(LINE, LONG, part_bytes=4096)
    assert (choice.chosen, choice.ask) == ((), False)


def test_a_join_of_many_parts_comes_again_to_who_is_still_in_the_epoch_before() -> None:
    join = Frame(kind=Kind.CONTROL, epoch=5, step=7, payload=bytes(5000))
    found, number = sent_once(join, part_bytes=1024)
    # It holds a message of the same number, but of its own epoch.
    older = answer(number, ranges={(Kind.CONTROL, Mode.TRAIN): (1, 9)})
    found.told(LINE, older, epoch=4)
    assert found.choose(LINE, join, part_bytes=1024).chosen == (0, 1, 2, 3, 4, 5)
    found.settled(LINE)
    sent = []
    for _ in range(4):
        found.taken(key_of(LINE, join))
        assert found.choose(LINE, join, part_bytes=1024).ask
        found.told(LINE, dataclasses.replace(older, number=found.ask(LINE)), epoch=4)
        sent.append(len(found.choose(LINE, join, part_bytes=1024).chosen))
        found.settled(LINE)
    assert sent == [0, 6, 0, 6], "what the broker has taken may be on its way: it goes again at every second answer"


def test_a_refusal_of_many_parts_goes_whenever_it_is_sent() -> None:
    """Nobody keeps it, so an answer to a question would not bring it back; it answers a hello."""
    refusal = Frame(kind=Kind.CONTROL, payload=bytes(1000))
    found = Selection()
    for _ in range(5):
        choice = found.choose(LINE, refusal, part_bytes=256)
        assert (choice.chosen, choice.ask) == (tuple(range(5)), False)
        found.taken(key_of(LINE, refusal))


def test_where_nobody_answers_all_of_it_goes_in_the_end() -> None:
    found, _ = sent_once()
    whole = 0
    for _ in range(12):
        choice = found.choose(LINE, LONG, part_bytes=4096)
        if choice.ask:
            assert choice.chosen == ()
            found.ask(LINE)
        else:
            assert len(choice.chosen) == 10
            whole += 1
    assert 3 <= whole <= 6
    assert len(found.warnings) == 1


def test_the_other_end_may_wish_for_shorter_parts_but_not_for_dust() -> None:
    for wish, parts in ((0, 10), (2048, 20), (1, 41), (65536, 10)):
        found = Selection()
        found.told(LINE, Holdings(part_bytes=wish, ranges={}), epoch=1)
        found.settled(LINE)
        assert found.choose(LINE, LONG, part_bytes=4096).parts == parts


def test_what_is_remembered_is_bounded() -> None:
    found = Selection()
    for step in range(5000):
        found.choose(LINE, Frame(kind=Kind.FORWARD, epoch=1, step=step), part_bytes=4096)
    assert len(found._messages) <= 1024


def test_of_a_party_with_many_lines_some_messages_of_each_are_remembered() -> None:
    found = Selection(lines=500)
    lines = [Line("a>b", lane, True) for lane in range(500)]
    for line in lines:
        for step in range(4):
            found.choose(line, Frame(kind=Kind.FORWARD, epoch=1, lane=line.lane, step=step, payload=bytes(100)), part_bytes=64)
    frame = Frame(kind=Kind.FORWARD, epoch=1, lane=0, step=0, payload=bytes(100))
    assert found.choose(lines[0], frame, part_bytes=64).ask, "what was sent is asked after, and not sent again"
