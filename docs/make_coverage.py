"""Writes docs/coverage.md from the list of cases that tests/export trains beside PyTorch: ``make coverage-page``, a minute or two."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from export import SGD, export_segment
from export.cut import cut
from export.parity import check_parity
from export.segment import build_candidate
from tests.export.cases import CASES, REFUSALS, Case, Refusal
from tests.export.segments import SEGMENTS, Segment
from wire.errors import ExportError
from wire.optim import Optimizer

PAGE = Path(__file__).with_name("coverage.md")
_HEAD = """# What a device can train

Made from the cases that the tests train (`tests/export/cases.py`, `tests/export/segments.py`) by `make coverage-page`. Each of them is
exported and trained on stock onnxruntime beside PyTorch: output, input gradient, the gradient of every parameter, every parameter and
buffer after each of three optimizer steps, at three batch sizes, then in evaluation. The same comparison, the parity gate, runs whenever
you export a model of your own, and nothing is written where it fails.

*Worst error*: the largest difference that the gate found between onnxruntime and PyTorch, as a share of the largest value of its tensor;
1e-4 would be refused (2e-5 for running statistics). *Operators*: what the forward and the backward graph are made of; a case has a scale
or a layer of its own around it, to which some of them belong.
"""
_REFUSED = """## What cannot be exported

These are refused before anything is written, in one line that says what to use instead. Any operation that is not on this page is refused
by its name.
"""
_LOSSES = """## Losses on the device

For labels that stay at home a segment may end in its loss: `cross_entropy` of logits [N, C] or [N, C, H, W] (a label of -100 counts for
nothing, as in PyTorch), `bce` with logits and `mse`, each as the mean over the batch.

## Optimizers on the device

SGD (momentum, Nesterov, weight decay), Adam and AdamW, as PyTorch defines them; the learning rate is an input of the graph. Gradients are
clipped by a segment's norm (`clip_norm`), accumulated over steps (`accumulate`), and not computed where only frozen parameters would need
them (`freeze`). `tests/edge_client/test_engine.py` and `tests/e2e/test_training_options.py` hold all of this against PyTorch.
"""


def page() -> str:
    """The whole page; trains every case."""
    parts = [_HEAD]
    for family, cases in groupby(CASES, lambda case: case.family):
        parts += [f"## {family}\n", _table(("variant", "worst error", "operators"), (_layer(case) for case in cases))]
    parts += ["## First stages of well-known networks\n", _table(("network", "layers", "parameters", "worst error"), _segments())]
    parts += [_LOSSES, _REFUSED, _table(("what", "what is said"), (_refusal(each) for each in REFUSALS))]
    return "\n".join(parts)


def names() -> list[str]:
    """First cells of all rows, in order: what the page must have."""
    return [each.name for each in CASES] + list(SEGMENTS) + [each.name for each in REFUSALS]


def rows(text: str) -> list[str]:
    """First cells of all rows of a page."""
    cells = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    return [cell.replace("\\|", "|") for cell in cells if cell not in ("variant", "network", "what", "---")]


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _layer(case: Case) -> Sequence[str]:
    draw = case.draw()
    return (case.name, *_measured(case.module, {"x": draw[:2]}, SGD(lr=0.05, momentum=0.9)))


def _segments() -> Iterable[Sequence[str]]:
    for name, segment in SEGMENTS.items():
        piece = _bottom(segment)
        count = sum(value.numel() for value in piece.parameters())
        example = torch.randn(2, *segment.sample)
        yield name, segment.layers, f"{count:,}", _measured(piece, {"x": example}, SGD(lr=0.005, momentum=0.9))[0]


def _bottom(segment: Segment) -> nn.Module:
    return cut(segment.build(), segment.cut, (torch.zeros(2, *segment.sample),))[0].module


def _measured(module: nn.Module, examples: Mapping[str, Tensor], optimizer: Optimizer) -> tuple[str, str]:
    asked = [name for name, value in examples.items() if value.dtype.is_floating_point]
    candidate = build_candidate(module, dict(examples), None, optimizer=optimizer, loss=None, input_gradients=asked)
    worst = check_parity(candidate)
    graphs = [candidate.training.forward.model.graph, candidate.training.backward.model.graph]
    return f"{worst:.0e}", " → ".join(", ".join(sorted({node.op_type for node in graph.node})) for graph in graphs)


def _refusal(refusal: Refusal) -> Sequence[str]:
    draw = refusal.sample if isinstance(refusal.sample, Tensor) else torch.randn(2, *refusal.sample)
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_segment(refusal.build(), (draw[:2],), Path(folder, "bundle"), optimizer=SGD(lr=0.1))
        except ExportError as exc:
            return refusal.name, str(exc)
    raise AssertionError(f"{refusal} is not refused")


if __name__ == "__main__":
    torch.manual_seed(0)
    PAGE.write_text(page(), encoding="utf-8")
