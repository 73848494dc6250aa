"""Two ends of a line: what the receiver holds crosses as a reference, and the actor gets the same frames with or without."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.control import Control, encode_control
from wire.errors import FrameError
from wire.frames import Frame, Kind, Mode
from wire.graph import Line
from wire.recall import Recall
from wire.spool import DIGEST_BYTES, Spool, SpoolConfig

UP, DOWN = Line("bottom>top", 0, True), Line("bottom>top", 0, False)
CONFIG = SpoolConfig(limit_bytes=1 << 20, bytes_per_s=1 << 30)


class End:
    """One end of the line, with a spool on disk; ``peer`` gets what it sends of itself."""

    def __init__(self, line: Line, path: Path, *, checkpoint: int = 0) -> None:
        self.line, self.path, self.checkpoint = line, path, checkpoint
        self.sent: list[Frame] = []
        self.start()

    def start(self) -> None:
        self.spool = Spool(self.path, CONFIG)
        self.recall = Recall([self.line], self.spool, checkpoint=self.checkpoint, send=lambda line, frame: self.sent.append(frame))

    def hand_over(self, other: End) -> None:
        """What it has sent of itself reaches the other end."""
        for frame in self.sent:
            assert other.recall.incoming(other.line, frame) is None
        self.sent.clear()


@pytest.fixture
def ends(tmp_path: Path) -> tuple[End, End]:
    return End(UP, tmp_path / "device.sqlite"), End(DOWN, tmp_path / "server.sqlite")


def forward(step: int, *, epoch: int, seed: int = 0, mode: Mode = Mode.TRAIN) -> Frame:
    payload = random.Random(f"{step} {seed}").randbytes(1000)
    return Frame(kind=Kind.FORWARD, mode=mode, epoch=epoch, step=step, global_step=2 * step, payload=payload)


def cross(sender: End, receiver: End, frame: Frame) -> tuple[Frame, Frame | None]:
    """What was on the line, and what the receiver's actor got."""
    sent = sender.recall.outgoing(sender.line, frame)
    return sent, receiver.recall.incoming(receiver.line, sent)


def go_back(*ends: End, checkpoint: int, epoch: int) -> None:
    for end in ends:
        end.recall.restored(checkpoint, epoch)
    for end, other in zip(ends, reversed(ends), strict=True):
        end.hand_over(other)


def test_what_has_arrived_crosses_again_as_a_reference_after_a_restart_of_the_receiver(ends: tuple[End, End]) -> None:
    device, server = ends
    for step in range(3):
        frame = forward(step, epoch=1)
        assert cross(device, server, frame) == (frame, frame)
    server.spool.close()
    server.start()
    go_back(device, server, checkpoint=0, epoch=2)
    for step in range(3):
        frame = forward(step, epoch=2)
        sent, got = cross(device, server, frame)
        assert got == frame, "the actor gets what it would have got"
        assert (sent.kind, len(sent.payload)) == (Kind.REFERENCE, DIGEST_BYTES)
    frame = forward(3, epoch=2)
    assert cross(device, server, frame) == (frame, frame)


def test_gradients_go_the_same_way(ends: tuple[End, End]) -> None:
    device, server = ends
    gradient = dataclasses.replace(forward(5, epoch=1), kind=Kind.BACKWARD)
    cross(server, device, gradient)
    go_back(device, server, checkpoint=0, epoch=2)
    again = dataclasses.replace(gradient, epoch=2)
    sent, got = cross(server, device, again)
    assert got == again
    assert sent.kind is Kind.REFERENCE
    assert cross(device, server, forward(5, epoch=2))[0].kind is Kind.FORWARD, "the activation never reached the server"


def test_modes_and_lines_are_kept_apart(ends: tuple[End, End]) -> None:
    device, server = ends
    cross(device, server, forward(0, epoch=1))
    go_back(device, server, checkpoint=0, epoch=2)
    assert cross(device, server, forward(0, epoch=2, mode=Mode.EVAL))[0].kind is Kind.FORWARD
    other = Line("bottom>top", 1, True)
    assert device.recall.outgoing(other, forward(0, epoch=2)).kind is Kind.FORWARD


def test_void_and_short_frames_are_not_kept(ends: tuple[End, End]) -> None:
    device, server = ends
    cross(device, server, Frame(kind=Kind.FORWARD, void=True, epoch=1, step=0))
    cross(device, server, Frame(kind=Kind.FORWARD, epoch=1, step=1, payload=bytes(255)))
    assert server.spool.held(0) == []


