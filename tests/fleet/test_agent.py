"""A device's agent as a process: it runs the real client against a real server over a real mosquitto, and takes releases meanwhile."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from tests.fleet.boards import code_wheel, world

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
        assert (state["client"], state["code"], state["run"]) == ("running", "9.8.7", "field")
        found.field.finish()
        assert operator.state(lambda state: state["client"] == "over", "the end of the run")["step"] > 8
        found.field.finish()
        assert board.stop() == 0
        assert "release 1: healthy" in board.log
        mine, server = (ledger(folder) for folder in (board.home / "state/field/c0", found.field.run.state_of("server")))
        assert mine == [row for row in server if row[1] == 0]
        assert [row[2] for row in mine] == list(range(STEPS_A_LANE))


def ledger(folder: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        return db.execute("SELECT edge, lane, step, global_step, applied FROM steps ORDER BY edge, lane, step").fetchall()
