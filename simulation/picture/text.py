"""How wide text is at most, without the font that a reader's computer will use: the widths of DejaVu Sans, the widest of the usual ones."""

from __future__ import annotations

import math

__all__ = ["BOLD", "NORMAL", "SMALL", "STRONG", "Font", "text_width"]

Font = tuple[int, float]  # size in px; how much wider than its regular face
BOLD: Font = (14, 1.13)
NORMAL: Font = (13, 1.0)
SMALL: Font = (12, 1.0)
STRONG: Font = (12, 1.13)

_EM = {"ijl'|": 0.28, " .,:;!": 0.34, "frtI()[]/-": 0.42, "JLszcvxyk_": 0.6, "mwM→←": 0.98, "W…@%": 1.02}
_OF = {char: em for chars, em in _EM.items() for char in chars}


def text_width(text: str, font: Font) -> int:
    """px."""
    size, wider = font
    return math.ceil(sum(_OF.get(char, 0.8 if char.isupper() else 0.65) for char in text) * size * wider)
