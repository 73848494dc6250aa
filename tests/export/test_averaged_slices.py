"""What a party's slice says of averages: the coordinator gets the shapes of weights that it need not hold, others nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.prepare import build_segments
from export.slicing import slice_table
from wire.runfile import Run, parse_run

NETWORKS = """
from torch import nn

def bottom():
    return nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4))

def top():
    return nn.Linear(4, 3)
"""
SEGMENTS = [
    {"name": "bottom", "on": ["clients"], "build": "networks.py:bottom", "input_shape": [6]},
    {"name": "top", "on": ["server"], "build": "networks.py:top", "inputs": ["bottom"]},
]
WHOLE = {"build": "networks.py:bottom", "input_shape": [6]}
BOTTOM = {
    "p.0.weight": ("float32", (4, 6)),
    "p.1.weight": ("float32", (4,)),
    "p.1.bias": ("float32", (4,)),
    "b.1.running_mean": ("float32", (4,)),
    "b.1.running_var": ("float32", (4,)),
    "b.1.num_batches_tracked": ("int64", ()),
}


def run_of(folder: Path, **changes: Any) -> Run:
    (folder / "networks.py").write_text(NETWORKS)
    table: dict[str, Any] = {
        "name": "slices",
        "epochs": 1,
        "batch_size": 8,
        "weights_leave": True,
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "codec": {"forward": "fp16", "backward": "fp16", "weights": "int8"},
        "clients": [{"name": "a"}, {"name": "b"}],
        "data": {"kind": "npz", "path": "none"},
    }
    return parse_run(table | changes, base=str(folder))


def sliced(run: Run, party: str) -> Run:
    return parse_run(slice_table(run, party, build_segments(run)), base=run.base)


@pytest.mark.parametrize(
    ("changes", "segment", "codecs"),
    [
        ({"schedule": "splitfed-v1", "segments": SEGMENTS}, "bottom", {"fp16", "int8"}),
        ({"schedule": "fedavg", "model": WHOLE}, "model", {"int8"}),
    ],
)
def test_the_coordinator_learns_the_shapes_of_what_it_averages(
    changes: dict[str, Any], segment: str, codecs: set[str], tmp_path: Path
) -> None:
    run = run_of(tmp_path, **changes)
    server, client = sliced(run, "server"), sliced(run, "b")
    assert server.slice is not None
    assert client.slice is not None
    found = {name: {spec.name: (spec.dtype, spec.shape) for spec in specs} for name, specs in server.slice.averaged.items()}
    assert found == {segment: BOTTOM}
    assert client.slice.averaged == {}
    assert (server.plan(), server.digest, server.codecs) == (run.plan(), run.digest, run.codecs)
    assert client.codecs == codecs, "a link has no codec"
    assert server.model is None, "it cannot build what others hold"


def test_where_nothing_is_averaged_nobody_learns_shapes(tmp_path: Path) -> None:
    run = run_of(tmp_path, schedule="independent", segments=SEGMENTS)
    assert (found := sliced(run, "server").slice) is not None
    assert found.averaged == {}
