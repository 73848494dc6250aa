"""Does the broker let us in, take what we send, and keep us from what is not ours? One connection, for a bounded time.

With a certificate the broker calls a connection by the name in it, so ours would end that of the client: who is at work is not disturbed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.doctor.finding import Finding, failed, ok, skipped
from wire.errors import UsageError
from wire.transport.base import Delivered, LinkDown, LinkUp, Refused, TransportEvent
from wire.transport.broker_config import BrokerConfig

if TYPE_CHECKING:
    from wire.transport.mqtt import MqttTransport

__all__ = ["BrokerQuestion", "is_at_work"]

_NOBODY = "doctor-nobody"  # whom it tries to pose as


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BrokerQuestion:
    """``client_id`` must not be a party's: a broker that goes by it would throw that one out."""

    broker: BrokerConfig
    base_dir: Path
    client_id: str
    timeout_s: float

    def findings(self, *, at_work: bool) -> Iterator[Finding]:
        """Of the connection, its limits included, and of the access list. ``at_work``: the client is connected with this identity."""
        identified = self.broker.cert is not None
        if at_work and identified:
            yield skipped("broker", "the client is at work, and the broker would end its connection for ours; stop it first")
            yield skipped("access", "cannot be tried while the client is at work")
            return
        from wire.transport.mqtt import MqttTransport  # brings paho, of which it is not known before that it is there

        impatient = dataclasses.replace(self.broker, connect_timeout_s=min(self.broker.connect_timeout_s, self.timeout_s))
        transport = MqttTransport(impatient, client_id=self.client_id, base_dir=self.base_dir)
        events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
        try:
            found = self._connected(transport, events)
            yield found
            if found.status != "ok":
                yield skipped("access", "needs a connection")
            elif not identified:
                yield skipped("access", "the broker does not know us by a certificate, so it has no list of what is ours")
            elif not transport.tells_refusals:
                yield skipped("access", "the broker speaks MQTT 3.1.1, and cannot say what it refuses")
            else:
                yield self._access(transport, events)
        finally:
            transport.close()

    def _connected(self, transport: MqttTransport, events: queue.SimpleQueue[TransportEvent]) -> Finding:
        url = self.broker.url
        begin_s = time.monotonic()
        try:
            transport.open((), events.put)
            event = events.get(timeout=self.timeout_s)
        except UsageError as exc:
            return _refused(url, str(exc))
        except queue.Empty:
            event = LinkDown(reason=f"no answer within {self.timeout_s:g} s", retry_in_s=0)
        took_s = time.monotonic() - begin_s
        match event:
            case LinkUp():
                most_bytes = transport.longest_packet_bytes
                limit = "packets of any size" if most_bytes is None else f"packets of {most_bytes} bytes at most"
                fact = f"{url} let us in after {took_s * 1e3:.0f} ms; it takes {limit}, ours are {self.broker.part_bytes} at most"
                return ok("broker", fact, connect_s=round(took_s, 4), packet_limit_bytes=most_bytes or 0)
            case Refused(reason=reason):
                return _refused(url, reason)
            case LinkDown(reason=reason):
                advice = "start the broker, check `url` in [broker], this device's network, and firewalls between"
                return failed("broker", f"{url}: {reason}", advice)
        raise AssertionError(f"{event} before the connection is up")

    def _access(self, transport: MqttTransport, events: queue.SimpleQueue[TransportEvent]) -> Finding:
        """Publishing to another device's topic must fail."""
        from wire.fleet.talk import agent_identity, up_topic  # brings cryptography

        topic = up_topic(agent_identity(_NOBODY))
        transport.publish(topic, b"", token=1)
        until_s = time.monotonic() + self.timeout_s
        while True:
            try:
                event = events.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                return failed("access", f"no answer to a publish within {self.timeout_s:g} s", "look into the broker's log")
            match event:
                case Refused(token=1):
                    return ok("access", "the broker refuses what we write to another device's topic")
                case Delivered(token=1):
                    advice = "write its configuration with `cutlayer broker config`, copy it there and reload the broker"
                    return failed("access", f"the broker lets us write to {topic}, which is another device's", advice)
                case LinkDown(reason=reason):
                    return failed("access", f"the connection ended: {reason}", "look into the broker's log")


def is_at_work(state: Path) -> bool:
    """Whether a party runs on this state folder: it holds the lock as long as it lives."""
    try:
        with open(state / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _refused(url: str, reason: str) -> Finding:
    """The transport's reasons end with what to do."""
    fact, _, advice = reason.partition("; ")
    return failed("broker", f"{url}: {fact}", advice or "check [broker] in the run file; ask who runs the broker")
