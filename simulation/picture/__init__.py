"""The picture of a run: who holds what, where raw data, labels and losses are, and what crosses each line."""

from __future__ import annotations

from simulation.picture.facts import Picture, picture_of, picture_of_run
from simulation.picture.show import show_run
from simulation.picture.svg import draw

__all__ = ["Picture", "draw", "picture_of", "picture_of_run", "show_run"]
