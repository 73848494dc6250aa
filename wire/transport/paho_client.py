"""paho's client, on a stream that is connected already and with the parts replaced that are ours to decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from wire.transport.reasons import TOO_LARGE
from wire.transport.stream import Stream

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

__all__ = ["Aliases", "PahoClient"]

_UNSPECIFIED = 0x80  # "unspecified error"


class PahoClient(Client):
    """Its ``loop_misc``, paho's keepalive, is never called: it drops a connection whose PINGRESP waits behind data that keep coming."""

    def __init__(self, stream: Stream, *, client_id: str, version: MQTTProtocolVersion) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=version,
            clean_session=None if version is MQTTProtocolVersion.MQTTv5 else True,
            reconnect_on_failure=False,
        )
        self._stream = stream
        self.too_large: set[int] = set()  # packet ids of publishes that the broker said are over its limit
        self.max_inflight_messages = 0  # ours to count; paho would look through all of them at each PUBACK

    def _create_socket(self) -> SocketLike:
        return self._stream

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        """mosquitto answers a PUBLISH over its limit with a code that MQTT does not have there, and at which paho gives up."""
        packet = self._in_packet["packet"]
        if cmd == "PUBACK" and len(packet) > 2 and packet[2] == TOO_LARGE:
            self.too_large.add(int.from_bytes(packet[:2], "big"))
            packet[2] = _UNSPECIFIED
        return super()._handle_pubackcomp(cmd)

    def ping(self) -> None:
        """Queue a PINGREQ."""
        self._send_pingreq()


class _Alias(Properties):
    """The one property of a PUBLISH, packed once: paho would look it up in its tables for every message."""

    packed: bytes

    def __init__(self, number: int) -> None:
        super().__init__(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        self.TopicAlias = number
        object.__setattr__(self, "packed", super().pack())  # type: ignore[no-untyped-call]  # paho's own __setattr__ knows only MQTT's

    def pack(self) -> bytes:
        return self.packed


class Aliases:
    """Topic aliases of one connection: a topic is spelled out once, and is a number from then on (MQTT 5.0, section 3.3.2.3.4)."""

    def __init__(self) -> None:
        self.maximum = 0  # that the broker grants
        self._given: dict[str, _Alias] = {}

    def bytes_of(self, topic: str) -> tuple[int, int]:
        """What topic and properties will take in the next PUBLISH on ``topic``."""
        if topic in self._given:
            return 0, 4
        return len(topic.encode()), 4 if len(self._given) < self.maximum else 1

    def of(self, topic: str) -> tuple[str, Properties | None]:
        """What to publish in place of ``topic``, and with which properties."""
        known = self._given.get(topic)
        if known is not None:
            return "", known
        if len(self._given) >= self.maximum:
            return topic, None
        self._given[topic] = _Alias(len(self._given) + 1)
        return topic, self._given[topic]
