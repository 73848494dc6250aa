"""A client's metrics against the server's, which are torchmetrics': the same names, numbers and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_client import metrics as mine
from server import metrics as theirs
from wire.errors import DataError, RunFileError
from wire.metric_names import METRICS

Array = NDArray[Any]
LOSSES = {"cross_entropy": ["accuracy", "auroc", "f1"], "bce": ["f1", "accuracy", "auroc"], "mse": ["mae"]}
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=4)
ANY = settings(max_examples=80, deadline=None)


def _both(names: list[str], loss: Any, batches: list[tuple[Array, Array]]) -> tuple[dict[str, float], dict[str, float]]:
    found = []
    for kind in (mine, theirs):
        metrics = kind.MetricSet(names, loss=loss)
        for outputs, target in batches:
            metrics.update(outputs, target)
        found.append(metrics.compute())
    return found[0], found[1]


def _agree(names: list[str], loss: Any, batches: list[tuple[Array, Array]]) -> None:
    found, wanted = _both(names, loss, batches)
    assert list(found) == list(wanted) == ["loss", *names]
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@ANY
@given(seed=SEEDS, sizes=SIZES, classes=st.integers(2, 5), distinct=st.integers(1, 8), known=st.integers(1, 5))
def test_classes_as_the_server_measures_them(seed: int, sizes: list[int], classes: int, distinct: int, known: int) -> None:
    """Samples share ``distinct`` outputs, so most are tied; labels above ``known`` do not occur, so classes are missing."""
    random = np.random.default_rng(seed)
    pool = random.normal(0, 2, (distinct, classes)).astype(np.float32)
    labels = min(known, classes)
    batches = [(pool[random.integers(0, distinct, size)], random.integers(0, labels, size)) for size in sizes]
    _agree(LOSSES["cross_entropy"], "cross_entropy", batches)


@ANY
@given(seed=SEEDS, sizes=SIZES, columns=st.sampled_from([None, 1, 3]), flat=st.booleans(), kind=st.sampled_from([np.int64, np.float32]))
def test_yes_and_no_as_the_server_measures_them(seed: int, sizes: list[int], columns: int | None, flat: bool, kind: type) -> None:
    """On a grid of logits, 0 among them: many ties. Sometimes all labels are alike."""
    random = np.random.default_rng(seed)
    share = random.choice([0.0, 0.3, 0.5, 1.0])
    batches = []
    for size in sizes:
        shape = (size,) if columns is None else (size, columns)
        target = (random.random(shape) < share).astype(kind)
        batches.append(((random.integers(-6, 7, shape) / 2).astype(np.float32), target.reshape(-1) if flat and columns == 1 else target))
    _agree(LOSSES["bce"], "bce", batches)


@ANY
@given(seed=SEEDS, sizes=SIZES, shapes=st.sampled_from([((), ()), ((1,), ()), ((1,), (1,)), ((3,), (3,))]))
def test_numbers_as_the_server_measures_them(seed: int, sizes: list[int], shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    random = np.random.default_rng(seed)
    batches = []
    for size in sizes:
        outputs, target = (random.standard_normal((size, *shape)).astype(np.float32) for shape in shapes)
        batches.append((outputs, target))
    _agree(LOSSES["mse"], "mse", batches)


@pytest.mark.parametrize(
    ("chances", "labels", "area"),
    [
        ([3, 2, 1, 0], [1, 1, 0, 0], 1.0),
        ([0, 1, 2, 3], [1, 1, 0, 0], 0.0),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5),
        ([2, 1, 1, 0], [1, 1, 0, 0], 0.875),  # of four pairs, three are right and one is tied
    ],
)
def test_a_tie_counts_half(chances: list[float], labels: list[int], area: float) -> None:
    metrics = mine.MetricSet(["auroc"], loss="bce")
    metrics.update(np.array(chances, np.float32), np.array(labels))
    assert metrics.compute()["auroc"] == area


@pytest.mark.parametrize("scale", [50.0, 1e4, 1e30])
def test_large_outputs_overflow_nowhere(scale: float) -> None:
    random = np.random.default_rng(0)
    logits, target = (scale * random.standard_normal((40, 3))).astype(np.float32), random.integers(0, 3, 40)
    found, wanted = _both(["accuracy", "f1"], "cross_entropy", [(logits, target)])
    assert found == pytest.approx(wanted, rel=1e-5)
    found, wanted = _both(["accuracy", "f1"], "bce", [(logits[:, 0], target % 2)])
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_network_that_has_diverged_is_measured_all_the_same(loss: Any, bad: float) -> None:
    metrics = mine.MetricSet(LOSSES[loss], loss=loss)
    outputs = np.full((4, 2), bad, np.float32)
    metrics.update(outputs, np.zeros(4 if loss == "cross_entropy" else (4, 2), np.int64))
    found = metrics.compute()
    assert list(found) == ["loss", *LOSSES[loss]]
    assert not np.isfinite(found["loss"])


@given(seeds=st.lists(SEEDS, min_size=2, max_size=4))
def test_an_evaluation_knows_nothing_of_the_one_before(seeds: list[int]) -> None:
    used = mine.MetricSet(LOSSES["cross_entropy"], loss="cross_entropy")
    for seed in seeds:
        random = np.random.default_rng(seed)
        logits, target = random.standard_normal((30, 3)).astype(np.float32), random.integers(0, 3, 30)
        fresh = mine.MetricSet(LOSSES["cross_entropy"], loss="cross_entropy")
        used.reset()
        used.update(logits, target)
        fresh.update(logits, target)
        assert used.compute() == fresh.compute()


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_batch_nothing_is_measured(loss: Any) -> None:
    assert mine.MetricSet(LOSSES[loss], loss=loss).compute() == {}


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", [*METRICS, "recall"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_names_are_refused_in_the_same_words(name: str, loss: Any) -> None:
    said = []
    for kind in (mine, theirs):
        try:
            kind.MetricSet([name], loss=loss)
            said.append(None)
        except RunFileError as exc:
            said.append(str(exc))
    assert said[0] == said[1]


@pytest.mark.parametrize("label", [-100, -1, 3, 7])
def test_a_label_without_an_output_is_refused_in_the_same_words(label: int) -> None:
    said = []
    for kind in (mine, theirs):
        with pytest.raises(DataError) as caught:
            kind.MetricSet(["accuracy"], loss="cross_entropy").update(np.zeros((2, 3), np.float32), np.array([0, label]))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="a label is 2, but with loss 'bce' labels are 0 and 1"):
        mine.MetricSet(["accuracy"], loss="bce").update(np.zeros(2, np.float32), np.array([0, 2]))
    with pytest.raises(DataError, match=r"the outputs are \[2, 3\], but the target is \[2\]"):
        mine.MetricSet([], loss="mse").update(np.zeros((2, 3), np.float32), np.zeros(2, np.float32))
    with pytest.raises(DataError, match="there are 3 labels for 2 outputs"):
        mine.MetricSet([], loss="cross_entropy").update(np.zeros((2, 3), np.float32), np.zeros(3, np.int64))
