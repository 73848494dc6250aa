"""Is the clock plausible? A board without a battery wakes up in the past, and then no TLS certificate is valid."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
from collections.abc import Iterable
from pathlib import Path

from edge_client.doctor.finding import Finding, Value, failed, ok, warning

__all__ = ["check_clock", "newest_s", "synchronised"]

WRITTEN_S = 1_767_225_600  # 2026-01-01: no copy of this software is older, whatever its files' dates say
_DAY_S = 86_400  # FAT keeps local time, and another computer's clock may be off as well: a date of a few hours ahead proves nothing

_TIME_ERROR = 5  # of adjtimex(2): nothing keeps the clock in step
_TIMEX_BYTES = 512  # struct timex has 208 at most


def newest_s(paths: Iterable[Path]) -> float:
    """The newest change among files that are there; nothing newer can have been written before now."""
    times_s = [0.0]
    for path in paths:
        with contextlib.suppress(OSError):
            times_s.append(path.stat().st_mtime)
    return max(times_s)


def synchronised() -> bool | None:
    """Whether the kernel says that a time service (timesyncd, chrony, ntpd) keeps its clock in step; None: it does not say."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # all zero: it asks and sets nothing
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def check_clock(now_s: float, *, files_s: float, synchronised: bool | None) -> Finding:
    """``files_s``: the newest date of the bundle's and the software's files. All seconds since 1970."""
    values: dict[str, Value] = {"now_s": round(now_s), "synchronised": "unknown" if synchronised is None else str(synchronised).lower()}
    advice = "set it: `sudo timedatectl set-ntp true`, and open UDP port 123 or name a time server in reach; or `sudo date -s …`"
    if now_s < WRITTEN_S or now_s < files_s - _DAY_S:
        before = max(files_s, WRITTEN_S)
        return failed("clock", f"{_text(now_s)}: before {_text(before)}, when software and bundle were there already", advice, **values)
    if synchronised is False:
        return warning("clock", f"{_text(now_s)}, not synchronised with a time server", advice, **values)
    return ok("clock", f"{_text(now_s)}, " + ("synchronised" if synchronised else "whether synchronised cannot be seen"), **values)


def _text(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
