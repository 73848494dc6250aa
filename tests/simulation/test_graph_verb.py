"""`cutlayer graph` as a person calls it: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import cutlayer

RUN = """
name = "clinics"
epochs = 1
batch_size = 8
schedule = "independent"
[model]
build = "lenet"
cut = ["pool1", "pool2"]
[optimizer]
kind = "sgd"
lr = 0.1
[data]
kind = "idx"
path = "nowhere"
[codec]
forward = "int8"
backward = "fp16"
[codec.cuts."trunk>head"]
forward = "topk:keep=0.05"
"""
CLIENTS = "".join(f'[[clients]]\nname = "clinic-{letter}"\n' for letter in "abcd")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN + CLIENTS)
    return path


def test_it_prints_and_writes_the_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg = run.with_suffix(".svg")
    assert cutlayer.main(["graph", str(run), "--svg", str(svg)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("clinic-a … clinic-d (4 clients)", "server (server · coordinator)", "[raw data]", "[loss: cross_entropy]", "clinics"):
        assert text in shown.out
    (row,) = [line.split() for line in shown.out.splitlines() if line.startswith("2")]
    assert row[:7] == ["2", "trunk", "→", "head", "pool2", "[16,", "5,"]
    assert "topk:keep=0.05" in row
    texts = ["".join(each.itertext()) for each in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    for text in ("clinic-a … clinic-d", "server", "bottom", "trunk", "head", "400 activations", "bottom → trunk", "topk:keep=0.05"):
        assert text in texts


def test_it_says_by_whose_hands_weights_go(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main(["graph", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Schedule independent: clients take turns step by step and keep weights of their own." in shown
    assert "Weights of clients stay on their devices (weights_leave = false)." in shown
    run.write_text("weights_leave = true\n" + run.read_text().replace("independent", "relay"))
    assert cutlayer.main(["graph", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "each hands its weights on to the next; this goes by way of server." in shown
    assert "Weights of clients may leave their devices (weights_leave = true)." in shown


def test_the_same_run_gives_the_same_file(run: Path) -> None:
    files = [run.with_name(f"{at}.svg") for at in range(2)]
    for file in files:
        assert cutlayer.main(["graph", str(run), "--svg", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_json_is_one_object_with_the_same_facts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main(["graph", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["parties"], each["role"], each["coordinator"]) for each in found["parties"]] == [
        ([f"clinic-{letter}" for letter in "abcd"], "client", False),
        (["server"], "server", True),
    ]
    bottom, head = found["parties"][0]["segments"]
    assert (bottom["segment"], bottom["raw_data"], bottom["loss"], bottom["parameters"]) == ("bottom", True, None, 156)
    assert (head["segment"], head["raw_data"], head["loss"]) == ("head", False, "cross_entropy")
    assert [(cut["name"], cut["activations_per_sample"], cut["forward"], cut["backward"], cut["lines"]) for cut in found["cuts"]] == [
        ("bottom>trunk", 1176, "int8", "fp16", 4),
        ("trunk>head", 400, "topk:keep=0.05", "fp16", 4),
    ]
    assert found["cuts"][0]["tensors"] == [{"name": "pool1", "dtype": "float32", "shape": [6, 14, 14]}]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"pool2"', '"pool9"', "the model has no submodule `pool9`"),
        ('build = "lenet"', 'build = "lenet"\nplacement = { tail = "server" }', "`placement` names the segment 'tail'"),
        ("trunk>head", "top>head", "`codec.cuts` names the cut 'top>head'"),
        ('build = "lenet"', 'build = "lenet"\ninput_shape = [1, 9]', "input"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, svg = tmp_path / "run.toml", tmp_path / "run.svg"
    path.write_text(RUN.replace(old, new) + CLIENTS)
    assert cutlayer.main(["graph", str(path), "--svg", str(svg)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert said in shown.err
    assert not svg.exists()


def test_a_picture_that_cannot_be_written_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main(["graph", str(run), "--svg", str(run / "x.svg")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
