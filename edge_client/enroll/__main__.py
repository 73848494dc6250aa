"""``python -m edge_client.enroll``: ``cutlayer enroll`` for images that hold the device's rooms only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edge_client.enroll.options import ABOUT, add_enroll, run_enroll
from wire.errors import CutlayerError, exit_code

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit codes are those of ``cutlayer enroll``."""
    parser = argparse.ArgumentParser(prog="python -m edge_client.enroll", description=f"{ABOUT[0].upper()}{ABOUT[1:]}.", allow_abbrev=False)
    add_enroll(parser)
    try:
        run_enroll(parser.parse_args(argv))
    except KeyboardInterrupt:
        return 130
    except CutlayerError as exc:
        print(f"cutlayer: error: {exc}", file=sys.stderr)
        return exit_code(exc)
    return 0


if __name__ == "__main__":
    sys.exit(main())
