"""The unsplit twin: the same network, seed and batches in plain PyTorch, in the order in which the run serves its lanes.

With relay, or one client, it is the whole model under one optimizer. With the other schedules each lane has client segments of its own
(splitfed-v1 and federated: the whole network), which are averaged after each round (simulation/rounds.py).
It is what a split run is compared with; it takes nothing from the engines that it checks. Dropout masks are a function of the seed, the
segment and the step for everybody, so the twin draws the same ones.
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

from export.prepare import build_model, build_segments
from server.early_stopping import should_stop
from server.losses import loss_of
from server.masks import MaskMode
from server.metrics import MetricSet
from server.optimizers import torch_optimizer
from simulation.rounds import average_modules
from wire.feed import Batch, Feed
from wire.program import Command, TrainingProgram
from wire.rng import keep_mask
from wire.runfile import Run
from wire.steps import StepRange

__all__ = ["TwinResult", "train_unsplit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinResult:
    """``losses``: of each global step, in order. ``metrics``: by split, after the last epoch. ``state``: of the network of lane 0."""

    losses: tuple[float, ...]
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

    def __init__(self, chain: Sequence[nn.Module], parts: Sequence[_Part]) -> None:
        self.chain, self.parts = chain, parts

    def __call__(self, inputs: Sequence[Tensor], *, training: bool) -> Tensor:
        values: Any = tuple(inputs)
        for module in self.chain:
            found = module.train(training)(*values)
            values = (found,) if isinstance(found, Tensor) else tuple(found)
        output: Tensor = values[0]
        return output


def train_unsplit(run: Run, feeds: Mapping[int, Feed], *, progress: Callable[[int, int], None] = lambda done, total: None) -> TwinResult:
    """Train from the run's seed to its end. ``feeds``: each lane's data. ``progress`` hears (steps done, steps in all).

    Steps follow each other (``in_flight`` 1). Raises CutlayerError as building the network does.
    """
    torch.set_num_threads(run.server.threads or torch.get_num_threads())
    lanes = _lanes(run)
    stopping = run.evaluate
    drawn = _masks_drawn(run)
    program = TrainingProgram(run.plan(), stop=lambda seen: should_stop(seen, patience=stopping.patience, watch=stopping.watch))
    facts = {"batches": {str(lane): feed.counts for lane, feed in feeds.items()}}
    facts["samples"] = {str(lane): {"train": feed.samples("train")} for lane, feed in feeds.items()}
    program.sized(facts)
    metrics = MetricSet(run.evaluate.metrics, loss=run.loss)
    losses: list[float] = []
    weights: dict[int, int] = {}  # samples of each lane in the round
    while (command := program.next()).op != "end":
        result: dict[str, Any] = {}
        if command.op == "train":
            losses += _train(run, lanes, feeds, command, drawn)
            progress(len(losses), program.total_steps)
        elif command.op == "evaluate":
            result = _evaluate(lanes, feeds, command, metrics)
        elif command.op == "average":
            weights = {} if command.args["first"] else weights
            weights |= {int(lane): count for lane, count in command.args["samples"].items()}
        elif command.op == "adopt":
            for replicas in zip(*(lane.chain for lane in lanes), strict=True):
                if len(set(replicas)) > 1:
                    average_modules(replicas, weights)
        program.done(result, {})
    return TwinResult(losses=tuple(losses), metrics=program.metrics, state=_state(lanes[0]))


def _lanes(run: Run) -> list[_Lane]:
    segments = build_segments(run)
    if run.schedule == "relay" or len(run.clients) == 1:
        model = build_model(run)
        mine = dict(model.named_parameters())
        groups = [[mine[name] for name, _ in segment.module.named_parameters()] for segment in segments.values()]
        lane = _Lane([model], [_part(run, groups)])
        return [lane] * len(run.clients)
    copied = run.schedule == "splitfed-v1"
    shared = {name: segment.module for name, segment in segments.items() if run.model.place(name) == "server" and not copied}
    parts = {name: _part(run, [list(module.parameters())]) for name, module in shared.items()}
    lanes = []
    for _ in run.clients:
        chain: dict[str, nn.Module] = {name: shared.get(name) or copy.deepcopy(segment.module) for name, segment in segments.items()}
        own = [parts.get(name) or _part(run, [list(module.parameters())]) for name, module in chain.items()]
        lanes.append(_Lane(list(chain.values()), own))
    return lanes


def _part(run: Run, groups: Sequence[Sequence[nn.Parameter]]) -> _Part:
    everything: list[Tensor] = [value for group in groups for value in group]
    return _Part(groups, torch_optimizer(run.optimizer, everything or [torch.zeros(1)]), run.accumulate)


def _masks_drawn(run: Run) -> list[tuple[str, int]]:
    """The segment and number of each dropout mask, in the order in which the whole network draws them."""
    drawn: list[tuple[str, int]] = []
    for name, segment in build_segments(run).items():
        shapes: list[Sequence[int]] = []

        def note(shape: Sequence[int], keep: float, shapes: list[Sequence[int]] = shapes) -> NDArray[np.uint8]:
            shapes.append(shape)
            return np.ones(shape, np.uint8)

        with torch.no_grad(), torch.random.fork_rng(devices=[]), MaskMode(note):
            segment.module.train()(*segment.piece.examples)
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


def _train(run: Run, lanes: Sequence[_Lane], feeds: Mapping[int, Feed], command: Command, drawn: Sequence[tuple[str, int]]) -> list[float]:
    steps = StepRange.from_plain(command.args["steps"])
    total = int(command.args["total_steps"])
    losses = []
    for lane, step, global_step in steps.steps(steps.lanes):
        batch = feeds[lane].train(step)
        network = lanes[lane]
        with _masks(run, drawn, global_step):
            output = network(_tensors(batch), training=True)
        loss = loss_of(run.loss, output, _target(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        for part in network.parts:
            at = global_step - steps.lanes.index(lane) if run.averages else global_step
            part.step(run.optimizer.lr * run.lr_schedule.factor(at, total), run.clip_norm)
    return losses


def _evaluate(lanes: Sequence[_Lane], feeds: Mapping[int, Feed], command: Command, metrics: MetricSet) -> dict[str, Any]:
    if command.args["first"]:
        metrics.reset()
    steps = StepRange.from_plain(command.args["steps"])
    first = int(command.args.get("batch", 0))
    with torch.no_grad():
        for lane, index in ((lane, first + turn) for turn in range(steps.rounds) for lane in steps.lanes):
            batch = feeds[lane].evaluation(command.args["split"], index)
            metrics.update(lanes[lane](_tensors(batch), training=False).numpy(), _target(batch).numpy())
    return {"metrics": metrics.compute()} if command.args["last"] else {}


def _tensors(batch: Batch) -> list[Tensor]:
    return [torch.from_numpy(array) for array in batch.inputs]


def _target(batch: Batch) -> Tensor:
    assert batch.target is not None
    return torch.from_numpy(batch.target)


def _state(lane: _Lane) -> dict[str, Tensor]:
    return {name: value.detach().clone() for module in lane.chain for name, value in module.state_dict().items()}
