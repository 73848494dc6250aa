"""Cutting a model: the segments together are the model, and what cannot be cut is refused in one line that says why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.cut import Piece, cut
from export.load import load_model
from export.models import BUNDLED
from export.prepare import build_model, build_segments, export_run, input_shapes
from wire.errors import GraphError, RunFileError
from wire.manifest import load_manifest
from wire.runfile import Run, parse_run


class Plain(nn.Module):
    """Layers and containers, one after the other."""

    shape = (1, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.block = nn.ModuleDict({"pool": nn.MaxPool2d(2), "flat": nn.Flatten()})
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(self.block["flat"](self.block["pool"](self.stem(x))))
        return found


class Skipping(nn.Module):
    """Skip connections, functions between modules, a weight and a buffer of its own."""

    shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.full((6,), 0.5))
        self.register_buffer("shift", torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.a(x)) * self.scale
        second = torch.relu(self.b(first)) + first + self.shift
        third = torch.sigmoid(self.c(second)) * first
        found: Tensor = self.d(torch.cat([third, second], dim=1))
        return found


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x)))) + x


class Nested(nn.Module):
    """Modules within modules, and work behind the last of them."""

    shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(4, 4), nn.Sequential(Inner(), Inner())
        self.last = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.last(self.blocks(self.first(x))) * 2, dim=1)


MODELS: dict[str, type[Any]] = {"plain": Plain, "skipping": Skipping, "nested": Nested}
PLACES = {
    "plain": ["stem.0", "stem.1", "stem.2", "stem", "block.pool", "block.flat"],
    "skipping": ["a", "b", "c"],
    "nested": ["first", "blocks.0.one", "blocks.0.two", "blocks.0", "blocks.1.one", "blocks.1", "blocks", "last.one", "last.two", "last"],
}


def _model(name: str) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = MODELS[name]()
    return model


def _through(pieces: Sequence[Piece], *inputs: Tensor) -> Tensor:
    values: tuple[Tensor, ...] = inputs
    for piece in pieces:
        assert len(values) == len(piece.input_names)
        found = piece.module(*values)
        values = (found,) if isinstance(found, Tensor) else tuple(found)
        assert len(values) == len(piece.output_names)
    (value,) = values
    return value


def _gradients(model: nn.Module, output: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Of the weights, by the model's names, and of the input."""
    weights = dict(model.named_parameters())
    torch.manual_seed(2)
    found = torch.autograd.grad((output * torch.randn_like(output)).sum(), [*weights.values(), x])
    return dict(zip([*weights, "x"], found, strict=True))


def _refused(model: nn.Module, at: str | list[str], shape: Sequence[int] = (4,)) -> str:
    with pytest.raises(GraphError) as caught:
        cut(model, at, (torch.zeros(2, *shape),))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------ segments


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, places in PLACES.items() for at in places])
@pytest.mark.parametrize("training", [True, False])
def test_two_segments_are_the_model(name: str, at: str, training: bool) -> None:
    """Outputs, gradients and running statistics, bit for bit."""
    model = _model(name).train(training)
    whole = copy.deepcopy(model)
    x = torch.randn(5, *model.shape, requires_grad=True)  # type: ignore[misc, arg-type]
    pieces = cut(model, at, (torch.zeros(2, *model.shape),))  # type: ignore[misc, arg-type]
    assert len(pieces) == 2
    assert pieces[0].input_names == ("x",)
    assert pieces[0].output_names == pieces[1].input_names
    for piece in pieces:
        piece.module.train(training)
    together, alone = _through(pieces, x), whole(x)
    assert torch.equal(together, alone)
    wanted = _gradients(whole, alone, x)
    for key, value in _gradients(model, together, x).items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-7, msg=key)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), whole.buffers(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_as_many_cuts_as_there_are_places(name: str) -> None:
    """Also where a segment hands on what it does not read."""
    model = _model(name)
    places = [each for each in PLACES[name] if each not in ("stem", "blocks.0", "blocks.1", "blocks", "last")]
    x = torch.randn(5, *model.shape, requires_grad=True)  # type: ignore[misc, arg-type]
    pieces = cut(model, places, (torch.zeros(2, *model.shape),))  # type: ignore[misc, arg-type]
    assert len(pieces) == len(places) + 1
    assert torch.equal(_through(pieces, x), copy.deepcopy(model)(x))


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, places in PLACES.items() for at in places])
def test_weights_keep_their_names_and_are_shared_not_copied(name: str, at: str) -> None:
    model = _model(name)
    pieces = cut(model, at, (torch.zeros(2, *model.shape),))  # type: ignore[misc, arg-type]
    found = [item for piece in pieces for item in (*piece.module.named_parameters(), *piece.module.named_buffers())]
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert len(found) == len(wanted), "each is in one segment"
    assert all(value is wanted[key] for key, value in found)


