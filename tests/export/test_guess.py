"""``cutlayer export --model`` without ``--input-shape``."""

from __future__ import annotations

from pathlib import Path

import pytest

import cutlayer
from tests.export import strangers
from wire.manifest import load_manifest

MODELS = {
    "a flattened image": ("nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 94 * 94, 2))", "1", [3, 96, 96], ""),
    "an image of any size": (
        "nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))",
        "0",
        [1, 32, 32],
        "1,28,28",
    ),
    "a table": ("nn.Sequential(nn.BatchNorm1d(13), nn.Linear(13, 4), nn.ReLU(), nn.Linear(4, 2))", "1", [13], ""),
    "a signal": ("nn.Sequential(nn.Conv1d(2, 4, 5), nn.Flatten(), nn.Linear(4 * 252, 3))", "0", [2, 256], ""),
    "tokens": ("nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 2))", "2", [16], ""),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_usual_shape_that_fits_is_taken_and_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, at, shape, other = MODELS[name]
    (tmp_path / "my_model.py").write_text(f"from torch import nn\n\n\ndef build():\n    return {code}\n")
    assert cutlayer.main(["export", "--model", f"{tmp_path / 'my_model.py'}:build", "--cut", at, "--out", str(tmp_path / "b")]) == 0
    manifest = load_manifest((tmp_path / "b/manifest.json").read_text(), where="b")
    assert list(manifest.inputs[0].shape[1:]) == shape
    said = capsys.readouterr().err
    assert f"--input-shape {','.join(map(str, shape))} assumed" in said
    assert ("would fit too" in said) is bool(other)
    assert other in said


def test_what_nothing_fits_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.py").write_text(
        "from torch import nn\nbuild = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))\n"
    )
    assert cutlayer.main(["export", "--model", f"{tmp_path / 'm.py'}:build", "--cut", "0", "--out", str(tmp_path / "b")]) == 2
    assert "say the shape of one sample" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "at"), [(name, places[0][0]) for name, places in strangers.CUTS.items()])
def test_models_of_strangers_are_exported_or_asked_about(name: str, at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cutlayer.main(["export", "--model", f"{strangers.__file__}:{name}", "--cut", at, "--out", str(tmp_path / "b")])
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert ("assumed" if found == 0 else "say the shape of one sample") in said[0]


def test_tokens_of_a_length_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("from torch import nn\nbuild = lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.Tanh())\n")
    options = ["--cut", "1", "--input-shape", "12", "--out", str(tmp_path / "b")]
    assert cutlayer.main(["export", "--model", f"{tmp_path / 'm.py'}:build", *options]) == 0
    (spec,) = load_manifest((tmp_path / "b/manifest.json").read_text(), where="b").inputs
    assert (spec.dtype, spec.shape) == ("int64", ("batch", 12))