def test_a_payload_that_is_not_what_it_was_is_found_out_and_crosses(ends: tuple[End, End]) -> None:
    """The device's data were changed between two starts."""
    device, server = ends
    for step in range(3):
        cross(device, server, forward(step, epoch=1))
    go_back(device, server, checkpoint=0, epoch=2)
    frame = forward(0, epoch=2, seed=1)
    with pytest.raises(FrameError, match="step 0"):
        cross(device, server, frame)
    server.hand_over(device)
    for step in range(3):
        frame = forward(step, epoch=2, seed=1)
        assert cross(device, server, frame) == (frame, frame), "after one that differs nothing is referred to"
    go_back(device, server, checkpoint=0, epoch=3)
    frame = forward(0, epoch=3, seed=1)
    sent, got = cross(device, server, frame)
    assert (sent.kind, got) == (Kind.REFERENCE, frame), "what came last is what is held"


def test_a_row_that_is_damaged_crosses_again_and_the_others_do_not(ends: tuple[End, End]) -> None:
    device, server = ends
    for step in range(3):
        cross(device, server, forward(step, epoch=1))
    go_back(device, server, checkpoint=0, epoch=2)
    with contextlib.closing(sqlite3.connect(server.path)) as db:
        db.execute("UPDATE messages SET payload = zeroblob(1000) WHERE step = 1")
        db.commit()
    kinds = []
    for step in range(3):
        frame = forward(step, epoch=2)
        try:
            sent, got = cross(device, server, frame)
        except FrameError:
            server.hand_over(device)
            sent, got = cross(device, server, frame)
        assert got == frame
        kinds.append(sent.kind)
    assert kinds == [Kind.REFERENCE, Kind.FORWARD, Kind.REFERENCE]


def test_what_an_earlier_epoch_said_counts_no_more(ends: tuple[End, End]) -> None:
    device, server = ends
    cross(device, server, forward(0, epoch=1))
    server.recall.restored(0, 2)
    old = list(server.sent)
    server.recall.restored(0, 3)
    server.hand_over(device)
    for frame in old:
        device.recall.incoming(UP, frame)
    assert device.recall.outgoing(UP, forward(0, epoch=3)).kind is Kind.REFERENCE, "the newer word is not undone by an older one"
    assert device.recall.outgoing(UP, forward(0, epoch=4)).kind is Kind.FORWARD


def test_a_reference_of_another_epoch_is_dropped(ends: tuple[End, End]) -> None:
    device, server = ends
    cross(device, server, forward(0, epoch=1))
    go_back(device, server, checkpoint=0, epoch=2)
    sent = device.recall.outgoing(UP, forward(0, epoch=2))
    server.recall.restored(0, 3)
    server.sent.clear()
    assert server.recall.incoming(DOWN, sent) is None
    assert server.sent == []


def test_a_save_clears_what_came_before_the_save_before_it(ends: tuple[End, End]) -> None:
    """Both ends may still have to go back to the checkpoint before the newest, until everybody has answered for the newest."""
    device, server = ends
    for checkpoint in range(4):
        cross(device, server, forward(checkpoint, epoch=1))
        cross(device, server, forward(checkpoint + 100, epoch=1))
        server.recall.saved(checkpoint + 1)
        assert [key.step for key in server.spool.held(0)] == [checkpoint, checkpoint + 100]


