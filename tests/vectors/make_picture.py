"""The golden picture: ``python -m tests.vectors.make_picture``. It changes only with how pictures look; look at it then."""

from __future__ import annotations

from pathlib import Path

from simulation.picture import Picture, draw
from tests.simulation.pictures import GRAPHS, pictured

__all__ = ["GOLDEN", "picture"]

GOLDEN = Path(__file__).with_name("picture.svg")


def picture() -> Picture:
    """Two clinics with different data and a U: two cuts from the clinics, one back, and one edge that stays."""
    return pictured(GRAPHS["u-shape-vertical"], title="golden", notes=("Weights of clients stay on their devices.",))


if __name__ == "__main__":
    GOLDEN.write_text(draw(picture()), encoding="utf-8")
