"""One end of a line without an application: it keeps what it sends until it is told that it arrived, and answers nothing by itself."""

from __future__ import annotations

import contextlib
import heapq
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from wire.errors import FrameError
from wire.frames import Frame, Kind
from wire.graph import Line
from wire.messages import CancelTimer, Effect, Send, SetTimer
from wire.outbox import Outbox
from wire.post import Post
from wire.runfile import Run, parse_run
from wire.traffic import Traffic
from wire.transport.base import Delivered, LinkDown, LinkUp, Received, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

__all__ = ["Station", "one_line_run", "pumped", "station"]


def one_line_run() -> Run:
    """Two parties, "c0" and "server", and one line between them."""
    table = {
        "name": "stations",
        "epochs": 1,
        "batch_size": 1,
        "model": {"build": "mlp", "cut": ["act1"]},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "data": {"kind": "csv", "path": "none.csv", "labels": "y"},
        "clients": [{"name": "c0"}],
    }
    return parse_run(table, base=".")


class Station:
    """Post, outbox and transport of one party, as driver and actor use them; ``epoch`` is 1 throughout."""

    def __init__(self, name: str, broker: BrokerConfig, *, resend_after_s: float = 10.0, base_dir: Path = Path()) -> None:
        run = one_line_run()
        party = run.graph().slice_for(name)
        self.line: Line = party.lines[0]
        self.traffic = Traffic()
        self.warnings: list[str] = []
        self.arrived: list[Frame] = []
        self.downs: list[LinkDown] = []
        self.ups = 0
        self.transport = MqttTransport(broker, client_id=name, base_dir=base_dir)
        self.post = Post(run, party, transport=self.transport, traffic=self.traffic, epoch=lambda: 1, warn=self.warnings.append)
        self.outbox = Outbox(self._carry_out, resend_after_s=resend_after_s)
        self._events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, tuple]] = []
        self._timer_ids: dict[tuple, int] = {}
        self._count = 0

    def open(self) -> None:
        self.transport.open(self.post.subscriptions, self._events.put)

    def put(self, step: int, payload: bytes, kind: Kind = Kind.FORWARD) -> None:
        """Send a message, and again until it is settled."""
        frame = Frame(kind=kind, epoch=1, step=step, payload=payload)
        self.outbox.put(("f", step), self.line, frame)

    def settle(self, step: int) -> None:
        self.outbox.settle(("f", step))

    def pump(self, wait_s: float = 0.0) -> None:
        """Handle what has happened, and wait so long for more."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._handle(self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait())
                wait_s = 0.0
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, number, key = heapq.heappop(self._timers)
            if self._timer_ids.get(key) == number:
                self.outbox.timer_fired(key[1])
                self.post.ask_open_questions()

    def _handle(self, event: TransportEvent) -> None:
        if isinstance(event, LinkUp):
            self.ups += 1
            self.post.link(up=True)
            self.outbox.resend()
            self._carry_out(Send(line=self.line, frame=Frame(kind=Kind.RESEND, epoch=1), token=-1))
        elif isinstance(event, LinkDown):
            self.downs.append(event)
            self.post.link(up=False)
            self.outbox.link_lost()
        elif isinstance(event, Delivered):
            token = self.post.delivered(event.token)
            if token is not None:
                self.outbox.delivered(token)
        elif isinstance(event, Received):
            self._received(event)
        self.post.ask_open_questions()

    def _received(self, event: Received) -> None:
        try:
            frame = self.post.received(self.line, event)
        except FrameError:
            return
        if frame is not None:
            if frame.kind is Kind.RESEND:
                self.outbox.resend(self.line)
            else:
                self.arrived.append(frame)
            self.post.handled(self.line)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send():
                if not self.post.send(effect):
                    self.outbox.delivered(effect.token)
            case SetTimer():
                self._count += 1
                self._timer_ids[effect.key] = self._count
                heapq.heappush(self._timers, (time.monotonic() + effect.after_s, self._count, effect.key))
            case CancelTimer():
                self._timer_ids.pop(effect.key, None)


@contextlib.contextmanager
def station(name: str, broker: BrokerConfig, *, resend_after_s: float = 10.0, base_dir: Path = Path()) -> Iterator[Station]:
    """Open, and with its link up."""
    found = Station(name, broker, resend_after_s=resend_after_s, base_dir=base_dir)
    found.open()
    try:
        pumped(lambda: found.ups > 0, found)
        yield found
    finally:
        found.transport.close()


def pumped(until: Callable[[], bool], *stations: Station, for_s: float = 60.0, each: Callable[[], None] = lambda: None) -> None:
    """Let the stations work until that is so; ``each`` is called now and then. Fails after ``for_s``."""
    end_s = time.monotonic() + for_s
    while not until():
        assert time.monotonic() < end_s, f"not within {for_s} s"
        for found in stations:
            found.pump(0.005)
        each()
