"""Quantities as people read them: three significant digits, and the unit that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["ENERGIES", "NONE", "SIZES", "Units", "alike", "duration", "energy", "exact", "percent", "score", "size"]

NONE = "\N{EN DASH}"

Units = tuple[tuple[str, float], ...]  # from the largest
SIZES: Units = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
ENERGIES: Units = (("GJ", 1e9), ("MJ", 1e6), ("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3))


def duration(seconds: float) -> str:
    """Two units at most: 3 h 12 min; below ten seconds with digits behind the point."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 9.95:
        return _scaled(seconds, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)))
    # Rounded first, in the smaller of the two units that are shown: 59 min 60 s is one hour.
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if round(seconds) < 3_600:
        return _pair(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 1_440:
        return _pair(round(seconds / 60), 60, "h", "min")
    return _pair(round(seconds / 3_600), 24, "d", "h")


def _pair(count: int, per: int, large: str, small: str) -> str:
    many, rest = divmod(count, per)
    return f"{many:,} {large} {rest} {small}" if rest else f"{many:,} {large}"


def size(count: float) -> str:
    """Bytes, in powers of 1,000."""
    return _scaled(count, SIZES)


def energy(joules: float) -> str:
    return _scaled(joules, ENERGIES)


def percent(share: float) -> str:
    return f"{share * 100:.1f} %" if math.isfinite(share) else NONE


def score(value: float, *, is_share: bool) -> str:
    """A metric's value; one that is a share as a percentage."""
    if not math.isfinite(value):
        return "not a number"
    return percent(value) if is_share else f"{value:.4g}"


def exact(value: object) -> str:
    """A constant as it stands in its file, its thousands apart."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 1e3 <= abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(exact(item) for item in value)
    return str(value)


def alike(values: Sequence[float], units: Units) -> list[str]:
    """All in one unit, as an axis has them: the one that fits the largest."""
    most = max(map(abs, values), default=0.0)
    unit, factor = next((each for each in units if most >= each[1]), units[-1])
    return [f"{value / factor:.4g} {unit}" for value in values]


def _scaled(value: float, units: Units) -> str:
    if not math.isfinite(value):
        return NONE
    # The first in which it is 1 or more as it will be written: 999.7 kB is 1.00 MB.
    fits = (unit for unit in units if abs(float(_digits(value / unit[1]))) >= 1)
    unit, factor = next(fits, units[-1] if value else next(unit for unit in units if unit[1] == 1))
    return f"{_digits(value / factor)} {unit}"


def _digits(value: float) -> str:
    """Three significant digits, never an exponent; whole numbers stay whole."""
    if value == round(value) and abs(value) < 1_000:
        return f"{value:.0f}"
    power = int(f"{value:.2e}".partition("e")[2])  # after rounding: of 0.9997 it is 0
    return f"{value:.{min(max(0, 2 - power), 3)}f}"
