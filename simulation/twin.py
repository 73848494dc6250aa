"""The unsplit twin: the same network, seed and batches in plain PyTorch, in the order in which the run serves its lanes.

With relay, or one lane, it is the whole network, each segment under its optimizer. With the other schedules each lane has segments of its
own where parties have (splitfed-v1 and federated: the whole network); those that are averaged get the plain mean after each round
(simulation/rounds.py). It is what a split run is compared with; it takes nothing from the engines that it checks. Dropout masks are a
function of the seed, the segment and the step for everybody, so the twin draws the same ones.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.declared import Composite
from export.prepare import build_model, build_segments
from server.early_stopping import should_stop
from server.labels import load_labels
from server.losses import loss_of
from server.masks import MaskMode
from server.metrics import MetricSet
from server.optimizers import torch_optimizer
from simulation.rounds import average_modules
from wire.feed import Batch, Feed, LabelStore
from wire.graph import Graph
from wire.ids import keyed_ids
from wire.program import Command, TrainingProgram
from wire.rng import keep_mask
from wire.runfile import Run
from wire.steps import StepRange

__all__ = ["TwinResult", "train_unsplit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinResult:
    """``losses``: by the segment that owns it, of each global step, in order. ``metrics``: by split, after the last epoch.
    ``state``: of lane 0's network, named as in ``Composite`` where lanes have segments of their own, else as in the whole network."""

    losses: Mapping[str, tuple[float, ...]]
    metrics: Mapping[str, Mapping[str, float]]
    state: Mapping[str, Tensor] = field(repr=False)


@dataclass(slots=True)
class _Part:
    """Modules that learn together, the parameters of each segment among them, and their optimizer.

    ``accumulate``: gradients of so many steps make an update, by their mean. ``summed``: steps since the last one.
    """

    parameters: Sequence[Sequence[nn.Parameter]]
    optimizer: torch.optim.Optimizer
    accumulate: int
    summed: int = 0

    def step(self, lr: float, clip_norm: float | None) -> None:
        """After each backward."""
        self.summed += 1
        if self.summed < self.accumulate:
            return
        for group in self.parameters:
            for value in group:
                if value.grad is not None:
                    value.grad /= self.accumulate
            if clip_norm is not None and group:
                torch.nn.utils.clip_grad_norm_(group, clip_norm)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.summed = 0


class _Lane:
    """What one lane's batches run through."""

    def __init__(self, network: nn.Module, parts: Sequence[_Part]) -> None:
        self.network, self.parts = network, parts

    def __call__(self, inputs: Sequence[Tensor], *, training: bool) -> tuple[Tensor, ...]:
        """One output a loss of the run."""
        found = self.network.train(training)(*inputs)
        return (found,) if isinstance(found, Tensor) else tuple(found)


class _Data:
    """What raw data and labels each lane has, by the graph."""

    def __init__(self, run: Run, feeds: Mapping[str, Feed]) -> None:
        self._run = run
        self._graph = graph = run.graph()
        self._feeds = feeds
        self._sources = [segment.name for segment in graph.order() if not any(edge.target == segment.name for edge in graph.edges)]
        self.sinks = [segment.name for segment in graph.order() if segment.loss]
        self._stores = {sink: store for sink in self.sinks if (store := _store(run, graph, sink)) is not None}

    def feed(self, lane: int, source: str | None = None) -> Feed:
        return self._feeds[self._graph.party_of(source or self._sources[0], lane)]

    def facts(self, lanes: int) -> dict[str, Any]:
        """What the parties would say of themselves."""
        feeds = {str(lane): self.feed(lane) for lane in range(lanes)}
        return {
            "batches": {lane: feed.counts for lane, feed in feeds.items()},
            "samples": {lane: {"train": feed.samples("train")} for lane, feed in feeds.items()},
        }

    def inputs(self, lane: int, take: Callable[[Feed], Batch]) -> list[Tensor]:
        """One a segment with raw data."""
        return [torch.from_numpy(array) for source in self._sources for array in take(self.feed(lane, source)).inputs]

    def target(self, sink: str, lane: int, take: Callable[[Feed], Batch]) -> Tensor:
        batch = take(self.feed(lane, self._graph.labels_at(sink)))
        store = self._stores.get(sink)
        target = batch.target if store is None else store.lookup(keyed_ids(self._run.ids_key.encode(), batch.ids))
        assert target is not None
        return torch.from_numpy(target)


