"""``cutlayer demo``: real data, a broker, a server and clients as processes of this computer, and the unsplit twin to compare with."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from simulation.datasets import DatasetFacts, dataset_at
from simulation.report import print_drained, print_report
from simulation.run import run_and_compare
from wire.errors import StorageError
from wire.runfile import load_run

__all__ = ["run_demo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    model: str
    cut: str
    epochs: int
    batch_size: int
    optimizer: Mapping[str, Any]


_RECIPES = {
    "digits": _Recipe(model="digits-cnn", cut="pool1", epochs=12, batch_size=32, optimizer={"kind": "sgd", "lr": 0.02, "momentum": 0.9}),
    "fashion-mnist": _Recipe(model="lenet", cut="pool2", epochs=2, batch_size=64, optimizer={"kind": "adam", "lr": 0.003}),
}


def run_demo(
    *,
    dataset: str = "digits",
    data_dir: str | Path | None = None,
    epochs: int | None = None,
    clients: int = 2,
    codec: str | None = None,
    json: bool = False,
    broker: str = "embedded",
    seed: int = 0,
    keep: str | Path | None = None,
) -> None:
    """Train, compare, print. ``data_dir``: where the data set's files lie, or are to be put; ``keep``: a folder for all that is made,
    which is otherwise removed at the end. Raises CutlayerError."""
    with _folder(keep) as folder:
        facts = dataset_at(dataset, None if data_dir is None else Path(data_dir), folder / "data")
        table = _run_table(dataset, facts, epochs=epochs, clients=clients, codec=codec or "int8", seed=seed)
        path = folder / "run.toml"
        try:
            path.write_text(tomli_w.dumps(table))
        except OSError as exc:
            raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc
        report = run_and_compare(load_run(path), broker=broker, dataset=dataset)
    if report is None:
        print_drained(f"demo-{dataset}", as_json=json)
    else:
        print_report(report, as_json=json)


@contextlib.contextmanager
def _folder(keep: str | Path | None) -> Iterator[Path]:
    if keep is not None:
        path = Path(keep).resolve()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cutlayer-demo-") as name:
        yield Path(name)


def _run_table(dataset: str, facts: DatasetFacts, *, epochs: int | None, clients: int, codec: str, seed: int) -> dict[str, Any]:
    recipe = _RECIPES[dataset]
    forward, _, backward = codec.partition("/")
    return {
        "name": f"demo-{dataset}",
        "epochs": epochs or recipe.epochs,
        "batch_size": recipe.batch_size,
        "seed": seed,
        "schedule": "relay",
        "weights_leave": True,
        "model": {"build": recipe.model, "cut": [recipe.cut]},
        "optimizer": dict(recipe.optimizer),
        "lr_schedule": {"kind": "cosine", "warmup_steps": 20},
        "codec": {"forward": forward, "backward": backward or forward},
        "data": dict(facts.data),
        "clients": [
            {"name": f"clinic-{at + 1}", "threads": 1, "data": {"shard": f"{at + 1}/{clients}", "test": {"shard": f"{at + 1}/{clients}"}}}
            for at in range(clients)
        ],
        "server": {"threads": 1},
    }
