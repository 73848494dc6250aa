"""What a client's board is: how long it computes, and what that takes out of its battery."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A board. ``flops``: floating-point operations a second that training reaches on it; ``step_s``: what a step takes beside them.

    ``idle_w``: with nothing to do; ``flop_j``: more for each operation. ``memory_bytes``: what a client may use. ``battery_wh``: None where
    it hangs on the mains.
    """

    name: str
    flops: float
    step_s: float
    idle_w: float
    flop_j: float
    memory_bytes: int
    battery_wh: float | None = None

    def __post_init__(self) -> None:
        if self.flops <= 0 or min(self.step_s, self.idle_w, self.flop_j, self.memory_bytes) < 0:
            raise ValueError(f"device `{self.name}`: `flops` must be above 0, the rest 0 or more")
        if self.battery_wh is not None and self.battery_wh <= 0:
            raise ValueError(f"device `{self.name}`: `battery_wh` is {self.battery_wh}; it must be above 0")

    def compute_s(self, flops: float) -> float:
        """How long one call of the engine takes that does so many operations."""
        return self.step_s + flops / self.flops
