"""A device's agent as a process: it runs the real client against a real server over a real mosquitto, and takes releases meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from edge_client.heartbeat import read_beat
from tests.fleet.boards import code_wheel, world
from tests.fleet.fleets import until

EPOCHS = 12
STEPS_A_LANE = EPOCHS * 20


def test_a_client_that_trains_gets_new_code_and_ends_its_run(tmp_path: Path) -> None:
    wheel = code_wheel(tmp_path / "cutlayer-9.8.7-py3-none-any.whl", version="9.8.7")
    with world(tmp_path, epochs=EPOCHS) as found, found.operator() as operator:
        board = found.board
        board.start()
        found.field.start("server", "c1")
        first = operator.state(lambda state: state["client"] == "running", "the client of the card")
        assert (first["release"], first["offered"], first["stage"]) == (0, 0, "none")
        found.field.await_step(8)
        release = board.release(1, {f"wheels/{wheel.name}": wheel.read_bytes()})
        operator.offer(release, "c0")
        assert operator.stage(1, "fetching")["of_bytes"] == sum(len(data) for data in release.files.values())
        assert operator.stage(1, "trial")["release"] == 1
        state = operator.stage(1, "healthy")
        assert (state["release"], state["highest"]) == (1, 1)
        assert {digest for digest, _, _ in operator.wants} == {row for row in operator.stock if operator.stock[row] == wheel.read_bytes()}
        assert (state["code"], state["run"]) == ("9.8.7", "field")
        assert state["client"] in ("running", "over")  # a fast machine is done by then
        found.field.finish()
        if state["client"] == "running":
            state = operator.state(lambda state: state["client"] == "over", "the end of the run")
        assert state["step"] > 8
        found.field.finish()
        assert board.stop() == 0
        assert "release 1: healthy" in board.log
        mine, server = (ledger(folder) for folder in (board.home / "state/field/c0", found.field.run.state_of("server")))
        assert mine == [row for row in server if row[1] == 0]
        assert [row[2] for row in mine] == list(range(STEPS_A_LANE))


def test_a_release_goes_on_at_the_byte_where_power_or_line_went(tmp_path: Path) -> None:
    """Nobody trains: the client waits for its server."""
    data = random.Random(3).randbytes(400_000)
    digest = hashlib.sha256(data).hexdigest()
    with world(tmp_path) as found, found.operator() as operator:
        board = found.board
        board.start()
        operator.state(lambda state: state["client"] == "running", "the client")
        operator.serve = lambda sha256, offset, count: data[offset : offset + count] if offset < 150_000 else None
        release = board.release(1, {"bundle/bottom/large.bin": data})
        operator.offer(release, "c0")
        part = board.home / "releases/1.new/bundle/bottom/.large.bin"
        have = until(lambda: size if part.exists() and (size := part.stat().st_size) >= 150_000 else None, "some bytes")
        board.cut()
        assert part.stat().st_size == have < len(data)
        operator.wants.clear()
        board.start()
        until(lambda: operator.wants or None, "a question, though nobody has offered it anew")
        assert operator.wants[0][:2] == (digest, have)

        found.broker.restart()
        operator.wants.clear()
        operator.answers("c0")
        operator.offer(release, "c0")
        until(lambda: operator.wants or None, "a question after the line was down")
        assert operator.wants[0][:2] == (digest, have)
        operator.serve = None
        operator.offer(release, "c0")
        assert operator.stage(1, "healthy")["release"] == 1
        assert [offset for _, offset, _ in operator.wants if offset < have] == []
        assert board.stop() == 0
        assert (board.home / "releases/1/bundle/bottom/large.bin").read_bytes() == data


def test_power_goes_while_a_release_is_on_trial_and_it_proves_itself_after(tmp_path: Path) -> None:
    with world(tmp_path) as found, found.operator() as operator:
        board = found.board
        board.options = ("--steady-s", "4", "--health-s", "60")
        board.start()
        operator.state(lambda state: state["client"] == "running", "the client of the card")
        operator.offer(board.release(1, {"bundle/note.txt": b"new"}), "c0")
        operator.stage(1, "trial")
        operator.state(lambda state: state["release"] == 1 and state["client"] == "running", "the client on trial")
        board.cut()
        assert json.loads((board.home / "releases/state.json").read_text())["launches"] == 1
        board.start()
        assert operator.stage(1, "healthy")["release"] == 1
        assert board.stop() == 0


def test_without_a_key_for_releases_the_client_runs_and_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(tmp_path) as found, found.operator() as operator, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        board = found.board
        (board.home / "deploy.pub").unlink()
        board.start()
        assert line.recv(100) == b"READY=1\nWATCHDOG=1"
        beat = until(
            lambda: found if (found := read_beat(board.home / "run/heartbeat.json")) is not None and found.linked else None, "a client"
        )
        assert beat.pid == board.client_pid()
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{beat.pid}/environ").read_bytes()
        assert line.recv(100) == b"READY=1\nWATCHDOG=1"
        assert "takes no releases" in board.log
        assert " as c0.agent (" not in (found.broker.folder / "log").read_text()
        assert board.stop() == 0
        assert not Path(f"/proc/{beat.pid}").exists()
        assert operator.states.empty()


def ledger(folder: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        return db.execute("SELECT edge, lane, step, global_step, applied FROM steps ORDER BY edge, lane, step").fetchall()
