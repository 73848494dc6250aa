"""`cutlayer plan` against what it speaks of: real cuts, bundles that are really exported, a run over a broker, a run in virtual time."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from rich.console import Console
from torch import nn

import cutlayer
from benchmarks.cells import train
from edge_client.memory import needed_bytes
from export.prepare import export_run
from server.labels import write_labels
from simulation.datasets import materialize
from simulation.field.presets import load_device, load_link
from simulation.field.simulate import Setting, simulate
from simulation.plan.places import find_places
from simulation.plan.plan import plan_of
from simulation.plan.show import show
from simulation.plan.subject import Subject, run_at, subject_of, subject_of_run
from simulation.plan.table import Plan
from simulation.screen import Screen
from tests.export import strangers
from wire.errors import GraphError, RunFileError
from wire.manifest import load_manifest
from wire.runfile import load_run

STRANGERS = Path(strangers.__file__)
SAMPLES, BATCH = 64, 16
# Two models of a few layers: plans of them take a second. `skipping` has a block whose input is added to what it makes.
MODELS = """
from collections import OrderedDict

import torch
from torch import nn


def small():
    layers = [("conv", nn.Conv2d(1, 4, 3, padding=1)), ("relu", nn.ReLU()), ("pool", nn.MaxPool2d(2))]
    return nn.Sequential(OrderedDict([*layers, ("flatten", nn.Flatten()), ("fc", nn.Linear(64, 10))]))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.norm(self.conv(x)))


def skipping():
    layers = [("stem", nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())), ("block", Block())]
    last = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("dropout", nn.Dropout(0.5)), ("fc", nn.Linear(8, 3))]
    return nn.Sequential(OrderedDict([*layers, *last]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODELS)
    return path


def table(folder: Path, **changes: Any) -> dict[str, Any]:
    """Digits at one client, `small` cut after `pool`, in whole batches."""
    facts = materialize("digits", folder)
    (folder / "models.py").write_text(MODELS)
    return {
        "name": "p",
        "epochs": 1,
        "batch_size": BATCH,
        "checkpoint_every": 1000,
        "weights_leave": True,
        "model": {"build": f"{folder / 'models.py'}:small", "cut": ["pool"], "input_shape": [1, 8, 8]},
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "codec": {"forward": "int8", "backward": "int8"},
        "evaluate": {"every_epochs": 100},
        "data": {**facts.data, "limit": SAMPLES, "test": {"limit": BATCH}},
        "clients": [{"name": "c", "threads": 1}],
        "server": {"threads": 1},
        **changes,
    }


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table(folder, **changes)))
    return path


def planned(subject: Subject, *, link: str = "gprs", device: str = "pi-zero-2w", codecs: tuple[str, ...] = ("int8",), **more: Any) -> Plan:
    with Screen() as screen:
        return plan_of(
            subject,
            load_link(link),
            load_device(device),
            codecs=codecs,
            main=codecs[0],
            samples=more.get("samples", SAMPLES),
            steps=more.get("steps", 1),
            epoch_samples=None,
            screen=screen,
        )


def random_subject(model: str, shape: tuple[int, ...] | None = None) -> Subject:
    return subject_of(model, data=None, input_shape=shape, batch_size=BATCH)


def cut(plan: Plan, name: str) -> Any:
    return next(row for row in plan.rows if row.cut == name)


# ------------------------------------------------------------ which cuts there are


def test_digits_cnn_can_be_cut_after_all_its_layers_but_the_last() -> None:
    places = find_places(random_subject("digits-cnn"))
    names = [place.names for place in places.found]
    assert names == [("conv1",), ("relu1",), ("pool1",), ("conv2",), ("relu2",), ("conv3",), ("relu3",), ("pool2",)]
    assert [place.activations for place in places.found] == [512, 512, 128, 512, 512, 512, 512, 128]
    assert places.refused == {"nothing is left behind the last cut; cut earlier": ["fc"]}
    at_conv2 = places.found[3]
    first, second = 2 * 8 * 9 * 64, 2 * 32 * 72 * 16
    assert at_conv2.flops.forward == first + second
    assert at_conv2.flops.step == 2 * first + 3 * second
    assert at_conv2.parameters == 8 * 9 + 8 + 32 * 72 + 32


