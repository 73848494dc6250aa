"""The error boundary of commands that hold the device's rooms only: a line, and the exit codes of ``cutlayer``."""

from __future__ import annotations

import sys
from collections.abc import Callable

from wire.errors import CutlayerError, exit_code

__all__ = ["exit_code_of"]


def exit_code_of(act: Callable[[], None]) -> int:
    """Do it: 0, 130 after Ctrl-C, or what ``wire.errors.exit_code`` says of a CutlayerError, which is told on stderr."""
    try:
        act()
    except KeyboardInterrupt:
        return 130
    except CutlayerError as exc:
        print(f"cutlayer: error: {exc}", file=sys.stderr)
        return exit_code(exc)
    return 0