def _store(run: Run, graph: Graph, sink: str) -> LabelStore | None:
    segment = graph.segment(sink)
    path = run.server_called(segment.parties[0]).labels if segment.labels == "held" else None
    return None if path is None else load_labels(run.path(path), target="class" if run.loss_of(sink) == "cross_entropy" else "number")


def train_unsplit(run: Run, feeds: Mapping[str, Feed], *, progress: Callable[[int, int], None] = lambda done, total: None) -> TwinResult:
    """Train from the run's seed to its end. ``feeds``: by party, of those with raw data. ``progress`` hears (steps done, steps in all).

    Steps follow each other (``in_flight`` 1). Raises CutlayerError as building the network does.
    """
    torch.set_num_threads(run.all_servers[0].threads or torch.get_num_threads())
    lanes, data = _lanes(run), _Data(run, feeds)
    stopping = run.evaluate
    drawn = _masks_drawn(run)
    program = TrainingProgram(run.plan(), stop=lambda seen: should_stop(seen, patience=stopping.patience, watch=stopping.watch))
    program.sized(data.facts(run.lanes))
    metrics = {sink: MetricSet(run.metrics_of(sink), loss=run.loss_of(sink), unlabelled=run.reconstruct is not None) for sink in data.sinks}
    losses: dict[str, list[float]] = {sink: [] for sink in data.sinks}
    weights: dict[int, int] = {}  # samples of each lane in the round
    while (command := program.next()).op != "end":
        result: dict[str, Any] = {}
        if command.op == "train":
            _train(run, lanes, data, command, drawn, losses)
            progress(len(losses[data.sinks[0]]), program.total_steps)
        elif command.op == "evaluate":
            result = _evaluate(lanes, data, command, metrics)
        elif command.op == "average":
            weights = {} if command.args["first"] else weights
            weights |= {int(lane): count for lane, count in command.args["samples"].items()}
        elif command.op == "adopt":
            _average(lanes, weights)
        program.done(result, {})
    told = {sink: tuple(values) for sink, values in losses.items()}
    return TwinResult(losses=told, metrics=program.metrics, state=dict(lanes[0].network.state_dict()))


def _lanes(run: Run) -> list[_Lane]:
    segments = build_segments(run)
    graph = run.graph()
    inputs = {name: [edge.source for edge in graph.edges if edge.target == name] for name in segments}
    if run.reconstruct is None and (run.schedule == "relay" or run.lanes == 1):
        whole = build_model(run)
        mine = dict(whole.named_parameters())
        prefixes = {name: "" if run.model is not None else f"{name}." for name in segments}
        groups = [[mine[prefixes[name] + key] for key, _ in segment.module.named_parameters()] for name, segment in segments.items()]
        return [_Lane(whole, [_part(run, group) for group in groups])] * run.lanes
    together, copied = run.schedule == "relay", run.schedule == "splitfed-v1"
    alone = {segment.name for segment in graph.segments if len(segment.parties) == 1 and not copied}
    shared = {name: segment.module for name, segment in segments.items() if together or name in alone}
    parts = {name: _part(run, list(module.parameters())) for name, module in shared.items()}
    lanes = []
    for _ in range(run.lanes):
        modules: dict[str, nn.Module] = {name: shared.get(name) or copy.deepcopy(segment.module) for name, segment in segments.items()}
        own = [parts.get(name) or _part(run, list(module.parameters())) for name, module in modules.items()]
        lanes.append(_Lane(Composite(modules, inputs, autoencoder=run.reconstructed), own))
    return lanes


