"""What the operator's line keeps of what comes: bounded for each device, so that who floods loses its own messages alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fleet.deploy.line import Cut, Heard, OperatorLine, Sent, Up
from wire.errors import BrokerRefused
from wire.fleet.talk import Ask, Chunk, Want, encode_message, up_topic
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, Refused, TransportEvent
from wire.transport.wire_bytes import NO_BYTES, WireBytes

WANT = encode_message(Want(version=1, sha256="a" * 64, offset=0, count_bytes=1))
PIECE = Chunk(sha256="a" * 64, offset=0, data=bytes(40_000))


class ByHand:
    """A transport whose other end is the test; ``sent`` keeps what was published."""

    part_bytes = part_wish = 65_536

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, int]] = []
        self.say: Callable[[TransportEvent], None] = lambda event: None

    def open(self, subscriptions: tuple[str, ...], sink: Callable[[TransportEvent], None]) -> None:
        assert subscriptions == ("cl/1/d/+/up/talk",)
        self.say = sink

    def publish(self, topic: str, payload: bytes, token: int) -> None:
        self.sent.append((topic, payload, token))

    def packet_bytes(self, topic: str, size_bytes: int, *, arriving: bool = False) -> int:
        return len(topic) + size_bytes

    def counted(self) -> WireBytes:
        return NO_BYTES

    def close(self) -> None:
        pass

    def arrive(self, identity: str, payload: bytes, times: int = 1) -> None:
        for _ in range(times):
            self.say(Received(topic=up_topic(identity), payload=payload))


@pytest.fixture
def hand() -> ByHand:
    return ByHand()


@pytest.fixture
def line(hand: ByHand) -> Iterator[OperatorLine]:
    with OperatorLine(hand, ["c0", "c1"]) as found:
        yield found


def heard(line: OperatorLine) -> list[str]:
    found: list[str] = []
    while events := line.events(0.0):
        found += [event.device for event in events if isinstance(event, Heard)]
    return found


def test_who_floods_loses_its_own(hand: ByHand, line: OperatorLine) -> None:
    hand.arrive("c0.agent", WANT, times=100_000)
    hand.arrive("c1.agent", WANT)
    found = heard(line)
    assert found == ["c0"] * 64 + ["c1"]
    assert line.rubbish == {"c0": 100_000 - 64}
    hand.arrive("c0.agent", WANT)
    assert heard(line) == ["c0"]  # there is room again


def test_large_messages_are_bounded_by_their_bytes(hand: ByHand, line: OperatorLine) -> None:
    hand.arrive("c0.agent", bytes(60_000), times=1000)
    assert line._all_bytes <= 256 << 10
    hand.arrive("c0.agent", bytes(1 << 20))
    assert line._all_bytes <= 256 << 10
    assert heard(line) == []
    assert line.rubbish == {"c0": 1001}
    assert line._all_bytes == 0


def test_who_is_not_asked_for_is_not_kept(hand: ByHand, line: OperatorLine) -> None:
    for identity in ("c9.agent", "c0", "operator", "c0.agent.agent"):
        hand.arrive(identity, WANT)
    assert line.events(0.0) == []
    assert not line.rubbish


def test_pieces_wait_until_the_broker_has_taken_enough(hand: ByHand, line: OperatorLine) -> None:
    assert line.events(0.0) == []
    hand.say(LinkUp())
    assert line.events(0.0) == [Up()]
    line.send("c0", Ask(token=1))
    while line.has_room:
        line.send("c1", PIECE)
    assert 4 << 20 <= sum(len(data) for _, data, _ in hand.sent) < (4 << 20) + 100_000
    assert {topic for topic, _, _ in hand.sent} == {"cl/1/d/c0.agent/down/talk", "cl/1/d/c1.agent/down/talk"}
    for _, _, token in hand.sent[:2]:
        hand.say(Delivered(token=token))
    assert line.events(0.0) == [Sent(device="c1")]  # the question is none
    assert line.has_room
    while line.has_room:
        line.send("c1", PIECE)
    hand.say(LinkDown(reason="gone", retry_in_s=1.0))
    assert line.events(0.0) == [Cut(reason="gone")]
    assert line.has_room


def test_a_broker_that_refuses(hand: ByHand, line: OperatorLine) -> None:
    hand.say(Refused(reason="no", token=7))
    with pytest.raises(BrokerRefused, match="no; `cutlayer broker config` lets the operator in"):
        line.events(0.0)
    hand.say(Refused(reason="it does not accept our certificate"))
    with pytest.raises(BrokerRefused, match=r"^it does not accept our certificate$"):
        line.events(0.0)
