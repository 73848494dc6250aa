"""Carries out what an actor asks of engines: decode what came over the cut, run the segment, encode what goes over the next one.

The path of a training step on one party, forward: payload → ``Cuts.decode_forward`` → ``Engine.forward`` → ``Cuts.encode_forward`` →
payload; backward the same way. Labels and keyed ids ride along with activations, without loss, as the tensors ``@labels`` and ``@ids``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from wire.averaging import engine_names
from wire.cut import IDS, LABELS, Cuts
from wire.engine import Array, Engine
from wire.errors import CodecError, DataError, UsageError
from wire.feed import Batch, Feed, LabelStore
from wire.frames import Mode
from wire.graph import PartySlice, Slot
from wire.ids import keyed_ids
from wire.kept import Kept
from wire.manifest import TensorSpec
from wire.messages import Answer, BackwardDone, Discard, ForwardDone, RunBackward, RunForward, Work
from wire.runfile import Run
from wire.segments import RECONSTRUCTION
from wire.tally import Tally
from wire.tensors import decode_plain, encode_plain

__all__ = ["Metrics", "Runner"]


class Metrics(Protocol):
    """What a party that holds the loss measures over an evaluation."""

    def reset(self) -> None: ...

    def update(self, outputs: Array, target: Array) -> None: ...

    def compute(self) -> dict[str, float]: ...


@dataclass
class _Command:
    """What ``Begin`` said: how steps of evaluation map to batches, and the run's length for the learning rate."""

    args: Mapping[str, Any]

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """Of each lane its first step, and its place among those that are served in turn."""
        steps = self.args["steps"]
        return dict(zip(steps["lanes"], zip(steps["starts"], steps["places"], strict=True), strict=True))

    @property
    def lanes(self) -> Collection[int]:
        return self._places.keys()

    @property
    def split(self) -> Any:
        return self.args.get("split", "test")

    def index(self, work: Work) -> int:
        return int(self.args.get("batch", 0) + work.step - self._places[work.lane][0])

    def turn(self, work: Work) -> int:
        """The place of the step's lane among those that are served in turn."""
        return int(self._places[work.lane][1])


