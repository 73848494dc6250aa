"""The learning rate as a pure function of the global step, so that every party, and a resumed run, computes the same one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["LrSchedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSchedule:
    """What the optimizer's ``lr`` is multiplied by.

    ===========  ==================================================================================
    ``kind``     after the warm-up
    ===========  ==================================================================================
    constant     1
    step         ``gamma`` to the power of how many of ``milestones`` (shares of the run) have passed
    linear       from 1 down to ``final`` at the run's end
    cosine       half a cosine from 1 down to ``final`` (Loshchilov & Hutter, arXiv 1608.03983)
    ===========  ==================================================================================

    During the first ``warmup_steps`` global steps the factor grows evenly, from 1 / warmup_steps to 1.
    """

    kind: Literal["constant", "step", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"`warmup_steps` is {self.warmup_steps}; it must be 0 or more")
        if not all(0 < at < 1 for at in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"`milestones` is {list(self.milestones)}; give ascending shares of the run between 0 and 1")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"`gamma` is {self.gamma}; it must be above 0 and at most 1")
        if not 0 <= self.final <= 1:
            raise ValueError(f"`final` is {self.final}; it must lie in 0 to 1")

    def factor(self, global_step: int, total_steps: int) -> float:
        """The factor at ``global_step`` (from 0) of a run of ``total_steps``."""
        if global_step < self.warmup_steps:
            return (global_step + 1) / self.warmup_steps
        left = max(1, total_steps - self.warmup_steps)
        done = min(1.0, (global_step - self.warmup_steps) / left)
        if self.kind == "step":
            return float(self.gamma ** sum(done >= at for at in self.milestones))
        if self.kind == "linear":
            return 1 + (self.final - 1) * done
        if self.kind == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2
        return 1.0
