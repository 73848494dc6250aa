"""How a line's rates change over time: outages by a schedule, outages by chance, or a recorded trace of rates.

All are pure: what they answer for a moment depends on nothing that was asked before.
"""

from __future__ import annotations

import bisect
import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from simulation.field.link import Conditions, Link
from wire.errors import UsageError
from wire.rng import generator

__all__ = ["Markov", "MarkovSpec", "OutagesSpec", "Steps", "TraceSpec", "WeatherSpec", "outages", "read_trace", "weather_of"]

_TRACE_BYTES = 16 << 20
_TRACE_ROWS = 1 << 20
_OUTAGES = 100_000
_HEADER = ["time_s", "up_bps", "down_bps"]
_BLOCK_EVENTS = 64.0  # of a chain's moments, on average, that one draw gives


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Factors that hold from each of ``begins_s`` (the first is 0) to the next; the last to ``every_s``, where all begins anew (None:
    for ever)."""

    begins_s: tuple[float, ...]
    up: tuple[float, ...]
    down: tuple[float, ...]
    every_s: float | None = None

    def __post_init__(self) -> None:
        if not self.begins_s or self.begins_s[0] != 0 or not len(self.begins_s) == len(self.up) == len(self.down):
            raise ValueError("a schedule begins at 0, and has as many factors as beginnings")
        ends = (*self.begins_s[1:], math.inf if self.every_s is None else self.every_s)
        if not all(begin < end for begin, end in zip(self.begins_s, ends, strict=True)):
            raise ValueError("a schedule's time must go forward")

    def at(self, time_s: float) -> Conditions:
        turn_s, since_s = 0.0, time_s
        if self.every_s is not None:
            since_s = math.fmod(time_s, self.every_s)
            turn_s = time_s - since_s
        at = bisect.bisect_right(self.begins_s, since_s) - 1
        later = at + 1 < len(self.begins_s)
        until_s = turn_s + (self.begins_s[at + 1] if later else math.inf if self.every_s is None else self.every_s)
        return Conditions(up=self.up[at], down=self.down[at], until_s=_after(time_s, until_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Markov:
    """A line that is whole for ``up_s`` on average and then dead for ``down_s`` on average, without memory, from its long-run state on.

    The chain is made by uniformization: at moments of a Poisson process of rate 1 / up_s + 1 / down_s, the state is drawn anew, whole with
    the chance of its long-run share; with two states that is the same chain. So any moment can be asked for without those before: time is
    in blocks, and what happens in a block is a function of (``seed``, ``client``, number of the block) alone.
    """

    up_s: float
    down_s: float
    seed: int = 0
    client: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.up_s < math.inf and 0 < self.down_s < math.inf):
            raise ValueError(f"`up_s` is {self.up_s} and `down_s` {self.down_s}; both must be above 0")

    def at(self, time_s: float) -> Conditions:
        block_s = _BLOCK_EVENTS / (1 / self.up_s + 1 / self.down_s)
        block = math.floor(time_s / block_s)
        times_s, states = self._block(block, block_s)
        at = bisect.bisect_right(times_s, time_s) - 1
        whole = states[at] if at >= 0 else self._before(block, block_s)
        changes = (begin for begin, state in zip(times_s[at + 1 :], states[at + 1 :], strict=True) if state != whole)
        until_s = next(changes, (block + 1) * block_s)
        return Conditions(up=float(whole), down=float(whole), until_s=_after(time_s, until_s))

    def _before(self, block: int, block_s: float) -> bool:
        """The state at the beginning of a block: that of the last moment before it."""
        for earlier in range(block - 1, -1, -1):
            _, states = self._block(earlier, block_s)
            if states:
                return states[-1]
        return bool(generator(self.seed, "weather", self.client, "first").random() < self._share)

    @property
    def _share(self) -> float:
        return self.up_s / (self.up_s + self.down_s)

    def _block(self, block: int, block_s: float) -> tuple[tuple[float, ...], tuple[bool, ...]]:
        return _moments(self.seed, self.client, block, block_s, self._share)


@functools.lru_cache(maxsize=4096)
def _moments(seed: int, client: int, block: int, block_s: float, share: float) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """When the state is drawn within a block, in order, and what comes of it."""
    drawn = generator(seed, "weather", client, block)
    count = int(drawn.poisson(_BLOCK_EVENTS))
    times_s = sorted(block * block_s + drawn.random(count) * block_s)
    return tuple(float(each) for each in times_s), tuple(bool(each) for each in drawn.random(count) < share)


def _after(time_s: float, until_s: float) -> float:
    """``until_s``, or where rounding has brought it to ``time_s`` the next number."""
    return until_s if until_s > time_s else math.nextafter(time_s, math.inf)


def outages(spans: Sequence[Sequence[float]], *, every_s: float | None = None) -> Steps:
    """No line at all for [begin, length] in seconds each; from ``every_s`` on again from the beginning. Raises ValueError."""
    if len(spans) > _OUTAGES:
        raise ValueError(f"{len(spans)} outages; at most {_OUTAGES} are taken")
    if every_s is not None and not 0 < every_s < math.inf:
        raise ValueError(f"`every_s` is {every_s}; it must be above 0")
    begins_s, factors, free_s = [0.0], [1.0], 0.0
    for begin_s, length_s in spans:
        if not (free_s <= begin_s < math.inf and 0 < length_s < math.inf):
            raise ValueError(f"the outage [{begin_s:g}, {length_s:g}] must begin after the one before, and last longer than 0 s")
        free_s = begin_s + length_s
        if every_s is not None and free_s > every_s:
            raise ValueError(f"the outage [{begin_s:g}, {length_s:g}] ends after `every_s`, {every_s:g}")
        if begins_s[-1] == begin_s:
            factors[-1] = 0.0
        else:
            begins_s.append(begin_s)
            factors.append(0.0)
        if free_s != every_s:
            begins_s.append(free_s)
            factors.append(1.0)
    return Steps(begins_s=tuple(begins_s), up=tuple(factors), down=tuple(factors), every_s=every_s)


def read_trace(path: str | Path, *, up_bps: float, down_bps: float) -> Steps:
    """A CSV file of rates over time as factors of a line's own rates, repeated.

    Its columns are ``time_s,up_bps,down_bps``, with this header. Each row's rates hold until the next row's time; the last row only says
    when the trace ends, and from then on it begins again. Times count from the first row's. Raises UsageError naming file and line.
    """
    rows = _rows(Path(path))
    if min(up_bps, down_bps) <= 0:
        raise UsageError(f"{path}: a trace is for a line with rates above 0 of its own")
    first_s = rows[0][0]
    return Steps(
        begins_s=tuple(time_s - first_s for time_s, _, _ in rows[:-1]),
        up=tuple(up / up_bps for _, up, _ in rows[:-1]),
        down=tuple(down / down_bps for _, _, down in rows[:-1]),
        every_s=rows[-1][0] - first_s,
    )


def _rows(path: Path) -> list[tuple[float, float, float]]:
    try:
        if path.stat().st_size > _TRACE_BYTES:
            raise UsageError(f"{path} is larger than {_TRACE_BYTES} bytes; cut the trace")
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            rows = _checked(path, lines)
    except OSError as exc:
        raise UsageError(f"cannot read the trace {path}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not text: {exc.reason}") from exc
    except csv.Error as exc:
        raise UsageError(f"{path}, line {lines.line_num}: {exc}") from exc
    if len(rows) < 2:
        raise UsageError(f"{path} has {len(rows)} rows of rates; a trace has at least two, of which the last says when it ends")
    return rows


def _checked(path: Path, lines: Any) -> list[tuple[float, float, float]]:
    """``lines``: a csv.reader, whose type has no public name."""
    header = next(lines, None)
    if header is None:
        raise UsageError(f"{path} is empty; a trace begins with the line {','.join(_HEADER)}")
    if [name.strip() for name in header] != _HEADER:
        raise UsageError(f"{path}, line 1: the header must be {','.join(_HEADER)}")
    rows: list[tuple[float, float, float]] = []
    for cells in lines:
        if not cells:
            continue
        where = f"{path}, line {lines.line_num}"
        time_s, up_bps, down_bps = _numbers(cells, where)
        if rows and time_s <= rows[-1][0]:
            raise UsageError(f"{where}: time must go forward, and {time_s:g} comes after {rows[-1][0]:g}")
        if len(rows) == _TRACE_ROWS:
            raise UsageError(f"{where}: more than {_TRACE_ROWS} rows; cut the trace")
        rows.append((time_s, up_bps, down_bps))
    return rows


def _numbers(cells: Sequence[str], where: str) -> tuple[float, float, float]:
    if len(cells) != len(_HEADER):
        raise UsageError(f"{where}: {len(cells)} values; it must be {len(_HEADER)}: {','.join(_HEADER)}")
    found: list[float] = []
    for name, cell in zip(_HEADER, cells, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise UsageError(f"{where}: `{name}` is {cell.strip()[:40]!r}; it must be a number, 0 or more")
        found.append(value)
    return found[0], found[1], found[2]


# ------------------------------------------------------------ as TOML has them


@dataclass(frozen=True, slots=True, kw_only=True)
class OutagesSpec:
    """See ``outages``."""

    kind: Literal["outages"]
    outages: tuple[tuple[float, float], ...]
    every_s: float | None = None

    def __post_init__(self) -> None:
        outages(self.outages, every_s=self.every_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovSpec:
    """See ``Markov``."""

    kind: Literal["markov"]
    up_s: float
    down_s: float

    def __post_init__(self) -> None:
        Markov(up_s=self.up_s, down_s=self.down_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpec:
    """See ``read_trace``. ``file``: beside the file that names it."""

    kind: Literal["trace"]
    file: str


WeatherSpec = OutagesSpec | MarkovSpec | TraceSpec


def weather_of(link: Link, *, seed: int, client: int) -> Link:
    """The link with the weather of this client (a number, 0 or more): by chance each has its own, all else is the same for all."""
    return replace(link, weather=replace(link.weather, seed=seed, client=client)) if isinstance(link.weather, Markov) else link