def test_going_back_says_again_what_came_after_that_checkpoint_only(ends: tuple[End, End]) -> None:
    device, server = ends
    for step in range(6):
        if step in (2, 4):
            server.recall.saved(step // 2)
        cross(device, server, forward(step, epoch=1))
    go_back(device, server, checkpoint=1, epoch=2)
    kinds = [device.recall.outgoing(UP, forward(step, epoch=2)).kind for step in range(7)]
    assert kinds == [Kind.FORWARD] * 2 + [Kind.REFERENCE] * 4 + [Kind.FORWARD]
    go_back(device, server, checkpoint=2, epoch=3)
    kinds = [device.recall.outgoing(UP, forward(step, epoch=3)).kind for step in range(7)]
    assert kinds == [Kind.FORWARD] * 4 + [Kind.REFERENCE] * 2 + [Kind.FORWARD]


def test_what_comes_before_the_first_restore_counts_for_the_newest_checkpoint(tmp_path: Path) -> None:
    """A message on its way while its receiver started again."""
    device, server = End(UP, tmp_path / "device.sqlite", checkpoint=4), End(DOWN, tmp_path / "server.sqlite", checkpoint=4)
    cross(device, server, forward(9, epoch=1))
    go_back(device, server, checkpoint=4, epoch=2)
    assert device.recall.outgoing(UP, forward(9, epoch=2)).kind is Kind.REFERENCE


def test_it_is_said_again_when_the_link_comes_back_but_not_after_the_next_save(ends: tuple[End, End]) -> None:
    device, server = ends
    cross(device, server, forward(0, epoch=1))
    server.recall.restored(0, 2)
    first = list(server.sent)
    server.recall.announce()
    assert server.sent == first * 2
    server.recall.saved(1)
    server.recall.announce()
    assert server.sent == first * 2


def test_it_is_said_again_to_an_end_that_asks(ends: tuple[End, End]) -> None:
    """Whoever has lost the connection sends RESEND, and may have missed the word."""
    device, server = ends
    cross(device, server, forward(0, epoch=1))
    resend = Frame(kind=Kind.RESEND, epoch=2)
    assert server.recall.incoming(DOWN, resend) == resend
    assert server.sent == [], "nothing was held back yet"
    server.recall.restored(0, 2)
    server.sent.clear()
    assert server.recall.incoming(DOWN, resend) == resend
    server.hand_over(device)
    assert device.recall.outgoing(UP, forward(0, epoch=2)).kind is Kind.REFERENCE
    server.recall.saved(1)
    with pytest.raises(FrameError):
        server.recall.incoming(DOWN, Frame(kind=Kind.REFERENCE, epoch=2, step=7, payload=bytes(DIGEST_BYTES)))
    server.sent.clear()
    assert server.recall.incoming(DOWN, resend) == resend
    server.hand_over(device)
    assert device.recall.outgoing(UP, forward(0, epoch=2)).kind is Kind.FORWARD, "that a reference was in vain is said again, too"


def control(weights: bytes, *, seq: int, epoch: int) -> Frame:
    message = Control(kind="cmd", body={"seq": seq, "op": "take"}, blobs={"bottom": weights, "tiny": b"x"})
    return Frame(kind=Kind.CONTROL, epoch=epoch, step=seq, payload=encode_control(message))


def test_weights_that_were_handed_over_are_referred_to_whatever_message_they_come_in(ends: tuple[End, End]) -> None:
    device, server = ends
    weights = random.Random(1).randbytes(5000)
    frame = control(weights, seq=8, epoch=1)
    assert cross(server, device, frame) == (frame, frame)
    go_back(device, server, checkpoint=0, epoch=2)
    again = control(weights, seq=3, epoch=2)
    sent, got = cross(server, device, again)
    assert got == again
    assert sent.kind is Kind.REFERRING
    assert len(sent.payload) < 200
    other = control(weights[::-1], seq=4, epoch=2)
    assert cross(server, device, other) == (other, other)


def test_weights_that_are_lost_cross_again(ends: tuple[End, End]) -> None:
    device, server = ends
    weights = random.Random(1).randbytes(5000)
    cross(server, device, control(weights, seq=8, epoch=1))
    go_back(device, server, checkpoint=0, epoch=2)
    device.spool.clear_before(9)
    again = control(weights, seq=3, epoch=2)
    with pytest.raises(FrameError, match="a blob"):
        cross(server, device, again)
    device.hand_over(server)
    assert cross(server, device, again) == (again, again)


KINDS = (Kind.HELD, Kind.REFERENCE, Kind.CONTROL, Kind.REFERRING)


@given(kind=st.sampled_from(KINDS), mode=st.sampled_from(Mode), payload=st.binary(max_size=400))
def test_rubbish_is_refused_or_of_no_use_but_nothing_else(kind: Kind, mode: Mode, payload: bytes, tmp_path_factory) -> None:
    end = End(DOWN, tmp_path_factory.mktemp("spool") / "spool.sqlite")
    end.recall.restored(0, 1)
    with contextlib.suppress(FrameError):
        got = end.recall.incoming(DOWN, Frame(kind=kind, mode=mode, epoch=1, payload=payload))
        assert got is None or got.payload == payload
    frame = forward(0, epoch=1)
    end.recall.outgoing(DOWN, frame)
    end.spool.close()


def test_a_control_message_that_refers_with_something_else_than_a_digest_is_refused(ends: tuple[End, End]) -> None:
    _, server = ends
    message = Control(kind="done", blobs={"bottom": b"short", "pad": bytes(300)}, references=("bottom",))
    server.recall.restored(0, 1)
    with pytest.raises(FrameError, match="16"):
        server.recall.incoming(DOWN, Frame(kind=Kind.REFERRING, epoch=1, step=1, payload=encode_control(message)))
    with pytest.raises(FrameError, match="should hold"):
        server.recall.incoming(DOWN, Frame(kind=Kind.CONTROL, epoch=1, step=1, payload=encode_control(message)))


@pytest.mark.parametrize("payload", [b"12345678", bytes(9 * 5000)])
def test_a_list_of_what_is_held_has_a_form_and_a_limit(payload: bytes, ends: tuple[End, End]) -> None:
    device, _ = ends
    with pytest.raises(FrameError, match="9 a range, at most 4096"):
        device.recall.incoming(UP, Frame(kind=Kind.HELD, epoch=1, payload=payload))


def test_a_range_of_four_thousand_million_steps_costs_no_memory(ends: tuple[End, End]) -> None:
    device, _ = ends
    everything = Frame(kind=Kind.HELD, epoch=1, payload=bytes(5) + b"\xff\xff\xff\xff")
    assert device.recall.incoming(UP, everything) is None
    assert device.recall.outgoing(UP, forward(10**9, epoch=1)).kind is Kind.REFERENCE
