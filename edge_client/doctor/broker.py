"""Does the broker let us in? Name, TCP, TLS and MQTT as the client would, with the run's credentials, for a bounded time."""

from __future__ import annotations

import dataclasses
import queue
import time
from pathlib import Path

from edge_client.doctor.finding import Finding, failed, ok
from wire.errors import UsageError
from wire.transport.base import LinkDown, LinkUp, Refused, TransportEvent
from wire.transport.broker_config import BrokerConfig

__all__ = ["check_broker"]


def check_broker(broker: BrokerConfig, *, base_dir: Path, client_id: str, timeout_s: float) -> Finding:
    """Connect, and hang up again. ``client_id`` must not be a party's: the broker would throw that one out."""
    from wire.transport.mqtt import MqttTransport  # brings paho, of which it is not known before that it is there

    url = broker.url
    impatient = dataclasses.replace(broker, connect_timeout_s=min(broker.connect_timeout_s, timeout_s))
    transport = MqttTransport(impatient, client_id=client_id, base_dir=base_dir)
    events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    begin_s = time.monotonic()
    try:
        transport.open((), events.put)
        event = events.get(timeout=timeout_s)
    except UsageError as exc:
        return _refused(url, str(exc))
    except queue.Empty:
        event = LinkDown(reason=f"no answer within {timeout_s:g} s", retry_in_s=0)
    finally:
        transport.close()
    took_s = time.monotonic() - begin_s
    match event:
        case LinkUp():
            return ok("broker", f"{url} let us in after {took_s * 1e3:.0f} ms", connect_s=round(took_s, 4))
        case Refused(reason=reason):
            return _refused(url, reason)
        case LinkDown(reason=reason):
            advice = "start the broker, check `url` in [broker], this device's network, and firewalls between"
            return failed("broker", f"{url}: {reason}", advice)
    raise AssertionError(f"{event} before the connection is up")


def _refused(url: str, reason: str) -> Finding:
    """The transport's reasons end with what to do."""
    fact, _, advice = reason.partition("; ")
    return failed("broker", f"{url}: {fact}", advice or "check [broker] in the run file; ask who runs the broker")
