"""The page and the plots of ``benchmarks.link``, from its results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import PAGES, hardware, write_page

__all__ = ["Group", "grouped", "write_link_page"]

ACTIVATIONS = {"fashion": 784, "fashion-void": 784, "fashion-relu5": 128, "digits": 128, "shapes": 1024}
_TITLES = {
    "fashion": "Fashion-MNIST, cut of 784 activations, 10 epochs, batch 128",
    "fashion-relu5": "Fashion-MNIST, cut of 128 activations after relu5, 10 epochs, batch 128",
    "digits": "Digits (scikit-learn), cut of 128 activations, 20 epochs, batch 32",
    "shapes": "Coloured shapes of 3 x 32 x 32 (generated, 8 classes), cut of 1,024 activations, 15 epochs, batch 64",
}
_LOST_POINTS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The runs of one pair of codecs on one task, a seed each. Bytes are means over the seeds, a training sample (each epoch anew)."""

    task: str
    forward: str
    backward: str
    accuracies: Mapping[int, float]  # by seed, in points
    up: float  # PUBLISH packets of training: payload, labels, frames, MQTT
    down: float
    line: float  # all that the client's socket carried both ways, less the evaluation
    line_ip: float  # with TCP/IP
    voided: float  # share of the steps

    @property
    def name(self) -> str:
        return self.forward if self.forward == self.backward else f"{self.forward} / {self.backward}"

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies.values())

    @property
    def bits_up(self) -> float:
        return 8 * self.up / ACTIVATIONS[self.task]

    @property
    def bits_down(self) -> float:
        return 8 * self.down / ACTIVATIONS[self.task]

    def lost(self, reference: Group) -> float:
        """Points below ``reference``: the mean over the seeds that both have, each seed against itself."""
        seeds = sorted(self.accuracies.keys() & reference.accuracies.keys())
        return statistics.mean(reference.accuracies[seed] - self.accuracies[seed] for seed in seeds)


