"""What the broker refuses, and what a person reads then: certificates, passwords, access lists, sizes, names used twice."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import (
    Broker,
    embedded,
    mosquitto,
    mosquitto_acl,
    mosquitto_dropping,
    mosquitto_limited,
    mosquitto_password,
    mosquitto_tls,
)
from tests.links import Link, mqtt_link
from tests.old_broker import without_mqtt5
from wire.errors import UsageError
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, Refused, TransportEvent
from wire.transport.mqtt import MqttTransport


def refusal(broker: Broker, *subscriptions: str, **changes: Any) -> str:
    """Why the transport gives up; it must not try again after that."""
    with mqtt_link(broker.config(**changes), *subscriptions, base_dir=broker.folder, up=False) as link:
        refused = link.next(Refused)
        assert refused.token is None
        assert link.nothing_for(0.1)
        assert "\n" not in refused.reason
        return refused.reason


# ------------------------------------------------------------ TLS


def test_tls_with_the_right_authority() -> None:
    with mosquitto_tls() as broker, mqtt_link(broker.config(), "t", base_dir=broker.folder) as link:
        for size in (10, 1 << 20):
            link.transport.publish("t", bytes(size), 1)
            assert len(link.next(Received).payload) == size
        broker.restart()
        link.next(LinkUp)


def test_tls_with_our_certificate() -> None:
    with mosquitto_tls(client_certificates=True) as broker, mqtt_link(broker.config(), "t", base_dir=broker.folder) as link:
        link.transport.publish("t", b"x", 1)
        assert link.next(Received).payload == b"x"


def test_tls_without_the_authority() -> None:
    with mosquitto_tls() as broker:
        reason = refusal(broker, ca=None)
        assert "its certificate is not trusted" in reason
        assert "set `ca` in [broker]" in reason


def test_tls_with_another_authority() -> None:
    with mosquitto_tls() as broker:
        assert "`ca` in [broker] is not the one that signed it" in refusal(broker, ca="stranger.pem")


def test_tls_with_a_certificate_for_another_host() -> None:
    with mosquitto_tls(names=("broker.example",)) as broker:
        assert "its certificate is not made out to 127.0.0.1" in refusal(broker)
        by_name = broker.config().url.replace("127.0.0.1", "localhost")
        assert "its certificate is not made out to localhost" in refusal(broker, url=by_name)


def test_tls_with_an_expired_certificate() -> None:
    with mosquitto_tls(days=-1) as broker:
        assert "its certificate has expired" in refusal(broker)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"cert": None, "key": None}, "set `cert` and `key`"), ({"cert": "rogue.pem", "key": "rogue.key"}, "does not accept our certificate")],
)
def test_tls_where_the_broker_wants_a_certificate(changes: dict[str, Any], said: str) -> None:
    with mosquitto_tls(client_certificates=True) as broker:
        assert said in refusal(broker, **changes)


def test_tls_towards_a_broker_without_it() -> None:
    with mosquitto() as broker, mqtt_link(broker.config(url=f"mqtts://127.0.0.1:{broker.port}"), up=False) as link:
        assert "begin `url` with mqtt://" in link.next(LinkDown).reason


def test_no_tls_towards_a_broker_that_wants_it() -> None:
    with mosquitto_tls() as broker, mqtt_link(broker.config(url=f"mqtt://127.0.0.1:{broker.port}", ca=None), up=False) as link:
        assert "mqtts://" in link.next(LinkDown).reason


# ------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ca": "nowhere.pem"}, "`ca`: cannot read"),
        ({"ca": "client.key"}, "`ca`"),
        ({"cert": "nowhere.pem"}, "`cert`: cannot read"),
        ({"key": "nowhere.key"}, "`key`: cannot read"),
        ({"cert": "ca.pem"}, "are not a certificate and its key"),
        ({"key": "locked.key"}, "without passphrase"),
        ({"username": "alice", "password_file": "nowhere.txt"}, "`password_file`: cannot read"),
        ({"username": "alice", "password_file": "empty.txt"}, "in one line"),
        ({"username": "alice", "password_file": "two.txt"}, "in one line"),
        ({"username": "alice", "password_file": "binary.txt"}, "not a text file"),
    ],
)
def test_files_that_will_not_do_are_told_at_once(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with mosquitto_tls(client_certificates=True) as broker:
        shutil.copytree(broker.folder, tmp_path, dirs_exist_ok=True)
        config = broker.config(**changes)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfd")
    if "locked.key" in changes.values():
        lock(tmp_path / "client.key", tmp_path / "locked.key")
    transport = MqttTransport(config, client_id="a", base_dir=tmp_path)
    with pytest.raises(UsageError) as caught:
        transport.open((), lambda event: None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def lock(key: Path, to: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form

    secret = form.load_pem_private_key(key.read_bytes(), password=None)
    to.write_bytes(secret.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"x")))


# ------------------------------------------------------------ passwords and access lists


def test_the_right_password() -> None:
    with mosquitto_password() as broker, mqtt_link(broker.config(), "t", base_dir=broker.folder) as link:
        link.transport.publish("t", b"x", 1)
        assert link.next(Received).payload == b"x"


@pytest.mark.parametrize("changes", [{"password_file": "wrong.txt"}, {"username": "bob"}, {"username": None, "password_file": None}])
def test_a_wrong_password(changes: dict[str, Any]) -> None:
    with mosquitto_password() as broker:
        reason = refusal(broker, **changes)
        assert "`username`" in reason
        assert "not it" not in reason


def test_a_password_that_changes_while_we_are_connected() -> None:
    with mosquitto_password() as broker, mqtt_link(broker.config(), base_dir=broker.folder) as link:
        (broker.folder / "password.txt").write_text("another\n")
        broker.restart()
        assert "`password_file`" in link.next(Refused).reason


def test_a_topic_that_we_may_not_read() -> None:
    """mosquitto 2.0.11 grants every subscription and drops what comes; its later versions, and others, refuse in SUBACK."""
    with mosquitto_acl("topic read lab/a", "topic write lab/a") as broker, mqtt_link(broker.config(), base_dir=broker.folder) as link:
        link.transport.publish("lab/a", b"x", 1)
        assert link.next(Delivered).token == 1


def test_a_topic_that_we_may_not_write() -> None:
    with mosquitto_acl("topic read lab/a", "topic write lab/b") as broker, mqtt_link(broker.config(), base_dir=broker.folder) as link:
        link.transport.publish("lab/a", b"x", 7)
        refused = link.next(Refused)
        assert refused.token == 7
        assert "access list" in refused.reason
        link.transport.publish("lab/b", b"x", 8)
        assert link.next(Delivered).token == 8


# ------------------------------------------------------------ sizes


def test_parts_that_the_broker_would_not_take() -> None:
    with mosquitto_limited(10_000) as broker:
        reason = refusal(broker)
        assert "at most 10000 bytes" in reason
        assert "set `part_bytes` in [broker] to 9744 or less" in reason


def test_a_publish_over_the_limit_is_refused_and_the_link_stays() -> None:
    with mosquitto_limited(10_000) as broker, mqtt_link(broker.config(part_bytes=4096), "t") as link:
        link.transport.publish("t", bytes(20_000), 5)
        refused = link.next(Refused)
        assert refused.token == 5
        assert "`part_bytes`" in refused.reason
        link.transport.publish("t", bytes(4096), 6)
        assert len(link.next(Received).payload) == 4096


def test_a_payload_over_the_limit_is_refused_where_only_its_puback_says_so() -> None:
    with mosquitto_dropping(2000) as broker, mqtt_link(broker.config(), "t") as link:
        link.transport.publish("t", bytes(4096), 5)
        refused = link.next(Refused)
        assert refused.token == 5
        assert "lower `part_bytes` in [broker]" in refused.reason


def test_a_packet_over_the_limit_in_mqtt_311_does_not_loop_for_ever() -> None:
    """The broker closes the connection without a word, and would each time."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(mosquitto_limited(10_000))
        port = stack.enter_context(without_mqtt5(broker.port))
        link = stack.enter_context(mqtt_link(broker.config(url=f"mqtt://127.0.0.1:{port}"), "t"))
        event: TransportEvent = LinkUp()
        while not isinstance(event, Refused):
            if isinstance(event, LinkUp):
                link.transport.publish("t", bytes(20_000), 5)
            event = link.events.get(timeout=60)
        assert "our messages are too large for it (lower `part_bytes` in [broker])" in event.reason


# ------------------------------------------------------------ one name, two clients


@pytest.mark.parametrize("engine", [mosquitto, embedded])
def test_two_clients_with_one_name_do_not_throw_each_other_out_for_ever(engine: Any) -> None:
    with engine() as broker, mqtt_link(broker.config(), client_id="twin") as a, mqtt_link(broker.config(), client_id="twin", up=False) as b:
        loser, winner = first_refused(a, b)
        assert "another client" in loser
        winner.transport.publish("t", b"x", 1)


def first_refused(a: Link, b: Link) -> tuple[str, Link]:
    while True:
        for link, other in ((a, b), (b, a)):
            event = link.events.get(timeout=30)
            if isinstance(event, Refused):
                return event.reason, other
