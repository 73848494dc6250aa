"""A graph that cannot run is refused by `cutlayer graph` before anything else looks at it: one line that names the place, exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cutlayer

HEAD = """
name = "clinics"
epochs = 1
batch_size = 8
[optimizer]
kind = "sgd"
lr = 0.1
[data]
kind = "csv"
path = "nowhere"
labels = "y"
[align]
[[clients]]
name = "clinic-a"
[[clients]]
name = "clinic-b"
[[servers]]
name = "server"
"""
NETWORKS = """
from torch import cat, nn


def bottom(width=4):
    return nn.Linear(6, width)


class Top(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layer = nn.Linear(width, 3)

    def forward(self, *arriving):
        return self.layer(cat(arriving, 1))
"""


def _segment(name: str, on: str, inputs: tuple[str, ...] = (), **more: object) -> str:
    """A table ``[[segments]]``: with ``inputs`` a top, without a bottom."""
    keys = {"name": name, "on": [on], "build": f"networks.py:{'Top' if inputs else 'bottom'}", **more}
    if inputs:
        keys["inputs"] = list(inputs)
    else:
        keys["input_shape"] = [6]
    rows = (f"{key} = {value if isinstance(value, str) and value.startswith('{') else json.dumps(value)}" for key, value in keys.items())
    return "\n".join(["[[segments]]", *rows, ""])


A, B = _segment("bottom-a", "clinic-a"), _segment("bottom-b", "clinic-b")
BOTH = ("bottom-a", "bottom-b")
TOP = _segment("top", "server", BOTH)


def _graph(tmp_path: Path, *segments: str, head: str = HEAD) -> int:
    (tmp_path / "networks.py").write_text(NETWORKS)
    (tmp_path / "run.toml").write_text(head + "\n".join(segments))
    return cutlayer.main(["graph", str(tmp_path / "run.toml"), "--json"])


def test_the_run_that_the_others_spoil_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _graph(tmp_path, A, B, TOP) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(cut["name"], cut["activations_per_sample"], cut["labels"]) for cut in found["cuts"]] == [
        ("bottom-a>top", 4, True),
        ("bottom-b>top", 4, False),
    ]
    assert [each["parties"] for each in found["parties"]] == [["clinic-a"], ["clinic-b"], ["server"]]


def test_each_end_has_a_loss_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = _segment("stage", "server", BOTH), _segment("size", "server-2", BOTH, loss="mse", labels_from="bottom-b")
    assert _graph(tmp_path, A, B, *ends, head=HEAD + '[[servers]]\nname = "server-2"\n') == 0
    found = json.loads(capsys.readouterr().out)
    assert {(each["parties"][0], held["loss"], held["labels"]) for each in found["parties"] for held in each["segments"]} == {
        ("clinic-a", None, "here"),
        ("clinic-b", None, "here"),
        ("server", "cross_entropy", "arrive"),
        ("server-2", "mse", "arrive"),
    }
    assert {cut["name"] for cut in found["cuts"] if cut["labels"]} == {"bottom-a>stage", "bottom-b>size"}


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        pytest.param(
            [A, B, _segment("one", "server", (*BOTH, "other")), _segment("other", "server", ("one",)), _segment("top", "server", ("one",))],
            "the graph has a cycle through one, other, top",
            id="a cycle",
        ),
        pytest.param([A, B, _segment("top", "server", (*BOTH, "top"))], "the graph has a cycle through top", id="a cycle of one"),
        pytest.param([A, B, _segment("top", "cellar", BOTH)], "segment `top` is placed on `cellar`, which is no party", id="unplaced"),
        pytest.param([A, B, TOP.replace('["server"]', "[]")], "`on` of segment `top` is empty", id="on nobody"),
        pytest.param([A, TOP.replace(', "bottom-b"', "")], "no segment is placed on the party 'clinic-b'", id="a party without a segment"),
        pytest.param([A, B, _segment("top", "server", ("bottom-a",))], "no edge leads to clinic-b", id="an end that leads nowhere"),
        pytest.param([_segment("bottom-a", "clinic-a", loss="mse"), B, TOP], "`bottom-a` owns a loss and also", id="a loss inside"),
        pytest.param([A, B, _segment("top", "server", (*BOTH, "bottom-c"))], "`bottom-c`, which does not exist", id="no such input"),
        pytest.param([A, B, TOP, TOP], "segment `top` is named twice", id="a name twice"),
        pytest.param(
            [_segment("bottom-a", "clinic-a", args="{ width = 5 }"), B, TOP],
            "segment `top` does not run on what comes in, a sample of `bottom_a` [5], `bottom_b` [4]",
            id="shapes that do not fit",
        ),
        pytest.param([A, B, _segment("top", "server", BOTH, labels_from="top")], "`labels_from` of segment `top`", id="no such labels"),
    ],
)
def test_a_graph_that_cannot_run_is_refused_by_its_place(
    segments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _graph(tmp_path, *segments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("cutlayer: error: ")
    assert said in shown.err
