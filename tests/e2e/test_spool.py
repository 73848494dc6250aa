"""A party is killed in mid-epoch: the run ends as if it had not been, and next to nothing crosses the line a second time."""

from __future__ import annotations

import queue
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from server.broker import BrokerProcess, start_broker
from tests.e2e.field import Field, field, small_run
from wire.frames import Kind, Mode
from wire.runfile import Run, load_run
from wire.transport.base import LinkUp, Received, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

EPOCHS = 4
STEPS_AN_EPOCH = 80  # of a lane: 320 samples in batches of 4
KILL_AT = STEPS_AN_EPOCH + 40  # of a lane, in the second epoch: checkpoints are made between epochs only


class Heard(NamedTuple):
    """A frame of a step, or one that refers to weights, as it was on the line."""

    topic: str
    kind: Kind
    mode: Mode
    epoch: int
    step: int
    size_bytes: int

    @property
    def what(self) -> tuple[str, Mode, int]:
        return self.topic, self.mode, self.step


class Listener:
    """Reads along on all lines of a run."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()

    def frames(self) -> list[Heard]:
        """Frames of steps since it was last asked, in order."""
        found = []
        while not self.events.empty():
            found += _heard(self.events.get())
        return found

    def frames_until(self, step: int, *, lane: int) -> list[Heard]:
        """The same, and those that come until one of this training step of the lane has come."""
        found: list[Heard] = []
        while not any(frame.mode is Mode.TRAIN and frame.step >= step and frame.topic.split("/")[-2] == str(lane) for frame in found[-1:]):
            found += _heard(self.events.get(timeout=60))
        return found


def _heard(event: TransportEvent) -> list[Heard]:
    if not isinstance(event, Received) or event.payload[3] not in (Kind.FORWARD, Kind.BACKWARD, Kind.REFERENCE, Kind.REFERRING):
        return []
    epoch, step = struct.unpack_from("<II", event.payload, 12)
    return [Heard(event.topic, Kind(event.payload[3]), Mode(event.payload[4]), epoch, step, len(event.payload))]


@contextmanager
def listener(run: Run, broker: BrokerProcess) -> Iterator[Listener]:
    found = Listener()
    transport = MqttTransport(BrokerConfig(url=broker.url), client_id="listener")
    lines = run.graph().slice_for(run.server.name).lines
    transport.open(tuple(name for line in lines for name in run.topics(line)), found.events.put)
    try:
        assert isinstance(found.events.get(timeout=10), LinkUp)
        yield found
    finally:
        transport.close()


def make(folder: Path) -> Path:
    """The loopback is faster than the lines that the default of ``bytes_per_s`` is made for."""
    return small_run(folder, epochs=EPOCHS, batch_size=4, checkpoint_every=1000, codec={}, spool={"bytes_per_s": 1 << 24})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[tuple[int, float]], int]:
    """Weights, losses, and the bytes of all frames of steps."""
    path = make(tmp_path_factory.mktemp("undisturbed"))
    with start_broker() as broker, listener(load_run(path), broker) as heard, field(path, broker) as run:
        run.finish()
        run.check_ledgers(EPOCHS * STEPS_AN_EPOCH)
        return run.weights(), run.losses(), sum(frame.size_bytes for frame in heard.frames())


def check(run: Field, undisturbed: tuple[dict[str, bytes], list[tuple[int, float]], int]) -> None:
    run.finish()
    run.check_ledgers(EPOCHS * STEPS_AN_EPOCH)
    assert run.weights() == undisturbed[0]
    assert run.losses() == undisturbed[1]
    assert not list(run.path.parent.rglob("spool.sqlite*")), "when the run is over nobody will ask again"


@pytest.mark.parametrize(("victim", "lane"), [("c0", 0), ("server", 1)])
def test_what_has_crossed_does_not_cross_again(victim: str, lane: int, undisturbed, tmp_path: Path) -> None:
    """Of lane 1 the weights that it took over from lane 0 have crossed as well."""
    path = make(tmp_path)
    with start_broker() as broker, listener(load_run(path), broker) as heard, field(path, broker) as run:
        before = heard.frames_until(KILL_AT, lane=lane)
        run.kill(victim)
        before += heard.frames()
        run.start(victim)
        check(run, undisturbed)
        after = [frame for frame in heard.frames() if frame.epoch > before[-1].epoch]
    trained = [frame for frame in before if frame.mode is Mode.TRAIN]
    since = trained[-1].step // STEPS_AN_EPOCH * STEPS_AN_EPOCH
    crossed = {frame.what: frame for frame in trained if frame.step >= since}
    again = [frame for frame in after if frame.what in crossed]
    assert (lane == 0) or {frame.topic[-3:] for frame in after if frame.kind is Kind.REFERRING} == {"0/f", "1/b"}
    assert len(crossed) > 20, "there was too little to repeat to show anything"
    assert {frame.what for frame in again} == set(crossed), "the steps since the checkpoint were not computed again"
    whole = [frame for frame in again if frame.kind is not Kind.REFERENCE]
    assert len(whole) <= 2, "more than what was on its way when the party was killed"
    assert sum(frame.size_bytes for frame in again) < sum(frame.size_bytes for frame in crossed.values()) / 10
    assert sum(frame.size_bytes for frame in before + after) < undisturbed[2] * 1.05


def test_with_a_spool_that_was_damaged_the_run_is_the_same(undisturbed, tmp_path: Path) -> None:
    path = make(tmp_path)
    with start_broker() as broker, listener(load_run(path), broker) as heard, field(path, broker) as run:
        heard.frames_until(KILL_AT, lane=0)
        run.kill("server")
        spool = run.run.state_of("server") / "spool.sqlite"
        assert spool.exists()
        for file in spool.parent.glob("spool.sqlite*"):
            file.unlink()
        spool.write_bytes(b"rubbish" * 1000)
        run.start("server")
        check(run, undisturbed)
    (said,) = [event["text"] for event in run.seen if event["event"] == "note" and event["kind"] == "spool"]
    assert str(spool) in said
    assert "made anew" in said
