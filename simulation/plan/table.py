"""A plan: a row a cut, which rows are on the front, and which one is recommended, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from export.flops import Flops
from simulation.field.device import Device
from simulation.field.energy import JOULES_PER_WH
from simulation.field.link import CLEAR, Link
from simulation.plan.front import Point, front_of, recommended
from simulation.plan.units import mebibytes, time_of
from wire.manifest import MemoryMode

__all__ = ["CodecCost", "Plan", "Row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecCost:
    """A cut with one codec. ``up_bytes``, ``down_bytes``: PUBLISH packets, a sample of a training step. The rest is of an epoch:
    ``line_bytes`` with headers and repeats, ``joules`` with idle power and ``busy_joules`` without."""

    up_bytes: float
    down_bytes: float
    seconds: float
    line_bytes: float
    joules: float
    busy_joules: float

    @property
    def round_trip_bytes(self) -> float:
        return self.up_bytes + self.down_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A cut. ``also``: other submodules with the same end. ``tensors``: the shape of a sample of each tensor that crosses, by name.

    ``parameters``: of the client's segment. ``memory_bytes``: of the client at its peak, in the mode in which it fits (``memory``).
    ``leakage``: None where it means nothing. ``costs``: by codec; ``refused``: why a codec does not fit.
    """

    cut: str
    also: tuple[str, ...]
    tensors: Mapping[str, tuple[int, ...]]
    activations: int
    parameters: int
    flops: Flops
    memory: MemoryMode
    memory_bytes: int
    fits: bool
    leakage: float | None
    costs: Mapping[str, CodecCost]
    refused: Mapping[str, str]

    def point(self, codec: str, memory_bytes: int) -> Point | None:
        """With values as printed; None where it does not fit the device, or the codec does not fit it."""
        if not self.fits or codec not in self.costs:
            return None
        leakage = None if self.leakage is None else round(self.leakage, 2)
        seconds = time_of(self.costs[codec].seconds).seconds
        return Point(seconds=seconds, leakage=leakage, memory_share=(mebibytes(self.memory_bytes) << 20) / memory_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``main``: the codec of which front and recommendation are. ``refused``: why the network cannot be cut after which submodules.
    ``recommended``: the number of a row; None where none fits, and ``verdict`` says why."""

    model: str
    link: Link
    device: Device
    batch_size: int
    in_flight: int
    epoch_samples: int
    codecs: tuple[str, ...]
    main: str
    rows: tuple[Row, ...]
    refused: Mapping[str, Sequence[str]]
    notes: tuple[str, ...] = ()
    front: tuple[int, ...] = field(init=False)
    recommended: int | None = field(init=False)

    def __post_init__(self) -> None:
        points = {at: point for at, row in enumerate(self.rows) if (point := row.point(self.main, self.device.memory_bytes))}
        numbers, values = list(points), list(points.values())
        on_it = tuple(at for at, is_on in zip(numbers, front_of(values), strict=True) if is_on)
        object.__setattr__(self, "front", on_it)
        object.__setattr__(self, "recommended", numbers[recommended(values)] if numbers else None)

    @property
    def verdict(self) -> str:
        """The recommendation with its reason, in a sentence."""
        if self.recommended is None:
            return self._nothing_fits()
        row = self.rows[self.recommended]
        mine = row.costs[self.main]
        others = [self.rows[at] for at in self.front]
        shortest = min(others, key=lambda other: other.costs[self.main].seconds)
        parts = [f"{time_of(mine.seconds)} an epoch{_beside(row, shortest, str(time_of(shortest.costs[self.main].seconds)), 'shortest')}"]
        if row.leakage is not None:
            least = min(others, key=lambda other: other.leakage or 0.0)
            parts.append(f"leakage {row.leakage:.2f}{_beside(row, least, f'{least.leakage:.2f}', 'least')}")
        parts.append(f"{mebibytes(row.memory_bytes)} of {mebibytes(self.device.memory_bytes)} MiB")
        return f"Cut after {row.cut}: of {len(others)} on the front it weighs time, leakage and memory best: {', '.join(parts)}."

    def _nothing_fits(self) -> str:
        fitting = [row for row in self.rows if row.fits]
        if fitting:
            return f"codec `{self.main}` fits no cut of {self.model}: {fitting[0].refused[self.main]}"
        least = min(self.rows, key=lambda row: row.memory_bytes)
        return (
            f"no cut of {self.model} fits {self.device.name}: the smallest, after {least.cut}, needs {mebibytes(least.memory_bytes)} MiB "
            f"of {mebibytes(self.device.memory_bytes)} MiB; lower the batch size, or take another device"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader should know of the figures."""
        found = list(self.notes)
        if self.link.weather is not CLEAR:
            found.append("The line is taken at its best: its outages and changes are not counted; `cutlayer simulate` counts them.")
        if self.device.battery_wh is not None and self.recommended is not None:
            epochs = self.device.battery_wh * JOULES_PER_WH / self.rows[self.recommended].costs[self.main].joules
            found.append(f"The battery lasts for {epochs:.3g} epochs of the recommended cut.")
        return tuple(found)

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        chosen = None if self.recommended is None else self.rows[self.recommended].cut
        rows = [{**asdict(row), "on_front": at in self.front, "recommended": at == self.recommended} for at, row in enumerate(self.rows)]
        for row in rows:
            for cost in row["costs"].values():
                cost["bytes_per_sample"] = cost["up_bytes"] + cost["down_bytes"]
        return {
            "model": self.model,
            "link": self.link.name,
            "device": self.device.name,
            "device_memory_bytes": self.device.memory_bytes,
            "batch_size": self.batch_size,
            "in_flight": self.in_flight,
            "epoch_samples": self.epoch_samples,
            "codecs": list(self.codecs),
            "main_codec": self.main,
            "cuts": rows,
            "refused": {reason: list(names) for reason, names in self.refused.items()},
            "recommended": chosen,
            "verdict": self.verdict,
            "remarks": list(self.remarks),
        }


def _beside(row: Row, best: Row, value: str, word: str) -> str:
    return f" (the {word})" if row is best else f" (the {word} is {value}, after {best.cut})"
