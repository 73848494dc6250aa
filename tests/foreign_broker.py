"""A broker that is not a broker: it plays a script on each connection, byte for byte. For what real brokers cannot be made to do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from wire.transport.broker_config import BrokerConfig

__all__ = ["ForeignBroker", "Talk", "foreign_broker"]


class Talk:
    """One connection, from the broker's end."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.keepalive_s = 0  # of CONNECT

    def packet(self) -> tuple[int, bytes]:
        """The next packet: its first byte and its body (MQTT 3.1.1, section 2.2). Raises EOFError at the end."""
        head = self._exactly(1)[0]
        length = shift = 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return head, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self._link.recv(count - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    def say(self, data: bytes) -> None:
        self._link.sendall(data)

    def version(self) -> int:
        """Reads CONNECT: 5, or 4 for 3.1.1."""
        head, body = self.packet()
        assert head == 0x10, f"{head:#x} is no CONNECT"
        assert body[:6] == b"\0\4MQTT"
        self.keepalive_s = int.from_bytes(body[8:10], "big")
        return body[6]

    def welcome(self, version: int, *, properties: bytes = b"") -> None:
        """CONNACK, accepted."""
        body = b"\0\0" if version == 4 else b"\0\0" + bytes([len(properties)]) + properties
        self.say(bytes([0x20, len(body)]) + body)

    def grant(self, version: int, *codes: int) -> None:
        """Reads SUBSCRIBE, and answers it; without ``codes``: one topic, granted at QoS 1."""
        head, body = self.packet()
        assert head == 0x82, f"{head:#x} is no SUBSCRIBE"
        answer = body[:2] + (b"\0" if version == 5 else b"") + bytes(codes or (1,))
        self.say(bytes([0x90, len(answer)]) + answer)


@dataclass
class ForeignBroker:
    port: int
    versions: list[int] = field(default_factory=list)  # that were asked for, in their order
    keepalives: list[int] = field(default_factory=list)

    def config(self, *, connect_timeout_s: float = 30.0) -> BrokerConfig:
        return BrokerConfig(url=f"mqtt://127.0.0.1:{self.port}", connect_timeout_s=connect_timeout_s)


@contextlib.contextmanager
def foreign_broker(script: Callable[[Talk, int], None]) -> Iterator[ForeignBroker]:
    """``script`` is called on each connection, with the MQTT version asked for; where it returns, the connection is closed."""
    failures: list[BaseException] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        broker = ForeignBroker(listener.getsockname()[1])

        def serve() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with link:
                    talk = Talk(link)
                    try:
                        broker.versions.append(talk.version())
                        broker.keepalives.append(talk.keepalive_s)
                        script(talk, broker.versions[-1])
                    except (EOFError, OSError):
                        pass
                    except AssertionError as exc:
                        failures.append(exc)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield broker
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # `accept` returns
            thread.join()
    assert failures == []
