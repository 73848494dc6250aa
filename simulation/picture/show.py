"""``cutlayer graph``: the picture of a run file in the terminal, as JSON, as SVG."""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator
from pathlib import Path

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from simulation.picture.facts import Cut, Held, Picture, picture_of_run
from simulation.picture.layout import pills_of, size_of
from simulation.picture.svg import draw
from wire.runfile import load_run

__all__ = ["show", "show_run"]

_WIDTH = 120  # where output is no terminal
_COLOURS = {"data": "bold yellow", "labels": "bold magenta", "passing": "magenta", "loss": "green"}
_ASCII = str.maketrans({"→": "->", "←": "<-", "↔": "<->", "…": "...", "·": "|", "─": "-"})


def show_run(path: str | Path, *, svg: Path | None = None, json: bool = False) -> None:
    """Print the run's picture; ``svg``: write it there as well; ``json``: print one JSON object instead. Raises CutlayerError, OSError."""
    picture = picture_of_run(load_run(path))
    if svg is not None:
        svg.write_text(draw(picture), encoding="utf-8")
    if json:
        print(encoder.dumps(picture.plain()))
        return
    terminal = Console(highlight=False)
    show(picture, terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH))


def show(picture: Picture, console: Console) -> None:
    """Holders as boxes, then cuts and links as tables, then the notes."""
    for part in _Parts(picture, ascii_only=console.options.ascii_only).all():
        console.print(part)


class _Parts:
    def __init__(self, picture: Picture, *, ascii_only: bool) -> None:
        self._picture = picture
        self._ascii_only = ascii_only

    def all(self) -> Iterator[RenderableType]:
        yield self._text(self._picture.title, "bold")
        for at, holder in enumerate(self._picture.holders):
            lines = [self._segment(at, held) for held in holder.segments] or [self._text("no segment")]
            title = self._text(f"{holder.name} ({holder.about})", "bold")
            yield Panel(Group(*lines), title=title, title_align="left", box=ROUNDED, expand=False, padding=(0, 2))
        if self._picture.cuts:
            yield self._cuts()
        for link in self._picture.links:
            yield self._text(f"{link.letter}  {self._picture.says(link)}")
        for note in self._picture.notes:
            yield self._text(note)

    def _text(self, text: str, style: str = "") -> Text:
        return Text(text.translate(_ASCII) if self._ascii_only else text, style=style)

    def _segment(self, at: int, held: Held) -> Text:
        """Its name and size, what is marked there, and where its outputs go."""
        line = self._text(held.segment, "bold")
        if held.parameters is not None:
            line.append(f"  {size_of(held)}")
        for kind, text in pills_of(held):
            line.append("  ").append(f"[{text}]", style=_COLOURS[kind])
        for arrow in self._picture.arrows:
            if arrow.source == (at, held.segment):
                way = "→" if arrow.cut is None else f"─({arrow.cut})→"
                line.append_text(self._text(f"  {way} {self._picture.holders[arrow.target[0]].name}: {arrow.target[1]}"))
        return line

    def _cuts(self) -> Table:
        table = Table(box=SIMPLE_HEAD, title="What crosses", title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
        for name in ("", "cut", "tensor", "shape of a sample", "activations", "forward", "backward", "rides along", "lines"):
            table.add_column(name, justify="right" if name in ("activations", "lines") else "left", overflow="fold")
        for cut in self._picture.cuts:
            for at, row in enumerate(_rows(cut)):
                style = _COLOURS["passing"] if cut.labels and at == 0 else ""
                table.add_row(*(self._text(cell, style if column == 7 else "") for column, cell in enumerate(row)))
        return table


def _rows(cut: Cut) -> Iterator[tuple[str, ...]]:
    """One a tensor; what is the cut's stands in the first."""
    for at, tensor in enumerate(cut.tensors):
        mine = (tensor.name, str(list(tensor.shape)), f"{tensor.activations:,}")
        whole = (cut.forward, cut.backward, cut.rides, str(cut.lines))
        yield (str(cut.number), f"{cut.source} → {cut.target}", *mine, *whole) if at == 0 else ("", "", *mine, "", "", "", "")
