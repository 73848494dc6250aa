"""What ``cutlayer simulate`` can be told on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["add_simulate_options"]

MODES = ("train", "cost")


def add_simulate_options(parser: argparse.ArgumentParser, *, count: Callable[[str], int], codec: Callable[[str], str]) -> None:
    """``count`` and ``codec``: how the command line reads a number of 1 or more, and codecs."""
    parser.add_argument("--link", default="lan", metavar="NAME", help="the clients' line, like gprs or gprs,loss=0.05, or a TOML file")
    parser.add_argument("--device", default="pi-4", metavar="NAME", help="the clients' board, like pi-zero-2w, or `this` (default pi-4)")
    parser.add_argument("--server-device", default="server", metavar="NAME", help="what the servers run on (default server)")
    parser.add_argument("--clients", type=count, metavar="N", help="so many, each with its part of the first client's data")
    parser.add_argument("--codec", type=codec, metavar="NAME", help="NAME or FORWARD/BACKWARD, instead of the run file's")
    parser.add_argument("--epochs", type=count, metavar="N", help="instead of the run file's")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--mode",
        choices=MODES,
        default="train",
        help="train: engines really run (default); cost: they are charged for, with sizes of a short training: for thousands of clients",
    )
    parser.add_argument("--samples", type=count, metavar="N", help="of each client, whatever its data (with --mode cost)")
    how.add_argument("--real", action="store_true", help="not virtual: processes of this computer, each client behind a shaped line")
    parser.add_argument(
        "--sweep", nargs="+", metavar="KEY=A,B", help="a grid, like link=gprs,edge,3g clients=10,100; keys: link device codec clients …"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="report, results and state (default: field-NAME beside the run file)")
    parser.add_argument("--again", action="store_true", help="also what is in DIR already")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