def test_several_tensors_cross_each_under_a_name_of_its_own() -> None:
    model = _model("skipping")
    bottom, trunk, head = cut(model, ["b", "c"], (torch.zeros(2, 4),))
    assert len(set(bottom.output_names)) == 2, "what `b` made, and the skip connection"
    assert len(set(trunk.output_names)) == 3, "what `c` made, and two skip connections"
    assert len(head.input_names) == 3
    assert [tuple(each.shape) for each in trunk.examples] == [(2, 6), (2, 6)]
    assert [tuple(each.shape) for each in head.examples] == [(2, 6)] * 3
    assert head.output_names == ("y",)


def test_only_what_is_read_behind_the_cut_crosses() -> None:
    pieces = cut(_model("plain"), "stem.1", (torch.zeros(2, 1, 6, 6),))
    assert len(pieces[0].output_names) == 1
    assert [tuple(each.shape) for each in pieces[1].examples] == [(2, 3, 4, 4)]


def test_several_inputs_and_outputs_of_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.top = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            mixed = self.left(a) * self.right(b)
            return self.top(mixed), mixed

    model, a, b = Two(), torch.randn(5, 4), torch.randn(5, 3)
    below, above = cut(model, "right", (torch.zeros(2, 4), torch.zeros(2, 3)))
    assert below.input_names == ("a", "b")
    assert above.output_names == ("y0", "y1")
    crossing = below.module(a, b)
    for one, other in zip(above.module(*crossing), model(a, b), strict=True):
        assert torch.equal(one, other)


def test_names_that_a_bundle_needs_itself_are_not_given_to_what_crosses() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.target, self.loss, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.fc(self.loss(self.target(x)))
            return found

    pieces = cut(Named(), ["target", "loss"], (torch.zeros(2, 4),))
    assert not {"target", "loss"} & {name for piece in pieces for name in (*piece.input_names, *piece.output_names)}


def test_the_model_is_left_as_it_was() -> None:
    model = _model("plain").train()
    model.stem[1].eval()  # type: ignore[index, union-attr]
    flags = [each.training for each in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut(model, "stem", (torch.randn(2, 1, 6, 6),))
    assert [each.training for each in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


# ------------------------------------------------------------ what cannot be cut


def test_a_name_that_does_not_exist_lists_those_that_do() -> None:
    said = _refused(_model("nested"), "tail")
    assert said.startswith("the model has no submodule `tail` to cut after")
    for name in PLACES["nested"]:
        assert name in said.replace(",", "").split()


def test_the_nearest_name_is_proposed() -> None:
    said = _refused(_model("nested"), "first_")
    assert said.startswith("the model has no submodule `first_` to cut after; did you mean `first`?")


def test_a_long_list_of_names_ends_with_their_number() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)))
    assert _refused(model, "stem").endswith("22, 23 and 6 more")


class Shared(nn.Module):
    """``tie`` makes two layers one in some way."""

    def __init__(self, tie: Callable[[Any], None]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        tie(self)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.b(self.a(x)))
        return found


def _tie_weights(model: Any) -> None:
    model.c.weight = model.a.weight


def _tie_modules(model: Any) -> None:
    model.c = model.a


