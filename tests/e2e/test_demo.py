"""``cutlayer demo`` as a newcomer starts it: its last line is one JSON object that says what was won and what was lost by splitting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KEYS = {
    "dataset",
    "clients",
    "steps",
    "accuracy",
    "unsplit_accuracy",
    "max_loss_difference",
    "bytes_up",
    "bytes_down",
    "bytes_per_sample",
    "wire",
    "client_peak_rss_mb",
    "client_modules_forbidden",
    "broker",
}
TRAINING_SAMPLES = 1442  # of digits


def demo(folder: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "cutlayer", "demo", "--json", *options], cwd=folder, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert set(found) >= KEYS
    return found


@pytest.mark.parametrize("clients", [1, 2])
def test_without_quantization_nothing_is_lost(clients: int, tmp_path: Path) -> None:
    found = demo(tmp_path, "--codec", "fp32", "--clients", str(clients), "--epochs", "3")
    assert 0 < found["max_loss_difference"] <= 1e-3, "0 would mean that a run was compared with itself"
    assert found["accuracy"] == found["unsplit_accuracy"] > 0.8
    assert found["clients"] == clients
    assert len(found["client_peak_rss_mb"]) == clients
    assert found["client_modules_forbidden"] == []
    shares = [TRAINING_SAMPLES // clients + (at < TRAINING_SAMPLES % clients) for at in range(clients)]
    assert found["steps"] == 3 * sum(-(-share // 32) for share in shares)
    assert found["broker"].startswith("embedded")
    wire = found["wire"]
    assert not wire["estimated"]
    assert found["bytes_up"] <= wire["sent_bytes"] < wire["ip_sent_bytes"]
    assert found["bytes_down"] <= wire["received_bytes"] < wire["ip_received_bytes"]
    assert 0 < found["bytes_per_sample"] * 3 * TRAINING_SAMPLES < found["bytes_up"] + found["bytes_down"]
    assert list(tmp_path.iterdir()) == [], "the demo leaves nothing behind"


def test_int8_takes_a_quarter_of_the_bytes_and_keeps_what_it_made(tmp_path: Path) -> None:
    exact = demo(tmp_path, "--codec", "fp32", "--epochs", "1", "--broker", "mosquitto")
    small = demo(tmp_path, "--codec", "int8", "--epochs", "1", "--broker", "mosquitto", "--keep", "kept")
    assert small["broker"].startswith("mosquitto")
    assert small["bytes_per_sample"] < 0.4 * exact["bytes_per_sample"]
    assert (tmp_path / "kept/run.toml").is_file()


def test_the_low_bit_codec_learns_with_a_twentieth_of_the_bytes(tmp_path: Path) -> None:
    found = demo(tmp_path, "--codec", "lowbit", "--clients", "1", "--epochs", "4")
    assert found["accuracy"] > 0.85
    assert found["bytes_per_sample"] < 1030 / 20, "fp32 takes 1,030 bytes a sample"
