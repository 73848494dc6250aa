"""Figure 3 anew: accuracy against a client's FLOPs, bytes, and seconds on a slow line."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import PAGES, prose
from benchmarks.paper_runs import BOARD, LINE, METHODS, SERVER, SETTINGS, TEST_SAMPLES, TRAIN_SAMPLES, Curve, Method, Setting, Work

__all__ = ["Point", "curve_lines", "points"]

BUDGETS_S = (600, 3600)
_TARGET = 0.80


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """After an epoch: what a client has computed, sent and received on the average, and how long all of it took on the line."""

    accuracy: float
    gflop: float
    megabytes: float
    seconds: float


def points(run: Mapping[str, Any], setting: Setting, method: Method, work: Work) -> list[Point]:
    """One an epoch. Bytes are spread evenly over the epochs."""
    bytes_ = [up + down for up, down in zip(run["up"], run["down"], strict=True)]
    return [
        Point(
            accuracy=entry["accuracy"],
            gflop=done * statistics.mean(run["samples"]) * work.of(method) / 1e9,
            megabytes=done * statistics.mean(bytes_) / setting.epochs / 1e6,
            seconds=trained_s,
        )
        for entry, trained_s in zip(run["history"], run["trained_s"], strict=True)
        for done in [entry["epoch"] + 1]
    ]


def _mean(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """Over the seeds, epoch by epoch."""

    def mean(values: Sequence[Point], key: str) -> float:
        return float(statistics.mean(getattr(value, key) for value in values))

    keys = ("accuracy", "gflop", "megabytes", "seconds")
    return [Point(**{key: mean(each, key) for key in keys}) for each in zip(*runs, strict=True)]


Runs = Mapping[Method, Sequence[Sequence[Point]]]


def _runs(results: Mapping[str, Any], setting: Setting, work: Work) -> dict[Method, list[list[Point]]]:
    found: dict[Method, list[list[Point]]] = {}
    for method in METHODS:
        runs = [results.get(Curve(setting=setting, method=method, seed=seed).key) for seed in setting.seeds]
        there = [points(run, setting, method, work) for run in runs if run is not None]
        if there:
            found[method] = there
    return found


def curve_lines(results: Mapping[str, Any], work: Work) -> list[str]:
    """The part of the page, and its plots."""
    there = [(setting, runs) for setting in SETTINGS if (runs := _runs(results, setting, work))]
    if not there:
        return []
    lines = ["", "## Figure 3: accuracy against what a client spends, Fashion-MNIST", "", *_what(work)]
    for setting, runs in there:
        name = f"paper-{setting.name.replace(' ', '-')}"
        _plot(name, setting, runs)
        lines += ["", f"### {_title(setting)}", "", f"![accuracy against FLOPs, bytes and seconds]({name}.png)", ""]
        lines += [*_table(runs), "", *_honest(runs)]
    return lines


def _title(setting: Setting) -> str:
    shares = "even shares" if setting.even else "shares by Dirichlet 0.3 over labels"
    return f"{setting.clients} clients, {shares}, {setting.epochs} epochs"


def _what(work: Work) -> list[str]:
    return [
        *prose(
            f"{TRAIN_SAMPLES:,} of the training samples, shared out to the clients; tested after each epoch, the codec on, on",
            f"{TEST_SAMPLES:,} of the test samples. The network is that of [link.md](link.md), cut at 784 activations: of the FLOPs of a",
            f"training step, {work.split / 1e6:.2f} million a sample are the client's when it is split,",
            f"{work.whole / 1e6:.2f} million when it is not. All clients really train, with the ONNX segments, codecs and frames of a run",
            "in the field, but in virtual time (docs/guide-simulate.md): weights and bytes are those of real processes to the last bit,",
            "which tests hold. Batches are of 50 samples, and with 100 clients of 20. Learning rates were set",
            "once and not searched.",
            "*Relay*: clients take turns and hand their segment on. *Parallel*: SplitFed v2, the clients' segments averaged once an epoch.",
            "*Federated*: averaged once an epoch; int8: differences of weights. *Large-batch*: one step of all clients' batches together,",
            "gradients averaged.",
        ),
        "",
        *prose(
            "Bytes: a client's PUBLISH packets both ways, weights included, evaluation not; one client's weights go to the server once",
            f"more at the end. **Seconds**: of a line of {LINE.up_bps / 1000:g} kbit/s both ways with a round trip of",
            f"{LINE.round_trip_s:g} s, a {BOARD} at each client and the preset `{SERVER}` at the other end: uploads, downloads and",
            "computation as the step protocol orders them, evaluation taken out.",
        ),
    ]


# ------------------------------------------------------------ tables


def _table(runs: Runs) -> list[str]:
    times = " | ".join(f"after {budget:,} s" for budget in BUDGETS_S)
    lines = [
        f"| method | accuracy at the end, by seed | client GFLOP | client MB | {times} | to {_TARGET:.0%}: GFLOP / MB / s |",
        "|---|---|---|---|" + "---|" * (len(BUDGETS_S) + 1),
    ]
    for method, seeds in runs.items():
        mean = _mean(seeds)
        each = ", ".join(f"{100 * run[-1].accuracy:.1f}" for run in seeds)
        budgets = " | ".join(_percent(_within(mean, budget)) for budget in BUDGETS_S)
        last = mean[-1]
        spent = f"{last.gflop:.2f} | {last.megabytes:.3g}"
        lines.append(f"| {method.name} | {100 * last.accuracy:.1f} ({each}) | {spent} | {budgets} | {_reached(mean)} |")
    return lines


def _percent(accuracy: float | None) -> str:
    return "none yet" if accuracy is None else f"{100 * accuracy:.1f}"


def _within(run: Sequence[Point], budget_s: float) -> float | None:
    """The accuracy of the last epoch that ends in time; no run goes beyond its last epoch."""
    return next((point.accuracy for point in reversed(run) if point.seconds <= budget_s), None)


def _first(run: Sequence[Point]) -> Point | None:
    return next((point for point in run if point.accuracy >= _TARGET), None)


def _reached(run: Sequence[Point]) -> str:
    point = _first(run)
    return "never" if point is None else f"{point.gflop:.2f} / {point.megabytes:.3g} / {point.seconds:,.0f}"


def _honest(runs: Runs) -> list[str]:
    """Who is best at what, whoever it is."""
    means = {method: _mean(seeds) for method, seeds in runs.items()}
    reached = {method: point for method, run in means.items() if (point := _first(run)) is not None}
    best = max(means, key=lambda method: means[method][-1].accuracy)
    lines = [f"Highest accuracy at the end: {best.name}."]
    for key, what in (("gflop", "least computation"), ("megabytes", "fewest bytes"), ("seconds", "least time on the line")):
        if reached:
            winner = min(reached, key=lambda method: float(getattr(reached[method], key)))
            lines.append(f"To {_TARGET:.0%} with the {what}: {winner.name}.")
    return [" ".join(lines), *_where_split_loses(reached)]


def _where_split_loses(reached: Mapping[Method, Point]) -> list[str]:
    others = {method: point for method, point in reached.items() if not method.cut}
    lost = []
    for method, point in reached.items():
        for key, what in (("gflop", "FLOPs"), ("megabytes", "bytes"), ("seconds", "time")) if method.cut else ():
            better = min(others, key=lambda other: float(getattr(others[other], key)), default=None)
            if better is not None and getattr(others[better], key) < getattr(point, key):
                factor = getattr(point, key) / getattr(others[better], key)
                lost.append(f"- {method.name}: {factor:.1f} times the {what} of {better.name}")
    return ["", f"Where split learning loses on the way to {_TARGET:.0%}:", "", *lost] if lost else []


# ------------------------------------------------------------ plots


def _plot(name: str, setting: Setting, runs: Runs) -> None:
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    panels = (("gflop", "GFLOP of a client"), ("megabytes", "MB of a client, both ways"), ("seconds", "seconds at 250 kbit/s"))
    for number, (method, seeds) in enumerate(runs.items()):
        mean = _mean(seeds)
        low, high = ([extreme(100 * run[at].accuracy for run in seeds) for at in range(len(mean))] for extreme in (min, max))
        style = {"color": f"C{number}", "linestyle": "-" if method.cut else "--"}
        for panel, (key, label) in zip(axes, panels, strict=True):
            along = [getattr(point, key) for point in mean]
            panel.plot(along, [100 * point.accuracy for point in mean], marker=".", label=method.name, **style)
            panel.fill_between(along, low, high, color=style["color"], alpha=0.15, linewidth=0)
            panel.set_xscale("log")
            panel.set_xlabel(label)
            panel.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(fontsize=7, loc="lower right")
    figure.suptitle(f"Fashion-MNIST, {_title(setting)}", fontsize=10)
    PAGES.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        figure.savefig(PAGES / f"{name}.{kind}", dpi=110, metadata={"Date": None} if kind == "svg" else None)
