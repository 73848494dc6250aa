"""From a run to its segments: the network is built under the run's seed, cut, and its client segments are written as bundles."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from export.autoencoder import with_decoder
from export.cut import Piece
from export.cut import cut as cut_model
from export.declared import build_composite, declared_segments, raw_shapes
from export.freeze import freeze
from export.guess import example_of, guessed_example
from export.load import load_model
from export.models import BUNDLED
from export.run_segment import EXAMPLES, RunSegment, segment_of, target_example
from wire.errors import RunFileError
from wire.manifest import EngineName, TensorSpec
from wire.optim import SGD, Optimizer
from wire.runfile import Run, load_run

__all__ = ["build_model", "build_segments", "cut_segments", "export_run", "input_shapes", "prepare", "prepare_model"]


def build_model(run: Run) -> nn.Module:
    """The whole network with its initial weights: the same for every party, and for the unsplit twin. Raises RunFileError, GraphError."""
    if run.model is None:
        return build_composite(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = load_model(run.model.build, run.model.args, run.base)
    freeze(model, run.model.freeze)
    return model


def build_segments(run: Run) -> dict[str, RunSegment]:
    """All segments by name, in order; of a slice, those that can be built here. Raises RunFileError, GraphError."""
    found = _plain_segments(run)
    if run.reconstruct is not None and run.reconstructed in found:
        found[run.reconstructed] = with_decoder(run, run.reconstruct, found[run.reconstructed])
    return found


def _plain_segments(run: Run) -> dict[str, RunSegment]:
    if run.model is None:
        return declared_segments(run)
    return cut_segments(run, build_model(run), tuple(torch.zeros(EXAMPLES, *shape) for shape in input_shapes(run)))


def cut_segments(run: Run, model: nn.Module, examples: Sequence[Tensor]) -> dict[str, RunSegment]:
    """The segments that the cuts of ``run.model`` make of ``model``, whose modules they share; ``examples``: its inputs.

    Raises GraphError.
    """
    assert run.model is not None
    pieces, names = cut_model(model, run.model.cut, examples), run.model.names
    return {name: _segment(run, name, piece, last=at == len(names) - 1) for at, (name, piece) in enumerate(zip(names, pieces, strict=True))}


def input_shapes(run: Run) -> tuple[tuple[int, ...], ...]:
    """The shape of one sample, for each segment that takes raw data. Raises RunFileError where neither the run nor the model says it."""
    if run.model is None:
        return raw_shapes(run)
    if run.model.input_shape is not None:
        return (run.model.input_shape,)
    if run.model.build not in BUNDLED:
        raise RunFileError("model.input_shape is missing: say the shape of one sample, like [1, 28, 28]")
    return (BUNDLED[run.model.build].input_shape(**run.model.args),)


def _segment(run: Run, name: str, piece: Piece, *, last: bool) -> RunSegment:
    with torch.no_grad():
        found = piece.module.eval()(*piece.examples)
    return segment_of(
        name,
        piece.module,
        piece.examples,
        input_names=piece.input_names,
        output_names=piece.output_names,
        results=(found,) if isinstance(found, Tensor) else tuple(found),
        raw=name == run.model.names[0] if run.model else False,
        loss=run.loss if last else None,
    )


# ------------------------------------------------------------ bundles


def export_run(
    run: Run, out: Path, *, engines: Sequence[EngineName] = ("stock",), ort_training_python: Path | None = None
) -> dict[str, Path]:
    """Write a bundle for each segment that clients hold, as ``out/SEGMENT``; the engines are ``export_segment``'s.

    Raises ExportError and what ``build_segments`` raises.
    """
    from export.segment import export_segment  # onnx is not needed to build segments, and a server may lack it

    found: dict[str, Path] = {}
    held = run.client_segments
    for name, segment in build_segments(run).items():
        if name not in held:
            continue
        examples = segment.examples
        if segment.loss is not None:
            with torch.no_grad():
                examples = (*examples, target_example(segment.loss, segment.module.eval()(*examples)))
        export_segment(
            segment.module,
            examples,
            out / name,
            optimizer=run.optimizer,
            loss=segment.loss,
            name=name,
            input_names=segment.input_names,
            output_names=None if segment.loss is not None else segment.output_names,
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
