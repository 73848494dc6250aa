"""Relay from client to client: the same run as through the server, and nobody but the next client reads the weights.

A stranger who may read every topic of a real broker records two runs of three clients, one each way.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from server.broker import start_broker
from simulation.run import feeds_of
from simulation.twin import train_unsplit
from tests.e2e.field import REPOSITORY, Field, field, small_run
from tests.e2e.stranger import listening, messages
from wire.control import Control, decode_control
from wire.errors import PeerMismatch
from wire.frames import Frame, Kind
from wire.graph import PEER, Line
from wire.keys import PeerKeys, load_key
from wire.parse import key_text
from wire.store import load_state
from wire.transport.base import Received

WAYS = {"server": {"weights_leave": True}, "peer": {"weights_leave": False, "hand_over": "peer"}}
EPOCHS = 2
NAMES = ("c0", "c1", "c2")


def three_clients(folder: Path, way: str, **changes: Any) -> Path:
    clients = [{"name": name, "threads": 1, "data": {"shard": f"{at + 1}/3"}} for at, name in enumerate(NAMES)]
    return small_run(folder, samples=160, test_samples=60, epochs=EPOCHS, clients=clients, **WAYS[way] | changes)


def with_key(path: Path, party: str, key: str, *, name: str = "run.toml") -> Path:
    """The run file with this ``public_key`` for ``party``, beside the old one."""
    table = tomllib.loads(path.read_text())
    next(client for client in table["clients"] if client["name"] == party)["public_key"] = key
    path.with_name(name).write_text(tomli_w.dumps(table))
    return path.with_name(name)


def cutlayer(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cutlayer", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)


@dataclass
class Recorded:
    """A run that has ended, what a stranger has heard of it, and what the operating system has shown of its processes."""

    run: Field
    heard: list[Received]
    processes: bytes

    def messages(self) -> Iterator[tuple[str, Frame]]:
        """(topic, message), put together from their parts."""
        return messages(self.heard, self.run.run.tag)

    def sealed(self) -> Iterator[tuple[str, Frame, Control]]:
        for topic, frame in self.messages():
            if frame.kind is Kind.CONTROL and (control := decode_control(frame.payload)).kind == "weights":
                yield topic, frame, control

    def published(self) -> bytes:
        return b"|".join([*(event.payload for event in self.heard), *(frame.payload for _, frame in self.messages())])

    def weights(self) -> list[bytes]:
        """Every 16 bytes of the clients' segments, weights and optimizer's state, at the last two checkpoints."""
        found: set[bytes] = set()
        for name in NAMES:
            for path in (self.run.run.state_of(name) / "checkpoints").rglob("bottom.safetensors"):
                for value in load_state(path.read_bytes(), where=str(path)).values():
                    data = value.tobytes()
                    pieces = (data[at : at + 16] for at in range(0, len(data) - 15, 16))
                    found |= {piece for piece in pieces if len(np.unique(np.frombuffer(piece, "<u4"))) == 4}
        return sorted(found)

    def files(self, party: str) -> bytes:
        return b"|".join(path.read_bytes() for path in sorted(self.run.run.state_of(party).rglob("*")) if path.is_file())


def record(path: Path) -> Recorded:
    with start_broker(engine="mosquitto") as broker, listening(broker) as heard, field(path, broker) as run:
        assert run.await_step(0)
        processes = b"".join(
            Path(f"/proc/{process.pid}/{what}").read_bytes() for process in run.processes.values() for what in ("cmdline", "environ")
        )
        run.finish()
    return Recorded(run, heard, processes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorded]:
    """Both ways, without quantization; peer to peer, `c1` is known by the key that the run file says, the others by their first."""
    found = {}
    for way in WAYS:
        path = three_clients(tmp_path_factory.mktemp(way), way, codec={"forward": "fp32", "backward": "fp32"})
        if way == "peer":
            printed = cutlayer("key", path, "--party", "c1")
            assert printed.returncode == 0, printed.stderr
            with_key(path, "c1", printed.stdout.strip())
        found[way] = record(path)
    return found


def test_both_ways_train_the_same_network(runs: dict[str, Recorded]) -> None:
    server, peer = (runs[way].run for way in WAYS)
    assert peer.weights() == server.weights()
    assert peer.losses() == server.losses()
    peer.check_ledgers(EPOCHS * 10)
    twin = train_unsplit(peer.run, feeds_of(peer.run))
    losses = [loss for _, loss in peer.losses()]
    assert len(losses) == EPOCHS * 30
    np.testing.assert_allclose(losses, twin.losses["top"], atol=1e-3)


def test_no_payload_has_a_run_of_the_weights(runs: dict[str, Recorded]) -> None:
    for way, recorded in runs.items():
        weights, published, at_server = recorded.weights(), recorded.published(), recorded.files("server")
        assert len(weights) > 20
        assert any(piece in published for piece in weights) == (way == "server"), way
        assert any(piece in at_server for piece in weights) == (way == "server"), way


def test_weights_go_on_the_clients_lines_and_only_the_next_one_opens_them(runs: dict[str, Recorded]) -> None:
    run = runs["peer"].run.run
    lines = {run.topics(Line(PEER, lane, True))[0]: lane for lane in range(3)}
    assert not {name for line in run.graph().slice_for("server").lines for name in run.topics(line)} & set(lines)
    keys = [PeerKeys(run.state_of(name), run=run.name, party=name, takers={}, pinned={}, say=print) for name in NAMES]
    sealed = list(runs["peer"].sealed())
    assert {topic for topic, _, _ in sealed} == set(lines)
    numbers = {(lines[topic], control.body["seq"]) for topic, _, control in sealed}
    # The first epoch begins alike everywhere: two hand-overs from turn to turn, and two after each evaluation.
    assert len(numbers) == EPOCHS * 4
    weights = runs["peer"].weights()
    last = max(sealed, key=lambda each: each[2].body["seq"])
    assert lines[last[0]] == 0, "it goes round the ring and ends at the client before the last"
    for topic, frame, control in sealed:
        lane = lines[topic]
        place = {"lane": lane, "epoch": frame.epoch, "number": control.body["seq"]}
        blobs = keys[(lane + 1) % 3].open(control.blobs["sealed"], **place)
        assert set(blobs) == {"bottom", "@codecs"}
        if control == last[2]:
            assert any(piece in blobs["bottom"] for piece in weights)
        for other in (keys[lane], keys[(lane + 2) % 3]):
            with pytest.raises(PeerMismatch, match="cannot be opened"):
                other.open(control.blobs["sealed"], **place)


def test_a_private_key_is_nowhere_but_in_its_file(runs: dict[str, Recorded]) -> None:
    recorded = runs["peer"]
    said = str(recorded.run.seen).encode()
    for name in NAMES:
        folder = recorded.run.run.state_of(name)
        path = folder / "private.key"
        assert path.stat().st_mode & 0o777 == 0o600
        secret = path.read_bytes()
        elsewhere = b"|".join(each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file() and each != path)
        shown = b"|".join([said, recorded.processes, recorded.published(), recorded.files("server"), elsewhere])
        assert name.encode() in shown
        for written in (secret, secret.hex().encode(), key_text(secret).encode(), str(secret).encode()):
            assert written not in shown
    assert any(event["event"] == "note" and event["kind"] == "peer" and "`c2` has the key" in event["text"] for event in recorded.run.seen)
    assert not any("`c1` has the key" in event.get("text", "") for event in recorded.run.seen), "it is in the run file"


def test_the_key_is_printed_and_stays(runs: dict[str, Recorded]) -> None:
    run = runs["peer"].run
    for name in NAMES:
        printed = cutlayer("key", run.path, "--party", name)
        assert printed.stdout.strip() == key_text(load_key(run.run.state_of(name)).public_key().public_bytes_raw())
    refused = cutlayer("key", run.path, "--party", "c9")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no client is called `c9`; clients are c0, c1, c2" in refused.stderr


def test_neither_power_cuts_nor_many_parts_change_anything(tmp_path: Path, runs: dict[str, Recorded]) -> None:
    path = three_clients(tmp_path, "peer", codec={"forward": "fp32", "backward": "fp32"}, broker={"part_bytes": 512})
    with start_broker() as broker, field(path, broker) as run:
        for step, name in ((12, "c1"), (29, "server")):
            if run.await_step(step):
                run.kill(name)
                run.start(name)
        run.finish()
    assert run.weights() == runs["server"].run.weights()
    assert run.losses() == runs["server"].run.losses()


class TwoFiles(Field):
    """`c0` reads a run file of its own."""

    def command(self, name: str) -> list[str]:
        found = super().command(name)
        return [each.replace("run.toml", "other.toml") for each in found] if name == "c0" else found


def test_another_key_than_the_pinned_one_ends_the_giver(tmp_path: Path) -> None:
    path = three_clients(tmp_path, "peer")
    stranger = key_text(load_key(tmp_path / "stranger").public_key().public_bytes_raw())
    with_key(path, "c1", stranger, name="other.toml")
    with start_broker() as broker:
        run = TwoFiles(path, broker.url)
        try:
            run.start()
            assert run.processes["c0"].wait(timeout=60) == 2
            assert len(run.ledger("c1")) == 0
        finally:
            run.close()
    (line,) = (run.run.state_of("c0") / "stderr.txt").read_text().splitlines()
    real = key_text(load_key(run.run.state_of("c1")).public_key().public_bytes_raw())
    assert f"`c1` asks for the weights with the key {real}, but its `public_key` in the run file is {stranger}" in line


def test_a_client_whose_own_key_is_not_the_pinned_one_does_not_start(tmp_path: Path) -> None:
    path = three_clients(tmp_path, "peer")
    with_key(path, "c1", key_text(load_key(tmp_path / "stranger").public_key().public_bytes_raw()))
    done = cutlayer("client", path, "--party", "c1", "--broker", "mqtt://127.0.0.1:9")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "`public_key` of the client `c1` in the run file is" in line
