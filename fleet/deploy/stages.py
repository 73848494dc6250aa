"""By how many devices at a time a release goes out. Pure: numbers and fractions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Stages", "parse_share", "parse_stages"]

_STAGE = re.compile(r"([0-9]{1,6})(%?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """``sizes``: (number, whether it is of a hundred) of devices that have the release after each stage, the earlier ones' included."""

    sizes: tuple[tuple[int, bool], ...]

    def counts(self, devices: int) -> Sequence[int]:
        """Of so many devices, those after each stage; none less than before."""
        found: list[int] = []
        for number, of_hundred in self.sizes:
            count = math.ceil(devices * number / 100) if of_hundred else number
            found.append(max(min(count, devices), found[-1] if found else 0))
        return found


def parse_stages(text: str) -> Stages:
    """``1,10%,100%``. Raises ValueError."""
    sizes = []
    for word in text.split(","):
        match = _STAGE.fullmatch(word.strip())
        number = int(match[1]) if match else 0
        if match is None or not number or (match[2] and number > 100):
            raise ValueError(f"{text!r} is not written like 1,10%,100%")
        sizes.append((number, bool(match[2])))
    return Stages(sizes=tuple(sizes))


def parse_share(text: str) -> float:
    """``10%`` as 0.1. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,3})%", text)
    if match is None or int(match[1]) > 100:
        raise ValueError(f"{text!r} is not written like 10%")
    return int(match[1]) / 100
