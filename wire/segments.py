"""The ``[[segments]]`` of a run file: a graph of segments, each a network of its own, where one network and its cuts cannot say it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["RECONSTRUCTION", "LossName", "ReconstructConfig", "SegmentConfig"]

RECONSTRUCTION = "reconstruction"  # the output of an autoencoder's segment that crosses no cut: its error

LossName = Literal["cross_entropy", "bce", "mse"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructConfig:
    """A segment with raw data as an autoencoder, for clients that have few labels (Gupta & Raskar 2018, semi-supervised variant).

    ``decoder``, ``path.py:callable`` with ``args``, is trained beside the segment, on the client alone: from the segment's outputs it makes
    what the raw data was. The segment's gradient is the one that comes back over the cut plus ``alpha`` times that of the mean squared
    error between the two. ``segment``: left out, the first with raw data.
    """

    decoder: str
    alpha: float
    args: dict[str, Any] = field(default_factory=dict)
    segment: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"`alpha` is {self.alpha}; it must be a finite number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """One segment: a network of its own, the parties that hold it, and the segments whose outputs it takes.

    ``on``: a party, or several with a replica each, a lane each; "clients" stands for all clients. ``build`` is a bundled model's name or
    ``path.py:callable``, as in ``[model]``; ``args`` go to it. ``inputs``: segments whose outputs come in, in the order of the module's
    arguments; left out, the segment takes raw data, one sample of which has ``input_shape``. ``freeze`` as in ``[model]``.

    At an end of the graph is a loss: ``loss``, by default the run's. ``labels_from``: the segment with raw data at which its labels are;
    left out, the first that leads here.
    """

    name: str
    on: tuple[str, ...]
    build: str
    args: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    freeze: tuple[str, ...] = ()
    loss: LossName | None = None
    labels_from: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"`name` is {self.name!r}; use 1 to 64 letters, digits, `_` or `-`")
        if not self.on:
            raise ValueError(f"`on` of segment `{self.name}` is empty; name the party that holds it")
        if len(set(self.inputs)) != len(self.inputs):
            raise ValueError(f"`inputs` of segment `{self.name}` names a segment twice")
        if self.inputs and self.input_shape is not None:
            raise ValueError(
                f"segment `{self.name}` has `inputs` and `input_shape`; only a segment that takes raw data has a shape of its own"
            )
