"""`cutlayer pause`, `resume` and `drain` from another process, and what they say where there is nothing to halt."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.broker import start_broker
from tests.e2e.field import REPOSITORY, Field, field, small_run
from wire.requests import ask
from wire.runfile import load_run

EPOCHS = 6


def cutlayer(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cutlayer", *words], capture_output=True, text=True, timeout=120, cwd=REPOSITORY)


def said(verb: str, path: Path) -> str:
    done = cutlayer(verb, str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout


def weights(run: Field) -> dict[str, bytes]:
    """By party and segment: a run that was halted has made more checkpoints."""
    return {f"{name.split('/')[0]}/{name.split('/')[2]}": data for name, data in run.weights().items()}


@pytest.mark.parametrize(("schedule", "drained"), [("relay", False), ("independent", True)])
def test_a_run_that_was_halted_ends_with_the_same_weights(schedule: str, drained: bool, tmp_path: Path) -> None:
    calm, halted = (small_run(tmp_path / name, epochs=EPOCHS, schedule=schedule) for name in ("calm", "halted"))
    with start_broker(engine="mosquitto") as broker:
        with field(calm, broker) as run:
            run.finish()
            wanted = weights(run)
        with field(halted, broker) as run:
            assert run.await_step(3)
            # From this process, for another one takes its time to start, and the run does not wait for it.
            assert ask(run.run, "pause", timeout_s=60).startswith("field: paused")
            assert all(process.poll() is None for process in run.processes.values())
            steps = run.ledger("server")
            assert said("pause", halted) == "field: paused; `cutlayer resume` lets the run go on\n"
            assert run.ledger("server") == steps
            if drained:
                drain_and_start_again(run)
            else:
                assert said("resume", halted) == "field: the run goes on\n"
            run.finish()
            run.check_ledgers(EPOCHS * 20)
            assert weights(run) == wanted
    refused = cutlayer("drain", str(halted))
    assert refused.returncode == 2
    assert refused.stderr == "cutlayer: error: run `field` is over\n"


def drain_and_start_again(run: Field) -> None:
    assert said("drain", run.path) == "field: drained; the run is not over, the same commands started again go on\n"
    run.finish()
    assert {event["party"] for event in run.seen if event["event"] == "drained"} == {"server", "c0", "c1"}
    assert not [event for event in run.seen if event["event"] == "finished"]
    refused = cutlayer("pause", str(run.path))
    assert refused.returncode == 2
    assert "`server` of run `field` is not running; start it again and the run goes on" in refused.stderr
    run.start()  # and it does not wait for a resume


def test_a_pause_stands_when_the_server_is_started_again(tmp_path: Path) -> None:
    path = small_run(tmp_path, epochs=EPOCHS)
    with start_broker(engine="mosquitto") as broker, field(path, broker) as run:
        assert run.await_step(3)
        assert ask(run.run, "pause", timeout_s=60)
        run.kill("server")
        steps = run.ledger("server")
        run.start("server")
        assert run.await_event(lambda event: event["event"] == "halt" and event["party"] == "server", "the pause")
        assert run.await_event(lambda event: event["event"] == "halt" and event["party"] == "server", "the pause after the restart")
        assert run.ledger("server") == steps
        assert said("resume", path) == "field: the run goes on\n"
        run.finish()
        run.check_ledgers(EPOCHS * 20)


def test_cutlayer_run_says_that_it_was_drained(tmp_path: Path) -> None:
    path = small_run(tmp_path, epochs=EPOCHS)
    run = load_run(path)
    with subprocess.Popen(
        [sys.executable, "-m", "cutlayer", "run", str(path), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY
    ) as process:
        while not (run.state_of("c0") / "checkpoints" / "1").exists():
            assert process.poll() is None
            time.sleep(0.1)
        assert ask(run, "drain", timeout_s=60).startswith("field: drained")
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1]) == {"name": "field", "drained": True}


def test_where_there_is_no_such_run(tmp_path: Path) -> None:
    path = small_run(tmp_path)
    refused = cutlayer("pause", str(path))
    assert refused.returncode == 2
    assert "no run `field` of `server` is in" in refused.stderr
    assert "ask on the computer on which `server` runs" in refused.stderr
    assert refused.stderr.count("\n") == 1
