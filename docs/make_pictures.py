"""Draws the graph of every run file in examples/ for its guide: ``python -m docs.make_pictures`` writes docs/pictures/*.svg."""

from __future__ import annotations

from pathlib import Path

from simulation.picture import draw, picture_of_run
from wire.runfile import load_run

__all__ = ["EXAMPLES", "FOLDER", "drawn"]

FOLDER = Path(__file__).with_name("pictures")
EXAMPLES = sorted((FOLDER.parent.parent / "examples").glob("*.toml"))


def drawn(example: Path) -> str:
    """The SVG of one run file."""
    return draw(picture_of_run(load_run(example)))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for example in EXAMPLES:
        (FOLDER / f"{example.stem}.svg").write_text(drawn(example), encoding="utf-8")


if __name__ == "__main__":
    main()
