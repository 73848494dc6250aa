"""What ``cutlayer plan`` is told on the command line. Light: the command imports it before it knows its verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["ABOUT", "add_plan"]

ABOUT = "list every cut of a model, with its bytes, time, energy, memory and leakage, and recommend one"

_DATA = ("digits", "breast-cancer", "fashion-mnist", "cifar10")


def add_plan(
    plan: argparse.ArgumentParser, *, count: Callable[[str], int], shape: Callable[[str], Any], codec: Callable[[str], str]
) -> None:
    """``count``, ``shape`` and ``codec`` read an option's text, as for other verbs."""
    plan.add_argument(
        "model",
        metavar="MODEL",
        help="my_model.py:build, a bundled model's name, or RUN.toml: then data, batch size, codec and optimizer are the run's as well",
    )
    plan.add_argument("--link", required=True, metavar="NAME", help="the line of a client, like gprs or gprs,loss=0.05; or a file")
    plan.add_argument("--device", required=True, metavar="NAME", help="the board of a client, like pi-zero-2w; or a file")
    plan.add_argument(
        "--codec", type=codec, action="append", metavar="NAME", help="only these; repeat it for several; time and energy are of the first"
    )
    plan.add_argument("--data", choices=_DATA, help="train and measure on these; left out (and no run file), on random inputs")
    plan.add_argument("--data-dir", type=Path, metavar="DIR", help="where the data set's files lie or are to be put")
    plan.add_argument("--input-shape", type=shape, metavar="1,28,28", help="one sample's shape; a usual one where it is left out")
    plan.add_argument("--batch-size", type=count, metavar="N", help="samples a step (default: the run file's, or 32)")
    plan.add_argument("--samples", type=count, default=256, metavar="N", help="of which leakage is measured (default %(default)s)")
    plan.add_argument("--steps", type=count, default=10, metavar="N", help="training steps before measuring (default %(default)s)")
    plan.add_argument(
        "--epoch-samples", type=count, metavar="N", help="samples of an epoch (default: as many as there are; of random inputs 10,000)"
    )
    plan.add_argument("--json", action="store_true", help="print one JSON object instead")
