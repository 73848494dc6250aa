"""The server process: the heavy segments of a run in PyTorch, the loss, and the coordination of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import nn

from server.early_stopping import should_stop
from server.engine import TorchEngine
from server.labels import load_labels
from server.metrics import MetricSet
from wire.averaging import Shapes, engine_names
from wire.engine import Engine
from wire.errors import GraphError
from wire.feed import LabelStore
from wire.graph import PartySlice
from wire.manifest import TensorSpec
from wire.observer import observer_for
from wire.process import PartySetup, for_prediction, run_party
from wire.program import InferenceProgram, Program, TrainingProgram
from wire.runfile import Run
from wire.runner import labels_travel

__all__ = ["SegmentSource", "serve_run"]


class SegmentSource(Protocol):
    """A segment as the cut made it."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


def serve_run(
    run: Run, segments: Mapping[str, SegmentSource], *, predict: str | None = None, log: Literal["text", "json"] = "text"
) -> dict[str, Any]:
    """Run the server's part until the run is over; started again, it goes on from the last checkpoint. Returns its result.

    ``predict``: do not train; answer that client's split inference with the newest common checkpoint. Raises CutlayerError.
    """
    torch.set_num_threads(run.server.threads or torch.get_num_threads())
    name = run.server.name
    setup = _setup(run, segments, predict)
    served = run if predict is None else for_prediction(run, predict)
    return run_party(served, name, setup, observer=observer_for(name, log))


def _setup(run: Run, segments: Mapping[str, SegmentSource], predict: str | None) -> PartySetup:
    graph = run.graph()
    mine = graph.slice_for(run.server.name)
    engines = _engines(run, mine, segments)
    if graph.root() != run.server.name:
        raise GraphError("the loss is not on the server; a run is coordinated by the party that holds it")
    program: Program = InferenceProgram()
    if predict is None:
        stop = run.evaluate
        program = TrainingProgram(run.plan(), stop=lambda history: should_stop(history, patience=stop.patience, watch=stop.watch))
    return PartySetup(
        engines=engines,
        averaged=_shapes(run, segments) if run.averages else {},
        labels=_labels(run),
        metrics=MetricSet(run.evaluate.metrics, loss=run.loss),
        program=program,
        training=predict is None,
        digest=run.digest,
        on_over=lambda: {"metrics": program.metrics, "history": program.history} if isinstance(program, TrainingProgram) else {},
    )


def _engines(run: Run, mine: PartySlice, segments: Mapping[str, SegmentSource]) -> dict[str, Engine]:
    engines: dict[str, Engine] = {}
    for slot in mine.slots:
        segment = segments[slot.segment]
        for name in dict.fromkeys(engine_names(slot, run.schedule).values()):
            engines[name] = TorchEngine(
                segment.module,
                inputs=segment.inputs,
                outputs=segment.outputs,
                optimizer=run.optimizer,
                loss=run.loss if slot.is_sink else None,
                clip_norm=run.clip_norm,
                accumulate=run.accumulate,
                seed=run.seed,
                segment=slot.segment,
            )
    return engines


def _shapes(run: Run, segments: Mapping[str, SegmentSource]) -> dict[str, Shapes]:
    """Of the weights that clients give away for averages, named as in ``Engine.state``."""
    found: dict[str, Shapes] = {}
    for segment in run.graph().segments:
        if len(segment.parties) > 1:
            module = segments[segment.name].module
            tensors = [(f"p.{name}", value.detach()) for name, value in module.named_parameters()]
            tensors += [(f"b.{name}", value) for name, value in module.named_buffers()]
            found[segment.name] = {name: (value.numpy().dtype, tuple(value.shape)) for name, value in tensors}
    return found


def _labels(run: Run) -> LabelStore | None:
    if labels_travel(run) != "server" or run.server.labels is None:
        return None
    return load_labels(run.path(run.server.labels), target="class" if run.loss == "cross_entropy" else "number")
