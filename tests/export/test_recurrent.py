"""GRU and LSTM, trained beside PyTorch: the sequence, the last states, both directions, layers with dropout between, with and without
biases and given first states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from export import SGD, export_segment
from export.cut import cut
from wire.errors import ExportError

OPTIMIZER = SGD(lr=0.05, momentum=0.9)
TrainBoth = Callable[..., None]
STEPS = 7

OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers, no bias": {"num_layers": 2, "bias": False},
    "both directions": {"bidirectional": True},
    "two layers, both directions, dropout": {"num_layers": 2, "bidirectional": True, "dropout": 0.4},
}


class Recurrent(nn.Module):
    """``of``: what is read of it: the sequence, its last step, the final states, or all."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], of: str, *, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.rnn, self.of = kind(4, 5, batch_first=batch_first, **options), of

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        y, states = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        states = [states] if isinstance(states, Tensor) else list(states)
        y = y if self.rnn.batch_first else y.transpose(0, 1)
        if self.of == "the sequence":
            return torch.sin(y)
        if self.of == "its last step":
            return torch.sin(y[:, -1])
        finals = tuple(state.transpose(0, 1).flatten(1) for state in states)
        return finals if self.of == "the final states" else (y * 2, *finals)


class Tutorial(nn.Module):
    """First states of zeros, of the batch's size, as many models write them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 5, num_layers=2, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(2, x.size(0), 5, device=x.device)
        c0 = torch.zeros(2, x.size(0), 5).to(x.device)
        y, (h, _) = self.rnn(x, (h0, c0))
        found: Tensor = self.head(y[:, -1] + h[-1])
        return found


class Begun(nn.Module):
    """First states that are computed from the input, and trained."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.rnn, self.start = kind(4, 5, batch_first=True), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.start(x.mean(dim=1)).unsqueeze(0).chunk(2, dim=2)
        found: Tensor = self.rnn(x, one.contiguous() if isinstance(self.rnn, nn.GRU) else (one.contiguous(), two.contiguous()))[0]
        return found


@pytest.fixture
def trained_alike(train_both: TrainBoth, tmp_path: Path) -> Callable[..., None]:
    def check(module: nn.Module, *, steps: int = STEPS) -> None:
        draw = torch.randn(20, steps, 4, generator=torch.Generator().manual_seed(4))
        export_segment(module, (draw[:2],), tmp_path / "bundle", optimizer=OPTIMIZER, input_gradients=[True])
        train_both(module, tmp_path / "bundle", {"x": draw}, OPTIMIZER, tolerance=1e-4)

    return check


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_all_that_it_gives(kind: type[nn.GRU] | type[nn.LSTM], options: str, trained_alike: TrainBoth) -> None:
    trained_alike(Recurrent(kind, "all", **OPTIONS[options]))


@pytest.mark.parametrize("of", ["the sequence", "its last step", "the final states"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_part_of_what_it_gives(kind: type[nn.GRU] | type[nn.LSTM], of: str, trained_alike: TrainBoth) -> None:
    trained_alike(Recurrent(kind, of, batch_first=False, bidirectional=True))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_given_first_states(kind: type[nn.GRU] | type[nn.LSTM], trained_alike: TrainBoth) -> None:
    trained_alike(Begun(kind))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_single_time_step(kind: type[nn.GRU] | type[nn.LSTM], trained_alike: TrainBoth) -> None:
    trained_alike(Recurrent(kind, "all", bidirectional=True), steps=1)


class Cells(nn.Module):
    """Cells that the model itself steps through time."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRUCell(4, 5), nn.LSTMCell(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 5)
        for at in range(STEPS):
            state = self.gru(x[:, at], state)
        found: Tensor = self.lstm(state)[0]
        return found


def test_cells(trained_alike: TrainBoth) -> None:
    trained_alike(Cells())


def test_frozen_weights(trained_alike: TrainBoth) -> None:
    module = Recurrent(nn.GRU, "the sequence", num_layers=2)
    module.rnn.weight_hh_l0.requires_grad_(False)
    module.rnn.bias_ih_l1.requires_grad_(False)
    trained_alike(module)


PLAIN = ("forward", "backward", "optimizer", "infer")  # the others hold the same operations again


def test_the_graphs_do_not_grow_with_the_sequence_and_keep_nothing_but_it(tmp_path: Path) -> None:
    counts = []
    for steps in (5, 50):
        manifest = export_segment(Recurrent(nn.GRU, "the sequence"), (torch.randn(2, steps, 4),), tmp_path / "b", optimizer=OPTIMIZER)
        graphs = [onnx.load(tmp_path / "b" / entry.file).graph for name, entry in manifest.graphs.items() if name in PLAIN]
        counts.append([len(graph.node) for graph in graphs])
        kinds = Counter(node.op_type for graph in graphs for node in graph.node)
        assert (kinds["GRU"], kinds["Scan"]) == (2, 1), "training and inference forward; backward"
        assert [spec.shape for spec in manifest.residuals] == [(steps, "batch", 5)]
    assert counts[0] == counts[1]


def test_a_cut_behind_it(tmp_path: Path, train_both: TrainBoth) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn, self.head = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.rnn(self.embedding(x))[0][:, -1])
            return found

    draw = torch.randn(20, STEPS, 4)
    for name in ("embedding", "rnn"):
        bottom, top = cut(Tagger(), name, (draw[:2],))
        if name == "rnn":
            export_segment(bottom.module, (draw[:2],), tmp_path / "b", optimizer=OPTIMIZER)
            train_both(bottom.module, tmp_path / "b", {"x": draw}, OPTIMIZER, tolerance=1e-4)
        else:
            middle = bottom.module(draw).detach()
            export_segment(top.module, (middle[:2],), tmp_path / "t", optimizer=OPTIMIZER, input_gradients=[True])
            train_both(top.module, tmp_path / "t", {"x": middle}, OPTIMIZER, tolerance=1e-4)


def test_a_cut_behind_one_with_first_states() -> None:
    model, draw = Tutorial(), torch.randn(20, STEPS, 4)
    bottom, top = cut(model, "rnn", (draw[:2],))
    assert len(bottom.output_names) == 2, "the sequence and a final state are read"
    with torch.no_grad():
        torch.testing.assert_close(top.module.eval()(*bottom.module.eval()(draw)), model.eval()(draw))


# ------------------------------------------------------------ what is refused


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # torch tells that it will be slow
def test_projected_states_are_refused_by_name(tmp_path: Path) -> None:
    module = nn.Sequential(nn.LSTM(4, 5, proj_size=3, batch_first=True))
    with pytest.raises(ExportError, match=r"module `rnn\.0` is an LSTM with proj_size.*Linear behind"):
        export_segment(Wrapped(module), (torch.randn(2, STEPS, 4),), tmp_path / "b", optimizer=OPTIMIZER)


def test_the_batch_as_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"gru_layer.*of module `rnn` takes the batch for its time steps; set batch_first=True"):
        export_segment(Wrapped(nn.GRU(4, 5)), (torch.randn(2, STEPS, 4),), tmp_path / "b", optimizer=OPTIMIZER)


def test_packed_sequences_are_refused(tmp_path: Path) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.full((x.shape[0],), STEPS)
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            found: Tensor = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]
            return found

    with pytest.raises(ExportError):
        export_segment(Packed(), (torch.randn(2, STEPS, 4),), tmp_path / "b", optimizer=OPTIMIZER)


class Wrapped(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.rnn(x)[0]
        return found
