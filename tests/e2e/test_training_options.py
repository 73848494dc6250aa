"""What a run file may ask of training beyond the usual, in whole runs: split stays equal to unsplit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.e2e.field import REPOSITORY, small_run
from wire.runfile import load_run

EXACT = {"codec": {"forward": "fp32", "backward": "fp32"}}
CLIENTS = [{"name": f"c{at}", "threads": 1, "memory": "low", "data": {"shard": f"{at + 1}/2"}} for at in range(2)]


def trained(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "cutlayer", "run", str(path), "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("schedule", ["relay", "independent"])
def test_accumulation_clipping_freezing_and_little_memory_together(schedule: str, tmp_path: Path) -> None:
    model = {"build": "digits-cnn", "cut": ["relu2"], "freeze": ["conv1", "*.bias"]}
    path = small_run(tmp_path, schedule=schedule, accumulate=3, clip_norm=0.5, model=model, clients=CLIENTS, **EXACT)
    found = trained(path)
    assert 0 < found["max_loss_difference"] <= 1e-3, "0 would mean that a run was compared with itself"
    run = load_run(path)
    before = load_file(run.bundles / "bottom" / "parameters.safetensors")
    newest = max((run.state_of("c0") / "checkpoints").iterdir(), key=lambda each: int(each.name))
    after = load_file(newest / "bottom.safetensors")
    moved = {name for name, value in before.items() if (after[f"p.{name}"] != value).any()}
    assert moved == {"conv2.weight"}
