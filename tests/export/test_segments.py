"""First stages of well-known networks, by the command that a person types, trained on onnxruntime beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cutlayer
from export import SGD
from export.cut import cut
from export.load import load_model
from tests.export import segments
from tests.export.segments import SEGMENTS

FILE = Path(segments.__file__)
OPTIMIZER = SGD(lr=0.005, momentum=0.9)


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_first_stage_trains_as_in_torch(name: str, tmp_path: Path, train_both: Callable[..., None]) -> None:
    segment = SEGMENTS[name]
    spec = f"{FILE}:{segment.build.__name__}"
    options = ["--input-shape", ",".join(map(str, segment.sample)), "--optimizer", "sgd,lr=0.005,momentum=0.9"]
    torch.manual_seed(4)
    assert cutlayer.main(["export", "--model", spec, "--cut", segment.cut, *options, "--out", str(tmp_path / "bundle")]) == 0
    torch.manual_seed(4)
    model, draw = load_model(spec, {}, "."), torch.randn(12, *segment.sample)
    bottom, top = cut(model, segment.cut, (draw[:2],))
    assert len(bottom.output_names) == len(top.input_names) == segment.crossing
    data = {bottom.input_names[0]: draw}
    train_both(bottom.module, tmp_path / "bundle", data, OPTIMIZER, batches=segment.batches, tolerance=1e-4)
