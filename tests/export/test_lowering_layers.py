"""Every layer that a device can train: exported, trained on onnxruntime and compared with PyTorch over steps of several batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from export import SGD, export_segment
from tests.export.cases import CASES, REFUSALS, Case, Refusal
from wire.errors import ExportError

OPTIMIZER = SGD(lr=0.05, momentum=0.9)

TrainBoth = Callable[..., None]
TrainedAlike = Callable[[Case], None]


@pytest.fixture
def trained_alike(train_both: TrainBoth, tmp_path: Path) -> TrainedAlike:
    """Exports a case's module and trains it on both sides."""

    def check(case: Case) -> None:
        torch.manual_seed(1)
        draw = case.draw()
        gradient = draw.dtype.is_floating_point
        export_segment(case.module, (draw[:2],), tmp_path / "bundle", optimizer=OPTIMIZER, input_gradients=[gradient])
        train_both(case.module, tmp_path / "bundle", {"x": draw}, OPTIMIZER, batches=case.batches, tolerance=case.tolerance)

    return check


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_trains_as_in_torch(case: Case, trained_alike: TrainedAlike) -> None:
    trained_alike(case)


MAXIMA = {case.name: case.module.function for case in CASES if case.family == "Pooling" and "max" in case.name}


@pytest.mark.parametrize("after_relu", [False, True])
@pytest.mark.parametrize("name", MAXIMA)
def test_the_gradient_of_equal_maxima_goes_to_the_first(name: str, after_relu: bool, trained_alike: TrainedAlike) -> None:
    """Values of few levels, as of images with flat areas: nearly every window has several maxima."""
    pool = MAXIMA[name]
    module = nn.Sequential(nn.ReLU(), pool) if after_relu else pool
    sample = (2, 9) if "1-D" in name else (2, 5, 6, 5) if "3-D" in name else (3, 9, 9)
    draw = torch.randint(-1, 2, (20, *sample), generator=torch.Generator().manual_seed(2)).float()
    trained_alike(Case(family="Pooling", name=name, module=module, sample=draw))


def test_batch_statistics_beside_a_large_mean(trained_alike: TrainedAlike) -> None:
    """A column of years: the mean of squares less the square of the mean would be all rounding."""
    draw = torch.randn(30, 3, generator=torch.Generator().manual_seed(2)) * 5 + 2000
    trained_alike(Case(family="", name="", module=nn.BatchNorm1d(3), sample=draw, batches=(8, 8, 8), tolerance=2e-3))


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_what_is_refused_says_what_to_use_instead(refusal: Refusal, tmp_path: Path) -> None:
    draw = refusal.sample if isinstance(refusal.sample, torch.Tensor) else torch.randn(2, *refusal.sample)
    with pytest.raises(ExportError) as caught:
        export_segment(refusal.build(), (draw[:2],), tmp_path / "bundle", optimizer=OPTIMIZER)
    assert refusal.said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()
