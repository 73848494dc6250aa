"""Kill anything at any time and start it again: the run ends with the same weights, bit for bit, and every step exactly once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from server.broker import start_broker
from tests.e2e.field import field, small_run

EPOCHS = 8
STEPS_A_LANE = EPOCHS * 20  # 320 samples a client in batches of 16
VICTIMS = (["c0", "c1"], ["server"], ["broker"], ["c0", "server", "broker", "c1"])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``make soak`` asks for more runs than a test has time for."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(1, metafunc.config.getoption("--power-cuts") + 1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[tuple[int, float]]]:
    path = small_run(tmp_path_factory.mktemp("undisturbed"), epochs=EPOCHS)
    with start_broker() as broker, field(path, broker) as run:
        run.finish()
        run.check_ledgers(STEPS_A_LANE)
        return run.weights(), run.losses()


def test_a_run_that_was_killed_is_the_run_that_was_not(
    seed: int, undisturbed: tuple[dict[str, bytes], list[tuple[int, float]]], tmp_path: Path
) -> None:
    chance, victims = random.Random(seed), VICTIMS[(seed - 1) % len(VICTIMS)]
    path = small_run(tmp_path, epochs=EPOCHS)
    cuts = 0
    with start_broker() as broker, field(path, broker) as run:
        points = sorted(chance.sample(range(5, 2 * STEPS_A_LANE - 20), 4))
        for point in points:
            if not run.await_step(point):
                break
            victim = chance.choice(victims)
            if victim == "broker":
                broker.kill()
                broker.start()
            else:
                run.kill(victim)
                run.start(victim)
            cuts += 1
        run.finish()
        assert cuts, "nothing was killed in mid-run"
        run.check_ledgers(STEPS_A_LANE)
        weights, losses = undisturbed
        assert run.weights() == weights
        assert run.losses() == losses


RANDOM = {
    "forward": "randtopk:keep=0.2,alpha=0.3",
    "backward": "topk:keep=0.2",
    "cuts": {"bottom>top": {"backward": "randtopk:keep=0.2"}},
}
LEARNING = {"forward": "lowbit:rate_weight=1e-5,bytes_per_sample=40", "backward": "lowbit"}


@pytest.mark.parametrize(
    ("codec", "schedule", "in_flight"),
    [(RANDOM, "independent", 2), (LEARNING, "independent", 2), (LEARNING, "relay", 1)],
    ids=["random", "learning", "learning in relay"],
)
def test_codecs_with_state_and_chance_go_on_where_they_were(codec: dict[str, Any], schedule: str, in_flight: int, tmp_path: Path) -> None:
    """What is kept of steps in flight is lost with a process, what is drawn is drawn again, and what was learned is in the checkpoint."""
    found = []
    for victims in ([], ["c1", "server", "c0"]):
        folder = tmp_path / str(len(victims))
        folder.mkdir()
        path = small_run(folder, schedule=schedule, in_flight=in_flight, codec=codec)
        with start_broker() as broker, field(path, broker) as run:
            for victim, point in zip(victims, (12, 24, 38), strict=False):
                assert run.await_step(point), "nothing was killed in mid-run"
                run.kill(victim)
                run.start(victim)
            run.finish()
            run.check_ledgers(2 * 20)
            found.append((run.weights(), run.losses()))
    assert found[0] == found[1]
