"""Golden weights: ``python -m tests.vectors.make_training``, on x86-64. Small segments before and after 20 steps of SGD on drawn data.

Each file holds ``start.*`` and ``after.*``: parameters and buffers. Another machine that trains the same bundle on the same data must come
to the same weights but for rounding. They change only with a segment or the data, never with the engine.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from export import SGD, export_segment
from tests.arm.replay import Array, batch_of, train

__all__ = ["BOUND", "SEGMENTS", "Segment", "after", "export_start", "path_of"]

FOLDER = Path(__file__).with_name("training")
BOUND = 1e-5  # of ‖a − b‖ / ‖b‖, for each tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    optimizer: SGD


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv2d(8, 6, 1), nn.AvgPool2d(2),
    )  # fmt: skip


def _signal() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 6, 7, padding=3), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(96, 10), nn.LayerNorm(10))


SEGMENTS: Mapping[str, Segment] = {
    "convolutions": Segment(build=_convolutions, shape=(2, 12, 12), optimizer=SGD(lr=0.005)),
    "signal": Segment(build=_signal, shape=(1, 32), optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=0.01)),
}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def export_start(name: str, out: Path, *, start: Mapping[str, Array] | None = None) -> Path:
    """The bundle of a segment with these weights (default: the committed ones) in ``out/name``."""
    segment = SEGMENTS[name]
    if start is None:
        start = {key.removeprefix("start."): value for key, value in load_file(path_of(name)).items() if key.startswith("start.")}
    module = segment.build()
    module.load_state_dict({key: torch.from_numpy(value) for key, value in start.items()})
    example = torch.from_numpy(next(iter(batch_of({"x": (0, *segment.shape)}, 0).values())))
    export_segment(module, (example,), out / name, optimizer=segment.optimizer, input_names=["x"], output_names=["y"])
    return out / name


def after(name: str) -> dict[str, Array]:
    """The committed weights after the steps."""
    return {key.removeprefix("after."): value for key, value in load_file(path_of(name)).items() if key.startswith("after.")}


def main() -> None:
    if platform.machine() != "x86_64":
        raise SystemExit("golden weights are made on x86-64")
    FOLDER.mkdir(exist_ok=True)
    for name, segment in SEGMENTS.items():
        torch.manual_seed(4)
        start = {key: value.numpy() for key, value in segment.build().state_dict().items()}
        with tempfile.TemporaryDirectory() as folder:
            found = train(export_start(name, Path(folder), start=start))
        tensors = {f"start.{key}": value for key, value in start.items()} | {f"after.{key}": value for key, value in found.items()}
        save_file(tensors, path_of(name))


if __name__ == "__main__":
    main()
