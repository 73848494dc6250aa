"""A plan on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from simulation.plan.table import CodecCost, Plan, Row
from simulation.plan.units import mebibytes, short, time_of

__all__ = ["show"]

_WIDTH = 140  # where output is no terminal
_SHOWN = 6  # names of submodules after which it cannot be cut
_MARKS = {True: "★", False: "•"}
_ASCII = str.maketrans({"★": "*", "•": "+", "…": "..."})


def show(plan: Plan, console: Console | None = None) -> None:
    """Print it, where nothing else is said to stdout."""
    if console is None:
        terminal = Console(highlight=False)
        console = terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH)
    for text in _above(plan):
        console.print(_text(text, console))
    for table in _tables(plan, console):
        console.print(table)
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


def _tables(plan: Plan, console: Console) -> Iterator[Table]:
    """One, or where that is too wide what crosses and what it takes one below the other."""
    sent, taken = _sent(plan), _taken(plan)
    whole = _table(plan, console, (*sent, *taken))
    if Measurement.get(console, console.options.update(max_width=10_000), whole).maximum <= console.width:
        yield whole
    else:
        yield _table(plan, console, sent)
        yield _table(plan, console, taken)


_Column = tuple[str, Callable[[Row], str]]


def _table(plan: Plan, console: Console, columns: Sequence[_Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("cut after", overflow="fold")
    for name, _ in columns:
        table.add_column(name, justify="right", overflow="fold")
    for at, row in enumerate(plan.rows):
        mark = _MARKS[at == plan.recommended] if at in plan.front else ""
        style = "bold green" if at == plan.recommended else "" if at in plan.front else "dim"
        table.add_row(*(_text(cell, console, style) for cell in (mark, row.cut, *(cell(row) for _, cell in columns))))
    return table


def _sent(plan: Plan) -> tuple[_Column, ...]:
    def size_with(codec: str) -> Callable[[Row], str]:
        return lambda row: f"{row.costs[codec].round_trip_bytes:,.0f}" if codec in row.costs else "-"

    return (("activations", lambda row: f"{row.activations:,}"), *((f"{codec}, B", size_with(codec)) for codec in plan.codecs))


def _taken(plan: Plan) -> tuple[_Column, ...]:
    def cost(row: Row, tell: Callable[[CodecCost], str]) -> str:
        return tell(row.costs[plan.main]) if plan.main in row.costs else "-"

    return (
        ("FLOP", lambda row: short(row.flops.step)),
        ("memory, MiB", _memory),
        ("an epoch", lambda row: cost(row, lambda found: str(time_of(found.seconds)))),
        ("energy, J", lambda row: cost(row, lambda found: short(found.joules))),
        ("leakage", lambda row: "-" if row.leakage is None else f"{row.leakage:.2f}"),
    )


def _memory(row: Row) -> str:
    how = " (low)" if row.memory == "low" else ""
    return f"{mebibytes(row.memory_bytes)}{how}{'' if row.fits else ' too large'}"
