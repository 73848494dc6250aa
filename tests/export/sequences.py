"""Layers over sequences, and dropout, for the list in ``cases``: a sample is [steps, width]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ATTENTION", "DROPOUT", "RECURRENT", "STEPS", "WIDTH"]

STEPS, WIDTH = 5, 8
_ENCODER = {"d_model": WIDTH, "nhead": 2, "dim_feedforward": 12, "batch_first": True}


class Last(nn.Module):
    """The sequence of a recurrent layer and its last step, behind a linear layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(WIDTH, WIDTH), layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found, _ = self.layer(torch.tanh(self.before(x)))
        return found, found[:, -1]


class Attending(nn.Module):
    def __init__(self, *, causal: bool = False, weights: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=dropout, batch_first=True)
        self.weights = weights
        self.register_buffer("mask", torch.ones(STEPS, STEPS, dtype=torch.bool).triu(1) if causal else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found, weights = self.attention(x, x, x, attn_mask=self.mask, need_weights=self.weights)
        return (found, weights) if self.weights else found


RECURRENT: dict[str, nn.Module] = {
    "GRU": Last(nn.GRU(WIDTH, 6, batch_first=True)),
    "GRU, two layers, both directions, dropout between": Last(nn.GRU(WIDTH, 6, 2, batch_first=True, bidirectional=True, dropout=0.3)),
    "GRU, no bias": Last(nn.GRU(WIDTH, 6, batch_first=True, bias=False)),
    "LSTM": Last(nn.LSTM(WIDTH, 6, batch_first=True)),
    "LSTM, two layers, both directions, dropout between": Last(nn.LSTM(WIDTH, 6, 2, batch_first=True, bidirectional=True, dropout=0.3)),
    "LSTM, no bias": Last(nn.LSTM(WIDTH, 6, batch_first=True, bias=False)),
}
ATTENTION: dict[str, nn.Module] = {
    "MultiheadAttention": Attending(),
    "MultiheadAttention, causal": Attending(causal=True),
    "MultiheadAttention, weights given, dropout": Attending(weights=True, dropout=0.2),
    "TransformerEncoderLayer": nn.TransformerEncoderLayer(**_ENCODER),
    "TransformerEncoderLayer, norm first, GELU, no dropout": nn.TransformerEncoderLayer(
        **_ENCODER, norm_first=True, activation="gelu", dropout=0.0
    ),
    "TransformerEncoder, two layers": nn.TransformerEncoder(nn.TransformerEncoderLayer(**_ENCODER), 2, enable_nested_tensor=False),
}
DROPOUT: dict[str, nn.Module] = {
    "Dropout": nn.Sequential(nn.Linear(WIDTH, 6), nn.Dropout(0.4), nn.Linear(6, 4)),
    "Dropout1d": nn.Sequential(nn.Conv1d(STEPS, 6, 3), nn.Dropout1d(0.4), nn.Conv1d(6, 3, 3)),
    "AlphaDropout": nn.Sequential(nn.Linear(WIDTH, 6), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(6, 4)),
    "Dropout, p = 0 and p = 1": nn.Sequential(nn.Linear(WIDTH, 6), nn.Dropout(0.0), nn.Linear(6, 4), nn.Dropout(1.0)),
}