def _average(lanes: Sequence[_Lane], samples: Mapping[int, int]) -> None:
    """Segments that each lane has of its own; ``samples``: what each lane that trained counts."""
    for replicas in zip(*(lane.network.children() for lane in lanes), strict=True):
        if len(set(replicas)) > 1:
            average_modules(replicas, samples)


def _part(run: Run, group: Sequence[nn.Parameter]) -> _Part:
    return _Part([group], torch_optimizer(run.optimizer, list(group) or [torch.zeros(1)]), run.accumulate)


def _masks_drawn(run: Run) -> list[tuple[str, int]]:
    """The segment and number of each dropout mask, in the order in which the whole network draws them."""
    drawn: list[tuple[str, int]] = []
    for name, segment in build_segments(run).items():
        shapes: list[Sequence[int]] = []

        def note(shape: Sequence[int], keep: float, shapes: list[Sequence[int]] = shapes) -> NDArray[np.uint8]:
            shapes.append(shape)
            return np.ones(shape, np.uint8)

        with torch.no_grad(), torch.random.fork_rng(devices=[]), MaskMode(note):
            segment.module.train()(*segment.examples)
        drawn += [(name, number) for number in range(len(shapes))]
    return drawn


def _masks(run: Run, drawn: Sequence[tuple[str, int]], step: int) -> contextlib.AbstractContextManager[Any]:
    """While entered, the network's dropout masks are those of this global step."""
    if not drawn:
        return contextlib.nullcontext()
    waiting = iter(drawn)

    def draw(shape: Sequence[int], keep: float) -> NDArray[np.uint8]:
        segment, number = next(waiting)
        return keep_mask(run.seed, segment, step, number, shape, keep)

    return MaskMode(draw)


def _train(
    run: Run, lanes: Sequence[_Lane], data: _Data, command: Command, drawn: Sequence[tuple[str, int]], losses: Mapping[str, list[float]]
) -> None:
    steps = StepRange.from_plain(command.args["steps"])
    total = int(command.args["total_steps"])
    for lane, step, global_step in steps.steps(steps.lanes):

        def take(feed: Feed, step: int = step) -> Batch:
            return feed.train(step)

        network = lanes[lane]
        with _masks(run, drawn, global_step):
            outputs = network(data.inputs(lane, take), training=True)
        found = {
            sink: loss_of(run.loss_of(sink), output, data.target(sink, lane, take), unlabelled=run.reconstruct is not None)
            for sink, output in zip(data.sinks, outputs, strict=True)
        }
        total_loss = sum(found.values(), torch.zeros(()))
        if run.reconstruct is not None and isinstance(network.network, Composite):
            total_loss = total_loss + run.reconstruct.alpha * network.network.error.mean()
        total_loss.backward()  # type: ignore[no-untyped-call]
        for sink, loss in found.items():
            losses[sink].append(float(loss.detach()))
        for part in network.parts:
            at = global_step - steps.lanes.index(lane) if run.averages else global_step
            part.step(run.optimizer.lr * run.lr_schedule.factor(at, total), run.clip_norm)


def _evaluate(lanes: Sequence[_Lane], data: _Data, command: Command, metrics: Mapping[str, MetricSet]) -> dict[str, Any]:
    if command.args["first"]:
        for each in metrics.values():
            each.reset()
    steps = StepRange.from_plain(command.args["steps"])
    first = int(command.args.get("batch", 0))
    with torch.no_grad():
        for lane, index in ((lane, first + turn) for turn in range(steps.rounds) for lane in steps.lanes):

            def take(feed: Feed, index: int = index) -> Batch:
                return feed.evaluation(command.args["split"], index)

            outputs = lanes[lane](data.inputs(lane, take), training=False)
            for sink, output in zip(data.sinks, outputs, strict=True):
                metrics[sink].update(output.numpy(), data.target(sink, lane, take).numpy())
    return {"metrics": {sink: each.compute() for sink, each in metrics.items()}} if command.args["last"] else {}