def test_names_with_one_end_are_one_cut_and_dropout_is_another(models: Path) -> None:
    """The network is left as it was, statistics of BatchNorm and all."""
    subject = random_subject(f"{models}:skipping", (3, 16, 16))
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    places = find_places(subject)
    names = [place.names for place in places.found]
    assert names == [
        ("stem.0",),
        ("stem", "stem.1"),
        ("block.conv",),
        ("block.norm",),
        ("block", "block.relu"),
        ("pool",),
        ("flatten",),
        ("dropout",),
    ]
    assert all(value.equal(before[name]) for name, value in subject.model.state_dict().items())
    at_conv = places.found[2]
    assert sorted(at_conv.shapes.values()) == [(8, 16, 16), (8, 16, 16)], "the block's input crosses as well"


@pytest.mark.parametrize(
    ("name", "shape", "refused"),
    [
        ("Recurrence", (4, 3), {"it runs 4 times, with the same weights; name a submodule that runs once": ["cell_in", "cell_state"]}),
        ("Wavelets", (2, 16), {"it never runs; name a submodule that runs once": ["dense"]}),
        ("MnistNet", (1, 12, 12), {"segment … behind the last cut has no weights to train; cut earlier": ["fc2"]}),
    ],
)
def test_what_export_refuses_is_counted_by_its_reason(name: str, shape: tuple[int, ...], refused: dict[str, list[str]]) -> None:
    places = find_places(random_subject(f"{STRANGERS}:{name}", shape))
    assert refused.items() <= places.refused.items()
    assert not {each for place in places.found for each in place.names} & {each for names in refused.values() for each in names}


def test_skips_over_a_cut_cross_with_it() -> None:
    places = find_places(random_subject(f"{STRANGERS}:ViT", (3, 8, 8)))
    (mlp,) = (place for place in places.found if place.names == ("mlp.0",))
    assert sorted(mlp.shapes.values()) == [(5, 8), (5, 16)]
    assert mlp.activations == 5 * 8 + 5 * 16


