"""What crosses a cut and what it gives away, measured: both segments take training steps, and each codec encodes what they exchange."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from export.run_segment import segment_of
from server.engine import TorchEngine
from simulation.crossing import Crossing, engine_for
from simulation.plan.leakage import LEAST_SAMPLES, distance_correlation
from simulation.plan.places import Place
from simulation.plan.subject import Subject, run_at
from wire.cut import IDS, LABELS
from wire.engine import Array
from wire.errors import CodecError, GraphError, RunFileError, UsageError
from wire.feed import Batch
from wire.ids import keyed_ids

__all__ = ["Measured", "Traffic", "leakage_at", "measure", "train_whole"]

_STEPS = 4  # in which each codec's bytes are measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Sizes of the PUBLISH packets of each measured step, of ``samples`` samples; labels, or ids, are among what goes up.

    Up the topic is an alias, as most brokers grant it; down it is spelled out.
    """

    samples: int
    up: tuple[tuple[int, ...], ...]
    down: tuple[tuple[int, ...], ...]

    @property
    def publishes(self) -> float:
        """Packets of a step, both ways."""
        return sum(map(len, (*self.up, *self.down))) / len(self.up)

    @property
    def up_bytes(self) -> float:
        """A sample."""
        return sum(map(sum, self.up)) / (len(self.up) * self.samples)

    @property
    def down_bytes(self) -> float:
        """A sample."""
        return sum(map(sum, self.down)) / (len(self.down) * self.samples)

    @property
    def round_trip_bytes(self) -> float:
        """A sample."""
        return self.up_bytes + self.down_bytes


@dataclass(slots=True)
class Measured:
    """By codec. ``refused``: why a codec does not fit what crosses here."""

    traffic: dict[str, Traffic] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def train_whole(subject: Subject, steps: int) -> Iterator[int]:
    """Train the uncut network for so many steps, in place; gives how many are done. Raises CutlayerError."""
    model, run = subject.model, subject.run
    with torch.no_grad():
        output = model.eval()(*subject.examples)
    names = [f"x{at}" for at in range(len(subject.examples))]
    segment = segment_of(
        "model", model, subject.examples, input_names=names, output_names=["y"], results=(output,), raw=True, loss=run.loss
    )
    engine = engine_for(run, segment)
    for step in range(steps):
        batch = subject.samples.batch(step)
        try:
            engine.forward(step, *batch.inputs, subject.target(batch))
            _sound(engine, step)
        except RuntimeError as exc:
            raise GraphError(f"PyTorch cannot train {subject.name}: {str(exc).splitlines()[0][:200]}") from exc
        yield step + 1
    trained = engine.parameters()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            value.copy_(torch.from_numpy(np.array(trained[name])))


def _sound(engine: TorchEngine, step: int, *grads: Array) -> list[Array | None]:
    try:
        return list(engine.backward(step, *grads))
    except FloatingPointError as exc:
        raise UsageError(f"the training diverges in its step {step + 1} ({exc}); lower the learning rate") from exc


# ------------------------------------------------------------ bytes


def measure(subject: Subject, place: Place, codecs: Sequence[str], *, part_bytes: int) -> Measured:
    """A few steps from where the network is; it is left there. The segments exchange what they have exactly, and each codec, with encoders
    of its own at both ends, carries the same tensors. ``part_bytes``: of one payload at most. Raises CutlayerError."""
    run = run_at(subject.run, place.names[0])
    engines = {name: engine_for(run, segment) for name, segment in place.segments.items()}
    found = Measured()
    lines: dict[str, Crossing] = {}
    for codec in codecs:
        try:
            lines[codec] = Crossing(run_at(subject.run, place.names[0], codec), engines, part_bytes=part_bytes, alias=True)
        except RunFileError as exc:
            found.refused[codec] = str(exc)
    sizes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {codec: [] for codec in lines}
    for step in range(_STEPS):
        batch = subject.samples.batch(step)
        outputs, grads = _step(subject, engines, step, batch)
        for codec, line in lines.items():
            if codec not in found.refused:
                try:
                    sizes[codec].append(_carried(line, step, outputs, grads, _extras(subject, batch)))
                except CodecError as exc:
                    found.refused[codec] = str(exc)
    samples = subject.samples.batch_size
    for codec, steps in sizes.items():
        if codec not in found.refused:
            found.traffic[codec] = Traffic(samples=samples, up=tuple(up for up, _ in steps), down=tuple(down for _, down in steps))
    return found


def _step(subject: Subject, engines: Mapping[str, TorchEngine], step: int, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """Both segments take a step: what crosses, and its gradients, by name."""
    bottom, top = engines["bottom"], engines["top"]
    made = bottom.forward(step, *batch.inputs)
    outputs: dict[str, Array] = {spec.name: np.array(output) for spec, output in zip(bottom.outputs, made, strict=True)}
    top.forward(step, *(np.array(outputs[spec.name]) for spec in top.inputs[:-1]), subject.target(batch))
    found = zip(top.inputs, _sound(top, step), strict=True)
    grads = {spec.name: grad for spec, grad in found if grad is not None}
    bottom.backward(step, *(grads.get(spec.name) for spec in bottom.outputs))
    return outputs, grads


def _extras(subject: Subject, batch: Batch) -> dict[str, Array]:
    """What may ride along; the cut takes what its run says."""
    extras = {} if batch.target is None else {LABELS: batch.target}
    return extras if subject.labels is None else {**extras, IDS: keyed_ids(subject.run.ids_key.encode(), batch.ids)}


def _carried(
    line: Crossing, step: int, outputs: Mapping[str, Array], grads: Mapping[str, Array], extras: Mapping[str, Array]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    up, _ = line.forward(step, outputs, extras)
    down, _ = line.backward(step, grads)
    return up, down


# ------------------------------------------------------------ leakage


def leakage_at(subject: Subject, place: Place, samples: int) -> float | None:
    """Distance correlation of raw data and what crosses, of so many samples or all that there are; None of too few.

    Of the network as it infers: without dropout, each sample by itself.
    """
    engine = engine_for(run_at(subject.run, place.names[0]), place.segments["bottom"])
    batches = min(-(-samples // subject.samples.batch_size), subject.samples.count // subject.samples.batch_size)
    wanted = min(samples, batches * subject.samples.batch_size)
    if wanted < LEAST_SAMPLES:
        return None
    raw: list[Array] = []
    crossing: list[Array] = []
    for step in range(batches):
        batch = subject.samples.batch(step)
        raw.append(_rows(batch.inputs))
        crossing.append(_rows(engine.infer(*batch.inputs)))
    return distance_correlation(np.concatenate(raw)[:wanted], np.concatenate(crossing)[:wanted])


def _rows(arrays: Sequence[Array]) -> Array:
    """All numbers of a sample in a row."""
    return np.concatenate([array.reshape(len(array), -1).astype(np.float32) for array in arrays], axis=1)
