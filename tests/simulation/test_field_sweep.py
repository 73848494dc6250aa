"""A sweep: what a person may write, and that no cell is lost or simulated twice."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from simulation.field.result import FieldResult
from simulation.field.sweep import KEYS, LIMIT_CELLS, Cell, parse_sweep, run_sweep
from simulation.screen import Screen
from tests.simulation.browser import texts
from tests.simulation.field_worlds import result
from wire.errors import StorageError, UsageError

BASE = Cell(
    run="fashion", mode="train", link="gprs", device="pi-zero-2w", codec="int8", clients=4, schedule="relay", seed=0, in_flight=1,
    batch_size=64,
)  # fmt: skip


def _link(text: str) -> object:
    if text.partition(",")[0] not in ("gprs", "edge", "lorawan"):
        raise UsageError(f"there is no link `{text}`; there are gprs, edge, lorawan")
    return text


# ---------------------------------------------------------------- what a person writes


def test_a_grid_has_every_combination_the_last_key_first() -> None:
    cells = parse_sweep(["link=gprs,edge", "codec=int8,lowbit/fp16", "clients=10,100"], BASE, known={"link": _link})
    assert [(cell.link, cell.codec, cell.clients) for cell in cells] == [
        ("gprs", "int8", 10), ("gprs", "int8", 100), ("gprs", "lowbit/fp16", 10), ("gprs", "lowbit/fp16", 100),
        ("edge", "int8", 10), ("edge", "int8", 100), ("edge", "lowbit/fp16", 10), ("edge", "lowbit/fp16", 100),
    ]  # fmt: skip
    assert cells[0].settings == {"link": "gprs", "codec": "int8", "clients": 10}
    assert {dataclasses.replace(cell, link="gprs", codec="int8", clients=4, varied=()) for cell in cells} == {BASE}
    assert len({cell.file for cell in cells}) == len(cells)
    assert BASE.file.startswith("cell-"), "not with a dash, which a shell's tools take for an option"


def test_options_keep_their_commas_and_keys_may_be_repeated() -> None:
    texts = ["codec=int8,lowbit:step=0.8,rate_weight=5e-6/topk:keep=0.05,fp16", "link=gprs,loss=0.05,up_bps=9600,edge", "codec=int4"]
    cells = parse_sweep(texts, BASE, known={"link": _link})
    assert list(dict.fromkeys(cell.codec for cell in cells)) == ["int8", "lowbit:step=0.8,rate_weight=5e-6/topk:keep=0.05", "fp16", "int4"]
    assert list(dict.fromkeys(cell.link for cell in cells)) == ["gprs,loss=0.05,up_bps=9600", "edge"]


def test_every_key_can_be_swept() -> None:
    texts = ["link=edge", "device=pi-4", "codec=fp16", "clients=2", "schedule=fedavg", "seed=7", "in_flight=2", "batch_size=32"]
    (cell,) = parse_sweep(texts, BASE)
    assert cell.settings == {
        "link": "edge", "device": "pi-4", "codec": "fp16", "clients": 2, "schedule": "fedavg", "seed": 7, "in_flight": 2, "batch_size": 32,
    }  # fmt: skip
    assert tuple(cell.settings) == KEYS
    assert parse_sweep([], BASE) == (BASE,)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["links=gprs"], "there is no key 'links'; did you mean 'link'? It must be one of link, device, codec"),
        (["epochs=3"], "there is no key 'epochs'; it must be one of"),
        (["gprs"], "'gprs' is not written KEY=VALUE"),
        (["link="], "`link` has an empty value"),
        (["clients=10,,20"], "`clients` has an empty value"),
        (["clients=ten"], "`clients` is 'ten'; it must be a whole number of 1 or more"),
        (["clients=0"], "whole number of 1 or more"),
        (["seed=-1"], "whole number of 0 or more"),
        (["batch_size=1e3"], "`batch_size` is '1e3'"),
        (["schedule=relais"], "`schedule` is 'relais'; it must be one of relay, independent"),
        (["codec=int9"], "`codec`: there is no codec 'int9'; it must be one of"),
        (["codec=lowbit:steps=1"], "`codec`: unknown key `lowbit.steps`"),
        (["link=gprs,umts"], "`link`: there is no link `umts`; there are gprs, edge, lorawan"),
        (["link=gprs,edge", "link=gprs"], "`link` has 'gprs' twice"),
        (["seed=" + ",".join(map(str, range(LIMIT_CELLS + 1)))], "these are 1,001 cells, more than 1,000"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sweep(texts, BASE, known={"link": _link})
    assert said in str(caught.value)
    assert str(caught.value).startswith("--sweep: ")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- cell after cell


class _Simulator:
    """Simulates by hand, and remembers for which cells; ``before`` is called first."""

    def __init__(self, before: Callable[[Cell], None] = lambda cell: None) -> None:
        self.asked: list[int] = []
        self._before = before

    def __call__(self, cell: Cell) -> FieldResult:
        self._before(cell)
        self.asked.append(cell.seed)
        made = result(seed=cell.seed, clients=cell.clients, steps=4, link=cell.link, codec=cell.codec)
        made.history[0].metrics["loss"] = math.nan
        return made


CELLS = parse_sweep(["seed=1,2,3,4", "clients=1"], BASE)


def _run(
    simulate: Callable[[Cell], FieldResult], folder: Path, *, basis: str = "a run file", again: bool = False, cells: Sequence[Cell] = CELLS
) -> list[FieldResult]:
    with Screen() as screen:
        return run_sweep(cells, simulate, folder=folder, screen=screen, basis=basis, again=again)


def test_results_come_in_order_are_kept_at_once_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[int] = []
    results = _run(_Simulator(lambda cell: kept.append(len(list((tmp_path / "cells").glob("*.json"))))), tmp_path)
    assert kept == [0, 1, 2, 3]
    assert [each.seed for each in results] == [1, 2, 3, 4]
    assert [each.varied for each in results] == [{"seed": seed, "clients": 1} for seed in (1, 2, 3, 4)]
    assert [row["seed"] for row in json.loads((tmp_path / "results.json").read_text())] == [1, 2, 3, 4]
    page = texts((tmp_path / "report.html").read_text())
    assert "All 4 cells finish" in page
    assert "Not the whole sweep" not in page
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r": [0-9].*; about .* to go$", ": … to go", line) for line in lines[:3]] == [
        f"{at} of 4: seed {at}, clients 1: … to go" for at in (1, 2, 3)
    ]
    assert "% accuracy" in lines[3]
    assert "to go" not in lines[3]


def test_what_is_there_is_not_simulated_again_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _run(_Simulator(), tmp_path)
    second = _Simulator()
    assert repr(_run(second, tmp_path)) == repr(first)  # not ==, for a loss is no number
    assert second.asked == []
    assert f"4 of 4 cells are in {tmp_path} already" in capsys.readouterr().err
    for options in ({"again": True}, {"basis": "another run file"}):
        anew = _Simulator()
        _run(anew, tmp_path, **options)  # type: ignore[arg-type]
        assert anew.asked == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"null", b'{"basis": 1}', b"\xff\xfe", b"[" * 100_000, b'{"a"' * 9], ids=lambda data: repr(data[:8])
)
def test_a_damaged_result_is_simulated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / CELLS[1].file).write_bytes(damage)
    anew = _Simulator()
    _run(anew, tmp_path, cells=CELLS[1:2])
    assert anew.asked == [2]
    assert ("is no kept result" in capsys.readouterr().err) is (damage != b'{"basis": 1}')  # that is of another run file


@pytest.mark.parametrize("fault", ["finished", "run", "parties", "timeline", "kind", "history", "metrics"])
def test_a_result_with_a_field_at_fault_is_simulated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    _run(_Simulator(), tmp_path, cells=CELLS[:1])
    path = tmp_path / "cells" / CELLS[0].file
    kept = json.loads(path.read_bytes())
    party = kept["result"]["parties"][0]
    within = {"timeline": party, "kind": party["timeline"][0]}.get(fault, kept["result"])
    within[fault] = 7
    path.write_text(json.dumps(kept))
    anew = _Simulator()
    _run(anew, tmp_path, cells=CELLS[:1])
    assert anew.asked == [1]
    assert "is no kept result" in capsys.readouterr().err


def test_ctrl_c_leaves_what_is_done_and_its_report(tmp_path: Path) -> None:
    def interrupt(cell: Cell) -> None:
        if cell.seed == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        _run(_Simulator(interrupt), tmp_path)
    assert [row["seed"] for row in json.loads((tmp_path / "results.json").read_text())] == [1, 2]
    assert "Not the whole sweep: 2 more cells have not been run." in texts((tmp_path / "report.html").read_text())
    rest = _Simulator()
    assert [each.seed for each in _run(rest, tmp_path)] == [1, 2, 3, 4]
    assert rest.asked == [3, 4]


def test_ctrl_c_in_the_first_cell_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(_Simulator(lambda cell: signal.raise_signal(signal.SIGINT)), tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_error_is_its_cells_result_and_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(cell: Cell) -> None:
        if cell.seed == 2:
            raise UsageError("link `lorawan` has no usable downlink")

    results = _run(_Simulator(refuse), tmp_path)
    assert [each.finished for each in results] == [True, False, True, True]
    refused = results[1]
    assert (refused.why, refused.link, refused.time_s, refused.applied) == ("link `lorawan` has no usable downlink", "gprs", 0.0, 0)
    assert "3 of 4 cells finish" in texts((tmp_path / "report.html").read_text())
    assert "2 of 4: seed 2, clients 1: does not finish: link `lorawan` has no usable downlink" in capsys.readouterr().err
    mended = _Simulator()
    assert all(each.finished for each in _run(mended, tmp_path))
    assert mended.asked == [2]


@pytest.mark.parametrize("error", [StorageError("the disk is full"), ZeroDivisionError("a bug")], ids=["disk", "bug"])
def test_what_no_cell_can_help_ends_the_sweep_with_its_report(tmp_path: Path, error: Exception) -> None:
    def fail(cell: Cell) -> None:
        if cell.seed == 2:
            raise error

    with pytest.raises(type(error), match=str(error)):
        _run(_Simulator(fail), tmp_path)
    assert "Not the whole sweep: 3 more cells" in texts((tmp_path / "report.html").read_text())


def test_a_terminal_shows_a_bar_with_time_to_go() -> None:
    """On a pseudo-terminal, as nothing else makes rich draw."""
    code = """
import time
from simulation.screen import Screen
with Screen() as screen, screen.bar("cells") as bar:
    for done in range(4):
        bar(done, 4)
        time.sleep(0.3)
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, timeout=60)
    os.close(theirs)
    seen = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", os.read(ours, 1 << 20).decode())
    os.close(ours)
    assert done.returncode == 0
    assert re.search(r"3/4 0:00:0\d 0:00:0\d", seen), seen  # elapsed, and to go