@pytest.mark.parametrize("tie", [_tie_weights, _tie_modules])
@pytest.mark.parametrize("at", [["b"], ["a", "b"]])
def test_weights_shared_across_a_cut_are_refused(tie: Callable[[Any], None], at: list[str]) -> None:
    if tie is _tie_modules and "a" in at:
        assert "cannot cut after `a`: it runs 2 times, with the same weights" in _refused(Shared(tie), at)
        return
    said = _refused(Shared(tie), at)
    assert "`a.weight`" in said
    assert "one tensor on both sides of the cut after `b`" in said
    assert "untie them" in said


def test_weights_shared_on_one_side_of_a_cut_are_allowed() -> None:
    model = Shared(lambda model: setattr(model.b, "weight", model.a.weight))
    pieces = cut(model, "b", (torch.zeros(2, 4),))
    x = torch.randn(3, 4)
    assert torch.equal(_through(pieces, x), model(x))


def test_a_buffer_on_both_sides_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.fc = nn.ReLU(), nn.Linear(4, 4)
            self.register_buffer("w", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.fc(self.act(x * self.w) * self.w)
            return found

    assert "`w` and `w` are one tensor on both sides of the cut after `act`" in _refused(Both(), "act")


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("2", "nothing is left behind the last cut; cut earlier"),
        (["1", "0"], "the cuts 1, 0 are not in the order in which the model runs them"),
        (["0", "0"], "the cuts 0, 0 are not in the order"),
        (["0", "2"], "nothing is left behind the last cut"),
    ],
)
def test_cuts_that_leave_a_segment_empty_or_out_of_order_are_refused(at: str | list[str], said: str) -> None:
    assert said in _refused(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), at)


def test_two_names_of_one_place_are_refused() -> None:
    assert "not in the order" in _refused(_model("plain"), ["stem.2", "stem"], (1, 6, 6))