def test_a_network_that_cannot_be_cut_says_why(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("import torch\n\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Linear(4, 2))\n")
    with pytest.raises(GraphError, match="cannot be cut after any of its submodules; of 0: nothing is left behind the last cut"):
        find_places(random_subject(f"{tmp_path / 'm.py'}:build", (4,)))
    one = dataclasses.replace(random_subject("digits-cnn"), name="bare", model=nn.Linear(4, 2))
    with pytest.raises(GraphError, match="bare has no submodules"):
        find_places(one)


# ------------------------------------------------------------ figures against the thing itself


def test_memory_is_that_of_the_bundle_that_export_writes(tmp_path: Path) -> None:
    path = written(tmp_path)
    subject, _ = subject_of_run(path, batch_size=None)
    row = cut(planned(subject), "pool")
    export_run(load_run(path), tmp_path / "bundles")
    manifest = load_manifest((tmp_path / "bundles/bottom/manifest.json").read_text(), where="bottom")
    assert row.memory == "fast"
    assert row.memory_bytes == needed_bytes([manifest], batch=BATCH, memory="fast")


@pytest.mark.parametrize(("codec", "apart"), [("int8", 0.0), ("lowbit", 0.1)])
def test_bytes_are_those_of_a_real_run(codec: str, apart: float, tmp_path: Path) -> None:
    """Over a broker, with the client's own onnxruntime: every PUBLISH of its training steps, labels and all. Of int8 to the byte; what
    lowbit takes depends on the weights, and the plan has taken a step more."""
    run = table(tmp_path, codec={"forward": codec, "backward": codec})
    (tmp_path / "run.toml").write_text(tomli_w.dumps(run))
    result = train(run)["c"]
    counted = {way: result["bytes_by_use"][way]["train"] for way in ("up", "down")}
    subject, written_as = subject_of_run(tmp_path / "run.toml", batch_size=None)
    assert written_as == codec
    cost = cut(planned(subject, codecs=(codec,)), "pool").costs[codec]
    assert counted["up"] == pytest.approx(SAMPLES * cost.up_bytes, rel=apart)
    assert counted["down"] == pytest.approx(SAMPLES * cost.down_bytes, rel=apart)
    # All that the edge carried is these, and what is no training: control, weights that are collected, evaluation.
    others = sum(result["bytes_by_use"]["up"][use] for use in ("control", "evaluate"))
    assert result["bytes_by_edge"]["bottom>top"]["forward"] == counted["up"] + others


@pytest.mark.parametrize(("link", "in_flight"), [("gprs,loss=0", 1), ("lte-m,loss=0", 3)])
def test_time_and_energy_are_those_of_a_run_in_virtual_time(link: str, in_flight: int, tmp_path: Path) -> None:
    """Of two epochs more in a simulation of all parties; an epoch's two commands are what a plan leaves out."""
    changes: dict[str, Any] = {"in_flight": in_flight, "data": {**table(tmp_path)["data"], "limit": 12 * SAMPLES}}
    setting = Setting(link=load_link(link), device=load_device("pi-zero-2w"), server_device=load_device("server"))
    short, long = (
        simulate(load_run(written(tmp_path, epochs=epochs, state_dir=f"state-{epochs}", **changes)), setting) for epochs in (1, 3)
    )
    subject, _ = subject_of_run(written(tmp_path, **changes), batch_size=None)
    cost = cut(planned(subject, link=link), "pool").costs["int8"]
    commands_s = 2 * setting.link.round_trip_s
    assert cost.seconds + commands_s == pytest.approx((long.time_s - short.time_s) / 2, rel=0.03)
    assert cost.joules == pytest.approx((long.joules - short.joules) / 2, rel=0.08)  # idle power of the commands' time
    carried = (long.line_bytes_up + long.line_bytes_down - short.line_bytes_up - short.line_bytes_down) / 2
    assert cost.line_bytes == pytest.approx(carried, rel=0.05)


def test_leakage_falls_from_layer_to_layer_and_is_none_of_random_inputs(tmp_path: Path) -> None:
    subject, _ = subject_of_run(written(tmp_path), batch_size=None)
    rows = {row.cut: row.leakage for row in planned(subject, steps=3).rows}
    assert 0.5 < rows["pool"] < rows["conv"] <= 1.0
    unreal = random_subject(f"{tmp_path / 'models.py'}:small", (1, 8, 8))
    assert {row.leakage for row in planned(unreal).rows} == {None}


def test_labels_that_a_server_holds_cost_ids_instead(tmp_path: Path) -> None:
    """16 bytes of a keyed id a sample in place of half a byte."""
    subject, _ = subject_of_run(written(tmp_path), batch_size=None)
    ids = [each for step in range(SAMPLES // BATCH) for each in subject.samples.batch(step).ids]
    labels = [int(each) for step in range(SAMPLES // BATCH) for each in subject.target(subject.samples.batch(step))]
    write_labels(tmp_path / "labels.csv", ids, np.array(labels), key=b"secret")
    held, _ = subject_of_run(written(tmp_path, ids_key="secret", server={"labels": "labels.csv"}), batch_size=None)
    sent, looked_up = (cut(planned(each), "pool").costs["int8"] for each in (subject, held))
    assert looked_up.up_bytes - sent.up_bytes == pytest.approx(16 - 0.5, abs=1.0)  # and a tensor's header less
    assert looked_up.down_bytes == sent.down_bytes


def test_a_run_files_own_cut_and_schedule_do_not_matter(tmp_path: Path) -> None:
    clients = [{"name": f"c{at}", "data": {"shard": f"{at}/2"}} for at in (1, 2)]
    changes: dict[str, Any] = {"schedule": "independent", "clients": clients, "in_flight": 2}
    model = table(tmp_path)["model"]
    u_shaped, _ = subject_of_run(written(tmp_path, model={**model, "cut": ["conv", "pool"]}, **changes), batch_size=8)
    assert u_shaped.samples.batch_size == 8
    assert u_shaped.samples.count == SAMPLES
    assert "2 clients; an epoch here is one of c1" in u_shaped.notes[0]
    assert run_at(u_shaped.run, "conv", "lowbit/fp16").codec.backward == "fp16"
    federated, _ = subject_of_run(written(tmp_path, model={**model, "cut": []}, schedule="fedavg"), batch_size=None)
    assert [place.names for place in find_places(federated).found] == [place.names for place in find_places(u_shaped).found]


# ------------------------------------------------------------ what does not fit


def test_what_does_not_fit_the_device_is_neither_on_the_front_nor_recommended(models: Path) -> None:
    subject = random_subject(f"{models}:small", (1, 8, 8))
    least = min(row.memory_bytes for row in planned(subject, device="pi-4,memory_bytes=1").rows)
    plan = planned(subject, device=f"pi-4,memory_bytes={least}")
    assert {row.fits for row in plan.rows} == {True, False}
    assert all(row.fits for at, row in enumerate(plan.rows) if at in plan.front)
    assert plan.recommended in plan.front


def test_the_other_way_to_train_is_taken_where_memory_is_short(models: Path) -> None:
    subject = random_subject(f"{models}:skipping", (3, 16, 16))
    row = cut(planned(subject, device="pi-4"), "block")
    short = cut(planned(subject, device=f"pi-4,memory_bytes={row.memory_bytes - 1}"), "block")
    assert (row.memory, short.memory) == ("fast", "low")
    assert short.memory_bytes < row.memory_bytes
    assert short.costs["int8"].seconds > row.costs["int8"].seconds, "the forward is computed once more"


def test_a_codec_that_does_not_fit_is_left_out_with_its_reason(models: Path) -> None:
    subject = random_subject(f"{models}:small", (1, 8, 8))
    row = cut(planned(subject, codecs=("int8", "lowbit:bytes_per_sample=1")), "conv")
    assert set(row.costs) == {"int8"}
    assert "its budget of 1 bytes a sample cannot be held" in row.refused["lowbit:bytes_per_sample=1"]
    alone = planned(subject, codecs=("lowbit:bytes_per_sample=0.5",))
    assert alone.recommended is None
    assert "codec `lowbit:bytes_per_sample=0.5` fits no cut of" in alone.verdict


# ------------------------------------------------------------ the command


def plan(*words: str | Path) -> int:
    return cutlayer.main(["plan", *map(str, words)])


def test_it_prints_a_table_with_a_recommendation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(written(tmp_path), "--link", "gprs", "--device", "pi-zero-2w", "--samples", "64") == 0
    shown = capsys.readouterr()
    assert "p over gprs on pi-zero-2w: batches of 16, 1 in flight, 64 samples an epoch; time and energy with int8" in shown.out
    rows = [line.split() for line in shown.out.splitlines() if "pool" in line and "★" in line]
    assert rows[0][:3] == ["★", "pool", "64"]
    for text in ("fp32, B", "lowbit, B", "leakage", "★ recommended", "Cut after pool: of", "Not after 1 of the submodules (fc): nothing"):
        assert text in shown.out
    assert "random" not in shown.out


def test_json_is_one_object_with_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("mlp", "--data", "breast-cancer", "--link", "edge", "--device", "pi-4", "--codec", "fp32", "--codec", "lowbit/fp16", "--json")
    assert plan(*words) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["model"], found["codecs"], found["main_codec"]) == ("mlp", ["fp32", "lowbit/fp16"], "fp32")
    assert [row["cut"] for row in found["cuts"]] == ["fc1", "act1", "fc2", "act2"]
    assert found["epoch_samples"] == 456
    assert found["recommended"] in [row["cut"] for row in found["cuts"] if row["on_front"]]
    for row in found["cuts"]:
        assert row["activations"] == 32
        assert 0 <= row["leakage"] <= 1
        assert set(row["costs"]) == {"fp32", "lowbit/fp16"}
        exact = row["costs"]["fp32"]
        assert exact["bytes_per_sample"] == exact["up_bytes"] + exact["down_bytes"] > 2 * 4 * 32
        assert row["costs"]["lowbit/fp16"]["bytes_per_sample"] < exact["bytes_per_sample"]
    assert shown.err == ""


def test_random_inputs_are_said_to_be_random(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        plan(f"{models}:small", "--input-shape", "1,8,8", "--link", "edge", "--device", "pi-4", "--codec", "int8", "--epoch-samples", "500")
        == 0
    )
    shown = capsys.readouterr().out
    assert "500 samples an epoch" in shown
    assert "Inputs and labels are random: leakage is of no meaning then" in shown


def test_a_device_without_the_memory_for_any_cut(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = f"pi-zero-2w,memory_bytes={64 << 20}"
    assert plan(f"{models}:small", "--input-shape", "1,8,8", "--link", "edge", "--device", device, "--codec", "int8") == 2
    shown = capsys.readouterr()
    assert shown.out.count("too large") == 4
    assert "★ recommended" in shown.out
    assert f"None: no cut of {models}:small fits pi-zero-2w" in " ".join(shown.out.split())
    assert shown.err.count("\n") == 1
    assert "the smallest, after conv, needs 101 MiB of 64 MiB; lower the batch size, or take another device" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nothing --link gprs --device pi-4", "there is no bundled model 'nothing'"),
        ("m.py:build --link gprs --device pi-4", "m.py is not there"),
        ("nowhere.toml --link gprs --device pi-4", "cannot read the run file nowhere.toml"),
        ("lenet --link telex --device pi-4", "there is no link `telex`; there are gsm-csd, gprs"),
        ("lenet --link gprs --device pdp-11", "there is no device `pdp-11`; there are"),
        ("lenet --link lorawan-sf7 --device pi-4", "no usable downlink"),
        ("lenet --link gprs,up_bps=40 --device pi-4", "the link `gprs,up_bps=40` carries 40 bit/s up"),
        ("lenet --link gprs --device pi-4 --input-shape 1,9,9", "the model does not run on samples of shape 1,9,9"),
        ("lenet --link gprs --device pi-4 --codec zip", "'zip'"),
        ("lenet --link gprs --device pi-4 --data mnist", "invalid choice: 'mnist'"),
        ("lenet --link gprs --device pi-4 --data digits", "the model does not run on samples of shape 1,8,8"),
        ("run.toml --link gprs --device pi-4 --data digits", "the run file says already what --data would say"),
        ("run.toml --link gprs --device pi-4 --input-shape 1,8,8", "the run file says already what --input-shape would say"),
        ("lenet --link gprs", "--device"),
        ("lenet --device pi-4", "--link"),
        (f"{STRANGERS}:TwoHeads --input-shape 6 --link gprs --device pi-4", "the model gives a tuple"),
        (f"{STRANGERS}:TinyUNet --input-shape 1,9,10 --link gprs --device pi-4", "the model gives [2, 9, 10] a sample"),
        (f"{STRANGERS}:Blocks --input-shape 5 --link gprs --device pi-4", "PyTorch cannot train"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert said in shown.err


def test_a_graph_of_segments_is_cut_already(capsys: pytest.CaptureFixture[str]) -> None:
    vertical = Path(__file__).parents[2] / "examples/vertical.toml"
    assert plan(vertical, "--link", "gprs", "--device", "pi-4") == 2
    assert "this run has a graph of [[segments]], cut already" in capsys.readouterr().err


def test_a_training_that_diverges_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, optimizer={"kind": "sgd", "lr": 1e30})
    assert plan(path, "--link", "gprs", "--device", "pi-4") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "the training diverges in its step" in line


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    data = {**table(tmp_path)["data"], "target": "none"}
    subject, _ = subject_of_run(written(tmp_path, data=data), batch_size=None)
    with pytest.raises(RunFileError, match="neither `\\[data\\]` nor `\\[server\\]` has labels"):
        planned(subject)


def test_on_a_terminal_without_the_characters_others_stand_for_them(models: Path) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(planned(random_subject(f"{models}:small", (1, 8, 8))), Console(file=stream, width=140))
    stream.seek(0)
    assert "* recommended, + on the front" in stream.read()


def test_on_a_narrow_terminal_no_figure_is_cut_off(models: Path) -> None:
    """What crosses, and below it what it takes."""
    found = planned(random_subject(f"{models}:small", (1, 8, 8)), codecs=("int8", "fp32", "fp16"))
    stream = io.StringIO()
    show(found, Console(file=stream, width=70))
    shown = stream.getvalue()
    assert max(len(line) for line in shown.splitlines()) <= 70
    rows = [line.split() for line in shown.splitlines() if "conv " in line]
    assert len(rows) == 2
    assert rows[0][-2] == f"{cut(found, 'conv').costs['fp32'].round_trip_bytes:,.0f}"
    assert rows[1][-1] == "-", "leakage"
