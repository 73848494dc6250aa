"""Numbers as a person reads them: three figures and a unit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Time", "mebibytes", "short", "time_of"]

_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_STEPS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


@dataclass(frozen=True, slots=True)
class Time:
    """A time of three figures, in the largest unit of which it has two."""

    figure: float
    unit: str
    unit_s: float

    @property
    def seconds(self) -> float:
        """What is printed, in seconds."""
        return self.figure * self.unit_s

    def __str__(self) -> str:
        return f"{_figures(self.figure)} {self.unit}"


def time_of(seconds: float) -> Time:
    """Of 0 or more seconds."""
    unit, unit_s = next(((name, size) for name, size in _UNITS if seconds >= 2 * size), _UNITS[-1])
    return Time(float(f"{seconds / unit_s:.3g}"), unit, unit_s)


def short(value: float) -> str:
    """1234567 as "1.23 M"."""
    step, size = next(((name, size) for name, size in _STEPS if value >= size), _STEPS[-1])
    return f"{_figures(float(f'{value / size:.3g}'))}{f' {step}' if step else ''}"


def mebibytes(size_bytes: int) -> int:
    """Rounded up."""
    return -(-size_bytes // (1 << 20))


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
