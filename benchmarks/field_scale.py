"""What it takes to simulate many clients in cost mode: processor time and memory, from a hundred clients to ten thousand.

python -m benchmarks.field_scale        writes docs/benchmarks/field-scale.md and field-scale.json
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import PAGES, hardware, prose, write_page

__all__ = ["measured"]

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (100, 1_000, 10_000)
STEPS, BATCH = 20, 16
LINK, DEVICE = "gprs", "pi-zero-2w"
BAR_S, BAR_BYTES = 300.0, 2 << 30


def measured(clients: int, folder: Path) -> dict[str, Any]:
    """Simulate so many clients in this process, which must be a fresh one: what it took, and what came of it."""
    from simulation.datasets import materialize
    from simulation.field.configure import configured
    from simulation.field.presets import load_device, load_link
    from simulation.field.simulate import Setting, simulate
    from wire.process import peak_rss_bytes
    from wire.runfile import parse_run

    table = {
        "name": "scale",
        "epochs": 1,
        "batch_size": BATCH,
        "schedule": "independent",
        "checkpoint_every": STEPS * clients,
        "model": {"build": "digits-cnn", "cut": ["pool1"]},
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "codec": {"forward": "int8", "backward": "int8"},
        "data": dict(materialize("digits", folder / "data").data),
        "clients": [{"name": "c0"}],
    }
    run = configured(parse_run(table, base=str(folder)), {"clients": clients}, state=folder / "state")
    setting = Setting(link=load_link(LINK), device=load_device(DEVICE), server_device=load_device("server"))
    begun_s = time.perf_counter()
    result = simulate(run, setting, mode="cost", samples=STEPS * BATCH)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "clients": clients,
        "steps": result.applied,
        "finished": result.finished,
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": time.perf_counter() - begun_s,
        "rss_bytes": peak_rss_bytes(),
        "line_time_s": result.time_s,
        "line_bytes": result.line_bytes_up + result.line_bytes_down,
    }


def _in_a_process(clients: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.field_scale", str(clients)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory(prefix="cutlayer-scale-") as folder:
            print(json.dumps(measured(int(sys.argv[1]), Path(folder))))
        return
    rows = [_in_a_process(clients) for clients in CLIENTS]
    (PAGES / "field-scale.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_page("field-scale", _page(rows))


def _page(rows: list[dict[str, Any]]) -> list[str]:
    last = rows[-1]
    fits = last["finished"] and last["cpu_s"] <= BAR_S and last["rss_bytes"] <= BAR_BYTES
    return [
        "# Simulating many clients",
        "",
        *prose(
            f"`cutlayer simulate RUN.toml --mode cost --link {LINK} --device {DEVICE} --clients {CLIENTS[-1]} --samples {STEPS * BATCH}`,",
            "and fewer clients: digits-cnn",
            f"cut after its first pooling, schedule independent, int8, {STEPS} steps of {BATCH} samples and an evaluation for each client.",
            "One process, from its start to its end, with the short training that message sizes come from, which is most of the first row.",
        ),
        "",
        *hardware("torch", "onnxruntime", "numpy"),
        "- script: `make bench-field_scale`",
        f"- bars for {last['clients']:,} clients: {BAR_S:.0f} s, {BAR_BYTES >> 30} GB: {'met' if fits else '**missed**'}",
        f"- time from 1,000 to 10,000 clients: {_growth(rows[-2], last):.1f} times for 10 times as many",
        "",
        "| clients | steps | processor, s | by the clock, s | peak memory, MB | line time, h | line bytes, MB |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['clients']:,} | {row['steps']:,} | {row['cpu_s']:.1f} | {row['wall_s']:.1f} | {row['rss_bytes'] / 2**20:.0f} | "
            f"{row['line_time_s'] / 3600:.2f} | {row['line_bytes'] / 1e6:.1f} |"
            for row in rows
        ),
    ]


def _growth(fewer: dict[str, Any], more: dict[str, Any]) -> float:
    return float(more["cpu_s"] / fewer["cpu_s"])


if __name__ == "__main__":
    main()
