"""Three clients as processes, of which one stops for a while, one comes late, and one is killed and comes back later."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from server.broker import start_broker
from tests.e2e.field import Field, small_run

EPOCHS = 40
STEPS = EPOCHS * 7  # of each client: 100 samples in batches of 16


def three_clients(folder: Path, *, schedule: str, absent_s: float, **changes: Any) -> Path:
    return small_run(
        folder,
        samples=100,
        test_samples=30,
        schedule=schedule,
        evaluate={"every_epochs": 10},
        straggler={"policy": "void", "deadline_s": 2.0, "join_s": 15.0, "absent_s": absent_s},
        clients=[{"name": f"c{at}", "threads": 1, "data": {"shard": f"{at + 1}/3"}} for at in range(3)],
        **({"epochs": EPOCHS} | changes),
    )


def void_steps(run: Field, lane: int) -> list[int]:
    return [row[2] for row in run.ledger("server") if row[1] == lane and not row[4]]


def note(run: Field, kind: str, party: str = "server") -> bool:
    return run.await_event(lambda event: event["party"] == party and event["event"] == "note" and event["kind"] == kind, kind)


def test_a_client_that_stops_for_a_while_loses_steps_and_the_run_goes_on(tmp_path: Path) -> None:
    # Ranges of 50 steps of each client, so that it stops in the middle of one.
    path = three_clients(tmp_path, schedule="independent", absent_s=600.0, epochs=6, batch_size=2, checkpoint_every=1000)
    with start_broker(engine="mosquitto") as broker:
        run = Field(path, broker.url)
        try:
            run.start()
            assert run.await_step(6)
            run.processes["c1"].send_signal(signal.SIGSTOP)
            assert note(run, "void")
            assert note(run, "void")
            run.processes["c1"].send_signal(signal.SIGCONT)
            run.finish()
            run.check_ledgers(6 * 50)
            void = void_steps(run, 1)
            assert len(void) >= 2
            assert [row for row in run.ledger("server") if row[1] == 1 and row[4] and row[2] > void[1]], "it counts again"
        finally:
            run.close()


@pytest.mark.parametrize("schedule", ["relay", "independent"])
def test_one_comes_late_and_one_is_killed_and_comes_back(schedule: str, tmp_path: Path) -> None:
    path = three_clients(tmp_path, schedule=schedule, absent_s=5.0)
    with start_broker(engine="mosquitto") as broker:
        run = Field(path, broker.url)
        try:
            run.start("server", "c0", "c2")
            assert note(run, "absent")
            assert run.await_step(4)
            run.start("c1")
            assert note(run, "back")
            assert run.await_event(lambda event: event["party"] == "c1" and event["event"] == "step", "a step of c1")
            run.kill("c0")
            assert note(run, "absent")
            assert run.await_event(lambda event: event["party"] == "server" and event["event"] == "checkpoint", "a checkpoint without c0")
            assert run.await_event(lambda event: event["party"] == "server" and event["event"] == "checkpoint", "and another")
            run.start("c0")
            assert note(run, "back")
            run.finish(240.0)
            rows = run.ledger("server")
            for lane, client in enumerate(run.run.clients):
                mine = run.ledger(client.name)
                assert mine == [row for row in rows if row[1] == lane], f"the ledgers of {client.name} and the server differ"
                steps = [row[2] for row in mine]
                assert steps == list(range(STEPS - len(steps), STEPS))
            void = void_steps(run, 0)
            assert void, "c0 was left out"
            assert [row for row in rows if row[1] == 0 and row[4] and row[2] > void[0]], "and is in again"
            assert [row for row in rows if row[1] == 1 and row[4]], "c1 came late, but has trained"
        finally:
            run.close()
