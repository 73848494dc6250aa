"""From a run to its segments: the network is built under the run's seed, cut, and its client segments are written as bundles."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from export.cut import Piece
from export.cut import cut as cut_model
from export.guess import example_of, guessed_example
from export.load import load_model
from export.models import BUNDLED
from wire.errors import GraphError, RunFileError
from wire.manifest import BATCH, EngineName, TensorSpec
from wire.optim import SGD, Optimizer
from wire.runfile import Run, load_run

__all__ = ["RunSegment", "build_model", "build_segments", "export_run", "input_shape", "prepare", "prepare_model"]

_EXAMPLES = 2  # samples in the example batch: enough for BatchNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSegment:
    """A segment of a run as an engine needs it; with a loss, ``target`` is its last input and ``loss`` its first output."""

    name: str
    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    piece: Piece
    has_loss: bool


def build_model(run: Run) -> nn.Module:
    """The whole network with its initial weights: the same for every party, and for the unsplit twin. Raises RunFileError, GraphError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = load_model(run.model.build, run.model.args, run.base)
    _freeze(model, run.model.freeze)
    return model


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in parameters if any(fnmatch.fnmatchcase(each, pattern) for each in _prefixes(name))]
        if not found:
            raise GraphError(f"model.freeze: no submodule or parameter is called `{pattern}`; parameters are {', '.join(parameters)}")
        for name in found:
            parameters[name].requires_grad_(False)


def _prefixes(name: str) -> list[str]:
    """A parameter's name and those of the submodules that it is in."""
    parts = name.split(".")
    return [".".join(parts[: at + 1]) for at in range(len(parts))]


def build_segments(run: Run) -> dict[str, RunSegment]:
    """All segments by name, in order. Raises RunFileError, GraphError."""
    model = build_model(run)
    pieces = cut_model(model, run.model.cut, (torch.zeros(_EXAMPLES, *input_shape(run)),))
    names = run.model.names
    _check_trained(pieces, names)
    return {
        name: _segment(run, name, piece, first=at == 0, last=at == len(names) - 1)
        for at, (name, piece) in enumerate(zip(names, pieces, strict=True))
    }


def input_shape(run: Run) -> tuple[int, ...]:
    """One sample's shape. Raises RunFileError where neither the run nor the model says it."""
    if run.model.input_shape is not None:
        return run.model.input_shape
    if run.model.build not in BUNDLED:
        raise RunFileError("model.input_shape is missing: say the shape of one sample, like [1, 28, 28]")
    return BUNDLED[run.model.build].input_shape(**run.model.args)


def _check_trained(pieces: Sequence[Piece], names: Sequence[str]) -> None:
    if not any(value.requires_grad for value in pieces[-1].module.parameters()):
        raise GraphError(f"segment `{names[-1]}` behind the last cut has no weights to train; cut earlier")


def _segment(run: Run, name: str, piece: Piece, *, first: bool, last: bool) -> RunSegment:
    inputs = tuple(_spec(key, value, gradient=not first) for key, value in zip(piece.input_names, piece.examples, strict=True))
    with torch.no_grad():
        found = piece.module.eval()(*piece.examples)
    results = (found,) if isinstance(found, Tensor) else tuple(found)
    outputs = tuple(_spec(key, value) for key, value in zip(piece.output_names, results, strict=True))
    if last:
        if len(results) != 1:
            raise GraphError(f"segment `{name}` holds the loss and returns {len(results)} tensors; it must return one")
        inputs = (*inputs, _spec("target", _target_example(run.loss, results[0])))
        outputs = (TensorSpec(name="loss", dtype="float32", shape=()),)
    return RunSegment(name=name, module=piece.module, inputs=inputs, outputs=outputs, piece=piece, has_loss=last)


