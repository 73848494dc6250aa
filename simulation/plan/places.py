"""Where a network can be cut: after each of its submodules, as far as ``export`` takes what comes of it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from export.flops import Flops, flops_of
from export.prepare import cut_segments
from export.run_segment import RunSegment
from export.segment import manifest_of
from simulation.plan.subject import Subject, run_at
from wire.errors import ExportError, GraphError
from wire.manifest import BundleManifest

__all__ = ["Place", "Places", "find_places"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cut. ``names``: of submodules with the same end, the outermost first. ``manifest``: of the client's bundle."""

    names: tuple[str, ...]
    segments: dict[str, RunSegment]
    manifest: BundleManifest
    flops: Flops  # of the client's segment, a sample
    server_flops: Flops

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of a sample, by the tensor that crosses."""
        top = self.segments["top"]
        return {name: tuple(example.shape[1:]) for name, example in zip(top.input_names, top.examples, strict=True)}

    @property
    def activations(self) -> int:
        """That cross, a sample."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.segments["bottom"].module.parameters())


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """In the order in which the network runs them. ``refused``: why, and the submodules after which it cannot be cut for that reason."""

    found: tuple[Place, ...]
    refused: dict[str, list[str]]


def find_places(subject: Subject, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Places:
    """``progress`` hears (submodules looked at, all of them). Raises GraphError where the network cannot be cut anywhere."""
    names = [name for name, _ in subject.model.named_modules() if name]
    found: dict[str, Place] = {}
    refused: dict[str, list[str]] = {}
    inputs = tuple(torch.from_numpy(array) for array in subject.samples.batch(0).inputs)
    for done, name in enumerate(names):
        progress(done, len(names))
        try:
            segments = cut_segments(run_at(subject.run, name), subject.model, subject.examples)
            mark = _mark(segments["bottom"], inputs)
            if mark in found:
                found[mark] = replace(found[mark], names=(*found[mark].names, name))
            else:
                found[mark] = _place(subject, name, segments, inputs)
        except (GraphError, ExportError) as exc:
            refused.setdefault(_reason(str(exc)), []).append(name)
    progress(len(names), len(names))
    if not found:
        raise GraphError(_nowhere(subject.name, refused))
    return Places(found=tuple(sorted(found.values(), key=lambda place: _depth(place.segments["bottom"]))), refused=refused)


def _place(subject: Subject, name: str, segments: dict[str, RunSegment], inputs: Sequence[Tensor]) -> Place:
    bottom = segments["bottom"]
    manifest = manifest_of(
        bottom.module,
        bottom.examples,
        optimizer=subject.run.optimizer,
        name=bottom.name,
        input_names=bottom.input_names,
        output_names=bottom.output_names,
    )
    top = segments["top"]
    return Place(
        names=(name,),
        segments=segments,
        manifest=manifest,
        flops=flops_of(bottom.module, inputs),
        server_flops=flops_of(top.module, top.examples),
    )


def _depth(segment: RunSegment) -> int:
    return len(list(_flat(segment.module)))


def _flat(module: nn.Module) -> Iterator[object]:
    """All operations, those of submodules that were kept whole too."""
    assert isinstance(module, torch.fx.GraphModule)
    for node in module.graph.nodes:
        if node.op == "call_module":
            yield from module.get_submodule(str(node.target)).modules()
        elif node.op in ("call_function", "call_method"):
            yield node


def _mark(segment: RunSegment, inputs: Sequence[Tensor]) -> str:
    """Equal for two names of one cut: the same weights before it, and the same tensors on it in a training forward."""
    buffers = {name: value.clone() for name, value in segment.module.named_buffers()}
    modes = {module: module.training for module in segment.module.modules()}
    digest = hashlib.sha256(repr(sorted(name for name, _ in segment.module.named_parameters())).encode())
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = segment.module.train()(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, value in segment.module.named_buffers():
            value.copy_(buffers[name])
    for value in (made,) if isinstance(made, Tensor) else made:
        digest.update(repr((value.dtype, tuple(value.shape))).encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reason(text: str) -> str:
    """The refusal without the names and numbers that differ from cut to cut."""
    return re.sub(r"`[^`]*`", "…", re.sub(r"^cannot cut after `[^`]*`: ", "", text))


def _nowhere(name: str, refused: dict[str, list[str]]) -> str:
    if not refused:
        return f"{name} has no submodules, so there is nothing to cut after; give its layers names"
    reason, names = max(refused.items(), key=lambda item: len(item[1]))
    return f"{name} cannot be cut after any of its submodules; of {', '.join(names[:3])}{' …' if len(names) > 3 else ''}: {reason}"
