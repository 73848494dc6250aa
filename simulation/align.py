"""The alignment of a run's records in one process, for whoever has all parties' data: the unsplit twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wire.aligning import Aligner
from wire.feed import Feed
from wire.process import aligned
from wire.program import Program
from wire.runfile import Run

__all__ = ["align_feeds"]


def align_feeds(run: Run, feeds: Mapping[str, Feed]) -> None:
    """Make the feeds, by party, serve the records and the order that the run's parties agree on. Nothing where it aligns none.

    With ``missing = "zero"`` the order follows from a secret in the coordinator's state folder, which is drawn if it is not there yet.
    Raises CutlayerError as the run would.
    """
    graph = run.graph()
    program = aligned(run, graph.root(), Program(), ("train", *run.evaluate.splits))
    parties = [
        Aligner(graph.slice_for(name), feed, key=run.ids_key.encode(), load=lambda: None, keep=lambda kept: None)
        for name, feed in feeds.items()
        if run.align is not None
    ]
    facts: Any = {}
    for party in parties:
        facts = _joined(facts, party.facts())
    program.sized(facts)
    while (command := program.next()).op != "end":
        result: dict[str, Any] = {}
        blobs: dict[str, bytes] = {}
        for party in (each for each in parties if each.lane in command.lanes):
            answer, sent = party.ids() if command.op == "ids" else (party.align(command.args, command.blobs), {})
            result = _joined(result, answer)
            blobs |= sent
        program.done(result, blobs)


def _joined(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        return {**mine, **{key: _joined(mine.get(key), value) for key, value in theirs.items()}}
    return theirs
