"""Accuracy against bytes on the line, codec by codec: real runs of a client, a broker and a server as processes of this computer.

A cell is one run: data set, cut, codecs, seed. Cells that ``docs/benchmarks/link.json`` has already are not run again, so this can be ended
and started again at any time; ``--again`` runs all anew. Ten epochs of Fashion-MNIST take about five minutes a cell.

    python -m benchmarks.link [--jobs 2] [--only TEXT] [--again]      writes docs/benchmarks/link.md, link.json and the plots
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import link_data, link_models
from benchmarks.cells import cell_arguments, missing, run_cells, train
from benchmarks.common import PAGES
from benchmarks.link_page import write_link_page
from simulation.datasets import materialize

RESULTS = PAGES / "link.json"
MODELS = Path(__file__).resolve().parent / "link_models.py"
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set, and how its network is trained."""

    model: str
    cut: str
    activations: int
    epochs: int
    batch_size: int
    optimizer: Mapping[str, Any]


_SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
TASKS = {
    "fashion": Task(model=f"{MODELS}:fashion", cut="pool2", activations=784, epochs=10, batch_size=128, optimizer=_SGD),
    "fashion-relu5": Task(model=f"{MODELS}:fashion", cut="relu5", activations=128, epochs=10, batch_size=128, optimizer=_SGD),
    "fashion-void": Task(model=f"{MODELS}:fashion", cut="pool2", activations=784, epochs=10, batch_size=128, optimizer=_SGD),
    "digits": Task(model="digits-cnn", cut="pool1", activations=128, epochs=20, batch_size=32, optimizer=_SGD | {"lr": 0.02}),
    "shapes": Task(model=f"{MODELS}:shapes", cut="pool2", activations=1024, epochs=15, batch_size=64, optimizer=_SGD),
}
BASELINES = ("fp32", "fp16", "bf16", "int8", "int4", "int2", "mxfp4", "topk:keep=0.1", "randtopk:keep=0.1")
# Forward and backward options of the low-bit codec, from the dearest to the cheapest.
LOWBIT = (
    ("lowbit:step=0.8,rate_weight=5e-6", "lowbit:step=6"),
    ("lowbit:rate_weight=1e-5", "lowbit"),
    ("lowbit:rate_weight=2e-5", "lowbit"),
)
# Behind `relu5` each activation carries more of the loss: bits cost nothing there.
LATER_CUT = (("lowbit:levels=15,step=0.5", "lowbit:step=2"),)
UPLINK_ALONE = ("lowbit:rate_weight=3e-5", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    task: str
    forward: str
    backward: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.task} | {self.forward} | {self.backward} | {self.seed}"


def cells() -> list[Cell]:
    pairs = [*((codec, codec) for codec in BASELINES), *LOWBIT]
    found = [
        Cell(task=task, forward=forward, backward=backward, seed=seed)
        for seed in SEEDS
        for forward, backward in pairs
        for task in ("fashion", "digits", "shapes")
    ]
    for seed in SEEDS:
        more = {"fashion": [UPLINK_ALONE], "fashion-void": LOWBIT[:1], "fashion-relu5": [("fp32", "fp32"), *LATER_CUT]}
        found += [Cell(task=task, forward=each[0], backward=each[1], seed=seed) for task, pairs in more.items() for each in pairs]
    return found


def run_cell(cell: Cell, data: Path) -> dict[str, Any]:
    """One run, by its parties' own words. Accuracy is that of the last evaluation, the codec on."""
    reasons: Counter[str] = Counter()

    def hear(event: Mapping[str, Any]) -> None:
        if event["event"] == "note" and event["kind"] == "void":
            reasons[event["text"].partition(": ")[2]] += 1

    results = train(_table(cell, data), on_event=hear)
    client, server = results["client"], results["server"]
    return {
        "accuracy": server["metrics"]["test"]["accuracy"],
        "loss": server["metrics"]["test"]["loss"],
        "applied": client["counts"].get("applied", 0),
        "voided": client["counts"].get("voided", 0),
        "void_reasons": dict(reasons),
        "samples": _train_samples(cell.task) * TASKS[cell.task].epochs,
        "bytes_by_use": client["bytes_by_use"],
        "wire": client["wire"],
        "seconds": server["seconds"],
    }


def _train_samples(task: str) -> int:
    return {"digits": 1438, "shapes": 6000}.get(task, 60000)


def _table(cell: Cell, data: Path) -> dict[str, Any]:
    task = TASKS[cell.task]
    return {
        "name": "link",
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "seed": cell.seed,
        "checkpoint_every": 1_000_000,
        "model": {"build": task.model, "cut": [task.cut], **_input_shape(cell.task)},
        "optimizer": dict(task.optimizer),
        "lr_schedule": {"kind": "cosine", "warmup_steps": 280 if cell.task.startswith("fashion") else 50},
        "codec": {"forward": cell.forward, "backward": cell.backward},
        "evaluate": {"every_epochs": task.epochs},
        "data": _data(cell.task, data),
        "clients": [{"name": "client", "threads": 1}],
        "server": {"threads": 1},
    }


def _input_shape(task: str) -> dict[str, Any]:
    return {} if task == "digits" else {"input_shape": [3, 32, 32] if task == "shapes" else [1, 28, 28]}


def _data(task: str, folder: Path) -> dict[str, Any]:
    if task == "shapes":
        return link_data.shapes(folder / "shapes.npz")
    facts = materialize("digits" if task == "digits" else "fashion-mnist", folder)
    data = dict(facts.data)
    if task == "fashion-void":
        data = link_data.poisoned_fashion(Path(data["path"]), folder / "poisoned.npz", share=0.02, batch_size=TASKS[task].batch_size)
    return data if task == "digits" else data | {"augment": {"flip": True}}


def _client_flops(cut: str) -> int:
    """Floating-point operations of the Fashion-MNIST network up to ``cut``, a sample, forward, as PyTorch counts them."""
    children = dict(link_models.fashion().eval().named_children())
    upto = list(children).index(cut) + 1
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.nn.Sequential(*list(children.values())[:upto])(torch.zeros(1, 1, 28, 28))
    return counter.get_total_flops()


def main() -> None:
    arguments = cell_arguments(__doc__, jobs=2).parse_args()
    todo = missing(cells(), RESULTS, arguments)
    with tempfile.TemporaryDirectory(prefix="cutlayer-link-data-") as folder:
        for task in {cell.task for cell in todo}:
            _data(task, Path(folder))
        results = run_cells(todo, RESULTS, lambda cell: run_cell(cell, Path(folder)), jobs=arguments.jobs)
    write_link_page(results, flops=(_client_flops("pool2"), _client_flops("relu5")))


if __name__ == "__main__":
    main()
