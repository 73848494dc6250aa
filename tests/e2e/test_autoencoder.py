"""The semi-supervised variant: a segment as an autoencoder, whose gradient is the server's plus alpha times the reconstruction's."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from edge_client.engine import load_engine
from export.autoencoder import Autoencoder
from export.prepare import build_segments, export_run
from tests.e2e.field import REPOSITORY
from wire.errors import CutlayerError
from wire.runfile import Run, load_run


def example(folder: Path, **changes: Any) -> Run:
    shutil.copytree(REPOSITORY / "examples", folder, dirs_exist_ok=True)
    path = folder / "semi-supervised.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | changes))
    return load_run(path)


def test_the_gradient_is_the_servers_plus_alpha_times_the_reconstructions(tmp_path: Path) -> None:
    """By the definition, in torch; the device's engine does it in ONNX with the decoder's error as one more output."""
    alpha = 0.25
    run = example(tmp_path, reconstruct={"decoder": "networks.py:decoder", "alpha": alpha}, optimizer={"kind": "sgd", "lr": 0.1})
    export_run(run, run.bundles)
    engine = load_engine(run.bundles / "bottom", threads=1)
    module = build_segments(run)["bottom"].module
    assert isinstance(module, Autoencoder)
    rng = np.random.default_rng(0)
    images = rng.random((6, 1, 8, 8), np.float32)
    activation, error = engine.forward(0, images)
    gradient = rng.normal(size=activation.shape).astype(np.float32)
    engine.backward(0, gradient, np.full(6, alpha / 6, np.float32))
    x = torch.from_numpy(images)
    encoded = module.train().segment(x)
    mean = (module.decoder(encoded) - x).square().mean()
    np.testing.assert_allclose(error.mean(), mean.detach(), rtol=1e-5)
    ((encoded * torch.from_numpy(gradient)).sum() + alpha * mean).backward()
    after = engine.parameters()
    assert any(name.startswith("decoder.") for name in after)
    for name, value in module.named_parameters():
        np.testing.assert_allclose(after[name], (value - 0.1 * value.grad).detach(), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reconstruct": {"decoder": "networks.py:decoder", "alpha": 0.0}}, "`alpha` is 0.0; it must be a finite number above 0"),
        ({"reconstruct": {"decoder": "networks.py:decoder", "alpha": 1.0, "segment": "top"}}, "segments with raw data are bottom"),
        ({"reconstruct": {"decoder": "networks.py:columns", "alpha": 1.0, "args": {"inputs": 3}}}, "does not run on what `bottom` gives"),
        ({"reconstruct": {"decoder": "networks.py:columns", "alpha": 1.0, "args": {"inputs": 4}}}, "makes a sample of [8, 4, 16], the raw"),
    ],
)
def test_what_is_no_autoencoder_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CutlayerError) as caught:
        build_segments(example(tmp_path, **changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_samples_without_a_label_need_an_autoencoder(tmp_path: Path) -> None:
    path = tmp_path / "semi-supervised.toml"
    example(tmp_path)
    table = tomllib.loads(path.read_text())
    del table["reconstruct"]
    path.write_text(tomli_w.dumps(table))
    with pytest.raises(CutlayerError, match="set `\\[reconstruct\\]`"):
        load_run(path)
