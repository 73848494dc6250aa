"""Requests to a running coordinator: what stands in the two files, and what is said where they do not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.prepare import build_segments
from export.slicing import write_slice_of
from wire.errors import CutlayerError, UsageError
from wire.requests import Requests, ask
from wire.runfile import Run, load_run, parse_run
from wire.store import Store

VOID = {"policy": "void", "deadline_s": 3.0}


def a_run(folder: Path, **changes: Any) -> Run:
    table = {
        "name": "ward",
        "epochs": 1,
        "batch_size": 1,
        "model": {"build": "digits-cnn", "cut": ["pool1"]},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "clients": [{"name": "a"}],
        "data": {"kind": "npz", "path": "digits.npz"},
    }
    return parse_run(table | changes, base=str(folder))


class Clock:
    """Time passes when somebody sleeps; ``then`` happens meanwhile."""

    def __init__(self, then=lambda: None) -> None:
        self.now_s, self.then = 0.0, then

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.then()


def test_a_request_is_found_once_and_its_answer_reaches_who_asked(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    store = Store(run.state_of("server"), digest="d")
    requests = Requests(store.folder)
    found = []

    def serve() -> None:
        op = requests.poll(clock.now_s)
        if op is not None:
            found.append(op)
            requests.answer(f"{op} done", stands=op == "pause")

    clock = Clock(serve)
    for op in ("pause", "resume", "drain", "drain"):
        assert ask(run, op, timeout_s=10, clock=clock, sleep=clock.sleep) == f"ward: {op} done"
    assert found == ["pause", "resume", "drain", "drain"]
    assert Requests(store.folder).poll(0.0) is None, "what is done is not done again after a restart"
    ask(run, "pause", timeout_s=10, clock=clock, sleep=clock.sleep)
    assert Requests(store.folder).poll(0.0) == "pause", "a pause stands"
    store.close()


def test_what_is_no_request_is_left_alone(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    at = 0.0
    for text in (b"", b"{", b"[]", b"7", b"{}", b'{"id": 1}', b'{"op": "pause"}', b'{"id": "x", "op": "halt"}', b"\xff", b"[" * 100_000):
        (tmp_path / "request.json").write_bytes(text)
        at += 10
        assert requests.poll(at) is None, text
    (tmp_path / "request.json").write_text(json.dumps({"id": "x", "op": "pause"}))
    assert requests.poll(at + 10) == "pause"


def test_nobody_looks_more_often_than_once_a_second(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    assert requests.poll(100.0) is None
    (tmp_path / "request.json").write_text(json.dumps({"id": "x", "op": "pause"}))
    assert requests.poll(100.5) is None
    assert requests.due_s(100.5) == 0.5
    assert requests.poll(101.0) == "pause"
    assert requests.poll(102.0) is None


def test_the_slice_of_the_coordinator_will_do(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    segments = build_segments(run)
    for party in ("server", "a"):
        write_slice_of(run, party, segments, tmp_path / f"{party}.toml")
    with pytest.raises(UsageError, match=r"no run `ward` of `server` is in .*; ask on the computer on which `server` runs"):
        ask(load_run(tmp_path / "server.toml"), "pause", timeout_s=1)
    with pytest.raises(UsageError, match="the slice of `a`, which does not know the whole run"):
        ask(load_run(tmp_path / "a.toml"), "pause", timeout_s=1)


@pytest.mark.parametrize("schedule", ["relay", "independent"])
def test_a_slice_says_all_that_a_party_needs_to_go_on_without_another(schedule: str, tmp_path: Path) -> None:
    run = a_run(tmp_path, clients=[{"name": "a"}, {"name": "b"}], schedule=schedule, weights_leave=True, straggler=VOID)
    segments = build_segments(run)
    for party in ("server", "a", "b"):
        path = tmp_path / f"{party}.toml"
        write_slice_of(run, party, segments, path)
        told = load_run(path)
        assert told.slice_for(party) == run.slice_for(party)
        assert (told.straggler, told.absences, told.digest) == (run.straggler, True, run.digest)
    assert all(child.optional for child in run.slice_for("server").children)


def test_who_asks_in_vain_is_told_why(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(UsageError, match=r"no run `ward` of `server` is in .*; ask on the computer on which `server` runs"):
        ask(run, "pause", timeout_s=1)
    store = Store(run.state_of("server"), digest="d")
    clock = Clock()
    with pytest.raises(CutlayerError, match="`server` of run `ward` did not pause within 5 s") as caught:
        ask(run, "pause", timeout_s=5, clock=clock, sleep=clock.sleep)
    assert not isinstance(caught.value, UsageError)
    clock = Clock(store.close)
    with pytest.raises(CutlayerError, match="ended before it could drain"):
        ask(run, "drain", timeout_s=5, clock=clock, sleep=clock.sleep)
    assert not (store.folder / "request.json").exists()
    with pytest.raises(UsageError, match="`server` of run `ward` is not running"):
        ask(run, "pause", timeout_s=1)
    store = Store(run.state_of("server"), digest="d")
    store.store_finished()
    store.close()
    with pytest.raises(UsageError, match="run `ward` is over"):
        ask(run, "resume", timeout_s=1)
