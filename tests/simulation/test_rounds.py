"""What the twin of a run in rounds is compared with: large-batch SGD on concatenated batches, and averages written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from torch import nn
from torch.nn import functional

from export.prepare import build_model
from simulation.datasets import materialize
from simulation.rounds import average_modules
from simulation.twin import train_unsplit
from wire.feed import Batch, Feed
from wire.runfile import Run, load_run

CLIENTS, BATCH = 4, 8


class Sized:
    """Batches of a table in the order in which they stand; implements ``wire.feed.DataSource``."""

    def __init__(self, inputs: np.ndarray, target: np.ndarray) -> None:
        self._inputs, self._target = inputs, target
        self.samples, self.batches = len(target), -(-len(target) // BATCH)

    def batch(self, epoch: int, index: int) -> Batch:
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return Batch(inputs=(self._inputs[rows],), target=self._target[rows], ids=())


def run_of(folder: Path, optimizer: dict[str, Any], **changes: Any) -> Run:
    table: dict[str, Any] = {
        "name": "large",
        "epochs": 3,
        "batch_size": BATCH,
        "schedule": "large-batch",
        "weights_leave": True,
        "model": {"build": "digits-cnn"},
        "optimizer": optimizer,
        "lr_schedule": {"kind": "cosine", "warmup_steps": 12},
        "data": dict(materialize("digits", folder / "data").data),
        "clients": [{"name": f"c{at}"} for at in range(CLIENTS)],
        "server": {"threads": 1},
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table | changes))
    return load_run(path)


def shares(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    chance = np.random.default_rng(5)
    return [(chance.normal(size=(size, 1, 8, 8)).astype(np.float32), chance.integers(0, 10, size)) for size in sizes]


def on_concatenated_batches(run: Run, data: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """One network, one optimizer, and in each step the batches of all clients as one."""
    model, config = build_model(run), run.optimizer
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
    )
    turns = -(-max(len(target) for _, target in data) // BATCH)
    widths = [sum(len(target) > turn * BATCH for _, target in data) for turn in range(turns)]
    step = 0
    for _ in range(run.epochs):
        for turn in range(turns):
            rows = slice(turn * BATCH, (turn + 1) * BATCH)
            inputs, target = (np.concatenate([pair[at][rows] for pair in data]) for at in (0, 1))
            optimizer.param_groups[0]["lr"] = config.lr * run.lr_schedule.factor(step, run.epochs * sum(widths))
            optimizer.zero_grad()
            functional.cross_entropy(model(torch.from_numpy(inputs)), torch.from_numpy(target)).backward()
            optimizer.step()
            step += widths[turn]
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [
        ({"kind": "sgd", "lr": 0.1}, [40, 33, 12, 24]),  # with other weights in each step, and clients that are done earlier
        ({"kind": "sgd", "lr": 0.1, "weight_decay": 0.01}, [40, 33, 12, 24]),
        ({"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}, [32] * 4),
        ({"kind": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True}, [32] * 4),
    ],
    ids=["plain", "weight decay", "momentum", "nesterov"],
)
def test_an_average_after_each_step_is_a_step_on_the_mean_gradient(optimizer: dict[str, Any], sizes: list[int], tmp_path: Path) -> None:
    run, data = run_of(tmp_path, optimizer), shares(sizes)
    twin = train_unsplit(run, {f"c{lane}": Feed({"train": Sized(*each), "test": Sized(*each)}) for lane, each in enumerate(data)})
    wanted = on_concatenated_batches(run, data)
    start = build_model(run).state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(twin.state[f"model.{name}"], value, rtol=1e-4, atol=2e-6)
        assert not torch.equal(start[name], value)


def test_buffers_are_averaged_by_samples_and_whole_numbers_rounded() -> None:
    replicas = [nn.BatchNorm1d(2) for _ in range(3)]
    for at, replica in enumerate(replicas):
        replica.running_mean.fill_(at)
        replica.num_batches_tracked.fill_(10 * at)
        nn.init.constant_(replica.weight, 2.0 * at)
    average_modules(replicas, {0: 1, 2: 2})
    for replica in replicas:
        torch.testing.assert_close(replica.running_mean, torch.full((2,), 4 / 3))
        torch.testing.assert_close(replica.weight.detach(), torch.full((2,), 8 / 3))
        assert int(replica.num_batches_tracked) == 13
