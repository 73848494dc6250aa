"""Metrics as scikit-learn computes them of the whole, from batches of any sizes; and when an evaluation is the last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, roc_auc_score
from torch.nn import functional

from server.early_stopping import should_stop
from server.metrics import MetricSet
from wire.errors import RunFileError
from wire.metric_names import METRICS

Array = NDArray[Any]
SAMPLES = 60
CUTS = st.lists(st.integers(1, SAMPLES - 1), max_size=6, unique=True).map(sorted)
SEEDS = st.integers(0, 2**32 - 1)


def _measured(metrics: MetricSet, outputs: Array, target: Array, cuts: list[int]) -> dict[str, float]:
    metrics.reset()
    for one, other in zip(np.split(outputs, cuts), np.split(target, cuts), strict=True):
        metrics.update(one, other)
    return metrics.compute()


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _agree(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@given(seed=SEEDS, cuts=CUTS, classes=st.integers(2, 6))
def test_metrics_of_classes(seed: int, cuts: list[int], classes: int) -> None:
    """Accuracy is the share of samples that are right; AUROC (one against the rest) and F1 are means over classes."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal((SAMPLES, classes)).astype(np.float32)
    target = random.integers(0, classes, SAMPLES) * random.integers(0, 2, SAMPLES)  # uneven: a mean over classes is another
    target[:classes] = np.arange(classes)
    found = _measured(MetricSet(["accuracy", "auroc", "f1"], loss="cross_entropy"), logits, target, cuts)
    chosen, chances = logits.argmax(axis=1), _softmax(logits)
    _agree(
        found,
        {
            "loss": float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(target))),
            "accuracy": accuracy_score(target, chosen),
            "auroc": float(np.mean([roc_auc_score(target == each, chances[:, each]) for each in range(classes)])),
            "f1": f1_score(target, chosen, average="macro"),
        },
    )


@given(seed=SEEDS, cuts=CUTS, shape=st.sampled_from([(SAMPLES,), (SAMPLES, 1)]), whole=st.booleans())
def test_metrics_of_yes_and_no(seed: int, cuts: list[int], shape: tuple[int, ...], whole: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.standard_normal(shape).astype(np.float32)
    target = random.permutation(np.arange(SAMPLES) % 3 == 0).astype(np.int64 if whole else np.float32)
    found = _measured(MetricSet(["f1", "auroc", "accuracy"], loss="bce"), logits, target, cuts)
    flat = logits.reshape(-1)
    loss = functional.binary_cross_entropy_with_logits(torch.from_numpy(flat), torch.from_numpy(target.astype(np.float32)))
    _agree(
        found,
        {
            "loss": float(loss),
            "accuracy": accuracy_score(target, flat > 0),
            "auroc": roc_auc_score(target, flat),
            "f1": f1_score(target, flat > 0),
        },
    )


@given(seed=SEEDS, cuts=CUTS, shapes=st.sampled_from([((), ()), ((1,), ()), ((1,), (1,)), ((3,), (3,))]))
def test_metrics_of_numbers(seed: int, cuts: list[int], shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """[N, 1] and [N] are compared sample by sample."""
    random = np.random.default_rng(seed)
    outputs, target = (random.standard_normal((SAMPLES, *shape)).astype(np.float32) for shape in shapes)
    found = _measured(MetricSet(["mae"], loss="mse"), outputs, target, cuts)
    values, wanted = outputs.reshape(SAMPLES, -1), target.reshape(SAMPLES, -1)
    _agree(found, {"loss": float(((values - wanted) ** 2).mean()), "mae": mean_absolute_error(wanted, values)})


def test_f1_leaves_a_class_out_that_nobody_has_and_nobody_names() -> None:
    """As scikit-learn does."""
    target = np.array([0, 0, 1, 1])
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    metrics = MetricSet(["f1"], loss="cross_entropy")
    metrics.update(logits, target)
    assert metrics.compute()["f1"] == pytest.approx(f1_score(target, [0, 1, 1, 1], average="macro"))


def test_a_loss_of_batches_is_weighed_by_their_sizes() -> None:
    metrics = MetricSet([], loss="mse")
    metrics.update(np.zeros(9, np.float32), np.zeros(9, np.float32))
    metrics.update(np.full(1, 2.0, np.float32), np.zeros(1, np.float32))
    assert metrics.compute() == {"loss": pytest.approx(0.4)}


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "mse"])
def test_without_a_batch_nothing_is_measured(loss: Any) -> None:
    metrics = MetricSet(["mae"] if loss == "mse" else ["accuracy", "auroc", "f1"], loss=loss)
    assert metrics.compute() == {}
    target = np.array([0, 1], np.int64 if loss == "cross_entropy" else np.float32)
    metrics.update(np.zeros((2, 2), np.float32) if loss == "cross_entropy" else np.zeros(2, np.float32), target)
    assert set(metrics.compute()) > {"loss"}
    metrics.reset()
    assert metrics.compute() == {}


