"""Early stopping (Prechelt, "Early stopping – but when?", 1998): a pure function of the metrics so far; a resumed run decides alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wire.errors import RunFileError

__all__ = ["should_stop"]

_LOWER_IS_BETTER = ("loss", "mae")


def should_stop(history: Sequence[Mapping[str, Any]], *, patience: int | None, watch: str) -> bool:
    """Whether ``watch`` has not improved on its best for ``patience`` evaluations. ``patience`` None: never.

    Raises RunFileError where ``watch`` is not among what is measured.
    """
    if patience is None or not history:
        return False
    if not any(watch in entry for entry in history):
        known = ", ".join(key for key in history[-1] if key != "epoch")
        raise RunFileError(f"evaluate.watch: {watch!r} is not measured; measured are {known}")
    sign = 1 if watch in _LOWER_IS_BETTER else -1
    values = [sign * float(entry.get(watch, math.inf * sign)) for entry in history]  # not there: it was not finite
    best = min(range(len(values)), key=lambda at: values[at])
    return len(values) - 1 - best >= patience
