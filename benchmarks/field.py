"""How long to 85 % on Fashion-MNIST over each line: split with each codec, federated averaging, and uploading the raw data once.

A cell is a method: trained once in virtual time, and what was sent then sent again over each line, by real drivers (cost mode). Cells that
``docs/benchmarks/field.json`` has already are not run again. About ten minutes of one core.

    python -m benchmarks.field [--jobs 1] [--only TEXT] [--again]        writes docs/benchmarks/field.md and field.json
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cells import cell_arguments, exported, missing, run_cells, stored
from benchmarks.common import PAGES, prose
from benchmarks.field_page import LINKS, TARGET, write_field_page
from benchmarks.paper_costs import MODELS
from benchmarks.paper_data import part_of_fashion
from benchmarks.paper_models import fashion
from benchmarks.paper_runs import Pace
from simulation.field.cost import cost_maker
from simulation.field.presets import load_device, load_link
from simulation.field.sizes import Sizes, whole_sizes
from simulation.field.world import World
from wire.runfile import Run
from wire.spool import SpoolConfig

__all__ = ["METHODS", "Cell", "Method", "main"]

RESULTS = PAGES / "field.json"
BOARD, SERVER = "pi-zero-2w", "server"
TRAIN, TEST, CLIENTS = 10_000, 2_000, 10
RAW_SAMPLES = (1000, 2000, 3000, 4000, 5000, 6000, 8000, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """``cut``: where the network is split; None: every client holds all of it. ``clients``: who share the training samples."""

    name: str
    cut: str | None
    codec: Mapping[str, str]
    clients: int = 1
    schedule: str = "relay"
    epochs: int = 6
    lr: float = 0.05
    batch_size: int = 64


def _split(name: str, forward: str, backward: str, *, cut: str = "pool2", **more: Any) -> Method:
    return Method(name=name, cut=cut, codec={"forward": forward, "backward": backward}, **more)


_LOWBIT = ("lowbit:step=0.8,rate_weight=5e-6", "lowbit:step=6")  # of link.md, as is the next
_LATER = ("lowbit:levels=15,step=0.5", "lowbit:step=2")
METHODS = (
    _split("split, fp32", "fp32", "fp32"),
    _split("split, int8", "int8", "int8"),
    _split("split, lowbit", *_LOWBIT),
    _split("split after relu5, lowbit", *_LATER, cut="relu5"),
    _split("10 clients in turn, lowbit", *_LOWBIT, clients=CLIENTS),
    _split("10 clients at once, lowbit", *_LOWBIT, clients=CLIENTS, schedule="splitfed-v2", epochs=10),
    Method(name="10 clients federated, fp32", cut=None, codec={"weights": "fp32"}, clients=CLIENTS, schedule="fedavg", epochs=10),
    Method(name="10 clients federated, int8", cut=None, codec={"weights": "int8"}, clients=CLIENTS, schedule="fedavg", epochs=10),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A method, over all links."""

    method: Method

    @property
    def key(self) -> str:
        return self.method.name

    def table(self, data: Path) -> dict[str, Any]:
        method = self.method
        return {
            "name": "field",
            "epochs": method.epochs,
            "batch_size": method.batch_size,
            "in_flight": 1 if method.cut is None else 2,
            "checkpoint_every": 1_000_000,
            "resend_after_s": 7200.0,  # a message of fp32 takes minutes at 9.6 kbit/s, and asking again in between would double it
            "schedule": method.schedule,
            "weights_leave": True,
            "model": {"build": f"{MODELS}:fashion", "input_shape": [1, 28, 28]} | ({} if method.cut is None else {"cut": [method.cut]}),
            "optimizer": {"kind": "sgd", "lr": method.lr, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "lr_schedule": {"kind": "cosine", "warmup_steps": 20},
            "codec": dict(method.codec),
            "data": part_of_fashion(data, train=TRAIN, test=TEST),
            "clients": [self._client(at) for at in range(1, method.clients + 1)],
            "server": {"threads": 1},
        }

    def _client(self, at: int) -> dict[str, Any]:
        return {"name": f"c{at}", "threads": 1, "data": {"shard": f"{at}/{self.method.clients}"}}


def run_cell(cell: Cell, data: Path) -> dict[str, Any]:
    """Train once, which is the same over every line, and then send what was sent over each of them.

    ``trained_s``: by link, line time at the end of each epoch, what evaluation took left out; ``bytes``: of all clients, both ways, without
    evaluation.
    """
    begun_s = time.perf_counter()
    with exported(cell.table(data)) as (_, run):
        run = dataclasses.replace(run, spool=SpoolConfig(limit_bytes=0))
        history: list[float] = []

        def hear(time_s: float, party: str, event: str, fields: Mapping[str, Any]) -> None:
            if event == "metrics" and party == run.coordinator:
                history.append(float(fields["accuracy"]))

        sizes = whole_sizes(run, hear=hear)
        lines = {name: _over(run, sizes, name) for name in LINKS}
    return {
        "accuracy": history[-1],
        "seconds": time.perf_counter() - begun_s,
        "history": history,
        "trained_s": {name: trained_s for name, (trained_s, _) in lines.items()},
        "bytes": lines[LINKS[0]][1],
    }


def _over(run: Run, sizes: Sizes, link: str) -> tuple[list[float], int]:
    pace = Pace()

    def hear(time_s: float, party: str, event: str, fields: Mapping[str, Any]) -> None:
        if party == run.coordinator:
            pace.hear(time_s, event, fields)

    world = World(run, load_link(link), load_device(BOARD), load_device(SERVER), cost_maker(run, sizes), hear)
    world.build()
    world.start()
    while not world.over and world.clock.step():
        pass
    traffic = [client.driver.traffic for client in world.clients.values()]
    world.close()
    return pace.trained_s, sum(found[use] for each in traffic for found in (each.up, each.down) for use in ("train", "control"))


# ------------------------------------------------------------ the raw data once


def raw_upload(data: Path) -> dict[str, Any]:
    """How few raw samples, labels with them, are enough when the server trains the whole network on them for as long as it likes; and
    their bytes, compressed as one stream. ``accuracies``: by number of samples."""
    arrays = np.load(part_of_fashion(data, train=TRAIN, test=TEST)["path"])
    accuracies: dict[str, float] = {}
    for count in RAW_SAMPLES:
        accuracies[str(count)] = _central(arrays, count)
        if accuracies[str(count)] >= TARGET:
            break
    images, labels = arrays["x_train"][:count], arrays["y_train"][:count]
    packed = zlib.compress(images.astype(np.uint8).tobytes() + labels.astype(np.uint8).tobytes(), 9)
    return {"samples": count, "bytes": len(packed), "accuracies": accuracies, "reached": accuracies[str(count)] >= TARGET}


def _central(arrays: Mapping[str, Any], count: int, *, epochs: int = 20, batch: int = 64) -> float:
    def tensor(key: str) -> torch.Tensor:
        return ((torch.from_numpy(arrays[key]).float() / 255 - 0.286) / 0.353).unsqueeze(1)

    torch.manual_seed(0)
    model, images, labels = fashion(), tensor("x_train")[:count], torch.from_numpy(arrays["y_train"][:count]).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(count).split(batch):
            if len(rows) > 1:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return float((model(tensor("x_test")).argmax(1).numpy() == arrays["y_test"]).mean())


def main() -> None:
    arguments = cell_arguments(__doc__, jobs=1).parse_args()
    with tempfile.TemporaryDirectory(prefix="cutlayer-field-data-") as name:
        folder = Path(name)
        results = stored(RESULTS)
        if arguments.again or "raw" not in results:
            results["raw"] = raw_upload(folder)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        todo = missing([Cell(method=method) for method in METHODS], RESULTS, arguments)
        results = run_cells(todo, RESULTS, lambda cell: run_cell(cell, folder), jobs=arguments.jobs)
    write_field_page(results, [method.name for method in METHODS], about=_about())


def _about() -> list[str]:
    return prose(
        f"A clinic with {TRAIN:,} images of Fashion-MNIST ({TEST:,} more to test on, after each epoch) behind one line, or",
        f"{CLIENTS} clinics with",
        f"a tenth of them each behind a line of their own. A {BOARD} at each, the preset `{SERVER}` at the other end. The",
        "network is that of",
        "[link.md](link.md), split at its 784 activations or, where it says so, behind `relu5` at 128, with most of the",
        "computation on the board.",
        "Two steps are under way at once. Time is line time: connecting, uploads, downloads, computation and round trips as",
        "the step protocol",
        "orders them, evaluation taken out. Links and boards are presets (docs/guide-links.md), each constant with its source. Accuracy is",
        "known after each epoch, so times are those of the first epoch that has 85 %; accuracies are the same over every line,",
        "to the last bit.",
    )


if __name__ == "__main__":
    main()
