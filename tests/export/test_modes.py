"""``self.training`` in a model's own forward, as many models have it, survives the cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from export import SGD, export_segment
from export.cut import cut
from wire.errors import GraphError

OPTIMIZER = SGD(lr=0.05)


class Tutorial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(torch.relu(self.a(x)), 0.5, self.training)
        x = functional.dropout(torch.relu(self.b(x)), p=0.5, training=self.training)
        found: Tensor = self.c(functional.dropout(x, 0.5, training=True))
        return found


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1).bernoulli_(0.5).div_(0.5)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.path = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x + self.path(x * 2)
        found: Tensor = self.c(torch.relu(x + self.path(self.b(x))))
        return found


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        found: Tensor = self.b(torch.relu(x) if self.training else x)
        return found


@pytest.mark.parametrize(("build", "at"), [(Tutorial, "a"), (Tutorial, "b"), (Deep, "a"), (Deep, "b")])
def test_each_mode_is_the_models(build: Callable[[], nn.Module], at: str) -> None:
    model, x = build(), torch.randn(64, 6)
    names, modes = set(model.state_dict()), {name: module.training for name, module in model.named_modules()}
    first, second = cut(model, at, (x[:2],))
    assert set(first.module.state_dict()) | set(second.module.state_dict()) == names
    assert {name: module.training for name, module in model.named_modules()} == modes
    for training in (False, True, False):
        torch.manual_seed(1)
        wanted = model.train(training)(x)
        torch.manual_seed(1)
        found = first.module.train(training)(x)
        found = second.module.train(training)(*((found,) if isinstance(found, Tensor) else found))
        assert torch.equal(found, wanted)


def test_a_client_drops_in_training_alone(tmp_path: Path, train_both: Callable[..., None]) -> None:
    draw = torch.randn(20, 6)
    bottom, _ = cut(Tutorial(), "b", (draw[:2],))
    manifest = export_segment(bottom.module, (draw[:2],), tmp_path / "b", optimizer=OPTIMIZER)
    assert [spec.keep for spec in manifest.masks] == [0.5]
    assert not [name for name in manifest.graphs["infer"].inputs if name.startswith("m.")]
    train_both(bottom.module, tmp_path / "b", {"x": draw}, OPTIMIZER)


def test_a_model_that_branches_itself_is_refused() -> None:
    with pytest.raises(GraphError, match="other things in training than in evaluation") as caught:
        cut(Branching(), "a", (torch.randn(2, 6),))
    assert "\n" not in str(caught.value)
