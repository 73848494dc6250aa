"""Virtual time against real processes over lines that the kernel shapes: the same run file, the same line. Needs root; about ten minutes.

Writes docs/benchmarks/field-real.json, which the page of ``benchmarks.field`` shows. The computer should have nothing else to do: what real
processes wait for each other is in their time.

    python -m benchmarks.field_real [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.common import PAGES
from simulation.datasets import materialize
from simulation.field.configure import configured
from simulation.field.device import Device
from simulation.field.link import Link
from simulation.field.presets import THIS, THIS_SERVER, load_device
from simulation.field.real import run_over_line
from simulation.field.result import FieldResult
from simulation.field.simulate import Setting, simulate
from simulation.screen import Screen
from wire.runfile import Run, load_run
from wire.transport.window import SMALLEST_PART_BYTES

RESULTS = PAGES / "field-real.json"
ROUND_TRIP_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    rate_bps: int
    clients: int
    codec: str
    samples: int  # of each client
    epochs: int

    @property
    def link(self) -> Link:
        return Link(name=f"{self.rate_bps / 1000:g}-kbit", up_bps=self.rate_bps, down_bps=self.rate_bps, round_trip_s=ROUND_TRIP_S)

    def table(self, data: Mapping[str, Any]) -> dict[str, Any]:
        limited = dict(data) | {"limit": self.samples, "test": {"limit": 64}}
        return {
            "name": "field",
            "epochs": self.epochs,
            "batch_size": 32,
            "schedule": "independent",
            "in_flight": 2,
            "resend_after_s": 120.0,
            # A connection cuts its messages small until an acknowledgement has shown the rate. Whether the hub's broker acknowledges the
            # first one before the second is cut is a race of milliseconds, and a message in five parts has 283 bytes more.
            "broker": {"part_bytes": SMALLEST_PART_BYTES},
            "model": {"build": "digits-cnn", "cut": ["pool1"]},
            "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
            "codec": {"forward": self.codec, "backward": self.codec},
            "data": limited,
            "evaluate": {"every_epochs": self.epochs},
            "clients": [{"name": f"c{at}", "threads": 1, "data": {"shard": f"{at}/{self.clients}"}} for at in range(1, self.clients + 1)],
            "server": {"threads": 1},
        }


CASES = (
    Case(rate_bps=9_600, clients=1, codec="lowbit", samples=512, epochs=2),
    Case(rate_bps=9_600, clients=4, codec="lowbit", samples=320, epochs=2),
    Case(rate_bps=64_000, clients=1, codec="int8", samples=512, epochs=3),
    Case(rate_bps=64_000, clients=4, codec="int8", samples=320, epochs=3),
    Case(rate_bps=250_000, clients=1, codec="fp32", samples=512, epochs=3),
    Case(rate_bps=250_000, clients=4, codec="fp32", samples=320, epochs=3),
)


def told(result: FieldResult) -> dict[str, Any]:
    return {
        "time_s": result.time_s - result.linked_s,
        "mqtt_bytes": result.bytes_up + result.bytes_down,
        "line_bytes": result.line_bytes_up + result.line_bytes_down,
    }


def measured(case: Case, device: Device, server: Device, *, repeat: int) -> dict[str, Any]:
    """One simulation, and the median of ``repeat`` real runs."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-field-real-") as name, Screen() as screen:
        folder = Path(name)
        (folder / "run.toml").write_text(tomli_w.dumps(case.table(materialize("digits", folder / "data").data)))
        run = load_run(folder / "run.toml")

        def again(at: str) -> Run:
            return configured(run, {}, state=folder / at)

        virtual = simulate(again("virtual"), Setting(link=case.link, device=device, server_device=server))
        real = [told(run_over_line(again(f"real{at}"), case.link, screen=screen, lines="namespaces")) for at in range(repeat)]
    times = [each["time_s"] for each in real]
    middle = next(each for each in real if each["time_s"] == statistics.median_low(times))
    shared = {"rate_bps": case.rate_bps, "clients": case.clients, "codec": case.codec, "steps": virtual.applied}
    return shared | {"virtual": told(virtual), "real": middle | {"times_s": times}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="real runs of each case, of which the median counts")
    arguments = parser.parse_args()
    device, server = load_device(THIS), load_device(THIS_SERVER)
    rows = {}
    for case in CASES:
        row = measured(case, device, server, repeat=arguments.repeat)
        rows[f"{case.rate_bps} | {case.clients}"] = row
        print(f"{case.link.name}, {case.clients} clients: {json.dumps(row)}", flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
