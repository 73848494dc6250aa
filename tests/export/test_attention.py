"""Attention and encoder layers as PyTorch has them, with their dropout, trained beside PyTorch, in evaluation, and cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export import SGD, Adam, export_segment
from export.cut import cut

OPTIMIZER = SGD(lr=0.02, momentum=0.9)
TrainBoth = Callable[..., None]
STEPS, WIDTH = 5, 8
HIDDEN = torch.tensor([False, False, False, False, True])  # the last position is padding


class Attention(nn.Module):
    """Self-attention; what ``needs`` weights returns them too. ``mask``: none, causal, of numbers, or of padding."""

    def __init__(
        self, *, mask: str = "none", weights: str = "none", dropout: float = 0.0, batch_first: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=dropout, batch_first=batch_first, **options)
        self.mask, self.weights = mask, weights
        self.register_buffer("causal", torch.ones(STEPS, STEPS, dtype=torch.bool).triu(1), persistent=False)
        self.register_buffer("numbers", torch.linspace(-1, 1, STEPS * STEPS).reshape(STEPS, STEPS), persistent=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"need_weights": self.weights != "none", "average_attn_weights": self.weights == "averaged"}
        if self.mask in ("causal", "numbers"):
            options["attn_mask"] = getattr(self, self.mask)
        elif self.mask == "named":
            options |= {"attn_mask": self.causal, "is_causal": True}
        elif self.mask == "padding":
            options["key_padding_mask"] = HIDDEN.expand(x.shape[0], STEPS)
        q = x if self.attention.batch_first else x.transpose(0, 1)
        found, weights = self.attention(q, q, q, **options)
        found = found if self.attention.batch_first else found.transpose(0, 1)
        return found if weights is None else (found, weights)


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"weights": "averaged"},
    "weights of each head, dropout": {"weights": "each", "dropout": 0.3},
    "dropout": {"dropout": 0.3},
    "time first, no bias": {"batch_first": False, "bias": False},
    "causal": {"mask": "causal"},
    "causal, weights, dropout": {"mask": "causal", "weights": "averaged", "dropout": 0.2},
    "causal by name": {"mask": "named", "dropout": 0.2},
    "a mask of numbers": {"mask": "numbers"},
    "padding": {"mask": "padding"},
    "padding, weights": {"mask": "padding", "weights": "averaged"},
    "bias of keys and values, a zero": {"add_bias_kv": True, "add_zero_attn": True},
}
LAYERS: dict[str, dict[str, Any]] = {
    "relu": {"dropout": 0.0},
    "relu, dropout": {"dropout": 0.2},
    "gelu, norm first, dropout": {"dropout": 0.1, "norm_first": True, "activation": "gelu"},
    "gelu, no bias": {"dropout": 0.1, "activation": "gelu", "bias": False},
    "norm first, time first": {"dropout": 0.1, "norm_first": True, "batch_first": False},
}


@pytest.fixture
def trained_alike(train_both: TrainBoth, tmp_path: Path) -> Callable[..., None]:
    def check(module: nn.Module, draw: Tensor, folder: str = "bundle") -> None:
        export_segment(module, (draw[:2],), tmp_path / folder, optimizer=OPTIMIZER, input_gradients=[True])
        train_both(module, tmp_path / folder, {"x": draw}, OPTIMIZER, tolerance=1e-4)

    return check


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str, trained_alike: TrainBoth) -> None:
    trained_alike(Attention(**ATTENTIONS[name]), torch.randn(20, STEPS, WIDTH))


class TimeFirst(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return found


@pytest.mark.parametrize("name", LAYERS)
def test_encoder_layer(name: str, trained_alike: TrainBoth) -> None:
    options = {"batch_first": True} | LAYERS[name]
    layer: nn.Module = nn.TransformerEncoderLayer(WIDTH, 2, 16, **options)
    trained_alike(layer if options["batch_first"] else TimeFirst(layer), torch.randn(20, STEPS, WIDTH))


def test_an_encoder(trained_alike: TrainBoth) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True)
    trained_alike(nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH)), torch.randn(20, STEPS, WIDTH))


class Patches(nn.Module):
    """A small vision transformer: patches, a class token, places, blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 4, stride=4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        layers = [
            nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True, norm_first=True, activation="gelu") for _ in range(2)
        ]
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patches(x).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(rows.shape[0], -1, -1), rows], dim=1) + self.places
        found: Tensor = self.head(self.blocks(rows)[:, 0])
        return found


class Sentences(nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH)), nn.Linear(WIDTH, 3)
        self.causal = causal
        self.register_buffer("mask", torch.full((STEPS, STEPS), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(x, mask=self.mask, is_causal=True)[:, -1] if self.causal else self.encoder(x)[:, -1])
        return found


@pytest.mark.parametrize("at", ["encoder.layers.0", "encoder"])
def test_a_cut_within_and_behind_an_encoder(at: str, trained_alike: TrainBoth) -> None:
    draw, model = torch.randn(20, STEPS, WIDTH), Sentences(causal=at == "encoder")
    pieces = cut(model, at, (draw[:2],))
    with torch.no_grad():
        middle = pieces[0].module.eval()(draw)
        torch.testing.assert_close(pieces[1].module.eval()(middle), model.eval()(draw))
    assert any(name.startswith("encoder.layers.1") for name, _ in pieces[1].module.named_parameters()) == (at != "encoder")
    trained_alike(pieces[0].module, draw, "bottom")
    trained_alike(pieces[1].module, middle, "top")


def test_a_cut_between_blocks(trained_alike: TrainBoth, tmp_path: Path, train_both: TrainBoth) -> None:
    draw = torch.randn(20, 1, 8, 8)
    bottom, top = cut(Patches(), "blocks.0", (draw[:2],))
    trained_alike(bottom.module, draw, "bottom")
    with torch.no_grad():
        middle = bottom.module.eval()(draw)
    target = torch.randint(0, 3, (20,))
    optimizer = Adam(lr=1e-3)
    export_segment(top.module, (middle[:2], target[:2]), tmp_path / "top", optimizer=optimizer, loss="cross_entropy")
    train_both(top.module, tmp_path / "top", {"x": middle, "target": target}, optimizer, tolerance=1e-4)
