"""A plan on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulation.plan.table import Plan, Row
from simulation.plan.units import mebibytes, short, time_of

__all__ = ["show"]

_WIDTH = 140  # where output is no terminal
_SHOWN = 6  # names of submodules after which it cannot be cut
_MARKS = {True: "★", False: "•"}
_ASCII = str.maketrans({"★": "*", "•": "+", "…": "..."})


def show(plan: Plan) -> None:
    """Print it to stdout."""
    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH)
    for text in _above(plan):
        console.print(_text(text, console))
    console.print(_table(plan, console))
    for text in _below(plan):
        console.print(_text(text, console))


def _text(text: str, console: Console, style: str = "") -> Text:
    return Text(text.translate(_ASCII) if console.options.ascii_only else text, style=style)


def _above(plan: Plan) -> Iterator[str]:
    yield (
        f"{plan.model} over {plan.link.name} on {plan.device.name}: batches of {plan.batch_size}, {plan.in_flight} in flight, "
        f"{plan.epoch_samples:,} samples an epoch; time and energy with {plan.main}"
    )


def _below(plan: Plan) -> Iterator[str]:
    yield f"{_MARKS[True]} recommended, {_MARKS[False]} on the front: no other is as good in time, leakage and memory, and better in one."
    yield plan.verdict if plan.recommended is not None else f"None: {plan.verdict}."
    for reason, names in plan.refused.items():
        shown = f"{', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
        yield f"Not after {len(names)} of the submodules ({shown}): {reason}"
    refused = {reason: row.cut for row in plan.rows for reason in row.refused.values()}
    yield from (f"At {cut}: {reason}" for reason, cut in list(refused.items())[:_SHOWN])
    yield from plan.remarks


def _table(plan: Plan, console: Console) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("cut after", overflow="fold")
    columns = ("activations", *(f"{codec}, B" for codec in plan.codecs), "FLOP", "memory, MiB", "an epoch", "energy, J", "leakage")
    for name in columns:
        table.add_column(name, justify="right")
    for at, row in enumerate(plan.rows):
        mark = _MARKS[at == plan.recommended] if at in plan.front else ""
        style = "bold green" if at == plan.recommended else "" if at in plan.front else "dim"
        table.add_row(*(_text(cell, console, style) for cell in (mark, row.cut, *_cells(plan, row))))
    return table


def _cells(plan: Plan, row: Row) -> Iterator[str]:
    yield f"{row.activations:,}"
    for codec in plan.codecs:
        yield f"{row.costs[codec].round_trip_bytes:,.0f}" if codec in row.costs else "-"
    yield short(row.flops.step)
    yield f"{mebibytes(row.memory_bytes)}{' (low)' if row.memory == 'low' else ''}{'' if row.fits else ' too large'}"
    cost = row.costs.get(plan.main)
    yield "-" if cost is None else str(time_of(cost.seconds))
    yield "-" if cost is None else short(cost.joules)
    yield "-" if row.leakage is None else f"{row.leakage:.2f}"
