"""What ``export_segment`` leaves on disk and in memory: a whole bundle or none, and the module as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from export import SGD, Adam, AdamW, export_segment
from wire.errors import ExportError
from wire.manifest import GRAPHS, BundleManifest, load_manifest
from wire.optim import Optimizer

TrainBoth = Callable[..., None]
FILES = sorted([*(f"{name}.onnx" for name in GRAPHS), "manifest.json", "parameters.safetensors"])
DRAWN = torch.Generator().manual_seed(8)
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(lr=0.1),
    "sgd momentum": SGD(lr=0.1, momentum=0.9),
    "sgd nesterov": SGD(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "sgd decay": SGD(lr=0.1, weight_decay=0.1),
    "sgd slow": SGD(lr=1e-6, momentum=0.5),
    "adam": Adam(lr=0.01),
    "adam decay": Adam(lr=0.003, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
    "adamw": AdamW(lr=0.01),
    "adamw decay": AdamW(lr=0.01, betas=(0.5, 0.99), weight_decay=0.3),
}


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))


def _export(folder: Path, module: nn.Module | None = None, **options: Any) -> BundleManifest:
    return export_segment(module or _net(), (torch.randn(2, 1, 6, 6),), folder, optimizer=SGD(lr=0.1, momentum=0.9), **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_updates_as_torch_does(name: str, tmp_path: Path, train_both: TrainBoth) -> None:
    optimizer, draw = OPTIMIZERS[name], torch.randn(40, 1, 6, 6)
    module = _net()
    manifest = export_segment(module, (draw[:2],), tmp_path / "b", optimizer=optimizer)
    assert manifest.counts_steps is not isinstance(optimizer, SGD)
    train_both(module, tmp_path / "b", {"x": draw}, optimizer, batches=(5, 6, 4, 5, 6))


@pytest.mark.parametrize(
    ("loss", "outputs", "target"),
    [
        ("cross_entropy", 4, torch.randint(0, 4, (20,), generator=DRAWN)),
        ("mse", 4, torch.randn(20, 4, generator=DRAWN)),
        ("mse", 1, torch.randn(20, generator=DRAWN)),
        ("bce", 4, torch.rand(20, 4, generator=DRAWN)),
        ("bce", 1, torch.randint(0, 2, (20,), generator=DRAWN).float()),
    ],
)
def test_a_segment_with_its_loss(loss: Any, outputs: int, target: Tensor, tmp_path: Path, train_both: TrainBoth) -> None:
    module, draw = nn.Linear(5, outputs), torch.randn(20, 5) * 30  # loud: a naive exp would overflow
    optimizer = SGD(lr=0.001)
    manifest = export_segment(module, (draw[:2], target[:2]), tmp_path / "b", optimizer=optimizer, loss=loss, input_gradients=[True])
    assert [spec.name for spec in manifest.inputs] == ["x", "target"]
    assert [(spec.name, spec.shape, spec.dtype) for spec in manifest.outputs] == [("loss", (), "float32")]
    assert [spec.gradient for spec in manifest.inputs] == [True, False]
    assert not [name for name in manifest.graphs["backward"].inputs if name.startswith("g.")]
    train_both(module, tmp_path / "b", {"x": draw, "target": target}, optimizer)


@pytest.mark.parametrize(
    ("loss", "channels", "target"),
    [
        ("cross_entropy", 3, torch.randint(0, 3, (20, 4, 4), generator=DRAWN)),
        ("bce", 1, torch.randint(0, 2, (20, 1, 4, 4), generator=DRAWN).float()),
        ("mse", 2, torch.randn(20, 2, 4, 4, generator=DRAWN)),
    ],
)
def test_a_loss_of_images(loss: Any, channels: int, target: Tensor, tmp_path: Path, train_both: TrainBoth) -> None:
    module, draw = nn.Conv2d(2, channels, 1), torch.randn(20, 2, 4, 4)
    export_segment(module, (draw[:2], target[:2]), tmp_path / "b", optimizer=SGD(lr=0.1), loss=loss)
    train_both(module, tmp_path / "b", {"x": draw, "target": target}, SGD(lr=0.1))


@pytest.mark.parametrize("shape", [(20,), (20, 4, 4)])
def test_samples_without_a_label_count_for_nothing(shape: tuple[int, ...], tmp_path: Path, train_both: TrainBoth) -> None:
    """-100, as PyTorch has it."""
    target = torch.randint(0, 3, shape, generator=DRAWN)
    target[torch.rand(shape, generator=DRAWN) < 0.4] = -100
    module = nn.Linear(2, 3) if len(shape) == 1 else nn.Conv2d(2, 3, 1)
    draw = torch.randn(20, 2, *shape[1:])
    export_segment(module, (draw[:2], target[:2].clamp(min=0)), tmp_path / "b", optimizer=SGD(lr=0.1), loss="cross_entropy")
    train_both(module, tmp_path / "b", {"x": draw, "target": target}, SGD(lr=0.1))


def test_the_folder_holds_what_the_manifest_lists(tmp_path: Path) -> None:
    manifest = _export(tmp_path / "b", name="bottom")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == FILES
    assert load_manifest((tmp_path / "b/manifest.json").read_text(), where="here") == manifest
    assert manifest.segment == "bottom"
    for entry in manifest.files:
        data = (tmp_path / "b" / entry.file).read_bytes()
        assert (entry.sha256, entry.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert sorted(entry.file for entry in manifest.files) == [name for name in FILES if name != "manifest.json"]


def test_the_graphs_are_ordinary_onnx_for_any_batch(tmp_path: Path) -> None:
    manifest = _export(tmp_path / "b")
    for name, entry in manifest.graphs.items():
        model = onnx.load(tmp_path / "b" / entry.file)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
        assert model.ir_version <= 10
        assert tuple(each.name for each in model.graph.input) == entry.inputs
        assert tuple(each.name for each in model.graph.output) == entry.outputs
        assert not [node.op_type for node in model.graph.node if node.domain], name
    forward = onnx.load(tmp_path / "b/forward.onnx").graph
    (shape,) = [each.type.tensor_type.shape for each in forward.input if each.name == "in.x"]
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 1, 6, 6]


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = _net()
    module.train()
    module[1].eval()
    for value in module.parameters():
        value.grad = torch.full_like(value, 3.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(11)
    _export(tmp_path / "b", module)
    drawn = torch.rand(1)
    torch.manual_seed(11)
    torch.randn(2, 1, 6, 6)  # `_export` draws its example
    assert drawn == torch.rand(1), "random numbers were used up"
    assert module.training
    assert not module[1].training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(bool((value.grad == 3).all()) for value in module.parameters() if value.grad is not None)
    assert all(not each._forward_hooks and not each._forward_pre_hooks for each in module.modules())


def test_equal_modules_give_equal_bundles(tmp_path: Path) -> None:
    first, second = _export(tmp_path / "a"), _export(tmp_path / "b")
    assert first == second


def test_an_older_bundle_is_replaced_and_other_folders_are_not(tmp_path: Path) -> None:
    _export(tmp_path / "b")
    assert _export(tmp_path / "b", name="again").segment == "again"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years")
    with pytest.raises(ExportError, match="is not empty and holds no bundle"):
        _export(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").read_text() == "years"
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a file"):
        _export(tmp_path / "file")


def test_nothing_is_written_for_a_segment_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        export_segment(nn.RReLU(), (torch.randn(2, 3),), tmp_path / "b", optimizer=SGD(lr=0.1))
    assert list(tmp_path.iterdir()) == []


def test_frozen_tied_and_unread_parameters(tmp_path: Path, train_both: TrainBoth) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.frozen, self.unread = (nn.Linear(4, 4) for _ in range(4))
            self.b.weight = self.a.weight
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.b(torch.relu(self.frozen(self.a(x))))
            return found

    module, draw = Odd(), torch.randn(20, 4)
    optimizer = SGD(lr=0.1, weight_decay=0.5)  # which torch does not apply where no gradient came
    manifest = export_segment(module, (draw[:2],), tmp_path / "b", optimizer=optimizer, input_gradients=[True])
    trained = {spec.name for spec in manifest.parameters if spec.gradient}
    assert trained == {"a.weight", "a.bias", "b.bias"}
    assert {spec.name for spec in manifest.parameters} - trained == {"frozen.weight", "frozen.bias", "unread.weight", "unread.bias"}
    train_both(module, tmp_path / "b", {"x": draw}, optimizer)


@pytest.mark.parametrize("asked", [True, False])
def test_a_segment_without_parameters(asked: bool, tmp_path: Path, train_both: TrainBoth) -> None:
    module, draw = nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), torch.randn(20, 2, 4, 4)
    manifest = export_segment(module, (draw[:2],), tmp_path / "b", optimizer=Adam(lr=0.1), input_gradients=[asked])
    assert manifest.graphs["optimizer"].outputs == ()
    assert manifest.graphs["backward"].outputs == (("gin.x",) if asked else ())
    train_both(module, tmp_path / "b", {"x": draw}, Adam(lr=0.1))


def test_names_of_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + y, x * y

    example = (torch.randn(2, 3), torch.randn(2, 3))
    manifest = export_segment(Two(), example, tmp_path / "a", optimizer=SGD(lr=0.1), input_gradients=[True, False])
    assert [spec.name for spec in manifest.inputs + manifest.outputs] == ["x0", "x1", "y0", "y1"]
    assert manifest.graphs["backward"].outputs == ("gin.x0",)
    names = {"input_names": ["left", "right"], "output_names": ["sum", "product"]}
    manifest = export_segment(Two(), example, tmp_path / "b", optimizer=SGD(lr=0.1), **names)
    assert [spec.name for spec in manifest.inputs + manifest.outputs] == ["left", "right", "sum", "product"]


@pytest.mark.parametrize(
    ("module", "shape", "min_batch"),
    [
        (nn.BatchNorm1d(3), (3,), 2),
        (nn.Sequential(nn.Conv2d(1, 2, 4), nn.BatchNorm2d(2)), (1, 4, 4), 2),
        (nn.BatchNorm2d(3), (3, 2, 2), 1),
        (nn.LayerNorm(3), (3,), 1),
        (nn.Linear(3, 3), (3,), 1),
    ],
)
def test_the_smallest_batch(module: nn.Module, shape: tuple[int, ...], min_batch: int, tmp_path: Path) -> None:
    manifest = export_segment(module, (torch.randn(2, *shape),), tmp_path / "b", optimizer=SGD(lr=0.1))
    assert manifest.min_batch == min_batch


@pytest.mark.parametrize("batch", [1, 2, 13, 64])
def test_any_batch_size(batch: int, tmp_path: Path, train_both: TrainBoth) -> None:
    module, draw = _net(), torch.randn(3 * batch, 1, 6, 6)
    _export(tmp_path / "b", module)
    train_both(module, tmp_path / "b", {"x": draw}, SGD(lr=0.1, momentum=0.9), batches=(batch, batch, batch), tolerance=1e-4)


def test_frozen_layers_prune_the_backward_graph(tmp_path: Path) -> None:
    """Nothing is computed or kept for a gradient that nobody wants."""

    def sizes(frozen: tuple[int, ...]) -> tuple[int, int]:
        torch.manual_seed(0)
        module = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) if at % 2 == 0 else nn.ReLU() for at in range(8)))
        for at in frozen:
            module[at].requires_grad_(False)
        manifest = export_segment(module, (torch.randn(2, 2, 6, 6),), tmp_path / f"b{len(frozen)}", optimizer=SGD(lr=0.1))
        nodes = len(onnx.load(tmp_path / f"b{len(frozen)}" / "step.onnx").graph.node)
        return nodes, len(manifest.residuals)

    whole, last_only, bias_only = sizes(()), sizes((0, 2, 4)), sizes((0,))
    assert last_only[0] < whole[0] / 2
    assert last_only[1] < bias_only[1] <= whole[1]