def _target_example(loss: str, output: Tensor) -> Tensor:
    """Labels as the data sources give them: int64 [N] of classes, float32 [N] or [N, K] of numbers."""
    if loss == "cross_entropy":
        return torch.zeros(output.shape[0], dtype=torch.int64)
    return torch.zeros(output.shape[0] if output.dim() == 2 and output.shape[1] == 1 else tuple(output.shape))


def _spec(name: str, value: Tensor, *, gradient: bool = False) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=(BATCH, *value.shape[1:]), gradient=gradient)


# ------------------------------------------------------------ bundles


def export_run(
    run: Run, out: Path, *, engines: Sequence[EngineName] = ("stock",), ort_training_python: Path | None = None
) -> dict[str, Path]:
    """Write a bundle for each segment that clients hold, as ``out/SEGMENT``; the engines are ``export_segment``'s.

    Raises ExportError and what ``build_segments`` raises.
    """
    from export.segment import export_segment  # onnx is not needed to build segments, and a server may lack it

    found: dict[str, Path] = {}
    for name, segment in build_segments(run).items():
        if run.model.place(name) != "clients":
            continue
        examples = segment.piece.examples
        if segment.has_loss:
            with torch.no_grad():
                examples = (*examples, _target_example(run.loss, segment.module.eval()(*examples)))
        export_segment(
            segment.module,
            examples,
            out / name,
            optimizer=run.optimizer,
            loss=run.loss if segment.has_loss else None,
            name=name,
            input_names=segment.piece.input_names,
            output_names=None if segment.has_loss else segment.piece.output_names,
            input_gradients=[spec.gradient for spec in segment.inputs],
            engines=engines,
            ort_training_python=ort_training_python,
        )
        found[name] = out / name
    return found


def prepare(
    run_file: str | Path, *, out: Path, engines: Sequence[EngineName] = ("stock",), ort_training_python: Path | None = None
) -> None:
    """``cutlayer export RUN.toml``: write the bundles and say what they are."""
    run = load_run(run_file)
    segments = build_segments(run)
    for name, path in export_run(run, out, engines=engines, ort_training_python=ort_training_python).items():
        _say(path, segments[name])


def prepare_model(
    model: str,
    *,
    cut: str,
    out: Path,
    input_shape: tuple[int, ...] | None,
    optimizer: Optimizer | None,
    engines: Sequence[EngineName] = ("stock",),
    ort_training_python: Path | None = None,
) -> None:
    """``cutlayer export --model``: the part before the cut as a bundle, without a run file around it.

    Without ``input_shape`` a usual one is tried, and said on stderr.
    """
    from export.segment import export_segment

    if input_shape is None and model in BUNDLED:
        input_shape = BUNDLED[model].input_shape()
    built = load_model(model, {}, ".")
    if input_shape is not None:
        example = example_of(built, input_shape)
    else:
        example, said = guessed_example(built)
        print(f"cutlayer: {said}", file=sys.stderr)
    pieces = cut_model(built, cut, (example,))
    chosen = optimizer or SGD(lr=0.01)
    manifest = export_segment(
        pieces[0].module,
        pieces[0].examples,
        out,
        optimizer=chosen,
        name="bottom",
        input_names=pieces[0].input_names,
        output_names=pieces[0].output_names,
        engines=engines,
        ort_training_python=ort_training_python,
    )
    crossing = sum(_elements(spec) for spec in manifest.outputs)
    count = sum(value.numel() for value in pieces[0].module.parameters())
    print(f"{out}: segment bottom, {count} parameters, {crossing} activations a sample cross the cut, {chosen}")


def _say(path: Path, segment: RunSegment) -> None:
    count = sum(value.numel() for value in segment.module.parameters())
    crossing = sum(_elements(spec) for spec in segment.outputs)
    print(f"{path}: segment {segment.name}, {count} parameters, {crossing} activations a sample cross the cut")


def _elements(spec: TensorSpec) -> int:
    found = 1
    for dim in spec.shape:
        found *= dim if isinstance(dim, int) else 1
    return found