@given(seeds=st.lists(SEEDS, min_size=2, max_size=4))
def test_an_evaluation_knows_nothing_of_the_one_before(seeds: list[int]) -> None:
    used = MetricSet(["accuracy", "auroc", "f1"], loss="cross_entropy")
    for seed in seeds:
        random = np.random.default_rng(seed)
        logits, target = random.standard_normal((SAMPLES, 3)).astype(np.float32), random.permutation(np.arange(SAMPLES) % 3)
        fresh = MetricSet(["accuracy", "auroc", "f1"], loss="cross_entropy")
        assert _measured(used, logits, target, [20]) == _measured(fresh, logits, target, [20])


@pytest.mark.parametrize(
    ("names", "loss", "said"),
    [
        (["accuracy", "recall"], "cross_entropy", "there is no metric 'recall'; known: accuracy, auroc, f1, mae"),
        (["mae"], "cross_entropy", "'mae' means nothing with loss 'cross_entropy'"),
        (["mae"], "bce", "'mae' means nothing with loss 'bce'"),
        (["accuracy"], "mse", "'accuracy' means nothing with loss 'mse'"),
        (["mae", "f1"], "mse", "'f1' means nothing with loss 'mse'"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_by_name(names: list[str], loss: Any, said: str) -> None:
    with pytest.raises(RunFileError, match=rf"evaluate\.metrics: {said}"):
        MetricSet(names, loss=loss)


def test_each_metric_has_its_loss() -> None:
    for name in METRICS:
        assert MetricSet([name], loss="mse" if name == "mae" else "bce").compute() == {}


# ------------------------------------------------------------ early stopping


def _history(values: list[float], watch: str = "loss") -> list[dict[str, float]]:
    return [{"epoch": at, watch: value} for at, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "watch", "patience", "stops"),
    [
        ([3, 2, 1], "loss", 1, False),
        ([3, 2, 2], "loss", 1, True),  # as good as before is no gain
        ([3, 2, 2], "loss", 2, False),
        ([3, 2, 2, 2], "loss", 2, True),
        ([3, 1, 2, 1.5], "loss", 2, True),  # better than the last, not than the best
        ([3, 1, 2, 0.9], "loss", 2, False),
        ([0.5], "loss", 1, False),
        ([3, 2, 1], "mae", 2, False),
        ([1, 2, 3], "mae", 2, True),
        ([1, 2, 3], "accuracy", 2, False),
        ([3, 2, 1], "accuracy", 2, True),
        ([0.9, 0.8, 0.7], "auroc", 2, True),
        ([0.7, 0.8, 0.9], "f1", 2, False),
    ],
)
def test_it_stops_after_so_many_evaluations_without_gain(values: list[float], watch: str, patience: int, stops: bool) -> None:
    assert should_stop(_history(values, watch), patience=patience, watch=watch) is stops


@given(values=st.lists(st.integers(0, 5), max_size=12), patience=st.integers(1, 5), watch=st.sampled_from(["loss", "accuracy"]))
def test_it_stops_as_one_who_counts_along(values: list[int], patience: int, watch: str) -> None:
    """The history is all that it knows: whoever has it, after a restart too, decides alike."""
    best, waited = float("-inf"), 0
    for at, value in enumerate(values):
        gain = -value if watch == "loss" else value
        best, waited = (gain, 0) if gain > best else (best, waited + 1)
        seen = _history([float(each) for each in values[: at + 1]], watch)
        assert should_stop(seen, patience=patience, watch=watch) is (waited >= patience)


def test_without_patience_or_history_it_never_stops() -> None:
    assert not should_stop(_history([1, 2, 3, 4, 5]), patience=None, watch="loss")
    assert not should_stop(_history([1, 2]), patience=None, watch="nonsense")
    assert not should_stop([], patience=1, watch="loss")


def test_what_is_not_measured_cannot_be_watched() -> None:
    with pytest.raises(RunFileError, match=r"evaluate\.watch: 'f1' is not measured; measured are loss, accuracy") as caught:
        should_stop([{"epoch": 0, "loss": 1.0, "accuracy": 0.5}], patience=3, watch="f1")
    assert "epoch" not in str(caught.value)
