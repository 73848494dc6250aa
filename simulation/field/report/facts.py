"""What results say: which metric counts, how cells are told apart, which is best, and the answer in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulation.field.report.words import duration, percent, score
from simulation.field.result import KINDS, FieldResult, PartyResult

__all__ = [
    "MARGIN",
    "Answer",
    "Measure",
    "answer_of",
    "answer_of_all",
    "best_of",
    "idle_text",
    "labels_of",
    "measure_of",
    "shares_of",
    "varied",
]

BEYOND = 1e15  # a figure as large, as of a loss that has exploded, is none
MARGIN = 0.01  # cells whose shares differ by no more count as equally good
_FIELDS = ("run", "mode", "link", "device", "codec", "schedule", "clients", "seed")
_LESS_IS_BETTER = ("mae", "loss")
_PREFERRED = ("accuracy", "f1", "auroc", "mae", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The metric by which cells are compared; of several tasks (``task.accuracy``), their mean."""

    name: str

    @property
    def less_is_better(self) -> bool:
        return self.name in _LESS_IS_BETTER

    @property
    def is_share(self) -> bool:
        return self.name in ("accuracy", "f1", "auroc")

    def of(self, metrics: Mapping[str, float]) -> float | None:
        """None where it was not measured, or has no value that can be one."""
        found = [value for name, value in metrics.items() if name.rpartition(".")[2] == self.name]
        possible = all(0 <= value <= 1 if self.is_share else abs(value) < BEYOND for value in found)
        return sum(found) / len(found) if found and possible else None

    def last(self, result: FieldResult) -> tuple[float, str] | None:
        """At the end, and on which split: the test split where there is one."""
        for split in ("test", *reversed(result.metrics)):
            value = self.of(result.metrics.get(split, {}))
            if value is not None:
                return value, split
        for moment in reversed(result.history):
            value = self.of(moment.metrics)
            if value is not None:
                return value, ""
        return None

    def better(self, value: float, than: float) -> bool:
        return value < than if self.less_is_better else value > than

    def text(self, value: float) -> str:
        return score(value, is_share=self.is_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``kind``: "yes", "no", or "but" where it ends and has gained nothing."""

    kind: str
    word: str
    text: str


def measure_of(results: Sequence[FieldResult]) -> Measure | None:
    """The first of accuracy, F1, AUROC, mean absolute error and loss that was measured; else whatever was."""
    names = {name.rpartition(".")[2]: None for result in results for name in _measured(result)}
    chosen = next((name for name in (*_PREFERRED, *names) if name in names), None)
    return None if chosen is None else Measure(name=chosen)


def _measured(result: FieldResult) -> Iterator[str]:
    for metrics in (*result.metrics.values(), *(moment.metrics for moment in result.history)):
        yield from metrics


def varied(results: Sequence[FieldResult]) -> list[tuple[str, list[str]]]:
    """What tells the cells apart: (name, each cell's value)."""
    settings = [{**{name: getattr(result, name) for name in _FIELDS}, **result.varied} for result in results]
    names = dict.fromkeys(name for each in settings for name in each)
    columns = [(name, [str(each.get(name, "")) for each in settings]) for name in names]
    return [(name, values) for name, values in columns if len(set(values)) > 1]


def labels_of(results: Sequence[FieldResult]) -> list[str]:
    """Short, and different from each other where the cells differ."""
    columns = varied(results)
    if not columns:
        return [f"{result.link}, {result.codec}, {_clients(result)}" for result in results]
    return [", ".join(_said(name, values[at]) for name, values in columns if values[at]) for at in range(len(results))]


def _said(name: str, value: str) -> str:
    if name == "clients":
        return f"{value} client{'s' if value != '1' else ''}"
    return f"{name.replace('_', ' ')} {value}" if name in ("seed", "in_flight", "batch_size") else value


def _clients(result: FieldResult) -> str:
    return f"{result.clients:,} client{'s' if result.clients != 1 else ''}"


def best_of(results: Sequence[FieldResult], measure: Measure | None) -> int | None:
    """Of the cells that finish and are nearly as good as the best, the quickest; None where no cell finishes."""
    done = [at for at, result in enumerate(results) if result.finished]
    values = {at: found[0] for at in done if measure is not None and (found := measure.last(results[at])) is not None}
    if measure is not None and values:
        top = min(values.values()) if measure.less_is_better else max(values.values())
        margin = MARGIN if measure.is_share else 0.0
        done = [at for at, value in values.items() if abs(value - top) <= margin + 1e-12]
    return min(done, key=lambda at: results[at].time_s, default=None)


def answer_of(result: FieldResult, measure: Measure | None) -> Answer:
    """Does it train over this line, to which accuracy, in how long."""
    name = f"“{result.run}” over {result.link}, {_clients(result)} on {result.device}, codec {result.codec}"
    took = duration(result.time_s) + (" by the clock" if result.mode == "real" else " of simulated time")
    if not result.finished:
        after = f" It stopped after {took}, with {result.applied:,} steps applied." if result.time_s > 0 else ""
        return Answer(kind="no", word="No", text=f"{name}: it does not finish: {_sentence(result.why or 'no reason was given')}{after}")
    if not result.applied:
        return Answer(kind="but", word="No step was applied", text=f"{name}: it ends after {took} and has trained nothing.")
    found = None if measure is None else measure.last(result)
    if found is None:
        unknown = "accuracy was not simulated" if result.mode == "cost" else "no metric was recorded"
        return Answer(kind="yes", word="Yes", text=f"{name}: it finishes in {took}; {unknown}.")
    assert measure is not None
    reached = f"{measure.text(found[0])} {measure.name}" + (f" on the {found[1]} split" if found[1] else "")
    first = next((value for moment in result.history if (value := measure.of(moment.metrics)) is not None), None)
    if first is not None and len(result.history) > 1 and not measure.better(found[0], first):
        text = f"{name}: it finishes in {took}, but has not gained from training: {measure.text(first)} at first, {reached} at the end."
        return Answer(kind="but", word="It ends without gain", text=text)
    return Answer(kind="yes", word="Yes", text=f"{name}: it trains to {reached} in {took}.")


def answer_of_all(results: Sequence[FieldResult], measure: Measure | None) -> Answer:
    """The sweep's: how many cells finish, and which is best by ``best_of``."""
    if len(results) == 1:
        return answer_of(results[0], measure)
    done, best = sum(result.finished for result in results), best_of(results, measure)
    if best is None:
        return Answer(kind="no", word="No", text=f"None of the {len(results):,} cells finishes; the table says why.")
    answer = answer_of(results[best], measure)
    some = f"All {done:,}" if done == len(results) else f"{done:,} of {len(results):,}"
    return Answer(kind=answer.kind, word=answer.word, text=f"{some} cells finish. The best: {answer.text}")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def shares_of(parties: Sequence[PartyResult]) -> dict[str, float]:
    """Of these clients' time together, the share of each kind; empty where they have spent none."""
    sums = {kind: sum(party.spent_s.get(kind, 0.0) for party in parties) for kind in KINDS}
    total = sum(sums.values())
    return {kind: value / total for kind, value in sums.items()} if total > 0 else {}


def idle_text(result: FieldResult) -> str:
    """When nothing was on the lines, in words."""
    shares = shares_of(result.parties)
    whole = len(result.parties) == result.clients
    over = "all clients" if whole else f"the {len(result.parties):,} clients that were recorded"
    return (
        f"Over {over}, the lines carried nothing for {percent(shares['compute'] + shares['server'])} of the time: "
        f"{percent(shares['compute'])} while boards computed and {percent(shares['server'])} while clients waited for the server or for "
        f"others. They were cut for {percent(shares['outage'])}."
    )
