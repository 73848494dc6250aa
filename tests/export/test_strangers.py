"""Models that Cutlayer never saw, from a file, by the command that a person types; then trained beside PyTorch and put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cutlayer
from export import SGD
from export.cut import Piece, cut
from export.load import load_model
from tests.export import strangers
from wire.errors import GraphError

FILE = Path(strangers.__file__)
OPTIMIZER = SGD(lr=0.05, momentum=0.9)
PLACES = [(name, *place) for name, places in strangers.CUTS.items() for place in places]


def _model(name: str) -> nn.Module:
    torch.manual_seed(3)
    return load_model(f"{FILE}:{name}", {}, ".")


def _export(name: str, at: str, shape: Sequence[int], out: Path) -> int:
    torch.manual_seed(3)
    sizes = ",".join(map(str, shape))
    options = ["--input-shape", sizes, "--optimizer", "sgd,lr=0.05,momentum=0.9", "--out", str(out)]
    return cutlayer.main(["export", "--model", f"{FILE}:{name}", "--cut", at, *options])


def _through(pieces: Sequence[Piece], x: Tensor) -> tuple[Tensor, ...]:
    values: tuple[Tensor, ...] = (x,)
    for piece in pieces:
        found = piece.module(*values)
        values = (found,) if isinstance(found, Tensor) else tuple(found)
    return values


@pytest.mark.parametrize(("name", "at", "shape", "crossing"), PLACES, ids=lambda each: str(each))
def test_a_model_from_a_file_is_cut_and_trains(
    name: str, at: str, shape: tuple[int, ...], crossing: int, tmp_path: Path, train_both: Callable[..., None]
) -> None:
    assert _export(name, at, shape, tmp_path / "bundle") == 0
    model, draw = _model(name), torch.randn(20, *shape)
    pieces = cut(model, at, (draw[:2],))
    assert len(pieces[0].output_names) == crossing
    train_both(pieces[0].module, tmp_path / "bundle", {pieces[0].input_names[0]: draw}, OPTIMIZER, tolerance=1e-4)
    model.eval()
    for piece in pieces:
        piece.module.eval()
    whole = model(draw)
    results = whole.values() if isinstance(whole, dict) else (whole,) if isinstance(whole, Tensor) else whole
    for one, other in zip(_through(pieces, draw), results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    held = set().union(*(piece.module.state_dict() for piece in pieces))
    assert held == {name for name in model.state_dict() if not name.startswith("never.")}, "the state is the model's"


class Odd(nn.Module):
    """A first layer, and one forward that cannot be taken apart."""

    def __init__(self, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.rest = nn.Linear(4, 4), nn.Linear(4, 4), rest

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.rest(self.first(x)))
        return found


def _frozen(x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(x)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (lambda x: x * x.sum().item(), "`.item` takes values out of a tensor"),
        (lambda x: x * float(x.mean()), "it makes a number of a tensor"),
        (lambda x: x if x.mean() > 0 else -x, "must not branch on tensor values"),
        (lambda x: torch.stack([row * 2 for row in x]), "it goes through the samples of a batch one by one"),
        (lambda x: torch.cat([x[at : at + 1] for at in range(len(x))]), "goes through the samples"),
        (lambda x: torch.cat([x[at : at + 1] for at in range(x.shape[0])]), "it counts up to the batch size"),
        (lambda x: x if x.shape[0] > 5 else -x, "it branches on the batch size"),
        (lambda x: _frozen(x) + x, "it uses torch.no_grad(); use .detach()"),
        (lambda x: x.reshape(-1, 3), "the model does not run on inputs of shape [2, 4]"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_in_one_line(rest: Callable[[Tensor], Tensor], said: str) -> None:
    model = Odd(rest)
    before = set(vars(model))
    with pytest.raises(GraphError) as caught:
        cut(model, "first", (torch.zeros(2, 4),))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(vars(model)) == before, "nothing is left in the model"
    assert torch.zeros(2).expand(3, 2).shape == (3, 2)
    assert "expand" not in vars(Tensor), "PyTorch is as it was"


def test_noise_is_drawn_anew_and_not_kept_from_tracing() -> None:
    pieces = cut(Odd(lambda x: x + torch.randn(4)), "first", (torch.zeros(2, 4),))
    pieces[1].module.eval()
    x = torch.ones(3, 4)
    assert not torch.equal(pieces[1].module(x), pieces[1].module(x))


def test_functional_dropout_follows_the_mode_of_its_segment() -> None:
    pieces = cut(_model("Dropping"), "a", (torch.zeros(2, 6),))
    above, x = pieces[1].module, torch.ones(50, 6)
    assert not torch.equal(above.train()(x), above.train()(x))
    assert torch.equal(above.eval()(x), above.eval()(x))
