"""What a run cost and what came of it, beside its unsplit twin: as a table, or as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from simulation.twin import TwinResult
from wire.runfile import Run
from wire.transport.wire_bytes import NO_BYTES, WireBytes

__all__ = ["Report", "print_drained", "print_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``bytes_up`` and ``bytes_down``: MQTT PUBLISH packets of all clients, hand-over of weights, evaluation and repeats included;
    ``bytes_by_edge``: the same
    of all parties, by cut and link. ``labels_published``: samples, each time that its label left its party.
    ``bytes_per_sample``: those of training steps, both ways, by training samples served. ``wire``: bytes of all clients as their sockets
    carried them. ``max_loss_difference``: over all steps, NaN where a step was void."""

    dataset: str
    model: str
    codec: str
    clients: int
    steps: int
    metrics: Mapping[str, float]
    unsplit_metrics: Mapping[str, float]
    max_loss_difference: float
    bytes_up: int
    bytes_down: int
    bytes_by_edge: Mapping[str, Mapping[str, int]]
    labels_published: int
    bytes_per_sample: float
    wire: WireBytes
    client_peak_rss_mb: tuple[float, ...]
    client_modules_forbidden: tuple[str, ...]
    broker: str

    @classmethod
    def compare(
        cls,
        run: Run,
        *,
        dataset: str,
        broker: str,
        results: Mapping[str, Mapping[str, Any]],
        metrics: Mapping[str, Mapping[str, float]],
        losses: Mapping[str, Sequence[float]],
        twin: TwinResult,
        samples: int,
    ) -> Report:
        """``results``: what each party left behind; ``losses``: by the segment that owns it; ``samples``: training samples, an epoch."""
        clients = [results[client.name] for client in run.clients]
        split = run.evaluate.splits[-1]
        up, down = (sum(int(client[key]) for client in clients) for key in ("bytes_up", "bytes_down"))
        trained = sum(int(client["bytes_by_use"][way].get("train", 0)) for client in clients for way in ("up", "down"))
        steps = max((len(each) for each in losses.values()), default=0)
        unsplit = max((len(each) for each in twin.losses.values()), default=0)
        epochs = steps / max(1, unsplit) * run.epochs  # fewer after early stopping
        return cls(
            dataset=dataset,
            model=run.model.build if run.model is not None else ", ".join(each.name for each in run.segments),
            codec=run.codec.forward if run.codec.forward == run.codec.backward else f"{run.codec.forward}/{run.codec.backward}",
            clients=len(clients),
            steps=steps,
            metrics=metrics.get(split) or _of_those_who_keep_them(clients, split),
            unsplit_metrics=twin.metrics.get(split, {}),
            max_loss_difference=max((_largest_difference(losses[sink], twin.losses[sink]) for sink in losses), default=math.nan),
            bytes_up=up,
            bytes_down=down,
            bytes_by_edge=_by_edge(results.values()),
            labels_published=sum(int(result["labels_published"]) for result in results.values()),
            bytes_per_sample=trained / max(1.0, epochs * samples),
            wire=sum((WireBytes(**client["wire"]) for client in clients), NO_BYTES),
            client_peak_rss_mb=tuple(float(client["peak_rss_mb"]) for client in clients),
            client_modules_forbidden=tuple(sorted({name for client in clients for name in client["modules_forbidden"]})),
            broker=broker,
        )

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            "codec": self.codec,
            "clients": self.clients,
            "steps": self.steps,
            "accuracy": _accuracy(self.metrics),
            "unsplit_accuracy": _accuracy(self.unsplit_metrics),
            "metrics": _without_nan(self.metrics),
            "unsplit_metrics": _without_nan(self.unsplit_metrics),
            "max_loss_difference": self.max_loss_difference if math.isfinite(self.max_loss_difference) else None,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "bytes_by_edge": {edge: dict(both) for edge, both in self.bytes_by_edge.items()},
            "labels_published": self.labels_published,
            "bytes_per_sample": round(self.bytes_per_sample, 1),
            "wire": self.wire.plain(),
            "client_peak_rss_mb": list(self.client_peak_rss_mb),
            "client_modules_forbidden": list(self.client_modules_forbidden),
            "broker": self.broker,
        }


def _of_those_who_keep_them(clients: Sequence[Mapping[str, Any]], split: str) -> dict[str, float]:
    """Where labels stay at clients: each one's own metrics, by how many samples it has."""
    told = [(int(each["evaluated"][split]), each["metrics"][split]) for each in clients if split in each.get("metrics", {})]
    total = sum(samples for samples, _ in told)
    return {name: sum(samples * metrics[name] for samples, metrics in told) / total for name in (told[0][1] if total else ())}


def _without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no numbers that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _accuracy(metrics: Mapping[str, float]) -> float | None:
    """Of several tasks, the mean."""
    found = [value for name, value in metrics.items() if name == "accuracy" or name.endswith(".accuracy")]
    return sum(found) / len(found) if found else None


def _by_edge(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for result in results:
        for edge, both in result["bytes_by_edge"].items():
            mine = found.setdefault(edge, {"forward": 0, "backward": 0})
            for way in mine:
                mine[way] += int(both[way])
    return found


def _largest_difference(losses: Sequence[float], unsplit: Sequence[float]) -> float:
    if len(losses) != len(unsplit):
        return math.nan
    return max((abs(a - b) for a, b in zip(losses, unsplit, strict=True)), default=0.0)


def print_report(report: Report, *, as_json: bool) -> None:
    """To stdout."""
    if as_json:
        print(json.dumps(report.plain()), flush=True)
        return
    table = Table(title=f"{report.dataset}, {report.model}, {report.clients} clients, codec {report.codec}, {report.steps} steps")
    table.add_column("")
    table.add_column("split", justify="right")
    table.add_column("unsplit", justify="right")
    for name, value in report.metrics.items():
        table.add_row(name, f"{value:.4f}", f"{report.unsplit_metrics.get(name, math.nan):.4f}")
    table.add_row("largest difference of a step's loss", f"{report.max_loss_difference:.1e}", "")
    table.add_row("bytes up", f"{report.bytes_up:,}", "")
    table.add_row("bytes down", f"{report.bytes_down:,}", "")
    about = "about " if report.wire.estimated else ""
    for name, up, down in (
        ("on the wire", report.wire.sent_bytes, report.wire.received_bytes),
        ("with TCP/IP", report.wire.ip_sent_bytes, report.wire.ip_received_bytes),
    ):
        table.add_row(f"bytes {name}, up and down", f"{about}{up:,} + {down:,}", "")
    for edge, both in report.bytes_by_edge.items():
        table.add_row(f"bytes over {edge}, forward and backward", f"{both['forward']:,} + {both['backward']:,}", "")
    table.add_row("labels published", f"{report.labels_published:,}", "")
    table.add_row("bytes a training sample", f"{report.bytes_per_sample:,.0f}", "")
    table.add_row("peak memory of each client, MB", ", ".join(f"{value:.0f}" for value in report.client_peak_rss_mb), "")
    table.add_row("torch or onnx in a client", ", ".join(report.client_modules_forbidden) or "none", "")
    Console(highlight=False).print(table)


def print_drained(run: str, *, as_json: bool) -> None:
    """All parties of ``run`` have left, and it is not over."""
    if as_json:
        print(json.dumps({"name": run, "drained": True}))
    else:
        print(f"{run} is drained: it is not over; start the same command again and it goes on")
