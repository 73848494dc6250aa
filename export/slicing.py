"""``cutlayer slice``: the run file of one party, which names its neighbours and nobody beyond them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from export.prepare import build_segments
from export.run_segment import RunSegment
from wire.errors import UsageError
from wire.graph import PEER, PartySlice
from wire.parse import plain
from wire.runfile import Run, load_run
from wire.store import write_atomically

__all__ = ["slice_table", "write_slice", "write_slice_of"]

# What a party must not learn, or gets in another form below.
_OTHERS = ("base", "topic_key", "model", "segments", "clients", "server", "servers", "data", "slice", "codec")


def write_slice(run_file: str | Path, *, party: str, out: str | Path) -> None:
    """Write ``party``'s slice of the run to ``out``; paths in it begin at the folder where it will lie. Raises CutlayerError."""
    run = load_run(run_file)
    write_slice_of(run, party, build_segments(run), Path(out))
    print(f"{out}: what `{party}` needs to know of run {run.name}")


def write_slice_of(run: Run, party: str, segments: Mapping[str, RunSegment], out: Path, *, base: str | None = None) -> None:
    """``base``: the absolute folder at which paths in the slice begin, where that is not its own."""
    write_atomically(out, tomli_w.dumps(slice_table(run, party, segments, base=base)).encode())


def slice_table(run: Run, party: str, segments: Mapping[str, RunSegment], *, base: str | None = None) -> dict[str, Any]:
    """The slice as a run file has it. ``segments``: all of the run. Raises GraphError for an unknown party, UsageError for a slice."""
    mine = run.slice_for(party)
    edges = {line.edge for line in mine.lines} | {end.edge for slot in mine.slots for end in (*slot.inputs, *slot.outputs)}
    table = {key: value for key, value in plain(run).items() if key not in _OTHERS}
    table["codec"] = plain(run.codec) | {"cuts": {cut: plain(each) for cut, each in run.codec.cuts.items() if cut in edges}}
    served = [server for server in run.all_servers if server.name == party]
    if served:
        table["servers"] = plain(served)
        table |= _networks(run, party, [slot.segment for slot in mine.slots])
    else:
        table["clients"] = [plain(run.client(party))]
        table["data"] = run.data if run.reads_data(party) else {}
    if served or not run.reads_data(party):
        table["ids_key"] = ""  # who has it could try ids out on the hashes that pass; servers look labels up by hashes that they are given
    names = [slot.segment for slot in mine.slots]
    for name in names:
        if name in run.sinks:
            table["evaluate"]["metrics"] = list(run.metrics_of(name))
    table["slice"] = {key: value for key, value in plain(mine).items() if key not in ("lanes",)} | {
        "digest": run.digest,
        "base": base,
        "lanes": mine.lanes,
        "peers": (peers := {str(line.lane): run.across(line) for line in mine.lines if line.edge == PEER}),
        "public_keys": {name: key for name, key in run.public_keys.items() if name in peers.values()},
        "edges": {edge: run.token(edge) for edge in sorted(edges)},
        "losses": {name: run.loss_of(name) for name in names if name in run.sinks},
        "lane_names": _lane_names(run, party),
        "averaged": _averaged(run, mine, segments),
        "inputs": {name: plain([spec for spec in segments[name].inputs if spec.name != "target"]) for name in names} if served else {},
    }
    found: dict[str, Any] = _without_none(table)
    return found


def _averaged(run: Run, mine: PartySlice, segments: Mapping[str, RunSegment]) -> dict[str, Any]:
    """What the coordinator must know of weights that it averages; it need not hold their segments."""
    replicated = [segment.name for segment in run.graph().segments if len(segment.parties) > 1]
    return {name: plain(list(segments[name].weights)) for name in replicated if run.averages and mine.parent is None}


def _networks(run: Run, party: str, names: list[str]) -> dict[str, Any]:
    """What a server builds its segments from, without where others are placed."""
    if run.model is not None:
        if not names:
            return {}  # it only coordinates
        return {"model": plain(run.model) | {"placement": {}}}
    return {"segments": [plain(each) | {"on": [party]} for each in run.segments if each.name in names]}


def _lane_names(run: Run, party: str) -> list[str]:
    graph = run.graph()
    if party not in graph.parties:
        raise UsageError(f"no segment is placed on `{party}`")
    known = {party, *graph.neighbours(party)}
    return [name if name in known else f"lane{lane}" for lane, name in enumerate(run.lane_names)]


def _without_none(value: Any) -> Any:
    """TOML has no null; what is left out has its default."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
