"""MQTT 3.1.1 where the broker has no 5, and brokers that answer strangely: foreign peers that play a script."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.foreign_broker import ForeignBroker, Talk, foreign_broker
from tests.links import Link, mqtt_link
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, Refused
from wire.transport.stream import PACKET_BYTES


def echo(talk: Talk, version: int) -> None:
    """Grants one topic, then gives every PUBLISH an acknowledgement and sends it back at QoS 0."""
    talk.welcome(version)
    talk.grant(version)
    while True:
        head, body = talk.packet()
        if head & 0xF0 == 0x30:
            end = 2 + int.from_bytes(body[:2], "big")
            talk.say(b"\x40\x02" + body[end : end + 2])
            talk.say(bytes([0x30, len(body) - 2]) + body[:end] + body[end + 2 :])


def round_trip(link: Link) -> None:
    link.transport.publish("t", b"hello", 3)
    assert link.next(Delivered).token == 3
    assert link.next(Received) == Received(topic="t", payload=b"hello")


def says_in_v5(talk: Talk, version: int) -> None:
    if version == 5:
        return talk.say(bytes([0x20, 3, 0, 0x84, 0]))
    echo(talk, version)


def says_in_v311(talk: Talk, version: int) -> None:
    if version == 5:
        return talk.say(bytes([0x20, 2, 0, 1]))
    echo(talk, version)


def hangs_up(talk: Talk, version: int) -> None:
    if version == 4:
        echo(talk, version)


def keeps_silent(talk: Talk, version: int) -> None:
    if version == 5:
        talk.packet()
    echo(talk, version)


@pytest.mark.parametrize("script", [says_in_v5, says_in_v311, hangs_up, keeps_silent])
def test_a_broker_without_mqtt_5(script: object) -> None:
    assert callable(script)
    with foreign_broker(script) as broker, mqtt_link(broker.config(connect_timeout_s=0.5), "t", up=False) as link:
        first = link.events.get(timeout=30)
        assert first == LinkUp()
        assert broker.versions == [5, 4]
        round_trip(link)


def test_a_broker_with_mqtt_5_is_asked_once() -> None:
    with foreign_broker(echo) as broker, mqtt_link(broker.config(), "t") as link:
        round_trip(link)
        assert broker.versions == [5]


def test_a_broker_that_said_so_is_not_asked_for_5_again() -> None:
    def script(talk: Talk, version: int) -> None:
        if version == 5:
            return talk.say(bytes([0x20, 2, 0, 1]))
        talk.welcome(version)
        talk.grant(version)

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        link.next(LinkDown)
        link.next(LinkUp)
        assert broker.versions[:3] == [5, 4, 4]


def test_a_broker_that_died_during_the_handshake_is_asked_for_5_again() -> None:
    """Nothing says that it has no 5: in 3.1.1 we would not be told what is refused."""

    def script(talk: Talk, version: int) -> None:
        if len(broker.versions) > 2:
            echo(talk, version)

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        round_trip(link)
        assert broker.versions == [5, 4, 5]


# ------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0x85, "client id"),
        (0x86, "password"),
        (0x87, "not authorized"),
        (0x8A, "banned"),
        (0x8C, "authentication method"),
        (0x95, "part_bytes"),
    ],
)
def test_refusals_of_the_connection(code: int, said: str) -> None:
    with (
        foreign_broker(lambda talk, version: talk.say(bytes([0x20, 3, 0, code, 0]))) as broker,
        mqtt_link(broker.config(), up=False) as link,
    ):
        assert said in link.next(Refused).reason
        assert broker.versions == [5]


@pytest.mark.parametrize("code", [0x88, 0x89, 0x97, 0x9F])
def test_what_may_pass_is_tried_again(code: int) -> None:
    with (
        foreign_broker(lambda talk, version: talk.say(bytes([0x20, 3, 0, code, 0]))) as broker,
        mqtt_link(broker.config(), up=False) as link,
    ):
        for _ in range(2):
            assert link.next(LinkDown).reason.startswith("the broker says: ")
        assert set(broker.versions) == {5}


def test_refusals_of_the_connection_in_v311() -> None:
    def script(talk: Talk, version: int) -> None:
        talk.say(bytes([0x20, 2, 0, 1 if version == 5 else 5]))

    with foreign_broker(script) as broker, mqtt_link(broker.config(), up=False) as link:
        assert "not authorized" in link.next(Refused).reason


@pytest.mark.parametrize("version", [4, 5])
def test_a_subscription_that_is_refused(version: int) -> None:
    def script(talk: Talk, asked: int) -> None:
        if asked != version:
            return
        talk.welcome(version)
        talk.grant(version, 0x01, 0x87 if version == 5 else 0x80)
        talk.packet()

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "mine", "theirs", up=False) as link:
        reason = link.next(Refused).reason
        assert "we may not subscribe to theirs" in reason
        assert "access list" in reason


def test_up_only_when_the_last_subscription_is_granted() -> None:
    def script(talk: Talk, version: int) -> None:
        talk.welcome(version)
        talk.grant(version, *[1] * 8)
        talk.packet()  # the second SUBSCRIBE, which gets no answer

    topics = [f"t{number}" for number in range(9)]
    with foreign_broker(script) as broker, mqtt_link(broker.config(connect_timeout_s=0.3), *topics, up=False) as link:
        assert isinstance(link.events.get(timeout=30), LinkDown)


@pytest.mark.parametrize(("code", "said"), [(0x8E, "run each party only once"), (0x95, "part_bytes"), (0x87, "not authorized")])
def test_a_goodbye_with_a_reason(code: int, said: str) -> None:
    def script(talk: Talk, version: int) -> None:
        talk.welcome(version)
        talk.grant(version)
        talk.say(bytes([0xE0, 2, code, 0]))
        talk.packet()

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        assert said in link.next(Refused).reason


def test_a_goodbye_of_a_broker_that_shuts_down() -> None:
    def script(talk: Talk, version: int) -> None:
        talk.welcome(version)
        talk.grant(version)
        talk.say(bytes([0xE0, 2, 0x8B, 0]))

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        assert "server shutting down" in link.next(LinkDown).reason
        link.next(LinkUp)


@pytest.mark.parametrize(
    ("code", "refused"), [(0x10, False), (0x80, False), (0x97, False), (0x87, True), (0x90, True), (0x95, True), (0x99, True)]
)
def test_reasons_of_a_puback(code: int, refused: bool) -> None:
    def script(talk: Talk, version: int) -> None:
        talk.welcome(version)
        talk.grant(version)
        _, body = talk.packet()
        end = 2 + int.from_bytes(body[:2], "big")
        talk.say(b"\x40\x04" + body[end : end + 2] + bytes([code, 0]))
        talk.packet()

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        link.transport.publish("t", b"x", 4)
        event = link.events.get(timeout=30)
        assert isinstance(event, Refused if refused else Delivered)
        assert event.token == 4


def test_no_more_in_flight_than_the_broker_takes() -> None:
    waiting: list[int] = []

    def script(talk: Talk, version: int) -> None:
        talk.welcome(version, properties=b"\x21\x00\x03")  # Receive Maximum 3
        talk.grant(version)
        ids = []
        for _ in range(3):
            _, body = talk.packet()
            ids.append(body[3:5])
        talk._link.settimeout(0.2)
        try:
            waiting.append(talk.packet()[0])
        except TimeoutError:
            talk._link.settimeout(None)
        for packet_id in ids:
            talk.say(b"\x40\x02" + packet_id)
        while True:
            _, body = talk.packet()
            talk.say(b"\x40\x02" + body[3:5])

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        for token in range(10):
            link.transport.publish("t", b"x", token)
        assert [link.next(Delivered).token for _ in range(10)] == list(range(10))
        assert waiting == []


# ------------------------------------------------------------ nonsense


def test_a_packet_over_the_limit_is_not_read() -> None:
    def script(talk: Talk, version: int) -> None:
        talk.welcome(version)
        talk.grant(version)
        length = PACKET_BYTES + 1
        talk.say(bytes([0x30, length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21]))
        talk.packet()

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        assert f"a packet of over {PACKET_BYTES} bytes" in link.next(LinkDown).reason


def speaks(data: bytes) -> tuple[ForeignBroker, str]:
    """What the transport makes of ``data`` in place of what should come after SUBACK."""

    def script(talk: Talk, version: int) -> None:
        talk.welcome(version)
        talk.grant(version)
        talk.say(data)

    with foreign_broker(script) as broker, mqtt_link(broker.config(), "t") as link:
        while True:
            event = link.events.get(timeout=30)
            if isinstance(event, (LinkDown, Refused)):
                return broker, event.reason


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes([0xF0, 0]),
        bytes([0x30, 1, 0]),  # a PUBLISH that is too short
        bytes([0x30, 5, 0, 1, 0xFF, 0, 0]),  # a topic that is no UTF-8
        bytes([0x40, 4, 0, 1, 0x77, 0]),  # a PUBACK with a reason code that does not exist
        bytes([0x20, 3, 0, 0x77, 0]),
        bytes([0xE0, 1, 0x77]),
        bytes([0x90, 3, 0, 1, 0]),
        bytes([0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        bytes([0x32, 12, 0, 1]) + b"t" + bytes([0, 1, 6, 0xEE, 1, 2, 3, 4, 5]),  # properties that do not exist
    ],
)
def test_nonsense_ends_the_connection_and_nothing_else(data: bytes) -> None:
    _, reason = speaks(data)
    assert "please report" not in reason
    assert "\n" not in reason


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=40))
def test_no_bytes_break_the_transport(data: bytes) -> None:
    _, reason = speaks(data)
    assert "please report" not in reason
