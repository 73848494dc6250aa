"""What was trained in pieces is one network again: the same tensors, the same outputs, in PyTorch and in ONNX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from safetensors.torch import load_file

from export.prepare import build_model
from server.broker import start_broker
from tests.e2e.field import REPOSITORY, Field, field, small_run
from wire.runfile import load_run
from wire.store import newest_checkpoint


def assembled(path: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cutlayer", "assemble", str(path), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, check=False)


def trained(path: Path) -> Field:
    with start_broker() as broker, field(path, broker) as run:
        run.finish()
        return run


def check(run: Field, client: str, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    model = build_model(run.run).eval()
    model.load_state_dict(state)
    checkpoints = {**newest_checkpoint(run.run.state_of("server")), **newest_checkpoint(run.run.state_of(client))}
    for tensors in checkpoints.values():
        for name, value in tensors.items():
            if name.startswith(("p.", "b.")):
                assert np.array_equal(state.pop(name[2:]).numpy(), value)
    assert not state, "nothing but what was trained"
    network = onnx.load(folder / "model.onnx")
    assert network.ir_version <= 10
    assert [(each.domain, each.version) for each in network.opset_import] == [("", 18)]
    batch = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    (found,) = ort.InferenceSession(network.SerializeToString()).run(None, {"x": batch})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(torch.from_numpy(batch)).numpy(), rtol=1e-4, atol=1e-5)


def test_relay_makes_one_network(tmp_path: Path) -> None:
    run = trained(small_run(tmp_path))
    done = assembled(run.path, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    for client in ("c0", "c1"):
        check(run, client, tmp_path / "model")


def test_independent_clients_make_one_each(tmp_path: Path) -> None:
    run = trained(small_run(tmp_path, schedule="independent"))
    assert assembled(run.path, tmp_path / "model").returncode == 0
    for client in ("c0", "c1"):
        check(run, client, tmp_path / "model" / client)


def test_weights_that_may_not_leave_are_not_there(tmp_path: Path) -> None:
    run = trained(small_run(tmp_path, schedule="independent", weights_leave=False))
    done = assembled(run.path, tmp_path / "model")
    assert done.returncode == 2
    assert "weights_leave" in done.stderr
    assert not list((load_run(run.path).state_of("server") / "result").glob("*")), "nothing of the clients has reached the server"


def test_a_run_that_has_not_ended(tmp_path: Path) -> None:
    done = assembled(small_run(tmp_path), tmp_path / "model")
    assert done.returncode == 2
    assert "holds no state of this party" in done.stderr
