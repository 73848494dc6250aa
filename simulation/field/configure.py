"""The run that is simulated: the run file's, with what a person wants otherwise for this once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wire.errors import RunFileError, UsageError
from wire.runfile import ClientConfig, CodecConfig, Run
from wire.spool import SpoolConfig

__all__ = ["KEYS", "configured"]

KEYS = ("clients", "codec", "schedule", "seed", "in_flight", "batch_size")  # of a run that may be changed


def configured(run: Run, changes: Mapping[str, Any], *, state: Path) -> Run:
    """``run`` with ``changes`` (by ``KEYS``), its state in ``state``. Raises UsageError for what does not go together.

    ``clients``: so many, each with its part of the first client's data. ``codec``: NAME, or FORWARD/BACKWARD.
    Nothing is spooled: that serves restarts alone, and a simulated client has none.
    """
    found = dataclasses.replace(run, state_dir=str(state.resolve()), spool=SpoolConfig(limit_bytes=0))
    found = dataclasses.replace(found, clients=tuple(dataclasses.replace(client, threads=1) for client in found.clients))
    for key, value in changes.items():
        try:
            found = _CHANGES.get(key, lambda run, value, key=key: dataclasses.replace(run, **{key: value}))(found, value)
        except (ValueError, RunFileError) as exc:
            raise UsageError(f"--{key.replace('_', '-')} {value}: {exc}") from exc
    return found


def _with_clients(run: Run, count: int) -> Run:
    if count == len(run.clients):
        return run
    if run.segments or run.hand_over == "peer":
        raise ValueError("the run file places segments or keys at clients by name; write as many [[clients]] as are wanted")
    template = run.clients[0]
    width = len(str(count))
    return dataclasses.replace(run, clients=tuple(_share(template, at, count, width) for at in range(1, count + 1)))


def _share(template: ClientConfig, at: int, count: int, width: int) -> ClientConfig:
    return dataclasses.replace(template, name=f"c{at:0{width}}", data=template.data | {"shard": f"{at}/{count}"}, public_key=None)


def _with_codec(run: Run, text: str) -> Run:
    forward, _, backward = text.partition("/")
    if run.averages and not run.edges:
        return dataclasses.replace(run, codec=CodecConfig(weights=text))
    return dataclasses.replace(run, codec=dataclasses.replace(run.codec, forward=forward, backward=backward or forward, cuts={}))


_CHANGES: dict[str, Callable[[Run, Any], Run]] = {"clients": _with_clients, "codec": _with_codec}
