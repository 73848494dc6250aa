"""The server process: the heavy segments of a run in PyTorch, the loss, and the coordination of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from server.early_stopping import should_stop
from server.engine import TorchEngine
from server.labels import load_labels
from server.metrics import MetricSet
from wire.averaging import Shapes, engine_names
from wire.engine import Engine
from wire.errors import UsageError
from wire.feed import LabelStore
from wire.graph import PartySlice, Slot
from wire.manifest import TensorSpec
from wire.observer import observer_for
from wire.process import PartySetup, aligned, for_prediction, run_party
from wire.program import InferenceProgram, Program, TrainingProgram
from wire.runfile import Run, ServerConfig

__all__ = ["SegmentSource", "serve_run", "server_setup"]


class SegmentSource(Protocol):
    """A segment as the cut made it."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def weights(self) -> tuple[TensorSpec, ...]: ...


def serve_run(
    run: Run,
    segments: Mapping[str, SegmentSource],
    *,
    party: str | None = None,
    predict: str | None = None,
    log: Literal["text", "json"] = "text",
) -> dict[str, Any]:
    """Run a server's part until the run is over; started again, it goes on from the last checkpoint. Returns its result.

    ``party``: which server; by default the only one, or the one whose slice ``run`` is. ``segments``: at least those that it holds.
    ``predict``: do not train; answer that client's split inference with the newest common checkpoint. Raises CutlayerError.
    """
    server = _server(run, party)
    torch.set_num_threads(server.threads or torch.get_num_threads())
    setup = server_setup(run, server, segments, predict=predict)
    served = run if predict is None else for_prediction(run, predict)
    return run_party(served, server.name, setup, observer=observer_for(server.name, log))


def _server(run: Run, party: str | None) -> ServerConfig:
    if party is not None:
        return run.server_called(party)
    if len(run.all_servers) > 1:
        names = ", ".join(server.name for server in run.all_servers)
        raise UsageError(f"the run has several servers; say which with --party: {names}")
    return run.all_servers[0]


def server_setup(run: Run, server: ServerConfig, segments: Mapping[str, SegmentSource], *, predict: str | None = None) -> PartySetup:
    """Engines, labels, metrics and, of the coordinator, the program of a server; see ``serve_run``. Raises CutlayerError."""
    mine = run.slice_for(server.name)
    engines = _engines(run, mine, segments)
    sink = next((slot for slot in mine.slots if slot.is_sink), None)
    program: Program | None = InferenceProgram() if mine.parent is None else None
    splits: tuple[str, ...] = ("test",)
    if program is not None and predict is None:
        stop = run.evaluate
        program = TrainingProgram(run.plan(), stop=lambda history: should_stop(history, patience=stop.patience, watch=stop.watch))
        splits = ("train", *run.evaluate.splits)
    return PartySetup(
        engines=engines,
        averaged=_averaged(run, mine, segments),
        labels=_labels(run, server, sink),
        metrics=MetricSet(run.metrics_of(sink.segment), loss=run.loss_of(sink.segment), unlabelled=run.reconstruct is not None)
        if sink is not None
        else None,
        program=None if program is None else aligned(run, server.name, program, splits),
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
                loss=run.loss_of(slot.segment) if slot.is_sink else None,
                unlabelled=run.reconstruct is not None,
                clip_norm=run.clip_norm,
                accumulate=run.accumulate,
                seed=run.seed,
                segment=slot.segment,
            )
    return engines


def _averaged(run: Run, mine: PartySlice, segments: Mapping[str, SegmentSource]) -> dict[str, Shapes]:
    """The weights that clients give away for averages, where they come together."""
    if not run.averages or mine.parent is not None:
        return {}
    if run.slice is not None:
        found = dict(run.slice.averaged)
    else:
        found = {segment.name: segments[segment.name].weights for segment in run.graph().segments if len(segment.parties) > 1}
    return {name: {spec.name: (np.dtype(spec.dtype), spec.shape_at(0)) for spec in specs} for name, specs in found.items()}


def _labels(run: Run, server: ServerConfig, sink: Slot | None) -> LabelStore | None:
    if sink is None or sink.labels != "held" or server.labels is None:
        return None
    return load_labels(run.path(server.labels), target="class" if run.loss_of(sink.segment) == "cross_entropy" else "number")
