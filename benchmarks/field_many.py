"""A hundred clients that really train on all of Fashion-MNIST over GPRS, in virtual time: how long this computer takes for it.

Writes docs/benchmarks/field-many.json, which the page of ``benchmarks.field`` shows; takes some minutes.

    python -m benchmarks.field_many
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import tomli_w

from benchmarks.common import PAGES
from benchmarks.paper_costs import MODELS
from simulation.datasets import materialize
from simulation.field.configure import configured
from simulation.field.presets import load_device, load_link
from simulation.field.simulate import Setting, simulate
from wire.process import peak_rss_bytes
from wire.runfile import load_run

CLIENTS, LINK, DEVICE, EPOCHS = 100, "gprs", "pi-zero-2w", 2


def main() -> None:
    begun_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="cutlayer-field-many-") as name:
        folder = Path(name)
        table = {
            "name": "many",
            "epochs": EPOCHS,
            "batch_size": 64,
            "in_flight": 2,
            "weights_leave": True,
            "checkpoint_every": 1_000_000,
            "resend_after_s": 120.0,
            "model": {"build": f"{MODELS}:fashion", "cut": ["pool2"], "input_shape": [1, 28, 28]},
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "lr_schedule": {"kind": "cosine", "warmup_steps": 50},
            "codec": {"forward": "lowbit:step=0.8,rate_weight=5e-6", "backward": "lowbit:step=6"},
            "data": dict(materialize("fashion-mnist", folder).data),
            "clients": [{"name": "c1"}],
        }
        (folder / "run.toml").write_text(tomli_w.dumps(table))
        run = configured(load_run(folder / "run.toml"), {"clients": CLIENTS}, state=folder / "state")
        setting = Setting(link=load_link(LINK), device=load_device(DEVICE), server_device=load_device("server"))
        result = simulate(run, setting, say=lambda text: print(text, flush=True))
    found = {
        "clients": CLIENTS,
        "link": LINK,
        "device": DEVICE,
        "epochs": EPOCHS,
        "accuracy": result.metrics["test"]["accuracy"],
        "time_s": result.time_s,
        "wall_s": time.perf_counter() - begun_s,
        "peak_rss_mb": peak_rss_bytes() / 2**20,
    }
    (PAGES / "field-many.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
