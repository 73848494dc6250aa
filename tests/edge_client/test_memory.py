"""Which of the two ways to train a board gets, by what it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edge_client.memory import choose_memory, needed_bytes
from export import SGD, export_segment
from wire.manifest import BundleManifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> BundleManifest:
    """Wide images through a deep chain of cheap layers: much to keep, little to compute again."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), *(nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU()) for _ in range(8))]
    return export_segment(nn.Sequential(*layers), (torch.randn(2, 1, 32, 32),), tmp_path_factory.mktemp("b") / "b", optimizer=SGD(lr=0.1))


def board(root: Path, free_mb: int) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {free_mb << 10} kB\n")
    return root


def test_low_is_less_and_grows_with_the_batch(manifest: BundleManifest) -> None:
    fast, low = manifest.memory["fast"], manifest.memory["low"]
    assert 0 < low.at(64) < fast.at(64)
    assert fast.at(128) > 1.9 * fast.at(64), "activations are nearly all of it"
    assert needed_bytes([manifest], batch=64, memory="low") < needed_bytes([manifest], batch=64, memory="fast")


def test_a_board_gets_what_fits(manifest: BundleManifest, tmp_path: Path) -> None:
    need_mb = needed_bytes([manifest], batch=64, memory="fast") >> 20
    assert choose_memory([manifest], batch=64, root=board(tmp_path / "large", 2 * need_mb)) == "fast"
    assert choose_memory([manifest], batch=64, root=board(tmp_path / "small", need_mb)) == "low", "there must be room to spare"
    assert choose_memory([manifest], batch=8, root=board(tmp_path / "same", need_mb)) == "fast", "a smaller batch fits"
    assert choose_memory([manifest], batch=64, root=tmp_path / "unknown") == "fast"


def test_more_steps_in_flight_need_more(manifest: BundleManifest) -> None:
    one, three = (needed_bytes([manifest], batch=64, in_flight=count, memory="fast") for count in (1, 3))
    kept = sum(spec.bytes_at(64) for spec in (*manifest.inputs, *manifest.outputs, *manifest.residuals))
    assert three - one == 2 * kept
