"""What clients count and the coordinator adds up is what torch measures of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.metrics import MetricSet
from wire.errors import DataError, RunFileError
from wire.tally import Tally, check_counted, finished, summed

CASES = {
    "classes": ("cross_entropy", ["accuracy"], (5,), lambda chance, n: chance.integers(0, 5, n)),
    "yes or no": ("bce", ["accuracy"], (1,), lambda chance, n: chance.integers(0, 2, n).astype(np.float32)),
    "many": ("bce", ["accuracy"], (4,), lambda chance, n: chance.integers(0, 2, (n, 4)).astype(np.float32)),
    "a number": ("mse", ["mae"], (1,), lambda chance, n: chance.normal(size=n).astype(np.float32)),
    "numbers": ("mse", ["mae"], (3,), lambda chance, n: chance.normal(size=(n, 3)).astype(np.float32)),
    "loss alone": ("mse", [], (3,), lambda chance, n: chance.normal(size=(n, 3)).astype(np.float32)),
}


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=4))
def test_tallies_of_clients_add_up_to_what_torch_measures(case: str, seed: int, sizes: list[list[int]]) -> None:
    loss, names, shape, make = CASES[case]
    chance = np.random.default_rng(seed)
    whole = MetricSet(names, loss=loss)  # type: ignore[arg-type]
    tallies = []
    for batches in sizes:
        mine = Tally(names, loss=loss)
        for size in batches:
            outputs, target = chance.normal(scale=3, size=(size, *shape)).astype(np.float32), make(chance, size)
            whole.update(outputs, target)
            mine.update(outputs, target)
        tallies.append(mine.sums)
    assert finished(summed(tallies)) == pytest.approx(whole.compute(), rel=1e-5, abs=1e-6)


def test_large_logits_do_not_overflow() -> None:
    tally = Tally(["accuracy"], loss="cross_entropy")
    tally.update(np.array([[3e4, -3e4]], np.float32), np.array([1]))
    assert finished(tally.sums) == {"loss": 6e4, "accuracy": 0.0}
    tally.reset()
    assert finished(tally.sums) == {}


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_an_output_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=f"a label is {label}, but the network has 2 outputs, for labels 0 to 1"):
        Tally([], loss="cross_entropy").update(np.zeros((2, 2), np.float32), np.array([0, label]))


@pytest.mark.parametrize(("name", "loss"), [("auroc", "bce"), ("f1", "cross_entropy"), ("mae", "bce"), ("accuracy", "mse")])
def test_a_metric_that_cannot_be_counted_is_refused(name: str, loss: str) -> None:
    with pytest.raises(RunFileError, match=f"evaluate.metrics: '{name}'"):
        check_counted([name], loss=loss)
