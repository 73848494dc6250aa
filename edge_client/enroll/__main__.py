"""``python -m edge_client.enroll``: ``cutlayer enroll`` for images that hold the device's rooms only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edge_client.boundary import exit_code_of
from edge_client.enroll.options import ABOUT, add_enroll, run_enroll

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit codes are those of ``cutlayer enroll``."""
    parser = argparse.ArgumentParser(prog="python -m edge_client.enroll", description=f"{ABOUT[0].upper()}{ABOUT[1:]}.", allow_abbrev=False)
    add_enroll(parser)
    args = parser.parse_args(argv)
    return exit_code_of(lambda: run_enroll(args))


if __name__ == "__main__":
    sys.exit(main())
