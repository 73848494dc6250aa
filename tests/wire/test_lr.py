"""Learning rate schedules, against ``torch.optim.lr_scheduler`` where it has the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from wire.errors import RunFileError
from wire.lr import LrSchedule
from wire.parse import parse, plain

TOTALS = st.integers(1, 60)
FINALS = st.sampled_from([0.0, 0.01, 0.25, 1.0])
SCHEDULES = st.builds(
    LrSchedule,
    kind=st.sampled_from(["constant", "step", "linear", "cosine"]),
    warmup_steps=st.integers(0, 70),
    milestones=st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(lambda shares: tuple(sorted(shares))),
    gamma=st.floats(0.01, 1),
    final=st.floats(0, 1),
)


def _torch(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """The factors of a torch scheduler, stepped once a step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return found


def _factors(schedule: LrSchedule, total: int, steps: int | None = None) -> list[float]:
    return [schedule.factor(step, total) for step in range(total if steps is None else steps)]


@given(total=TOTALS)
def test_constant(total: int) -> None:
    assert _factors(LrSchedule(), total) == [1.0] * total


@given(total=TOTALS, final=FINALS)
def test_linear_is_torchs(total: int, final: float) -> None:
    wanted = _torch(lambda it: lr_scheduler.LinearLR(it, start_factor=1.0, end_factor=final, total_iters=total), total + 1)
    assert _factors(LrSchedule(kind="linear", final=final), total, total + 1) == pytest.approx(wanted, abs=1e-9)


@given(total=TOTALS, final=FINALS)
def test_cosine_is_torchs(total: int, final: float) -> None:
    wanted = _torch(lambda it: lr_scheduler.CosineAnnealingLR(it, T_max=total, eta_min=final), total + 1)
    assert _factors(LrSchedule(kind="cosine", final=final), total, total + 1) == pytest.approx(wanted, abs=1e-9)


@given(total=TOTALS, gamma=st.sampled_from([0.1, 0.5, 1.0]), data=st.data())
def test_steps_are_torchs(total: int, gamma: float, data: st.DataObject) -> None:
    """A milestone that is the share of a whole step has passed with that step."""
    at = sorted(data.draw(st.sets(st.integers(1, total - 1), max_size=4))) if total > 1 else []
    schedule = LrSchedule(kind="step", milestones=tuple(step / total for step in at), gamma=gamma)
    wanted = _torch(lambda it: lr_scheduler.MultiStepLR(it, milestones=at, gamma=gamma), total)
    assert _factors(schedule, total) == pytest.approx(wanted, rel=1e-9)


@given(warmup=st.integers(2, 30))
def test_a_warm_up_is_torchs(warmup: int) -> None:
    wanted = _torch(lambda it: lr_scheduler.LinearLR(it, start_factor=1 / warmup, total_iters=warmup - 1), warmup + 5)
    assert _factors(LrSchedule(warmup_steps=warmup), warmup + 5) == pytest.approx(wanted, rel=1e-9)


@given(schedule=SCHEDULES, total=TOTALS)
def test_the_warm_up_comes_first_and_the_rest_is_as_long_as_what_is_left(schedule: LrSchedule, total: int) -> None:
    warmup = schedule.warmup_steps
    rest = LrSchedule(**{**plain(schedule), "milestones": schedule.milestones, "warmup_steps": 0})
    for step in range(warmup):
        assert schedule.factor(step, total) == pytest.approx((step + 1) / warmup)
    for step in range(warmup, total + 3):
        assert schedule.factor(step, total) == rest.factor(step - warmup, max(1, total - warmup))


@given(schedule=SCHEDULES, total=TOTALS)
def test_after_the_warm_up_it_never_grows_and_stays_a_factor(schedule: LrSchedule, total: int) -> None:
    found = [schedule.factor(step, total) for step in range(schedule.warmup_steps, schedule.warmup_steps + total + 5)]
    assert found[0] == 1
    assert all(0 <= each <= 1 for each in found)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_past_the_end_it_stays_at_its_final_value(kind: Any) -> None:
    schedule = LrSchedule(kind=kind, final=0.25)
    assert schedule.factor(9, 10) > 0.25
    assert [schedule.factor(step, 10) for step in (10, 11, 1000)] == pytest.approx([0.25] * 3)


def test_half_way() -> None:
    assert LrSchedule(kind="linear", final=0.2).factor(50, 100) == pytest.approx(0.6)
    assert LrSchedule(kind="cosine", final=0.2).factor(25, 100) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert [LrSchedule(kind="step").factor(step, 100) for step in (49, 50, 74, 75)] == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "exponential"}, "`lr_schedule.kind` is 'exponential'; it must be one of 'constant', 'step', 'linear', 'cosine'"),
        ({"warmup_steps": -1}, "lr_schedule: `warmup_steps` is -1; it must be 0 or more"),
        ({"warmup_steps": 1.5}, "`lr_schedule.warmup_steps` must be a whole number"),
        ({"milestones": [0.5, 0.5]}, r"`milestones` is \[0.5, 0.5\]; give ascending shares of the run"),
        ({"milestones": [0.75, 0.5]}, "give ascending shares"),
        ({"milestones": [0.0]}, "give ascending shares"),
        ({"milestones": [1]}, "give ascending shares"),
        ({"milestones": [30]}, "give ascending shares"),
        ({"milestones": [math.nan]}, "give ascending shares"),
        ({"gamma": 0}, "`gamma` is 0.0; it must be above 0 and at most 1"),
        ({"gamma": 1.1}, "`gamma` is 1.1"),
        ({"gamma": math.nan}, "`gamma` is nan"),
        ({"final": -0.1}, "`final` is -0.1; it must lie in 0 to 1"),
        ({"final": 2}, "`final` is 2.0"),
        ({"final": math.nan}, "`final` is nan"),
    ],
)
def test_bad_values_name_their_key(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RunFileError, match=said) as caught:
        parse(LrSchedule, values, where="lr_schedule", error=RunFileError)
    assert "\n" not in str(caught.value)