class Odd(nn.Module):
    """``how`` says what is odd about its forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.unused, self.empty = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential()

    def forward(self, x: Tensor) -> Any:
        count = x.size(0) // 2 if self.how == "odd size" else 0
        hidden = self.a(x)
        if self.how == "raw input":
            return self.b(hidden + x)
        if self.how == "branch":
            return self.b(hidden) if hidden.sum() > 0 else hidden
        if self.how == "odd size":
            return self.b(hidden) * count
        if self.how == "twice":
            return self.b(self.a(hidden))
        return self.b(self.empty(hidden))


@pytest.mark.parametrize(
    ("how", "at", "said"),
    [
        ("raw input", "a", "the raw input `x` is read behind the cut and would have to cross it; cut later"),
        ("branch", "a", "the model cannot be traced (symbolically traced variables cannot be used as inputs to control flow)"),
        ("odd size", "a", "crosses the cut but is no tensor (it is a int)"),
        ("twice", "a", "cannot cut after `a`: it runs 2 times, with the same weights; name a submodule that runs once"),
        ("", "unused", "cannot cut after `unused`: it never runs"),
        ("", "empty", "cannot cut after `empty`: nothing is computed in it; name the submodule before it"),
    ],
)
def test_odd_models_are_refused_with_the_reason(how: str, at: str, said: str) -> None:
    assert said in _refused(Odd(how), at)


def test_a_model_that_does_not_take_the_input_is_refused() -> None:
    assert "the model does not run on inputs of shape [2, 5]" in _refused(_model("skipping"), "a", (5,))


# ------------------------------------------------------------ the user's file


def _wrote(folder: Path, text: str) -> str:
    (folder / "net.py").write_text("import torch\n" + text)
    return "net.py:build"


def test_a_model_from_a_file_is_built_with_its_arguments(tmp_path: Path) -> None:
    spec = _wrote(tmp_path, "def build(width, *, bias=True):\n    return torch.nn.Linear(width, 2, bias=bias)\n")
    model = load_model(spec, {"width": 5, "bias": False}, tmp_path)
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.bias) == (5, None)
    assert isinstance(load_model(f"{tmp_path}/net.py:build", {"width": 1}, "/"), nn.Linear), "a path may be absolute"


def test_a_class_builds_its_model_and_may_be_pickled_by_name(tmp_path: Path) -> None:
    """The module is imported properly: what looks it up by name finds it."""
    _wrote(tmp_path, "class Net(torch.nn.Identity):\n    pass\n")
    model = load_model("net.py:Net", {}, tmp_path)
    assert type(model).__name__ == "Net"
    assert type(copy.deepcopy(model)) is type(model)


def test_two_files_of_one_name_are_two_models(tmp_path: Path) -> None:
    for folder, width in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        _wrote(tmp_path / folder, f"def build():\n    return torch.nn.Linear({width}, 1)\n")
    found = [load_model(f"{folder}/net.py:build", {}, tmp_path) for folder in ("a", "b")]
    assert [model.in_features for model in found] == [1, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "net.py has no function `build`"),
        ("build = 3\n", "net.py has no function `build`"),
        ("def build(:\n", "`net.py:build` cannot be imported: SyntaxError"),
        ("import no_such_package\n", "`net.py:build` cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("\nx = 1 / 0\n", "`net.py:build` cannot be imported: ZeroDivisionError: division by zero (net.py, line 3)"),
        ("def build():\n    raise KeyError('w')\n", "`net.py:build` failed: KeyError: 'w' (net.py, line 3)"),
        ("def build():\n    return 1 / 0\n", "`net.py:build` failed: ZeroDivisionError: division by zero (net.py, line 3)"),
        ("def build(width):\n    pass\n", "`net.py:build` cannot be built with args {}: build() missing 1 required positional argument"),
    ],
)
def test_a_file_that_builds_nothing_is_refused_with_the_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RunFileError) as caught:
        load_model(_wrote(tmp_path, text), {}, tmp_path)
    assert str(caught.value).startswith("model.build: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "args", "said"),
    [
        ("nowhere.py:build", {}, "nowhere.py is not there; a path begins at the run file's folder"),
        ("folder.py:build", {}, "folder.py is not there"),
        ("net.py", {}, "there is no bundled model 'net.py'; bundled are digits-cnn,"),
        ("resnet99", {}, "or name my_model.py:build"),
        ("net.py:build", {"depth": 3}, "cannot be built with args {'depth': 3}: build() got an unexpected keyword argument 'depth'"),
        ("mlp", {"depth": 3}, "`mlp` cannot be built with args {'depth': 3}"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused_by_name(spec: str, args: dict[str, Any], said: str, tmp_path: Path) -> None:
    _wrote(tmp_path, "def build():\n    return torch.nn.Linear(1, 1)\n")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(RunFileError) as caught:
        load_model(spec, args, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"), [("return None", "NoneType"), ("return torch.zeros(3)", "Tensor"), ("return torch.nn.Linear", "type")]
)
def test_what_is_no_module_is_refused(text: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=rf"`net\.py:build` returned a {kind}, not a torch\.nn\.Module"):
        load_model(_wrote(tmp_path, f"def build():\n    {text}\n"), {}, tmp_path)


# ------------------------------------------------------------ a run's segments


def _run(base: str | Path = ".", **changes: Any) -> Run:
    table: dict[str, Any] = {
        "name": "r",
        "epochs": 1,
        "batch_size": 4,
        "model": {"build": "digits-cnn", "cut": ["pool1"]},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "clients": [{"name": "a"}],
        "data": {"kind": "npz", "path": "x.npz"},
    }
    return parse_run(table | changes, base=str(base))


def test_every_party_builds_the_same_weights_and_no_random_numbers_are_used_up() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    first, second, other = (build_model(run).state_dict() for run in (_run(), _run(epochs=7), _run(seed=1)))
    assert torch.equal(torch.rand(2), wanted)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_segments_know_what_arrives_and_what_is_asked_back() -> None:
    found = build_segments(_run(model={"build": "digits-cnn", "cut": ["pool1", "pool2"]}))
    assert list(found) == ["bottom", "trunk", "head"]
    bottom, trunk, head = found.values()
    assert [(spec.shape, spec.gradient) for spec in bottom.inputs] == [(("batch", 1, 8, 8), False)], "raw data has no gradient"
    assert all(spec.gradient for spec in trunk.inputs)
    assert [spec.gradient for spec in head.inputs] == [True, False]
    for one, other in ((bottom, trunk), (trunk, head)):
        pairs = zip(one.outputs, other.inputs, strict=False)
        assert all((a.name, a.shape, a.dtype) == (b.name, b.shape, b.dtype) for a, b in pairs)
    assert (head.inputs[-1].name, head.inputs[-1].dtype, head.inputs[-1].shape) == ("target", "int64", ("batch",))
    assert [(spec.name, spec.shape) for spec in head.outputs] == [("loss", ())]
    assert [segment.loss is not None for segment in found.values()] == [False, False, True]


@pytest.mark.parametrize(
    ("loss", "outputs", "shape"), [("mse", 1, ("batch",)), ("mse", 3, ("batch", 3)), ("bce", 1, ("batch",)), ("bce", 3, ("batch", 3))]
)
def test_a_target_of_numbers_has_the_outputs_shape(loss: str, outputs: int, shape: tuple[Any, ...], tmp_path: Path) -> None:
    spec = _wrote(tmp_path, f"def build():\n    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, {outputs}))\n")
    run = _run(tmp_path, loss=loss, model={"build": spec, "cut": ["0"], "input_shape": [4]})
    target = build_segments(run)["top"].inputs[-1]
    assert (target.name, target.dtype, target.shape) == ("target", "float32", shape)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU())", "segment `top` behind the last cut has no weights to train"),
        ("torch.nn.Sequential(torch.nn.Linear(4, 5))", "nothing is left behind the last cut"),
    ],
)
def test_a_server_with_nothing_to_train_is_refused(text: str, said: str, tmp_path: Path) -> None:
    run = _run(tmp_path, model={"build": _wrote(tmp_path, f"def build():\n    return {text}\n"), "cut": ["0"], "input_shape": [4]})
    with pytest.raises(GraphError, match=said):
        build_segments(run)


def test_a_loss_is_of_one_tensor(tmp_path: Path) -> None:
    spec = _wrote(
        tmp_path,
        "class build(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        hidden = self.a(x)\n"
        "        return self.b(hidden), hidden\n",
    )
    with pytest.raises(GraphError, match="segment `top` holds the loss and returns 2 tensors; it must return one"):
        build_segments(_run(tmp_path, model={"build": spec, "cut": ["a"], "input_shape": [4]}))


def test_the_shape_of_a_sample_is_the_runs_or_the_models(tmp_path: Path) -> None:
    assert input_shapes(_run()) == (BUNDLED["digits-cnn"].input_shape(),)
    assert input_shapes(_run(model={"build": "mlp", "cut": ["act1"], "args": {"features": 12}})) == ((12,),)
    assert input_shapes(_run(model={"build": "lenet", "cut": ["pool2"], "input_shape": [1, 32, 32]})) == ((1, 32, 32),)
    with pytest.raises(RunFileError, match=r"model\.input_shape is missing: say the shape of one sample"):
        input_shapes(_run(model={"build": "net.py:build", "cut": ["a"]}))


def test_bundles_are_written_for_the_clients_segments_alone(tmp_path: Path) -> None:
    run = _run(model={"build": "digits-cnn", "cut": ["pool1", "pool2"]})
    found = export_run(run, tmp_path / "bundles")
    assert found == {"bottom": tmp_path / "bundles/bottom", "head": tmp_path / "bundles/head"}
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["bottom", "head"]
    segments = build_segments(run)
    for name, path in found.items():
        manifest = load_manifest((path / "manifest.json").read_text(), where="here")
        assert (manifest.segment, manifest.inputs, manifest.outputs) == (name, segments[name].inputs, segments[name].outputs)
        assert manifest.loss == ("cross_entropy" if name == "head" else None)
        assert manifest.optimizer == run.optimizer


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_cut_where_it_says(name: str) -> None:
    model = BUNDLED[name]
    segments = build_segments(_run(model={"build": name, "cut": [model.cut]}))
    assert list(segments) == ["bottom", "top"]
    assert segments["bottom"].inputs[0].shape == ("batch", *model.input_shape())
    sizes = [int(np.prod(segments[key].inputs[0].shape[1:])) for key in segments]
    assert all(size > 0 for size in sizes)