def grouped(results: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    found: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for key, result in results.items():
        task, forward, backward, seed = key.split(" | ")
        found.setdefault((task, forward, backward), {})[int(seed)] = result
    return [_group(*key, runs) for key, runs in found.items()]


def _group(task: str, forward: str, backward: str, runs: Mapping[int, Mapping[str, Any]]) -> Group:
    def mean(value: Callable[[Mapping[str, Any]], float]) -> float:
        return statistics.mean(value(run) / run["samples"] for run in runs.values())

    def evaluation(run: Mapping[str, Any]) -> float:
        return float(sum(run["bytes_by_use"][way].get("evaluate", 0) for way in ("up", "down")))

    return Group(
        task=task,
        forward=forward,
        backward=backward,
        accuracies={seed: 100 * run["accuracy"] for seed, run in runs.items()},
        up=mean(lambda run: run["bytes_by_use"]["up"]["train"]),
        down=mean(lambda run: run["bytes_by_use"]["down"]["train"]),
        line=mean(lambda run: run["wire"]["sent_bytes"] + run["wire"]["received_bytes"] - evaluation(run)),
        line_ip=mean(lambda run: run["wire"]["ip_sent_bytes"] + run["wire"]["ip_received_bytes"] - evaluation(run)),
        voided=statistics.mean(run["voided"] / (run["voided"] + run["applied"]) for run in runs.values()),
    )


def write_link_page(results: Mapping[str, Mapping[str, Any]], *, flops: tuple[int, int]) -> None:
    """``flops``: of the client a sample, forward, with the cut of 784 activations and with the later one."""
    groups = grouped(results)
    lines = [
        "# The link: accuracy against bytes",
        "",
        "Made by `python -m benchmarks.link`; `make bench-link` measures slow lines first, which needs root.",
        "",
    ]
    lines += [*hardware("torch", "onnxruntime", "paho-mqtt", "numpy"), ""]
    lines += _what()
    lines += _bars(groups, flops)
    for task, title in _TITLES.items():
        mine = [group for group in groups if group.task == task]
        if mine:
            _plot(task, title, mine)
            lines += ["", f"## {title}", "", f"![accuracy against bytes a sample](link-{task}.png)", "", *_table(mine)]
    write_page("link", lines)


def _what() -> list[str]:
    return [
        "Each row is real runs, a seed each: a client process with its ONNX segment, mosquitto, and a PyTorch server process. Bytes",
        "are a training sample, each epoch counted anew. *Line*: all that the client's TCP socket carried both ways, less the messages",
        "of evaluation: payloads, labels, frames, MQTT, acknowledgements, joining and leaving. *TCP/IP*: the same with the segments'",
        "headers, as the kernel counts them (on the loopback each message and acknowledgement is a segment of its own). *Bits* are an",
        "activation of the cut, whole PUBLISH packets counted. The quantizer is on at test time. *Lost*: points below fp32 of the same",
        "seed and epochs, the mean over the seeds.",
        "",
    ]


def _table(groups: Sequence[Group]) -> list[str]:
    reference = next((group for group in groups if group.name == "fp32"), None)
    rows = [
        "| codec (forward / backward) | accuracy, by seed | lost | bits up | bits down | line B/sample | TCP/IP B/sample |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in sorted(groups, key=lambda each: -each.line):
        seeds = ", ".join(f"{group.accuracies[seed]:.2f}" for seed in sorted(group.accuracies))
        lost = f"{group.lost(reference):+.2f}" if reference is not None else ""
        rows.append(
            f"| `{group.name}` | {group.mean:.2f} ({seeds}) | {lost} | {group.bits_up:.2f} | {group.bits_down:.2f} "
            f"| {group.line:.1f} | {group.line_ip:.1f} |"
        )
    return rows


def _bars(groups: Sequence[Group], flops: tuple[int, int]) -> list[str]:
    fashion = {(group.forward, group.backward): group for group in groups if group.task == "fashion"}
    reference = fashion.get(("fp32", "fp32"))
    if reference is None:
        return []
    rows = ["## Bars", "", "| figure | bar | stretch | here |", "|---|---|---|---|"]
    both = [group for group in fashion.values() if "fp32" not in (group.forward, group.backward)]
    best = _cheapest(both, reference, lambda group: group.bits_up + group.bits_down)
    if best is not None:
        bits, lost = best.bits_up + best.bits_down, best.lost(reference)
        rows.append(
            f"| round trip, bits an activation, at most 0.5 points lost | ≤ 1.5 | ≤ 1.0 | {bits:.2f} (lost {lost:+.2f}): `{best.name}` |"
        )
        rows.append(f"| bytes a sample, round trip, everything counted, same run | ≤ 155 | ≤ 105 | {best.line:.1f} |")
    later = [group for group in groups if group.task == "fashion-relu5" and group.forward != "fp32"]
    exact = next((group for group in groups if group.task == "fashion-relu5" and group.name == "fp32"), reference)
    cut = _cheapest(later, exact, lambda group: group.line)
    if cut is not None:
        more = f"client {flops[1] / 1e6:.2f} MFLOP a sample forward instead of {flops[0] / 1e6:.2f}"
        rows.append(
            f"| the same, any cut of the same network | ≤ 80 | ≤ 40 "
            f"| {cut.line:.1f} (lost {cut.lost(exact):+.2f}): `{cut.name}`, cut after `relu5`, {more} |"
        )
    up_only = [group for group in fashion.values() if group.forward != "fp32" and group.backward == "fp32"]
    up = _cheapest(up_only, reference, lambda group: group.bits_up)
    if up is not None:
        rows.append(
            f"| uplink alone, at most 0.5 points lost | ≤ 1.0 | ≤ 0.5 | {up.bits_up:.2f} (lost {up.lost(reference):+.2f}): `{up.forward}` |"
        )
    for group in groups:
        clean = fashion.get((group.forward, group.backward))
        if group.task == "fashion-void" and clean is not None:
            rows.append(
                f"| accuracy lost with 2 % of the steps void | ≤ 0.5 points | | {group.lost(clean):+.2f} "
                f"with {100 * group.voided:.1f} % void: `{group.name}` |"
            )
    return [
        *rows,
        *_coder(),
        "",
        "The entropy coder: [entropy.md](entropy.md). What codecs take of a core: [codecs.md](codecs.md). Goodput on slow lines:",
        "[line.md](line.md), and lines cut for a minute: [line-cuts.md](line-cuts.md).",
        "",
    ]


def _coder() -> list[str]:
    """The entropy coder's rows, from its own benchmark."""
    path = PAGES / "entropy.json"
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text())
    drawn = [row for row in found if "drawn" in row["name"]]
    large = [row["over_entropy"] for row in drawn if row["symbols"] >= 16384]
    small = [row["over_entropy"] for row in drawn if row["symbols"] == 2048]
    maps = [row["over_entropy"] for row in found if "neighbours" in row["name"]]
    packed = [row["over_zstd"] for row in drawn if row["symbols"] == 2048]
    return [
        f"| entropy coder over the order-0 entropy, 16k symbols and more, by channel | ≤ 1 % | | {_range(large)} |",
        f"| the same, feature maps by their neighbours | | below it | {_range(maps)} |",
        f"| the same, 2k symbols | ≤ 3 % | below it | {_range(small)} |",
        f"| against zstd-19, 2,048 symbols of at most 2 bits | ≥ 8 % smaller | ≥ 15 % | {_range(packed)} |",
    ]


def _range(shares: Sequence[float]) -> str:
    return f"{min(shares):+.1%} to {max(shares):+.1%}"


def _cheapest(groups: Sequence[Group], reference: Group, price: Callable[[Group], float]) -> Group | None:
    """The cheapest that loses no more than the bar allows; where none does, the one that loses least."""
    within = [group for group in groups if group.lost(reference) <= _LOST_POINTS]
    if within:
        return min(within, key=price)
    return min(groups, key=lambda group: group.lost(reference), default=None)


def _plot(task: str, title: str, groups: Sequence[Group]) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for group in sorted(groups, key=lambda each: -each.line):
        values = list(group.accuracies.values())
        spread = [[group.mean - min(values)], [max(values) - group.mean]]
        ours = "lowbit" in group.name
        axes.errorbar([group.line], [group.mean], yerr=spread, marker="o" if ours else "s", color="C3" if ours else "C0", capsize=3)
        axes.annotate(group.name, (group.line, group.mean), xytext=(5, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("bytes a training sample, round trip, on the client's line")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    PAGES.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        figure.savefig(PAGES / f"link-{task}.{kind}", dpi=110, metadata={"Date": None} if kind == "svg" else None)
