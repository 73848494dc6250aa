"""Whom a command means by names of devices and groups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from fleet.registry import ALL, DeviceRow
from wire.errors import UsageError

__all__ = ["chosen", "named"]


def named(words: Sequence[str], rows: Sequence[DeviceRow]) -> list[DeviceRow]:
    """Devices called so, or in groups called so, each once, in the order of ``rows``; revoked ones only by their own name.

    Raises UsageError for a word that is neither.
    """
    names, groups = {row.name for row in rows}, {row.group for row in rows}
    for word in words:
        if word not in names and word not in groups and word != ALL:
            raise UsageError(f"`{word}` is no device and no group; `cutlayer device list` shows what there is")
    wanted = set(words)
    return [row for row in rows if row.name in wanted or (row.revoked_s is None and (row.group in wanted or ALL in wanted))]


def chosen(words: Sequence[str], rows: Sequence[DeviceRow], *, clients: Collection[str], run: Path) -> list[str]:
    """Who gets a release of ``run``. ``all`` is every device of the run; who was named or is in a group has to be one.

    Raises UsageError.
    """
    found = named(words, rows)
    if ALL in words:
        found = [row for row in found if row.name in clients or row.name in words or row.group in words]
    for row in found:
        if row.revoked_s is not None:
            raise UsageError(f"`{row.name}` is revoked; `cutlayer device add {row.name}` brings it back")
        if row.name not in clients:
            where = f" (of group `{row.group}`)" if row.group in words else ""
            raise UsageError(f"`{row.name}`{where} is no client of {run}, which has nothing for it")
    if not found:
        raise UsageError(f"no device of the fleet is a client of {run}; `cutlayer device list` shows the fleet's")
    return [row.name for row in found]
