"""A graph of ``[[segments]]`` as networks: each built under a seed of its own, and all of them together as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from export.cut import identifier
from export.freeze import freeze
from export.load import load_seeded
from export.models import BUNDLED
from export.run_segment import EXAMPLES, RunSegment, segment_of
from wire.errors import GraphError, RunFileError
from wire.manifest import TensorSpec
from wire.runfile import Run
from wire.segments import SegmentConfig

__all__ = ["Composite", "as_tuple", "build_composite", "declared_segments", "raw_shapes"]


class Composite(nn.Module):
    """All segments as one network: one input a segment with raw data, in order; the output of each end of the graph, in order.

    A state dict's names begin with the segment's.
    """

    def __init__(self, modules: Mapping[str, nn.Module], inputs: Mapping[str, Sequence[str]], *, autoencoder: str | None = None) -> None:
        """``modules`` in topological order; ``inputs``: the segments whose outputs each takes, none for raw data. ``autoencoder``: the
        one whose last output goes nowhere; ``error`` is what it was in the last forward."""
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._autoencoder = autoencoder
        self.error = torch.zeros(())
        self._wiring = {name: tuple(inputs[name]) for name in modules}
        read = {name for names in inputs.values() for name in names}
        self._ends = tuple(name for name in modules if name not in read)

    def forward(self, *raw: Tensor) -> Tensor | tuple[Tensor, ...]:
        arriving = iter(raw)
        made: dict[str, tuple[Tensor, ...]] = {}
        for name, sources in self._wiring.items():
            given = tuple(value for source in sources for value in made[source]) if sources else (next(arriving),)
            made[name] = as_tuple(getattr(self, name)(*given))
            if name == self._autoencoder:
                *rest, self.error = made[name]
                made[name] = tuple(rest)
        outputs = tuple(value for name in self._ends for value in made[name])
        return outputs if len(outputs) > 1 else outputs[0]


def build_composite(run: Run) -> Composite:
    """The whole network with its initial weights. Raises RunFileError, GraphError."""
    return Composite({each.name: _built(run, each) for each in _ordered(run)}, {each.name: each.inputs for each in run.segments})


def declared_segments(run: Run) -> dict[str, RunSegment]:
    """The segments that the run file declares, in topological order. Raises RunFileError; GraphError where shapes do not fit."""
    made: dict[str, tuple[tuple[str, ...], tuple[Tensor, ...]]] = {}
    sinks = run.sinks
    found = {}
    for each in _ordered(run):
        names, examples = _arriving(run, each, made)
        module = _built(run, each)
        results = _results(each, module, names, examples)
        base = identifier(each.name)
        outputs = (base,) if len(results) == 1 else tuple(f"{base}_{at}" for at in range(len(results)))
        made[each.name] = outputs, results
        found[each.name] = segment_of(
            each.name,
            module,
            examples,
            input_names=names,
            output_names=outputs,
            results=results,
            raw=not each.inputs,
            loss=run.loss_of(each.name) if each.name in sinks else None,
        )
    return found


def raw_shapes(run: Run) -> tuple[tuple[int, ...], ...]:
    """The shape of one sample of each segment that takes raw data, in topological order. Raises RunFileError where nothing says it."""
    return tuple(_raw_shape(each) for each in _ordered(run) if not each.inputs)


def _raw_shape(config: SegmentConfig) -> tuple[int, ...]:
    if config.input_shape is not None:
        return config.input_shape
    if config.build not in BUNDLED:
        raise RunFileError(
            f"segments: `{config.name}` takes raw data and has no `input_shape`; say the shape of one sample, like [30], or its `inputs`"
        )
    return BUNDLED[config.build].input_shape(**config.args)


def _ordered(run: Run) -> list[SegmentConfig]:
    """Topological; a slice has them in that order already."""
    if run.slice is not None:
        return list(run.segments)
    by_name = {each.name: each for each in run.segments}
    return [by_name[segment.name] for segment in run.graph().order()]


def _built(run: Run, config: SegmentConfig) -> nn.Module:
    module = load_seeded(
        config.build, config.args, run.base, key=f"segments: the `build` of `{config.name}`", seed=f"{run.seed}/{config.name}"
    )
    freeze(module, config.freeze)
    return module


def _arriving(
    run: Run, config: SegmentConfig, made: Mapping[str, tuple[tuple[str, ...], tuple[Tensor, ...]]]
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Names and examples of what comes in."""
    if not config.inputs:
        return ("x",), (torch.zeros(EXAMPLES, *_raw_shape(config)),)
    if run.slice is not None:
        specs = run.slice.inputs.get(config.name, ())
        return tuple(spec.name for spec in specs), tuple(_example(spec) for spec in specs)
    pairs = [made[source] for source in config.inputs]
    return tuple(name for names, _ in pairs for name in names), tuple(value for _, values in pairs for value in values)


def _example(spec: TensorSpec) -> Tensor:
    return torch.zeros(spec.shape_at(EXAMPLES), dtype=getattr(torch, spec.dtype))


def _results(config: SegmentConfig, module: nn.Module, names: Sequence[str], examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    try:
        with torch.no_grad():
            found = module.eval()(*examples)
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        shapes = ", ".join(f"`{name}` {list(value.shape[1:])}" for name, value in zip(names, examples, strict=True))
        raise GraphError(
            f"segment `{config.name}` does not run on what comes in, a sample of {shapes}: {str(exc).splitlines()[0][:200]}"
        ) from exc
    results = as_tuple(found)
    if not results or not all(isinstance(value, Tensor) for value in results):
        raise GraphError(f"segment `{config.name}` must return a tensor, or a tuple of tensors")
    return results


def as_tuple(found: Tensor | tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    """What a module returned."""
    return (found,) if isinstance(found, Tensor) else tuple(found)
