"""Faults that are nobody's mistake: rubbish on the line, numbers that overflow, a broker that is not there yet."""

from __future__ import annotations

import queue
import random
import socket
from pathlib import Path

import pytest
import tomli_w

from export.prepare import export_run
from server.broker import start_broker
from tests.e2e.field import field, small_run
from wire.frames import Kind
from wire.runfile import load_run
from wire.transport.base import LinkUp, Received, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

EPOCHS = 6


def test_truncated_and_corrupt_frames_are_dropped_counted_and_asked_for_again(tmp_path: Path) -> None:
    """A stranger records what is on the line and publishes it again, cut short or with a bit turned, among the real frames."""
    chance = random.Random(5)
    calm, noisy = small_run(tmp_path / "calm", epochs=EPOCHS), small_run(tmp_path / "noisy", epochs=EPOCHS)
    with start_broker() as broker, field(calm, broker) as run:
        run.finish()
        wanted = run.weights()
    run_file = load_run(noisy)
    lines = run_file.graph().slice_for("server").lines
    names = tuple(name for line in lines for name in run_file.topics(line))
    heard: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    with start_broker() as broker:
        stranger = MqttTransport(BrokerConfig(url=broker.url), client_id="stranger")
        stranger.open(names, heard.put)
        assert isinstance(heard.get(timeout=10), LinkUp)
        with field(noisy, broker) as run:
            mine: set[bytes] = set()
            turn = 0
            while turn < 60:
                event = heard.get(timeout=60)
                if not isinstance(event, Received) or event.payload in mine or event.payload[3] not in (Kind.FORWARD, Kind.BACKWARD):
                    continue
                data = bytearray(event.payload)
                turn += 1
                if turn % 2:
                    del data[chance.randrange(len(data)) :]
                else:
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                mine.add(bytes(data))
                stranger.publish(event.topic, bytes(data), turn)
            run.finish()
            stranger.close()
            assert run.weights() == wanted
            run.check_ledgers(EPOCHS * 20)
    counts = [event["counts"] for event in run.seen if event["event"] == "finished"]
    assert sum(each.get("corrupt", 0) for each in counts) > 20
    said = [event["text"] for event in run.seen if event["event"] == "note" and event["kind"] == "corrupt"]
    assert any("asked for it again" in text for text in said)


def table_run(folder: Path, bad: float) -> Path:
    """Sixteen batches of four; one sample, in lane 0, holds a number that overflows."""
    chance = random.Random(3)
    rows = [[chance.gauss(0, 1) for _ in range(3)] + [chance.gauss(0, 1)] for _ in range(64)]
    rows[20][0] = bad
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "d.csv").write_text("a,b,c,y\n" + "\n".join(",".join(map(repr, row)) for row in rows) + "\n")
    table = {
        "name": "overflow",
        "epochs": 3,
        "batch_size": 4,
        "loss": "mse",
        "model": {"build": "mlp", "cut": ["act1"], "args": {"features": 3, "classes": 1}},
        "optimizer": {"kind": "adam", "lr": 0.01},
        "data": {
            "kind": "csv",
            "path": "d.csv",
            "labels": "y",
            "target": "number",
            "normalize": {"std": [0.1]},
            "test": {"path": "d.csv", "limit": 8},
        },
        "evaluate": {"metrics": ["mae"]},
        "clients": [{"name": "c0", "threads": 1}],
        "server": {"threads": 1},
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table))
    run = load_run(path)
    export_run(run, run.bundles)
    return path


@pytest.mark.parametrize(
    ("bad", "where", "said"), [(3e38, "c0", "the batch is unsound, `x` is not finite"), (1e25, "server", "`loss` is not finite")]
)
def test_what_is_not_finite_makes_the_step_void_at_both_ends(bad: float, where: str, said: str, tmp_path: Path) -> None:
    path = table_run(tmp_path, bad)
    with start_broker() as broker, field(path, broker) as run:
        run.finish()
        run.check_ledgers(3 * 16)
        void = [row[3] for row in run.ledger("c0") if not row[4]]
        weights = run.weights()
    assert len(void) == 3, "once an epoch"
    assert sorted(step // 16 for step in void) == [0, 1, 2]
    notes = [event for event in run.seen if event["event"] == "note" and event["kind"] == "void" and event["party"] == where]
    assert len(notes) == 3, "one a step"
    assert all(said in event["text"] for event in notes), notes
    assert weights


def test_a_broker_that_comes_later(tmp_path: Path) -> None:
    path = small_run(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with field(path, f"mqtt://127.0.0.1:{port}") as run:
        down = set()
        while len(down) < 3:
            event = run.events.get(timeout=60)
            run.seen.append(event)
            if event["event"] == "link":
                assert not event["up"]
                assert "refused" in event["reason"]
                assert event["retry_in_s"] > 0
                down.add(event["party"])
        with start_broker(port=port):
            run.finish()
            run.check_ledgers(2 * 20)


def test_messages_in_many_parts(tmp_path: Path) -> None:
    whole, split = small_run(tmp_path / "whole"), small_run(tmp_path / "split", broker={"part_bytes": 512})
    found = []
    with start_broker() as broker:
        for path in (whole, split):
            with field(path, broker) as run:
                run.finish()
                found.append(run.weights())
    assert found[0] == found[1]
