"""Who may write and read which topics: from the edges of runs, for each party, and from the fleet's own topics, for each device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wire.enrolment import check_device_name
from wire.errors import GraphError, UsageError
from wire.fleet.talk import DEVICE_TOPICS
from wire.process import for_prediction
from wire.runfile import Run

__all__ = ["Rights", "access_list", "rights_of"]


@dataclass(slots=True, kw_only=True)
class Rights:
    """Topics of one identity, in the order of the runs. Each run topic has one writer and one reader."""

    writes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)


def rights_of(runs: Iterable[Run]) -> dict[str, Rights]:
    """By party. Raises UsageError: a slice, or a run whose topics would be the fleet's own."""
    found: dict[str, Rights] = {}
    for run in runs:
        if run.slice is not None:
            raise UsageError("an access list needs the whole run file, and this is a party's slice of it")
        if run.name == DEVICE_TOPICS.rpartition("/")[2]:
            raise UsageError(f"a run cannot be called `{run.name}`: its topics would be those of devices; give it another `name`")
        for client in run.clients:
            for each in _predictions(run, client.name):
                _add(found, each)
        _add(found, run)
    return found


def access_list(rights: dict[str, Rights], *, revoked: Iterable[str], operator: str) -> str:
    """mosquitto's access list file: what is not in it is forbidden. ``operator`` may command every device and hear all of them.

    Raises UsageError: the operator's name is a party's.
    """
    try:
        check_device_name(operator)
    except ValueError as exc:
        raise UsageError(f"--operator: {exc}") from exc
    if operator in rights:
        raise UsageError(f"`{operator}` is a party of a run and the operator's name as well; choose another --operator NAME")
    shut_out = set(revoked)
    rows = [
        "# Written by `cutlayer broker config`; the user is the name in the certificate. What is not here is forbidden.",
        f"pattern write {DEVICE_TOPICS}/%u/up/#",
        f"pattern read {DEVICE_TOPICS}/%u/down/#",
    ]
    for name in sorted(set(rights) - shut_out):
        rows += ["", f"user {name}"]
        rows += [f"topic write {topic}" for topic in rights[name].writes]
        rows += [f"topic read {topic}" for topic in rights[name].reads]
    if operator not in shut_out:
        rows += ["", f"user {operator}", f"topic write {DEVICE_TOPICS}/+/down/#", f"topic read {DEVICE_TOPICS}/+/up/#"]
    return "\n".join(rows) + "\n"


def _add(found: dict[str, Rights], run: Run) -> None:
    for party in _parties(run):
        mine = found.setdefault(party, Rights())
        for line in run.slice_for(party).lines:
            publish, subscribe = run.topics(line)
            if publish not in mine.writes:
                mine.writes.append(publish)
                mine.reads.append(subscribe)


def _parties(run: Run) -> Sequence[str]:
    return [*(client.name for client in run.clients), *(server.name for server in run.all_servers)]


def _predictions(run: Run, client: str) -> list[Run]:
    """Split inference has topics of its own; not every run can do it."""
    try:
        return [for_prediction(run, client)]
    except (UsageError, GraphError):
        return []
