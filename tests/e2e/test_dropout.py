"""Dropout on both sides of a cut: split equals unsplit, and a run that was killed is the run that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.broker import start_broker
from simulation.run import run_and_compare
from tests.e2e.field import field, small_run
from wire.runfile import load_run

MODEL = '''
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Rows of an image as a sequence. Dropout in the client's part and, of three kinds, in the server's."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 12, num_layers=2, dropout=0.2, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        rows = self.drop(self.rnn(x.flatten(1, 2))[0])
        return self.head(functional.dropout(self.layer(rows)[:, -1], 0.25, self.training))


def build():
    return Net()
'''
CHANGES: dict[str, Any] = {
    "model": {"build": "net.py:build", "cut": ["drop"], "input_shape": [1, 8, 8]},
    "codec": {"forward": "fp32", "backward": "fp32"},
}


def dropping_run(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(MODEL)
    return small_run(folder, **CHANGES, **changes)


@pytest.mark.parametrize("schedule", ["relay", "independent"])
def test_split_equals_unsplit(schedule: str, tmp_path: Path) -> None:
    path = dropping_run(tmp_path, schedule=schedule, weights_leave=schedule == "relay")
    report = run_and_compare(load_run(path), broker="embedded")
    assert report is not None
    assert report.steps == 2 * 2 * 20
    assert report.metrics["accuracy"] == pytest.approx(report.unsplit_metrics["accuracy"], abs=0.01)
    assert 0 < report.max_loss_difference <= 1e-3, "0 would mean that a run was compared with itself"


def test_a_run_that_was_killed_draws_the_same_masks(tmp_path: Path) -> None:
    calm, cut_off = (dropping_run(tmp_path / name, in_flight=2, epochs=6) for name in ("calm", "cut"))
    with start_broker() as broker, field(calm, broker) as run:
        run.finish()
        wanted = run.weights(), run.losses()
    with start_broker() as broker, field(cut_off, broker) as run:
        cuts = 0
        for point, victim in ((13, "c0"), (47, "server"), (93, "c1")):
            if not run.await_step(point):  # a fast computer is through before we have read how far it is
                break
            run.kill(victim)
            run.start(victim)
            cuts += 1
        run.finish()
        assert cuts, "nothing was killed in mid-run"
        assert (run.weights(), run.losses()) == wanted
