"""On this machine, without the image: what the ARM tests compare with holds here, and the comparison sees a fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from server.optimizers import torch_optimizer
from tests.arm.cases import SMOKE, write_case
from tests.arm.replay import GOLDEN, STEPS, Array, Golden, batch_of, replay, train
from tests.vectors.make_training import BOUND, SEGMENTS, after, export_start, path_of


def apart(found: dict[str, Array], wanted: dict[str, Array]) -> float:
    """The largest ‖a − b‖ / ‖b‖ of a tensor."""
    assert set(found) == set(wanted)
    return max(
        float(np.linalg.norm(found[name].astype(np.float64) - value)) / float(np.linalg.norm(value.astype(np.float64)))
        for name, value in wanted.items()
    )


@pytest.mark.parametrize("name", SEGMENTS)
def test_twenty_steps_come_to_the_golden_weights(name: str, tmp_path: Path) -> None:
    assert apart(train(export_start(name, tmp_path)), after(name)) <= BOUND


@pytest.mark.parametrize("name", SEGMENTS)
def test_torch_comes_to_the_golden_weights(name: str) -> None:
    segment, start = SEGMENTS[name], load_file(path_of(name))
    module = segment.build().train()
    module.load_state_dict({key.removeprefix("start."): torch.from_numpy(value) for key, value in start.items() if key[:5] == "start"})
    optimizer = torch_optimizer(segment.optimizer, list(module.parameters()))
    for step in range(STEPS):
        out = module(torch.from_numpy(batch_of({"x": (0, *segment.shape)}, step)["x"]))
        optimizer.zero_grad()
        out.backward(torch.from_numpy(batch_of({"g y": tuple(out.shape)}, step)["g y"]))
        optimizer.step()
    found = {key: value.numpy() for key, value in module.state_dict().items()}
    assert apart(found, after(name)) <= BOUND
    moved = [key for key, value in found.items() if not np.allclose(value, start[f"start.{key}"], rtol=1e-3)]
    assert len(moved) >= len(found) - 1, "the training is no test: hardly anything has moved (but a bias before BatchNorm)"


@pytest.mark.parametrize("name", SMOKE)
def test_the_replay_agrees_with_torch_and_sees_a_fault(name: str, tmp_path: Path) -> None:
    folder = write_case(name, tmp_path)
    assert replay(folder)["worst"] <= 1
    golden = Golden(folder / GOLDEN)
    for key in ("1.out", "2.after"):
        bad = {each: value.copy() for each, value in golden.tensors.items()}
        touched = next(each for each in bad if each.startswith(key) and bad[each].dtype == np.float32)
        bad[touched] = np.array(bad[touched] + np.float32(1e-3) * np.abs(bad[touched]).max())
        save_file(bad, folder / GOLDEN)
        found = replay(folder)
        assert found["worst"] > 1
        assert found["where"] == touched.replace(".after", "")


def test_the_replay_needs_no_torch(tmp_path: Path) -> None:
    program = "import sys, tests.arm.replay; print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'onnx', 'export')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
