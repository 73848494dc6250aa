"""What a run cost and what came of it, beside its unsplit twin: as a table, or as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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
        losses: Sequence[float],
        twin: TwinResult,
        samples: Mapping[int, int],
    ) -> Report:
        """``results``: what each party left behind; ``samples``: training samples of each lane."""
        clients = [results[client.name] for client in run.clients]
        split = run.evaluate.splits[-1]
        up, down = (sum(int(client[key]) for client in clients) for key in ("bytes_up", "bytes_down"))
        trained = sum(int(client["bytes_by_use"][way].get("train", 0)) for client in clients for way in ("up", "down"))
        epochs = len(losses) / max(1, len(twin.losses)) * run.epochs  # fewer after early stopping
        return cls(
            dataset=dataset,
            model=run.model.build,
            codec=run.codec.forward if run.codec.forward == run.codec.backward else f"{run.codec.forward}/{run.codec.backward}",
            clients=len(clients),
            steps=len(losses),
            metrics=metrics.get(split, {}),
            unsplit_metrics=twin.metrics.get(split, {}),
            max_loss_difference=_largest_difference(losses, twin.losses),
            bytes_up=up,
            bytes_down=down,
            bytes_per_sample=trained / max(1.0, epochs * sum(samples.values())),
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
            "accuracy": self.metrics.get("accuracy"),
            "unsplit_accuracy": self.unsplit_metrics.get("accuracy"),
            "metrics": dict(self.metrics),
            "unsplit_metrics": dict(self.unsplit_metrics),
            "max_loss_difference": self.max_loss_difference if math.isfinite(self.max_loss_difference) else None,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "bytes_per_sample": round(self.bytes_per_sample, 1),
            "wire": self.wire.plain(),
            "client_peak_rss_mb": list(self.client_peak_rss_mb),
            "client_modules_forbidden": list(self.client_modules_forbidden),
            "broker": self.broker,
        }


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
