"""The operator's connection to the broker, and through it to the agents of devices: messages out, what they say in.

What comes is bounded before anybody looks at it: a device that floods loses its own messages and nobody else's.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from wire.errors import BrokerRefused, FrameError
from wire.fleet.talk import Chunk, Message, agent_identity, decode_message, down_topic, encode_message, up_topic
from wire.limits import LIMITS
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, Refused, Transport, TransportEvent

__all__ = ["Cut", "Event", "Heard", "OperatorLine", "Sent", "Up"]

_MESSAGES = 64  # of one device that wait to be read
_DEVICE_BYTES = 256 << 10
_ALL_BYTES = 64 << 20
_OUT_BYTES = 4 << 20  # of pieces that the broker has not taken yet
_A_TURN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """Connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The connection is gone; it comes back by itself."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    device: str
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The broker has taken a piece for ``device``."""

    device: str


Event: TypeAlias = Up | Cut | Heard | Sent


class OperatorLine:
    """A context manager. ``devices``: whose agents are listened to. ``rubbish``: by device, messages that were none or too many."""

    def __init__(self, transport: Transport, devices: Iterable[str]) -> None:
        self._transport = transport
        self._device_of = {up_topic(agent_identity(name)): name for name in devices}
        self.rubbish: Counter[str] = Counter()
        self._ready = threading.Condition()  # of the inbox: the transport's thread fills it
        self._inbox: deque[TransportEvent] = deque()
        self._waiting: Counter[str] = Counter()
        self._waiting_bytes: Counter[str] = Counter()
        self._all_bytes = 0
        self._tokens = 0
        self._pieces: dict[int, tuple[str, int]] = {}  # handed over and not taken: by token, device and size
        self._out_bytes = 0

    def __enter__(self) -> OperatorLine:
        self._transport.open((up_topic("+"),), self._put)
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    # ------------------------------------------------------------ out

    @property
    def has_room(self) -> bool:
        """For another piece."""
        return self._out_bytes < _OUT_BYTES

    def send(self, device: str, message: Message) -> None:
        """Dropped while the connection is cut."""
        data = encode_message(message)
        self._tokens += 1
        if isinstance(message, Chunk):
            self._pieces[self._tokens] = (device, len(data))
            self._out_bytes += len(data)
        self._transport.publish(down_topic(agent_identity(device)), data, self._tokens)

    # ------------------------------------------------------------ in

    def _put(self, event: TransportEvent) -> None:
        """On the transport's thread."""
        with self._ready:
            if isinstance(event, Received) and not self._fits(event):
                return
            self._inbox.append(event)
            self._ready.notify()

    def _fits(self, event: Received) -> bool:
        device, size_bytes = self._device_of.get(event.topic), len(event.payload)
        if device is None:
            return False  # another deploy's, or the client's own topics
        if (
            size_bytes > LIMITS.talk_bytes
            or self._waiting[device] >= _MESSAGES
            or self._waiting_bytes[device] + size_bytes > _DEVICE_BYTES
            or self._all_bytes + size_bytes > _ALL_BYTES
        ):
            self.rubbish[device] += 1
            return False
        self._count(device, size_bytes, 1)
        return True

    def _count(self, device: str, size_bytes: int, sign: int) -> None:
        self._waiting[device] += sign
        self._waiting_bytes[device] += sign * size_bytes
        self._all_bytes += sign * size_bytes

    def events(self, timeout_s: float) -> list[Event]:
        """Those that are there, or the first ones within ``timeout_s``. Raises BrokerRefused."""
        end_s = time.monotonic() + timeout_s
        with self._ready:
            while not self._inbox and (left_s := end_s - time.monotonic()) > 0:
                self._ready.wait(left_s)
            taken = [self._inbox.popleft() for _ in range(min(len(self._inbox), _A_TURN))]
            for each in taken:
                if isinstance(each, Received):
                    self._count(self._device_of[each.topic], len(each.payload), -1)
        return [event for each in taken if (event := self._read(each)) is not None]

    def _read(self, event: TransportEvent) -> Event | None:
        match event:
            case Received():
                return self._heard(self._device_of[event.topic], event.payload)
            case Delivered():
                return self._taken(event.token)
            case LinkUp():
                return Up()
            case LinkDown():
                self._pieces.clear()
                self._out_bytes = 0
                return Cut(reason=event.reason)
            case Refused():
                raise BrokerRefused(_refusal(event))

    def _heard(self, device: str, payload: bytes) -> Heard | None:
        try:
            return Heard(device=device, message=decode_message(payload))
        except FrameError:
            with self._ready:
                self.rubbish[device] += 1
            return None

    def _taken(self, token: int) -> Sent | None:
        device, size_bytes = self._pieces.pop(token, ("", 0))
        self._out_bytes -= size_bytes
        return Sent(device=device) if device else None


def _refusal(event: Refused) -> str:
    if event.token is None:
        return event.reason
    return f"{event.reason}; `cutlayer broker config` lets the operator in: write it again, and let the broker read it"
