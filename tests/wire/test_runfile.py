"""A run file is read strictly: every mistake is one line that names the file and the key."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wire.alignment import AlignConfig
from wire.errors import GraphError, RunFileError
from wire.limits import LIMITS
from wire.lr import LrSchedule
from wire.optim import SGD, Adam, AdamW
from wire.parse import parse, plain
from wire.runfile import CodecConfig, EvaluateConfig, Run, load_run, parse_run
from wire.transport.broker_config import BrokerConfig

Table = dict[str, Any]

SMALLEST: Table = {
    "name": "ward-7",
    "epochs": 3,
    "batch_size": 16,
    "model": {"build": "digits-cnn", "cut": ["pool1"]},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "clients": [{"name": "a"}],
    "data": {"kind": "npz", "path": "digits.npz"},
}


WHOLE: Table = {"schedule": "fedavg", "model.cut": []}


def _with(changes: Table) -> Table:
    """The smallest run with changes: ``{"model.cut": …}`` sets a key of a table, ``{"clients.0.name": …}`` one of a list."""
    table = copy.deepcopy(SMALLEST)
    for path, value in changes.items():
        *before, last = path.split(".")
        at: Any = table
        for key in before:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        at[last] = value
    return table


def _run(base: str = ".", **changes: Any) -> Run:
    return parse_run(_with(changes), base=base)


def _clients(*names: str) -> list[Table]:
    return [{"name": name} for name in names]


def _refused(table: Table) -> str:
    with pytest.raises((RunFileError, GraphError)) as caught:
        parse_run(table, base=".")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------ what is read


def test_everything_that_may_be_left_out_has_its_default() -> None:
    run = _run()
    assert run.optimizer == SGD(lr=0.1)
    assert (run.seed, run.loss, run.in_flight, run.checkpoint_every, run.weights_leave) == (0, "cross_entropy", 1, 100, False)
    assert (run.schedule, run.clip_norm, run.state_dir, run.resend_after_s) == ("relay", None, "state", 10.0)
    assert (run.topic_key, run.ids_key) == ("", "")
    assert run.lr_schedule == LrSchedule(kind="constant")
    assert run.codec == CodecConfig(forward="fp32", backward="fp32")
    assert run.evaluate == EvaluateConfig(metrics=("accuracy",), splits=("test",), every_epochs=1, patience=None, watch="loss")
    assert run.broker == BrokerConfig(url="mqtt://127.0.0.1:1883")
    assert (run.server.name, run.server.labels) == ("server", None)
    assert (run.model.args, run.model.input_shape) == ({}, None)


def test_each_table_of_a_file_arrives(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        """
        name = "ward-7"
        epochs = 3
        batch_size = 16
        schedule = "independent"
        clip_norm = 2
        [model]
        build = "net.py:build"
        cut = ["a", "b"]
        placement = {head = "server"}
        args = {width = 8, names = ["x", "y"]}
        input_shape = [1, 28, 28]
        [optimizer]
        kind = "adamw"
        lr = 1
        betas = [0.8, 0.9]
        [lr_schedule]
        kind = "step"
        milestones = [0.1, 0.2]
        [codec]
        forward = "int8"
        backward = "fp16"
        [evaluate]
        metrics = ["f1", "auroc"]
        splits = ["validation", "test"]
        patience = 2
        [broker]
        url = "mqtts://broker.example:8884"
        ca = "ca.pem"
        [data]
        kind = "npz"
        path = "d.npz"
        limit = 5
        [server]
        name = "hq"
        [[clients]]
        name = "a"
        [[clients]]
        name = "b"
        threads = 2
        data = {path = "b.npz"}
        """
    )
    run = load_run(tmp_path / "run.toml")
    assert run == load_run(str(tmp_path / "run.toml"))
    assert run.model.args == {"width": 8, "names": ["x", "y"]}
    assert run.model.input_shape == (1, 28, 28)
    assert run.optimizer == AdamW(lr=1.0, betas=(0.8, 0.9))
    assert run.clip_norm == 2.0
    assert run.lr_schedule == LrSchedule(kind="step", milestones=(0.1, 0.2))
    assert run.codec == CodecConfig(forward="int8", backward="fp16")
    assert run.evaluate == EvaluateConfig(metrics=("f1", "auroc"), splits=("validation", "test"), patience=2)
    assert (run.broker.url, run.broker.ca) == ("mqtts://broker.example:8884", "ca.pem")
    assert [(client.name, client.threads) for client in run.clients] == [("a", None), ("b", 2)]
    assert run.server.name == "hq"
    assert run.graph().parties == ("a", "b", "hq")
    assert [segment.name for segment in run.graph().segments] == ["bottom", "trunk", "head"]


def test_plain_and_back() -> None:
    run = _run(**{"optimizer": {"kind": "adam", "lr": 0.01}, "clients.0.data": {"limit": 3}, "codec": {"forward": "int8"}})
    assert isinstance(run.optimizer, Adam)
    assert parse(Run, plain(run), where="", error=RunFileError) == run


def test_a_clients_data_is_the_runs_with_single_keys_of_its_own() -> None:
    run = _run(
        data={"kind": "npz", "path": "all.npz", "normalize": {"mean": [0.5], "std": [0.25]}, "test": {"path": "t.npz"}},
        clients=[{"name": "a"}, {"name": "b", "data": {"path": "b.npz", "shard": "2/2", "normalize": {"std": [2.0]}}}],
        schedule="independent",
    )
    first, second = run.data_of("a"), run.data_of("b")
    assert (first.path, first.shard, first.normalize.std) == ("all.npz", "1/1", (0.25,))
    assert (second.path, second.shard) == ("b.npz", "2/2")
    assert (second.normalize.mean, second.normalize.std) == ((0.5,), (2.0,)), "a table within is merged too"
    assert second.split("test").path == "t.npz"


def test_paths_begin_at_the_run_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/run.toml").write_text(tomli_w.dumps(SMALLEST))
    for cwd, path in ((tmp_path, "runs/run.toml"), (tmp_path / "runs", "run.toml"), (Path("/"), tmp_path / "runs/run.toml")):
        monkeypatch.chdir(cwd)
        run = load_run(path)
        assert run.path("data/x.npz") == tmp_path / "runs/data/x.npz"
        assert run.path("/data/x.npz") == Path("/data/x.npz")
        assert run.state_of("a") == tmp_path / "runs/state/ward-7/a"
        assert run.bundles == tmp_path / "runs/state/ward-7/bundles"


@pytest.mark.parametrize(
    ("cut", "model", "names", "clients"),
    [
        (["a"], {}, ["bottom", "top"], ["bottom"]),
        (["a", "b"], {}, ["bottom", "trunk", "head"], ["bottom", "head"]),
        (["a", "b", "c"], {}, ["part0", "part1", "part2", "part3"], ["part0"]),
        (["a"], {"segments": ["device", "cloud"]}, ["device", "cloud"], ["device"]),
        (["a", "b"], {"placement": {"head": "server"}}, ["bottom", "trunk", "head"], ["bottom"]),
        (["a", "b"], {"placement": {"trunk": "clients", "head": "server"}}, ["bottom", "trunk", "head"], ["bottom", "trunk"]),
    ],
)
def test_segments_have_names_and_places(cut: list[str], model: Table, names: list[str], clients: list[str]) -> None:
    run = _run(model={"build": "x", "cut": cut, **model})
    assert list(run.model.names) == names
    assert [name for name in names if run.model.place(name) == "clients"] == clients
    graph = run.graph()
    assert [segment.name for segment in graph.segments] == names
    assert [segment.parties == ("a",) for segment in graph.segments] == [name in clients for name in names]
    assert [segment.loss for segment in graph.segments] == [name == names[-1] for name in names]


# ------------------------------------------------------------ what is refused


def test_a_cut_may_have_codecs_of_its_own() -> None:
    run = _run(
        **{
            "model.cut": ["a", "b"],
            "codec": {
                "forward": "int8",
                "backward": "topk:keep=0.1",
                "cuts": {"bottom>trunk": {"forward": "int4"}, "trunk>head": {"backward": "fp16"}},
            },
        }
    )
    assert [run.codec.of("bottom>trunk", direction) for direction in ("forward", "backward")] == ["int4", "topk:keep=0.1"]
    assert [run.codec.of("trunk>head", direction) for direction in ("forward", "backward")] == ["int8", "fp16"]
    assert run.codecs == {"int4", "topk:keep=0.1", "int8", "fp16"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # unknown keys: with the nearest one, or all of them
        ({"epoch": 1}, "unknown key `epoch`; did you mean `epochs`?"),
        ({"optimizer.momentun": 0.9}, "unknown key `optimizer.momentun`; did you mean `momentum`?"),
        ({"codec.zzz": 1}, "unknown key `codec.zzz`; known keys: forward, backward, weights, cuts"),
        ({"clients.0.nmae": "x"}, "unknown key `clients[0].nmae`; did you mean `name`?"),
        ({"data.pth": "x"}, "unknown key `clients[0].data.pth`; did you mean `path`?"),
        ({"optimizer.betas": [0.9, 0.99]}, "unknown key `optimizer.betas`"),
        ({"base": "/"}, "unknown key `base`"),
        # wrong types
        ({"epochs": "3"}, "`epochs` must be a whole number, got '3'"),
        ({"epochs": 3.0}, "`epochs` must be a whole number, got 3.0"),
        ({"epochs": True}, "`epochs` must be a whole number, got True"),
        ({"name": 7}, "`name` must be text, got 7"),
        ({"weights_leave": 1}, "`weights_leave` must be true or false, got 1"),
        ({"resend_after_s": "10"}, "`resend_after_s` must be a number, got '10'"),
        ({"resend_after_s": True}, "`resend_after_s` must be a number, got True"),
        ({"clip_norm": "1"}, "`clip_norm` must be a number, got '1'"),
        ({"model.cut": "pool1"}, "`model.cut` must be a list, got 'pool1'"),
        ({"model.cut": [1]}, "`model.cut[0]` must be text, got 1"),
        ({"model.args": []}, "`model.args` must be a table"),
        ({"model": "digits-cnn"}, "model: expected a table, got 'digits-cnn'"),
        ({"clients": {"name": "a"}}, "`clients` must be a list, got dict"),
        ({"clients": ["a"]}, "clients[0]: expected a table, got 'a'"),
        ({"data": []}, "`data` must be a table"),
        ({"optimizer": {"kind": "adam", "lr": 0.1, "betas": [0.9]}}, "`optimizer.betas` must have 2 entries, got 1"),
        # values
        ({"name": "a b"}, "`name` is 'a b'; use 1 to 64 letters, digits, `_` or `-`"),
        ({"name": ""}, "`name` is ''"),
        ({"name": "x" * 65}, "`name` is 'xxx"),
        ({"name": "../up"}, "`name` is '../up'"),
        ({"name": "a\n"}, "`name` is 'a\\n'"),
        ({"epochs": 0}, "`epochs` is 0; it must be 1 or more"),
        ({"batch_size": 0}, "`batch_size` is 0; it must be 1 or more"),
        ({"in_flight": 0}, "`in_flight` is 0; it must be 1 or more"),
        ({"checkpoint_every": 0}, "`checkpoint_every` is 0; it must be 1 or more"),
        ({"seed": -1}, "`seed` is -1; it must be 0 or more"),
        ({"clip_norm": 0}, "`clip_norm` is 0.0; it must be above 0"),
        ({"clip_norm": float("nan")}, "`clip_norm` is nan; it must be above 0"),
        ({"loss": "hinge"}, "`loss` is 'hinge'; it must be one of 'cross_entropy', 'bce', 'mse'"),
        ({"schedule": "both"}, "`schedule` is 'both'; it must be one of 'relay', 'independent'"),
        ({"codec.forward": "zip"}, "codec: `forward`: there is no codec 'zip'; it must be one of fp32, fp16"),
        ({"codec.backward": "raw"}, "codec: `backward`: there is no codec 'raw'"),
        ({"codec.forward": "topk:keep=2"}, "codec: `forward`: topk: `keep` is 2.0; it must be above 0 and below 1"),
        ({"codec.forward": 8}, "`codec.forward` must be text, got 8"),
        ({"align": {"missing": "mean"}}, "`align.missing` is 'mean'; it must be one of 'drop', 'zero'"),
        ({"align": True}, "align: expected a table, got True"),
        ({"align": {"mising": "drop"}}, "unknown key `align.mising`; did you mean `missing`?"),
        ({"codec.cuts": {"bottom>trunk": {"forward": "int8"}}}, "`codec.cuts` names the cut 'bottom>trunk'; cuts are bottom>top"),
        ({"codec.cuts": {"bottom>top": {"forward": "zip"}}}, "codec.cuts.bottom>top: `forward`: there is no codec 'zip'"),
        ({"codec.cuts": {"bottom>top": {"up": "int8"}}}, "unknown key `codec.cuts.bottom>top.up`; known keys: forward, backward"),
        ({"codec.cuts": {"bottom>top": "int8"}}, "codec.cuts.bottom>top: expected a table, got 'int8'"),
        ({"evaluate.every_epochs": 0}, "evaluate: `every_epochs` is 0"),
        ({"evaluate.patience": 0}, "evaluate: `patience` is 0"),
        ({"evaluate.splits": []}, "evaluate: `splits` is empty"),
        ({"evaluate.splits": ["train"]}, "`evaluate.splits[0]` is 'train'; it must be one of 'validation', 'test'"),
        ({"straggler": {"policy": "drop"}}, "`straggler.policy` is 'drop'; it must be one of 'wait', 'void'"),
        ({"straggler": {"policy": "void"}}, 'straggler: `policy = "void"` and `deadline_s` go together; give both, or neither'),
        ({"straggler": {"deadline_s": 5}}, 'straggler: `policy = "void"` and `deadline_s` go together; give both, or neither'),
        ({"straggler": {"policy": "void", "deadline_s": 0}}, "straggler: `deadline_s` is 0.0; it must be above 0"),
        ({"straggler.absent_s": float("inf")}, "straggler: `absent_s` is inf"),
        ({"broker.url": "http://x"}, "broker: `url` is 'http://x'; it must begin with mqtt:// or mqtts://"),
        ({"optimizer": {"lr": 0.1}}, "missing key `optimizer.kind`; it must be one of 'sgd', 'adam', 'adamw'"),
        ({"optimizer": {"kind": "lion", "lr": 0.1}}, "`optimizer.kind` is 'lion'; it must be one of 'sgd', 'adam', 'adamw'"),
        ({"optimizer": {"kind": "sgd"}}, "missing key `optimizer.lr`"),
        ({"optimizer.lr": 0}, "optimizer: `lr` is 0.0; it must be above 0"),
        ({"optimizer.lr": float("nan")}, "optimizer: `lr` is nan"),
        ({"optimizer.momentum": -0.1}, "optimizer: `momentum` is -0.1; it must not be negative"),
        ({"optimizer.nesterov": True}, "optimizer: `nesterov` needs a `momentum` above 0"),
        ({"optimizer": {"kind": "adam", "lr": 0.1, "betas": [0.9, 1.0]}}, "optimizer: `betas` are [0.9, 1.0]; each must lie in [0, 1)"),
        ({"optimizer": {"kind": "adamw", "lr": 0.1, "eps": 0}}, "optimizer: `eps` is 0.0; it must be above 0"),
        ({"lr_schedule.warmup_steps": -1}, "lr_schedule: `warmup_steps` is -1"),
        # the model
        ({"model.cut": []}, "`model.cut` is empty"),
        ({"model.segments": ["a", "b", "c"]}, "model: `segments` names 3 pieces, but 1 cuts make 2"),
        ({"model.segments": ["a", "b/c"]}, "model: `segments` is 'b/c'"),
        ({"model.placement": {"middle": "server"}}, "model: `placement` names the segment 'middle'; segments are bottom, top"),
        ({"model.placement": {"top": "cloud"}}, "segment `top` is placed on `cloud`, which is no party of the run; parties are a, server"),
        ({"model.placement": {"top": "clients"}}, "no segment is placed on the server `server`; the run needs one there"),
        # parties
        ({"clients": []}, "`clients` lists 0 parties; it must be 1 to 16384"),
        (
            {"clients": _clients("a", "b", "a"), "schedule": "independent"},
            "two parties are called 'a'; every party needs a name of its own",
        ),
        ({"clients": _clients("a", "server"), "schedule": "independent"}, "two parties are called 'server'"),
        ({"clients": _clients("a", "b")}, "`schedule` is 'relay' with several clients"),
        ({"hand_over": "post"}, "`hand_over` is 'post'; it must be one of 'server', 'peer'"),
        ({"hand_over": "peer", "schedule": "independent"}, "no client hands weights to the next"),
        ({"clients.0.public_key": "AAAA"}, "clients[0]: `public_key`: 'AAAA' is not the base64 of a key of 32 bytes; write what `cutlayer"),
        ({"clients.0.public_key": "!" * 44}, "clients[0]: `public_key`: '!!!"),
        ({"clients.0.name": "a/b"}, "clients[0]: `name` is 'a/b'"),
        ({"clients.0.threads": 0}, "clients[0]: `threads` is 0; it must be 1 or more"),
        ({"clients.0.data": {"shard": "3/2"}}, "clients[0].data: `shard` is '3/2'"),
        ({"server.name": "a"}, "two parties are called 'a'"),
        ({"server.name": "#"}, "server: `name` is '#'"),
        ({"server.labels": "labels.csv"}, "set `ids_key`, the secret that all parties share"),
        # rounds
        ({"schedule": "fedavg"}, "`schedule` 'fedavg' trains the whole network with its loss on each client: leave out `model.cut`"),
        (
            {"schedule": "splitfed-v2", "clients": _clients("a", "b")},
            "which averages the clients' weights; allow it with `weights_leave = true`",
        ),
        ({**WHOLE, "server.labels": "l.csv", "ids_key": "k"}, "leave out `server.labels`"),
        ({**WHOLE, "align": {}}, "leave out `align`"),
        ({**WHOLE, "reconstruct": {"decoder": "d.py:d", "alpha": 0.1}}, "leave out `reconstruct`"),
        ({**WHOLE, "segments": [{"name": "m", "on": ["a"], "build": "digits-cnn"}]}, "write `[model]`, and no `[[segments]]`"),
        ({**WHOLE, "model.placement": {"model": "server"}}, "leave out `model.placement`"),
        ({**WHOLE, "evaluate.metrics": ["auroc"]}, "evaluate.metrics: 'auroc' cannot be added up from what clients count"),
        ({**WHOLE, "schedule": "large-batch", "round_steps": 2}, "`round_steps` is 2; with `schedule` 'large-batch' a round is one step"),
        ({**WHOLE, "schedule": "large-batch", "clip_norm": 1.0}, "`schedule` 'large-batch' is a step on the mean gradient"),
        (
            {**WHOLE, "schedule": "large-batch", "optimizer": {"kind": "adam", "lr": 0.1}},
            "with `optimizer.kind` 'sgd' and without `clip_norm` only",
        ),
        ({"round_steps": 3}, "`round_steps` means nothing with `schedule` 'relay'"),
        ({"schedule": "splitfed-v2", "round_steps": 0}, "`round_steps` is 0; it must be 1 or more"),
        ({"codec.weights": "topk:keep=0.1"}, "codec: `weights` is 'topk:keep=0.1', which is for batches of activations; use fp32,"),
        ({"codec.weights": "lowbit"}, "codec: `weights` is 'lowbit', which is"),
        ({"data": {"kind": "npz"}}, "missing key `clients[0].data.path`"),
    ],
)
def test_a_mistake_names_its_key(changes: Table, said: str) -> None:
    assert said in _refused(_with(changes))


@pytest.mark.parametrize("key", list(SMALLEST))
def test_what_must_be_there_is_asked_for(key: str) -> None:
    said = {
        "model": "the run file needs `[model]` with its cuts, or `[[segments]]`, and not both",
        "clients": "`clients` lists 0 parties; it must be 1 to 16384",
        "data": "missing key `clients[0].data.kind`",
    }
    assert _refused({name: value for name, value in SMALLEST.items() if name != key}) == said.get(key, f"missing key `{key}`")


def test_many_parties_are_allowed_up_to_the_limit() -> None:
    names = [f"c{at}" for at in range(LIMITS.parties + 1)]
    assert len(_run(clients=_clients(*names[:-1]), schedule="independent").clients) == LIMITS.parties
    assert f"`clients` lists {LIMITS.parties + 1} parties" in _refused(_with({"clients": _clients(*names), "schedule": "independent"}))


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), max_size=5)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | WORDS
KEYS = st.sampled_from([field.name for field in dataclasses.fields(Run)]) | WORDS


@given(changes=st.dictionaries(KEYS, SCALARS | st.dictionaries(WORDS, SCALARS, max_size=3) | st.lists(SCALARS, max_size=3)))
def test_any_values_give_a_run_or_one_error(changes: Table) -> None:
    try:
        run = parse_run({**SMALLEST, **changes}, base=".")
    except RunFileError:
        return
    assert parse(Run, plain(run), where="", error=RunFileError) == run


# ------------------------------------------------------------ the file


def _unreadable(path: Path, *said: str) -> None:
    with pytest.raises(RunFileError) as caught:
        load_run(path)
    for words in (str(path), *said):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_begins_with_the_files_path(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(_with({"epochs": 0})))
    with pytest.raises(RunFileError) as caught:
        load_run(path)
    assert str(caught.value) == f"{path}: `epochs` is 0; it must be 1 or more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\nepochs =\n', "at line 2"),
        ('name = "x"\n\n[model\n', "at line 3"),
        ('name = "x"\nname = "y"\n', "at line 2"),
        ('name = "x', "at end of document"),
        ("just words", "at line 1"),
        (b"name = '\xff'", "can't decode byte 0xff"),
    ],
)
def test_what_is_not_toml_is_told_with_the_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    _unreadable(path, "is not valid TOML", said)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    _unreadable(tmp_path / "nowhere.toml", "cannot read the run file", "No such file")
    _unreadable(tmp_path, "cannot read the run file", "Is a directory")


def test_a_file_that_is_too_large_is_no_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    text = tomli_w.dumps(SMALLEST).encode()
    path.write_bytes(text + b"#" * (LIMITS.run_file_bytes - len(text)))
    assert load_run(path).name == "ward-7"
    path.write_bytes(text + b"#" * (LIMITS.run_file_bytes - len(text) + 1))
    _unreadable(path, f"is larger than {LIMITS.run_file_bytes} bytes", "not a run file")


@given(data=st.binary(max_size=100))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_one_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(data)
    _unreadable(tmp_path / "run.toml")


# ------------------------------------------------------------ what follows from it


def test_another_broker_changes_the_address_and_nothing_else() -> None:
    run = _run(broker={"url": "mqtt://a:1", "username": "u", "password_file": "p", "keepalive_s": 30})
    other = run.with_broker("mqtt://b:2")
    assert other.broker == dataclasses.replace(run.broker, url="mqtt://b:2")
    assert dataclasses.replace(other, broker=run.broker) == run
    assert other.digest == run.digest
    assert run.with_broker(None) is run


@pytest.mark.parametrize("url", ["", "b:2", "http://b", "mqtt://", "mqtt://u:p@b", "mqtt://b:0", "mqtt://b:99999", "mqtt://b/topic"])
def test_another_broker_that_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RunFileError, match=r"^broker: `url`") as caught:
        _run().with_broker(url)
    assert "\n" not in str(caught.value)


def test_a_plain_address_does_not_take_the_place_of_tls() -> None:
    run = _run(broker={"url": "mqtts://a", "ca": "ca.pem"})
    with pytest.raises(RunFileError, match="need TLS"):
        run.with_broker("mqtt://a")


SHARED: list[Table] = [
    {"name": "other"},
    {"epochs": 4},
    {"batch_size": 17},
    {"seed": 1},
    {"loss": "bce"},
    {"in_flight": 2},
    {"checkpoint_every": 7},
    {"weights_leave": True},
    {"schedule": "independent"},
    {"clip_norm": 1.0},
    {"optimizer.lr": 0.2},
    {"model.cut": ["pool2"]},
    {"model.args": {"width": 2}},
    {"codec.forward": "int8"},
    {"codec.backward": "int8"},
    {"codec.cuts": {"bottom>top": {"forward": "int8"}}},
    {"evaluate.metrics": ["f1"]},
    {"lr_schedule.kind": "cosine"},
    {"clients": _clients("b")},
    {"server.name": "hq"},
    {"server.labels": "l.csv", "ids_key": "k"},
    {"straggler": {"policy": "void", "deadline_s": 3.0}},
]
OWN: list[Table] = [
    {"data.path": "elsewhere.npz"},
    {"clients.0.data": {"limit": 3}},
    {"clients.0.threads": 2},
    {"server.threads": 2},
    {"state_dir": "/var/lib/x"},
    {"broker.url": "mqtt://x"},
    {"resend_after_s": 3.0},
    {"straggler": {"join_s": 3.0, "absent_s": 3.0}},
    {"topic_key": "secret"},
    {"ids_key": "secret"},
]


@pytest.mark.parametrize(
    ("changes", "absences"),
    [
        ({}, True),
        ({"schedule": "independent"}, True),
        ({"hand_over": "peer"}, False),
        ({"align": {}}, False),
        ({"straggler": {}}, False),
    ],
)
def test_which_runs_can_do_without_clients(changes: Table, absences: bool) -> None:
    assert _run(**({"straggler": {"policy": "void", "deadline_s": 3.0}} | changes)).absences is absences


def test_aligning_is_a_table_that_may_be_empty_and_the_server_needs_no_key_for_it() -> None:
    assert _run().align is None
    assert _run(align={}).align == AlignConfig(missing="drop")
    run = _run(align={"missing": "zero"}, **{"server.labels": "labels.csv"})
    assert run.align == AlignConfig(missing="zero")
    assert len({_run().digest, _run(align={}).digest, _run(align={"missing": "zero"}).digest}) == 3


def test_the_digest_is_of_what_all_parties_must_agree_on() -> None:
    digests = [_run(**changes).digest for changes in ({}, *SHARED)]
    assert len(set(digests)) == len(digests)
    assert _run(base="/elsewhere").digest == digests[0]


@pytest.mark.parametrize("changes", OWN)
def test_the_digest_leaves_out_what_is_each_ones_own(changes: Table) -> None:
    assert _run(**changes).digest == _run().digest


def test_a_tag_is_a_number_of_four_bytes_for_each_name() -> None:
    tags = {_run(name=f"run-{at}").tag for at in range(50)}
    assert len(tags) == 50
    assert all(0 <= tag < 2**32 for tag in tags)
    assert _run(epochs=9).tag == _run().tag


# ------------------------------------------------------------ parsing


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Leaf:
    number: float = 0.5
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"`number` is {self.number}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Root:
    leaf: _Leaf
    leaves: dict[str, _Leaf] = dataclasses.field(default_factory=dict)
    pair: tuple[int, str] | None = None
    size: int | str = 1
    anything: Any = None


LEAVES = st.builds(_Leaf, number=st.floats(min_value=0), words=st.lists(st.text(max_size=4), max_size=3).map(tuple))
ROOTS = st.builds(
    _Root,
    leaf=LEAVES,
    leaves=st.dictionaries(st.text(max_size=4), LEAVES, max_size=3),
    pair=st.none() | st.tuples(st.integers(), st.text(max_size=4)),
    size=st.integers() | st.text(max_size=4),
    anything=SCALARS,
)


@given(root=ROOTS)
def test_what_is_parsed_is_what_was_made_plain(root: _Root) -> None:
    assert parse(_Root, plain(root), where="", error=RunFileError) == root


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["leaf"].update(number="x"), "`top.leaf.number` must be a number, got 'x'"),
        (lambda data: data["leaf"].update(number=-1), "top.leaf: `number` is -1.0"),
        (lambda data: data["leaf"].update(words="word"), "`top.leaf.words` must be a list, got 'word'"),
        (lambda data: data["leaf"].update(words=["a", None]), "`top.leaf.words[1]` must be text, got NoneType"),
        (lambda data: data["leaves"].update(x={"number": []}), "`top.leaves.x.number` must be a number, got list"),
        (lambda data: data["leaves"].update(x={"numbr": 1}), "unknown key `top.leaves.x.numbr`; did you mean `number`?"),
        (lambda data: data["leaves"].update(x=3), "top.leaves.x: expected a table, got 3"),
        (lambda data: data.update(pair=[1]), "`top.pair` must have 2 entries, got 1"),
        (lambda data: data.update(pair=[1, 2]), "`top.pair[1]` must be text, got 2"),
        (lambda data: data.update(size=1.5), "`top.size` must be text, got 1.5"),
        (lambda data: data.pop("leaf"), "missing key `top.leaf`"),
    ],
)
def test_the_path_of_a_fault_is_whole(change: Callable[[Table], object], said: str) -> None:
    data = plain(_Root(leaf=_Leaf()))
    change(data)
    with pytest.raises(RunFileError) as caught:
        parse(_Root, data, where="top", error=RunFileError)
    assert str(caught.value) == said


def test_what_is_no_table_at_all_is_told() -> None:
    with pytest.raises(RunFileError, match="top level: expected a table, got list"):
        parse(_Root, [], where="", error=RunFileError)


# ------------------------------------------------------------ rounds


@pytest.mark.parametrize("schedule", ["fedavg", "large-batch"])
@pytest.mark.parametrize("clients", [1, 3])
def test_federated_clients_hold_the_whole_network_and_the_server_nothing(schedule: str, clients: int) -> None:
    names = ["a", "b", "c"][:clients]
    options = {"weights_leave": True, "codec": {"weights": "int8"}, "evaluate.patience": 2}  # for the server learns what clients count
    run = _run(**{**WHOLE, "schedule": schedule, "clients": _clients(*names), **options})
    graph = run.graph()
    assert [(segment.name, segment.parties, segment.loss, segment.labels) for segment in graph.segments] == [
        ("model", tuple(names), True, "local")
    ]
    assert graph.root() == "server"
    server = graph.slice_for("server")
    assert (server.slots, server.parent, len(server.children)) == ((), None, clients)
    assert run.codecs == {"int8"}
    assert run.plan().lanes == clients


def test_runs_with_other_codecs_for_weights_are_other_runs() -> None:
    runs = [_run(**{"schedule": "splitfed-v2", "codec.weights": weights}) for weights in ("fp32", "int8")]
    assert len({run.digest for run in runs}) == 2
    assert runs[1].codecs == {"fp32", "int8"}
