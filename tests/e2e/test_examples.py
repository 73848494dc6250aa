"""Every configuration of the paper, as its run file under examples/ has it: equal to the unsplit twin, and what a stranger gets to see."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from server.broker import start_broker
from simulation.run import feeds_of
from tests.e2e.field import REPOSITORY
from tests.e2e.stranger import Heard, listening, messages
from wire.codecs.base import Decoded
from wire.control import decode_control
from wire.cut import LABELS
from wire.frames import Frame, Kind
from wire.graph import topics
from wire.runfile import Run, load_run
from wire.tensors import Header, decode_tensors

EXAMPLES = sorted(path.stem for path in (REPOSITORY / "examples").glob("*.toml"))
LABELS_STAY = ("u-shaped", "u-vertical", "multi-task")
QUANTIZED = {"vanilla": "lowbit", "multi-hop": "lowbit"}  # the others: int8


def copied(folder: Path, name: str, **changes: Any) -> Path:
    """The example where its state can be written, with other keys at the top of its file."""
    shutil.copytree(REPOSITORY / "examples", folder, dirs_exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | changes))
    return path


def cutlayer(*words: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "cutlayer", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_there_is_one_of_each() -> None:
    assert {"vanilla", "u-shaped", "vertical", "extended", "multi-task", "multi-hop"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_equals_its_unsplit_twin(name: str, tmp_path: Path) -> None:
    found = cutlayer("run", copied(tmp_path, name, codec={"forward": "fp32", "backward": "fp32"}), "--json")
    assert 0 < found["max_loss_difference"] <= 1e-3, "0 would mean that a run was compared with itself"
    assert abs(found["accuracy"] - found["unsplit_accuracy"]) <= 0.004
    assert found["accuracy"] >= (0.75 if name == "semi-supervised" else 0.93)
    assert (found["labels_published"] == 0) == (name in LABELS_STAY)
    run = load_run(tmp_path / f"{name}.toml")
    assert set(found["bytes_by_edge"]) == set(run.edges)
    assert all(both["forward"] > 0 and both["backward"] > 0 for both in found["bytes_by_edge"].values())
    assert found["clients"] == len(run.clients)
    assert found["client_modules_forbidden"] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_with_few_bits_comes_within_a_point(name: str, tmp_path: Path) -> None:
    codec = QUANTIZED.get(name, "int8")
    found = cutlayer("run", copied(tmp_path, name, codec={"forward": codec, "backward": codec}), "--json")
    assert found["accuracy"] >= found["unsplit_accuracy"] - 0.01


# ------------------------------------------------------------ what is to be seen on the broker


def recorded(path: Path) -> tuple[Run, Heard]:
    with start_broker(engine="mosquitto") as broker, listening(broker) as heard:
        path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | {"broker": {"url": broker.url}}))
        cutlayer("run", path, "--json")
    return load_run(path), heard


def names_of(frame: Frame) -> set[str]:
    """The tensors in a message of activations or gradients."""
    names: set[str] = set()

    def decode(header: Header, data: memoryview) -> Decoded:
        names.add(header.name)
        return Decoded(array=np.zeros(0, header.dtype))  # the values do not matter here

    decode_tensors(frame.payload, decode)
    return names


def losses_of(run: Run) -> list[float]:
    """By the ledgers of those who compute it."""
    found = []
    for sink in run.sinks:
        for party in run.graph().segment(sink).parties:
            with sqlite3.connect(run.state_of(party) / "ledger.sqlite") as ledger:
                found += [float(row[0]) for row in ledger.execute("SELECT loss FROM losses")]
    return found


@pytest.mark.parametrize("name", ["u-shaped", "u-vertical"])
def test_of_a_u_shape_no_label_and_no_loss_is_ever_published(name: str, tmp_path: Path) -> None:
    run, heard = recorded(copied(tmp_path, name, epochs=3))
    frames = [frame for _, frame in messages(heard, run.tag)]
    activations = [frame for frame in frames if frame.kind in (Kind.FORWARD, Kind.BACKWARD) and frame.payload]
    assert len(activations) > 100
    seen = set().union(*(names_of(frame) for frame in activations))
    assert seen
    assert LABELS not in seen
    said = [decode_control(frame.payload) for frame in frames if frame.kind in (Kind.CONTROL, Kind.HELLO)]
    assert len(said) > 10
    told = json.dumps([control.body for control in said])
    assert not any(word in told for word in ("loss", "accuracy", "metrics"))
    published = b"|".join([*(event.payload for event in heard), *(frame.payload for frame in frames)])
    losses = losses_of(run)
    assert len(losses) > 30
    for loss in losses:
        assert struct.pack("<f", loss) not in published
        assert struct.pack("<d", loss) not in published
        assert repr(loss).encode() not in published


def test_labels_are_seen_where_they_do_travel(tmp_path: Path) -> None:
    """The same stranger finds them in a vanilla run: so what he does not find elsewhere is not there."""
    run, heard = recorded(copied(tmp_path, "vanilla", epochs=1))
    frames = [frame for _, frame in messages(heard, run.tag)]
    assert LABELS in set().union(*(names_of(frame) for frame in frames if frame.kind is Kind.FORWARD and frame.payload))


def test_in_a_chain_nobody_learns_who_is_beyond_the_neighbours(tmp_path: Path) -> None:
    """Not from the slice that a party is given, not from topics, and not from what is said on its lines."""
    run, heard = recorded(copied(tmp_path, "multi-hop", epochs=1))
    graph = run.graph()
    chain = ["clinic-a", "hop-b", "hop-c", "server"]
    segments = {party: segment.name for segment in graph.segments for party in segment.parties}
    by_line: dict[str, list[Frame]] = {}
    for topic, frame in messages(heard, run.tag):
        by_line.setdefault(topic.rpartition("/")[0], []).append(frame)
    for at, party in enumerate(chain):
        others = [name for name in chain if abs(chain.index(name) - at) > 1]
        told = (run.state_of(party) / "run.toml").read_text()
        assert party in told
        lines = graph.slice_for(party).lines
        stems = {topics(run.name, line, run.token(line.edge))[0].rpartition("/")[0] for line in lines}
        assert stems <= set(by_line)
        spoken = b"".join(frame.payload for stem in stems for frame in by_line[stem] if frame.kind in (Kind.CONTROL, Kind.HELLO))
        assert spoken
        for other in others:
            for name in (other, run.token(next(edge for edge in run.edges if segments[other] in edge and segments[party] not in edge))):
                assert name not in told, (party, other)
                assert name.encode() not in spoken, (party, other)
            assert f'"{segments[other]}"' not in told or party == "server", (party, other)
    assert len({stem.split("/")[3] for stem in by_line}) == len(run.edges), "each line has topics of its own"
    assert feeds_of(run).keys() == {"clinic-a"}, "nobody else has data"
