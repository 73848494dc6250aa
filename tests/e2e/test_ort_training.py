"""A run whose first client trains on onnxruntime-training, in its own environment, and whose second one trains on stock onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from export.prepare import export_run
from server.broker import start_broker
from tests.e2e.field import REPOSITORY, Field, small_run
from tests.ort_training import environment
from wire.runfile import load_run
from wire.store import load_state

FP32 = {"forward": "fp32", "backward": "fp32"}


class _Mixed(Field):
    def command(self, name: str) -> list[str]:
        words = super().command(name)
        return [str(environment()), *words[1:], "--engine", "ort-training"] if name == "c0" else words


def _weights(kind: type[Field], path: Path, url: str) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    run = kind(path, url)
    try:
        run.start()
        run.finish()
        run.check_ledgers(2 * 20)
        return {f"{file}/{name}": value for file, data in run.weights().items() for name, value in load_state(data, where=file).items()}
    finally:
        run.close()


def test_a_run_of_both_engines_ends_as_one_of_stock_onnxruntime(tmp_path: Path) -> None:
    """Clients hand weights, optimizer state and running statistics on, from one engine to the other and back."""
    folders = [tmp_path / "stock", tmp_path / "mixed"]
    paths = []
    for folder in folders:
        folder.mkdir()
        paths.append(small_run(folder, codec=FP32))
    run = load_run(paths[1])
    export_run(run, run.bundles, engines=("stock", "ort-training"), ort_training_python=environment())
    with start_broker() as broker:
        stock = _weights(Field, paths[0], broker.url)
        mixed = _weights(_Mixed, paths[1], broker.url)
    assert set(mixed) == set(stock)
    for name, value in stock.items():
        np.testing.assert_allclose(mixed[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_client_without_the_package_says_so_in_one_line(tmp_path: Path) -> None:
    path = small_run(tmp_path, clients=[{"name": "c0", "engine": "ort-training"}])
    command = [sys.executable, "-m", "cutlayer", "client", str(path), "--party", "c0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("cutlayer: error: the engine ort-training needs onnxruntime-training 1.19.2, and here is onnxruntime ")
    assert len(done.stderr.splitlines()) == 1
