"""Who tries what they may not, against a real mosquitto with the generated configuration and a real authority: refused, and logged."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_client.enroll.identity import Identity
from fleet.authority import Authority, pem_of
from fleet.verbs import revoke_device
from tests.brokers import Broker
from tests.fleet.fleets import DAY_S, PATIENCE_S, Served, secured, served, until
from tests.links import Link, mqtt_link
from wire.enrolment import CertificateRequest
from wire.errors import UsageError
from wire.runfile import Run, load_run
from wire.transport.base import Delivered, Received, Refused


@dataclass(kw_only=True)
class World:
    """``c0``, ``c1``, ``c2`` and ``server`` are enrolled; ``folder`` holds their identities."""

    folder: Path
    authority: Served
    broker: Broker
    run: Run

    def keys(self, identity: str) -> dict[str, str]:
        """Of ``[broker]``, for a device, or its agent."""
        device, dot, _ = identity.partition(".")
        return {
            "ca": str(self.folder / "c0" / "ca.pem"),
            "cert": f"{self.folder}/{device}/{'agent' if dot else 'cert'}.pem",
            "key": f"{self.folder}/{device}/key.pem",
        }

    @contextlib.contextmanager
    def link(self, device: str, *topics: str, client_id: str = "", up: bool = True) -> Iterator[Link]:
        with mqtt_link(self.broker.config(**self.keys(device)), *topics, client_id=client_id or device, up=up) as link:
            yield link

    def refusal(self, **keys: Any) -> str:
        with mqtt_link(self.broker.config(**{"ca": str(self.folder / "c0" / "ca.pem"), **keys}), up=False) as link:
            return link.next(Refused).reason

    def logged(self, *words: str, since: int = 0) -> str:
        """The line of the broker's log, after byte ``since``, that has all ``words``."""
        return until(lambda: next((line for line in self._log()[since:].splitlines() if all(word in line for word in words)), None), words)

    def thrown_out(self, device: str, *, since: int) -> str:
        """The line of the log, after byte ``since``, that says so; versions of mosquitto have words of their own."""
        words = (f"{device} disconnected due to", f"{device} disconnected:", f"read/write on client {device}", f"{device} [127.0.0.1")
        rows = lambda: (row for row in self._log()[since:].splitlines() if any(each in row for each in words))  # noqa: E731
        return until(lambda: next(rows(), None), words)

    def _log(self) -> str:
        return (self.broker.folder / "log").read_text(errors="replace")

    @property
    def log_now(self) -> int:
        return len(self._log())

    def topics(self, party: str) -> tuple[str, str]:
        """(publish, subscribe) of the party's first line."""
        return self.run.topics(self.run.slice_for(party).lines[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("fleet")
    with served(folder / "fleet") as authority:
        for name in ("c0", "c1", "c2", "server"):
            authority.device(name, folder)
        with secured(authority.fleet, folder / "broker") as broker:
            yield World(folder=folder, authority=authority, broker=broker, run=load_run(folder / "run.toml"))


# ------------------------------------------------------------ at the door


def test_the_fleets_own_are_let_in(world: World) -> None:
    up, down = world.topics("c0")
    with world.link("server", up) as server, world.link("c0", down) as client:
        client.transport.publish(up, b"forward", 1)
        assert server.next(Received).payload == b"forward"
        server.transport.publish(down, b"backward", 1)
        assert client.next(Received).payload == b"backward"


def test_anonymous(world: World) -> None:
    assert "it wants a certificate from us" in world.refusal()
    assert world.logged("did not return a certificate")


def test_a_certificate_of_another_authority(world: World) -> None:
    other = Authority.create(world.folder / "other", name="test fleet", clock=time.time)  # even the same name
    keys = forged(world.folder / "forged", "c0", other)
    assert "it does not accept our certificate" in world.refusal(**keys)
    assert world.logged("certificate verify failed")


def test_a_certificate_that_has_run_out(world: World) -> None:
    past = Authority.open(world.authority.fleet.ca_pem.parent, clock=lambda: time.time() - 91 * DAY_S)
    since = world.log_now
    said = world.refusal(**forged(world.folder / "expired", "c0", past))
    assert "it does not accept our certificate" in said
    assert "expired" in said
    assert world.logged("certificate verify failed", since=since)


def forged(folder: Path, name: str, authority: Authority) -> dict[str, str]:
    identity = Identity(folder)
    certificate = authority.sign_device(name, identity.key().public_key())
    identity.cert_pem.write_text(pem_of(certificate))
    return {"cert": str(identity.cert_pem), "key": str(identity.key_pem)}


def test_a_revoked_certificate(world: World) -> None:
    with world.link("c2"):
        pass
    revoke_device(world.authority.fleet, "c2", broker=world.broker.folder)
    since = world.log_now
    world.broker.process.reload()
    world.logged("Reloading config", since=since)
    keys = world.keys("c2")
    assert "it does not accept our certificate (certificate revoked)" in world.refusal(cert=keys["cert"], key=keys["key"])
    assert world.logged("certificate verify failed", since=since)
    agent = world.keys("c2.agent")
    assert "it does not accept our certificate (certificate revoked)" in world.refusal(cert=agent["cert"], key=agent["key"])
    with pytest.raises(UsageError, match=r"the certificate that was shown is revoked"):  # nor does it get another one
        world.authority.enroll("c2", world.folder / "c2", clock=lambda: time.time() + 61 * DAY_S)
    assert any("`c2` with its certificate: refused, the certificate that was shown is revoked" in line for line in world.authority.log)


def test_a_device_cannot_pose_as_the_broker(world: World) -> None:
    """Its certificate is good for clients alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(world.folder / "c1" / "cert.pem", world.folder / "c1" / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pose() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = listener.accept()
                    with contextlib.suppress(OSError), link:
                        context.wrap_socket(link, server_side=True).close()

        thread = threading.Thread(target=pose, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        assert "its certificate is not trusted" in world.refusal(url=f"mqtts://127.0.0.1:{port}", **without_ca(world.keys("c0")))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def without_ca(keys: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in keys.items() if key != "ca"}


# ------------------------------------------------------------ inside


def test_publishing_to_anothers_topic(world: World) -> None:
    up, _ = world.topics("c0")
    with world.link("server", up) as server, world.link("c1") as rogue, world.link("c0") as client:
        rogue.transport.publish(up, b"forged", 7)
        refused = rogue.next(Refused)
        assert refused.token == 7
        assert "access list" in refused.reason
        assert world.logged("Denied PUBLISH from c1", up)
        client.transport.publish(up, b"genuine", 1)
        assert server.next(Received).payload == b"genuine"


@pytest.mark.parametrize("topics", ["own", "all", "system"])
def test_subscribing_to_anothers_topic(world: World, topics: str) -> None:
    """mosquitto grants the subscription before 2.1, and delivers nothing."""
    _, down = world.topics("c0")
    wanted = {"own": down, "all": "#", "system": "$SYS/#"}[topics]
    with Raw(world, "c1") as rogue, world.link("server") as server, world.link("c0", down) as client:
        since = world.log_now
        rogue.client.subscribe(wanted, 1)
        assert world.logged("c1", wanted, since=since)
        server.transport.publish(down, b"for c0", 1)
        assert client.next(Received).payload == b"for c0"
        own = world.topics("c1")[1]
        if topics == "all":  # what is its own gets through, so that the line is known to work
            server.transport.publish(own, b"for c1", 2)
            assert rogue.messages.get(timeout=PATIENCE_S) == (own, b"for c1")
        assert rogue.messages.empty()


def test_a_devices_fleet_topics_are_its_own(world: World) -> None:
    for topic in ("cl/1/d/c0/up/birth", "cl/1/d/c0/down/command"):
        with world.link("c1") as rogue:
            rogue.transport.publish(topic, b"forged", 7)
            assert rogue.next(Refused).token == 7
            assert world.logged("Denied PUBLISH from c1", topic)
    with world.link("c0") as client:
        client.transport.publish("cl/1/d/c0/up/birth", b"genuine", 9)
        assert client.next(Delivered).token == 9


def test_an_agent_has_its_own_topics_and_nothing_of_the_run(world: World) -> None:
    up, down = world.topics("c0")
    others = (up, "cl/1/d/c0/up/talk", "cl/1/d/c1/up/talk", "cl/1/d/c1.agent/up/talk", "cl/1/d/c0.agent/down/talk")
    for topic in others:
        with world.link("c0.agent") as agent:
            agent.transport.publish(topic, b"forged", 7)
            assert agent.next(Refused).token == 7
            assert world.logged("Denied PUBLISH from c0.agent", topic)
    with world.link("c0.agent") as agent, world.link("c0") as client:  # two connections of one device
        agent.transport.publish("cl/1/d/c0.agent/up/talk", b"genuine", 9)
        assert agent.next(Delivered).token == 9
        client.transport.publish("cl/1/d/c0.agent/up/talk", b"forged", 7)
        assert client.next(Refused).token == 7
    with Raw(world, "c1.agent") as rogue, world.link("server") as server, world.link("c0", down) as client:
        since = world.log_now
        rogue.client.subscribe("#", 1)
        assert world.logged("c1.agent", "#", since=since)
        server.transport.publish(down, b"for c0", 1)
        server.transport.publish(world.topics("c1")[1], b"for c1", 2)
        assert client.next(Received).payload == b"for c0"
        assert rogue.messages.empty()


def test_taking_over_anothers_client_id(world: World) -> None:
    """The broker calls a client by the name in its certificate, so the one that is up stays up."""
    up, down = world.topics("c0")
    with world.link("c0", down) as client, world.link("server") as server:
        since = world.log_now
        with world.link("c1", client_id="c0") as rogue:
            assert world.logged("New client connected", "as c1", since=since)
            rogue.transport.publish(up, b"forged", 7)
            assert rogue.next(Refused).token == 7
            server.transport.publish(down, b"still here", 1)
            assert client.next(Received).payload == b"still here"
    assert "already connected" not in world._log()[since:]


def test_a_packet_that_is_too_large(world: World) -> None:
    up, _ = world.topics("c1")
    since = world.log_now
    with world.link("server", up) as server, Raw(world, "c1") as rogue:
        rogue.client.publish(up, bytes(200_000), 1)
        rogue.gone.get(timeout=PATIENCE_S)
        assert world.thrown_out("c1", since=since)
        assert server.nothing_for(0.1)


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_a_retained_message_that_a_device_plants(world: World, version: MQTTProtocolVersion) -> None:
    """On its own topic, where it may write: whoever comes later must not find it."""
    up, _ = world.topics("c1")
    since = world.log_now
    with Raw(world, "c1", version=version) as rogue:
        rogue.client.publish(up, b"planted", 1, retain=True)
        rogue.gone.get(timeout=PATIENCE_S)
    assert world.thrown_out("c1", since=since)
    with world.link("server", up) as server, world.link("c1") as client:
        client.transport.publish(up, b"genuine", 1)
        assert server.next(Received).payload == b"genuine"


class Raw:
    """A client that keeps to no rule of ours, with a device's identity. ``gone`` gets a line when the broker throws it out."""

    def __init__(self, world: World, device: str, *, version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> None:
        self.messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.gone: queue.SimpleQueue[str] = queue.SimpleQueue()
        keys, up = world.keys(device), threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id="raw", protocol=version)
        self.client.tls_set(ca_certs=keys["ca"], certfile=keys["cert"], keyfile=keys["key"])
        self.client.on_connect = lambda *_: up.set()
        self.client.on_message = lambda client, data, message: self.messages.put((message.topic, message.payload))
        self.client.on_disconnect = lambda client, data, flags, reason, properties: self._went(str(reason))
        self.client.connect("127.0.0.1", world.broker.port)
        self.client.loop_start()
        assert up.wait(PATIENCE_S)

    def _went(self, reason: str) -> None:
        self.gone.put(reason)
        self.client.disconnect()  # or it would come again and again

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


# ------------------------------------------------------------ tokens


def test_a_token_used_twice(world: World) -> None:
    secret = world.authority.token("c3", world.folder / "c3.token")
    world.authority.enroll("c3", world.folder / "c3", token=world.folder / "c3.token")
    (world.folder / "copy.token").write_text(secret)
    with pytest.raises(UsageError, match="this token has been used by another key"):
        world.authority.enroll("c3", world.folder / "thief", token=world.folder / "copy.token")
    assert any("`c3` with a token: refused, this token has been used" in line for line in world.authority.log)


def test_a_token_that_has_run_out(world: World) -> None:
    world.authority.token("c4", world.folder / "c4.token", hours=-0.1)
    with pytest.raises(UsageError, match="this token has run out"):
        world.authority.enroll("c4", world.folder / "c4", token=world.folder / "c4.token")
    assert any("`c4` with a token: refused, this token has run out" in line for line in world.authority.log)


def test_a_token_for_another_name(world: World) -> None:
    world.authority.token("c5", world.folder / "c5.token")
    with pytest.raises(UsageError, match="this token is for another device"):
        world.authority.enroll("server", world.folder / "impostor", token=world.folder / "c5.token")
    assert any("`server` with a token: refused, this token is for another device" in line for line in world.authority.log)


def test_a_request_for_another_name_than_the_token(world: World) -> None:
    """The name in the message is right, and the one in the certificate request is not."""
    token = world.authority.token("c6", world.folder / "c6.token")
    request = CertificateRequest(name="c6", csr=Identity(world.folder / "c6").request("server"), token=token)
    from edge_client.enroll.ask import AuthorityAddress, ask

    found = ask(AuthorityAddress(world.authority.url), request, ca=world.authority.fleet.ca_pem, shown=None, timeout_s=10)
    assert found.state == "refused"
    assert "is made out to 'server', not to 'c6'" in found.reason


def test_no_secret_is_logged(world: World) -> None:
    secret = world.authority.token("c7", world.folder / "c7.token")
    world.authority.enroll("c7", world.folder / "c7", token=world.folder / "c7.token")
    key = (world.folder / "c7" / "key.pem").read_text().splitlines()[1]
    registry = (world.authority.fleet.folder / "fleet.sqlite").read_bytes()
    for where in ("\n".join(world.authority.log), world._log(), registry.decode("latin-1")):
        assert secret not in where
        assert key not in where