class Runner:
    """One party's engines, data and metrics behind the effects of its actor. Not thread-safe."""

    def __init__(
        self,
        run: Run,
        party: PartySlice,
        *,
        engines: Mapping[str, Engine],
        cuts: Cuts,
        feed: Feed | None = None,
        labels: LabelStore | None = None,
        metrics: Metrics | None = None,
        tally: Tally | None = None,
        kept: Kept,
        on_loss: Callable[[Work, float], None] = lambda work, loss: None,
        on_answer: Callable[[Batch, Mapping[str, Array]], None] = lambda batch, outputs: None,
    ) -> None:
        self._run = run
        self._slots = {slot.segment: slot for slot in party.slots}
        self._engines = engines
        self._names = {slot.segment: engine_names(slot, run.schedule) for slot in party.slots}
        self._cuts = cuts
        self._feed = feed
        self._labels = labels
        self._metrics = metrics
        self._tally = tally
        self._sink = next((slot for slot in party.slots if slot.is_sink), None)
        self.kept = kept
        self._on_loss = on_loss
        self._on_answer = on_answer
        self._command = _Command({})
        self._next_step: int | None = None

    # ------------------------------------------------------------ commands

    def begin(self, op: str, args: Mapping[str, Any]) -> None:
        self._command = _Command(args)
        if op == "evaluate" and self._metrics is not None and (args.get("first") or self._alone):
            self._metrics.reset()
        if self._tally is not None:
            self._tally.reset()

    @property
    def _alone(self) -> bool:
        """The labels are this party's own: it measures over its own samples, and tells nobody."""
        return self._sink is not None and self._sink.labels == "local"

    def measured(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics over the evaluation that has just ended, where this party measures and it was the last of its split: those to be seen
        here, and what is to be told, by segment; or, by lane, what it has counted."""
        if self._tally is not None and self._sink is not None:
            lanes = sorted(set(self._sink.lanes) & set(self._command.lanes))
            return {}, {"counts": {str(lane): _finite(self._tally.sums) for lane in lanes}}
        if self._metrics is None or self._sink is None or not (self._command.args.get("last") or self._alone):
            return {}, {}
        metrics = self._metrics.compute()
        if self._alone:
            self.kept.keep(self._command.split, metrics)
            return metrics, {}
        return metrics, {"metrics": {self._sink.segment: _finite(metrics)}}

    # ------------------------------------------------------------ forward

    def forward(self, effect: RunForward) -> ForwardDone:
        """Never raises for what a peer sent: the step is void then, with the reason."""
        done = self._forward(effect)
        if done.void is not None:
            self._cuts.discard(effect.work)
        return done

    def _forward(self, effect: RunForward) -> ForwardDone:
        work, slot = effect.work, self._slots[effect.work.segment]
        try:
            inputs, extras = self._inputs(work, slot, effect.inputs)
        except (CodecError, DataError) as exc:
            if slot.is_source:
                raise
            return ForwardDone(work=work, void=str(exc))
        engine = self._engine(work)
        if work.mode is not Mode.TRAIN:
            return self._evaluate(work, slot, engine, inputs, extras)
        # Not every operation passes a NaN on: a max-pool drops it, and the peer would count a step that this segment cannot.
        fault = _not_finite(engine.inputs, inputs) if slot.is_source else None
        if fault is not None:
            return ForwardDone(work=work, void=f"the batch is unsound, {fault}")
        target = (self._target(work, slot, extras),) if slot.is_sink else ()
        try:
            outputs = engine.forward(work.global_step, *inputs, *target)
        except DataError as exc:
            return ForwardDone(work=work, void=str(exc))
        fault = _not_finite(engine.outputs, outputs)
        if fault is not None:
            engine.discard(work.global_step)
            return ForwardDone(work=work, void=fault)
        if slot.is_sink:
            self._on_loss(work, float(outputs[0]))
            return ForwardDone(work=work)
        try:
            return ForwardDone(work=work, outputs=self._encode_outputs(work, engine, outputs, extras))
        except CodecError as exc:
            engine.discard(work.global_step)
            return ForwardDone(work=work, void=str(exc))

    def _evaluate(self, work: Work, slot: Slot, engine: Engine, inputs: tuple[Array, ...], extras: dict[str, Array]) -> ForwardDone:
        outputs = engine.infer(*inputs)
        if slot.is_sink and work.mode is Mode.INFER:
            named = {f"output{at}": output for at, output in enumerate(outputs)}
            return ForwardDone(work=work, outputs={"": encode_plain(named)})
        if slot.is_sink:
            if measures := [each for each in (self._metrics, self._tally) if each is not None]:
                target = self._target(work, slot, extras)
                try:
                    for each in measures:
                        each.update(outputs[0], target)
                except DataError as exc:
                    return ForwardDone(work=work, void=str(exc))
            return ForwardDone(work=work)
        try:
            return ForwardDone(work=work, outputs=self._encode_outputs(work, engine, outputs, extras))
        except CodecError as exc:
            return ForwardDone(work=work, void=str(exc))

    def _engine(self, work: Work) -> Engine:
        return self._engines[self._names[work.segment][work.lane]]

    def _inputs(self, work: Work, slot: Slot, payloads: Mapping[str, bytes]) -> tuple[tuple[Array, ...], dict[str, Array]]:
        engine = self._engine(work)
        if slot.is_source:
            batch = self._batch(work)
            return batch.inputs, self._extras(work, slot, batch)
        tensors = self._cuts.decode_forward(work, payloads, self._progress(work))
        extras = {name: tensors.pop(name) for name in (LABELS, IDS) if name in tensors}
        wanted = [spec for spec in engine.inputs if spec.name != "target"]
        for spec in wanted:
            if spec.name not in tensors:
                raise CodecError(f"the activation `{spec.name}` is missing from what the peer sent")
        return tuple(tensors[spec.name] for spec in wanted), extras

    def prepare(self) -> None:
        """Use a wait for the peer: make the next training batch."""
        if self._feed is not None and self._next_step is not None:
            self._feed.prepare(self._next_step)
            self._next_step = None

    def _extras(self, work: Work, slot: Slot, batch: Batch) -> dict[str, Array]:
        """What rides along with some of the slot's outputs."""
        found: dict[str, Array] = {}
        if any(end.ids for end in slot.outputs):
            found[IDS] = keyed_ids(self._run.ids_key.encode(), batch.ids)
        if any(end.labels for end in slot.outputs) and work.mode is not Mode.INFER and batch.target is not None:
            found[LABELS] = batch.target
        return found

    def _batch(self, work: Work) -> Batch:
        if self._feed is None:
            raise UsageError(f"segment {work.segment} sees raw data, but this party was given none; add `[data]` to the run file")
        if work.mode is Mode.TRAIN:
            self._next_step = work.step + 1
            return self._feed.train(work.step)
        return self._feed.evaluation(self._command.split, self._command.index(work))

    def _target(self, work: Work, slot: Slot, extras: Mapping[str, Array]) -> Array:
        if slot.labels == "local":
            target = self._batch(work).target
        elif slot.labels == "held" and self._labels is not None and IDS in extras:
            target = self._labels.lookup(extras[IDS])
        else:
            target = extras.get(LABELS)
        if target is None:
            raise DataError("no labels came with the activations and none are held here; set `labels` in `[data]` or in `[server]`")
        return target

    def _encode_outputs(self, work: Work, engine: Engine, outputs: tuple[Array, ...], extras: Mapping[str, Array]) -> dict[str, bytes]:
        named = {spec.name: output for spec, output in zip(engine.outputs, outputs, strict=True) if spec.name != RECONSTRUCTION}
        return self._cuts.encode_forward(work, named, extras, self._progress(work))

    def _progress(self, work: Work) -> float:
        """How much of the training is through: both ends of a cut reckon alike."""
        args = self._command.args
        if work.mode is Mode.TRAIN:
            return min(1.0, work.global_step / self._total_steps)
        return min(1.0, (int(args.get("epoch", 0)) + 1) / self._run.epochs) if work.mode is Mode.EVAL else 1.0

    @property
    def _total_steps(self) -> int:
        return int(self._command.args.get("total_steps", 0)) or 1

    # ------------------------------------------------------------ backward

    def backward(self, effect: RunBackward) -> BackwardDone:
        """Never raises for what a peer sent, nor for gradients that are not finite: the step is void then."""
        done = self._backward(effect)
        self._cuts.discard(effect.work)
        return done

    def _backward(self, effect: RunBackward) -> BackwardDone:
        work, slot = effect.work, self._slots[effect.work.segment]
        engine, progress = self._engine(work), self._progress(work)
        try:
            arrived = {} if slot.is_sink else self._cuts.decode_backward(work, effect.inputs, progress)
        except CodecError as exc:
            engine.discard(work.global_step)
            return BackwardDone(work=work, void=str(exc))
        if self._run.reconstruct is not None and not slot.is_sink:
            samples = len(next(iter(arrived.values())))
            arrived[RECONSTRUCTION] = np.full(samples, self._run.reconstruct.alpha / samples, np.float32)  # of the mean over the batch
        grads = () if slot.is_sink else tuple(arrived.get(spec.name) for spec in engine.outputs)
        # Lanes that train at the same time have the same rate: that of the first of their turn.
        at = work.global_step - self._command.turn(work) if self._run.averages else work.global_step
        lr = self._run.optimizer.lr * self._run.lr_schedule.factor(at, self._total_steps)
        try:
            found = engine.backward(work.global_step, *grads, lr=lr)
        except FloatingPointError as exc:
            return BackwardDone(work=work, void=str(exc))
        pairs = zip(engine.inputs, found, strict=False)  # a target has no gradient
        named = {spec.name: grad for spec, grad in pairs if grad is not None}
        return BackwardDone(work=work, outputs=self._cuts.encode_backward(work, named, progress))

    def discard(self, effect: Discard) -> None:
        self._engine(effect.work).discard(effect.work.global_step)
        self._cuts.discard(effect.work)

    def answer(self, effect: Answer) -> None:
        """A prediction has come back for the batch of this step."""
        self._on_answer(self._batch(effect.work), decode_plain(effect.payload))


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of a network that has diverged, what can still be told: messages have no other numbers."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _not_finite(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> str | None:
    """``specs`` may hold a target more, at the end."""
    for spec, output in zip(specs, arrays, strict=False):
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            return f"`{spec.name}` is not finite"
    return None
