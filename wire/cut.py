"""The cuts of one party: the encoders of all its edges and lanes, and what is kept of steps in flight. Bytes in, tensors out.

Forward, the source of a cut encodes its outputs and keeps, until their gradients are decoded, where they had a symbol that is not zero
(the *support*) and whatever the encoder wants to learn from. The target keeps the support until it encodes the gradients. Backward codecs
may rely on it: both ends know it, so it costs nothing. A step that becomes void is discarded. So what is kept is bounded by the steps in
flight, and evaluation and inference keep nothing.

Each edge of a fan-out has encoders of its own; their decoded gradients are summed. Where both ends of an edge are on this party nothing
crosses a network, and tensors go as fp32.

With the schedule "relay" an encoder serves all lanes, for the segments at both of its ends are the same network in all of them: its
state is handed over with the segment's weights. Otherwise there is one a lane, called by the client's name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wire.codecs import (
    DIRECTIONS,
    Codec,
    Context,
    Decoded,
    Direction,
    Encoded,
    Encoder,
    Support,
    decode_array,
    decode_lossless,
    encode_array,
    encode_lossless,
    parse_codec,
)
from wire.engine import Array, Engine
from wire.errors import CheckpointError, CodecError, RunFileError
from wire.frames import Mode
from wire.graph import EdgeEnd, PartySlice, Slot
from wire.ids import ID_BYTES
from wire.manifest import BATCH, TensorSpec
from wire.messages import Work
from wire.runfile import Run
from wire.segments import RECONSTRUCTION
from wire.tensors import Header, decode_tensors, encode_tensors

__all__ = ["IDS", "LABELS", "Cuts"]

LABELS, IDS = "@labels", "@ids"


@dataclass(frozen=True, slots=True)
class _Coder:
    """One tensor in one direction, on the sending side."""

    segment: str  # the segment here, whose weights its state belongs to
    codec: Codec
    encoder: Encoder


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the source keeps of one tensor that it sent."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    support: Support | None
    kept: Any
    context: Context


@dataclass(slots=True)
class _Step:
    """A training step in flight on one segment and lane: edge → tensor → what is kept of it."""

    sent: dict[str, dict[str, _Sent]] = field(default_factory=dict)
    received: dict[str, dict[str, Support | None]] = field(default_factory=dict)


class Cuts:
    """All cuts that end on ``party``. Not thread-safe.

    Raises RunFileError where a codec does not fit a tensor of the engines, whichever end would send it: so both ends say it at the start.
    ``work.segment`` is the segment at this end; ``progress`` is the ``Context``'s. Payloads are by edge name.
    """

    def __init__(self, run: Run, party: PartySlice, engines: Mapping[str, Engine]) -> None:
        self.labels_sent = 0  # samples whose label has left this party
        self._run = run
        self._lane_names = run.lane_names
        self._engines = engines
        self._slots = {slot.segment: slot for slot in party.slots}
        self._internal = {end.edge for slot in party.slots for end in (*slot.inputs, *slot.outputs) if end.internal}
        self._coders: dict[tuple[str, str, Direction, str], _Coder] = {}
        self._steps: dict[tuple[str, int, int], _Step] = {}
        for slot in party.slots:
            for end in slot.outputs:
                self._add(slot, end, "forward", engines[slot.segment].outputs)
            for end in slot.inputs:
                self._add(slot, end, "backward", engines[slot.segment].inputs)

    def _add(self, slot: Slot, end: EdgeEnd, sends: Direction, tensors: Collection[TensorSpec]) -> None:
        for tensor in tensors:
            if tensor.dtype != "float32" or tensor.name == RECONSTRUCTION or (sends == "backward" and tensor.name == "target"):
                continue
            for direction in DIRECTIONS:
                codec = self._codec(end.edge, direction)
                try:
                    codec.check(tensor, direction, self._run.batch_size)
                except ValueError as exc:
                    raise RunFileError(
                        f"codec.{direction} of the cut {end.edge}: `{codec.name}` does not fit the tensor `{tensor.name}` "
                        f"{list(tensor.shape)}: {exc}"
                    ) from exc
            codec = self._codec(end.edge, sends)
            for lane in slot.lanes:
                key = (end.edge, self._lane_name(lane), sends, tensor.name)
                if key not in self._coders:
                    self._coders[key] = _Coder(slot.segment, codec, codec.encoder(tensor, sends))

    def _codec(self, edge: str, direction: Direction) -> Codec:
        return parse_codec("fp32" if edge in self._internal else self._run.codec.of(edge, direction))

    def _lane_name(self, lane: int) -> str:
        return "*" if self._run.schedule == "relay" else self._lane_names[lane]

    # ------------------------------------------------------------ forward

    def encode_forward(self, work: Work, outputs: Mapping[str, Array], extras: Mapping[str, Array], progress: float) -> dict[str, bytes]:
        """A payload an outgoing edge: outputs by name, then what rides along, without loss. Raises CodecError: the step is void then."""
        step, payloads = _Step(), {}
        for end in self._slots[work.segment].outputs:
            step.sent[end.edge] = sent = {}
            items = []
            for name, array in outputs.items():
                context = self._context(end.edge, work, "forward", name, progress)
                encoded = self._encode(end.edge, work, "forward", name, array, context)
                sent[name] = _Sent(array.dtype, array.shape, encoded.support, encoded.kept, context)
                items.append((name, array, encoded))
            riding = {LABELS: end.labels, IDS: end.ids}
            items += [(name, array, encode_lossless(array)) for name, array in extras.items() if riding[name]]
            if end.labels and not end.internal:
                self.labels_sent += len(extras.get(LABELS, ()))
            payloads[end.edge] = encode_tensors(items)
        if work.mode is Mode.TRAIN:
            self._step(work).sent = step.sent
        return payloads

    def decode_forward(self, work: Work, payloads: Mapping[str, bytes], progress: float) -> dict[str, Array]:
        """The segment's inputs, as far as they came, and what rode along, by name. Raises CodecError for what the peer should not send."""
        specs = {spec.name: spec for spec in self._engines[work.segment].inputs}
        target = specs.pop("target", None)
        found: dict[str, Array] = {}
        received: dict[str, dict[str, Support | None]] = {}
        for edge, payload in payloads.items():

            def decode(header: Header, data: memoryview, edge: str = edge) -> Decoded:
                if header.name in (LABELS, IDS):
                    self._check_extra(header, target)
                    return decode_lossless(header.codec, data, header.dtype, header.shape)
                self._check_arrival(header, specs.get(header.name))
                return self._decode(edge, "forward", header, data, self._context(edge, work, "forward", header.name, progress))

            tensors = decode_tensors(payload, decode)
            received[edge] = {name: decoded.support for name, decoded in tensors.items()}
            found.update({name: decoded.array for name, decoded in tensors.items()})
        rows = {name: len(array) for name, array in found.items() if name in (LABELS, IDS) or specs[name].shape[:1] == (BATCH,)}
        if len(set(rows.values())) > 1:
            raise CodecError(f"the tensors of a step are of different batches, by rows: {rows}")
        if work.mode is Mode.TRAIN:
            self._step(work).received = received
        return found

    def _check_arrival(self, header: Header, spec: TensorSpec | None) -> None:
        """Before anything is decoded: a few bytes must not make an array that no batch has."""
        if spec is None:
            raise CodecError("the segment takes no such tensor")
        batch = header.shape[0] if header.shape and spec.shape and isinstance(spec.shape[0], str) else 0
        if not spec.fits(header.shape) or header.dtype != spec.dtype or batch > self._run.batch_size:
            raise CodecError(f"it arrived as {header.dtype} {list(header.shape)}; expected {spec.dtype} {list(spec.shape)}")

    def _check_extra(self, header: Header, target: TensorSpec | None) -> None:
        """Ids as ``wire.ids`` makes them, labels as data sources give them and, where the loss is here, as many as it takes.

        Integers come packed, so a few bytes may stand for a row a sample of the batch, and no more.
        """
        shape, dtype = header.shape, header.dtype.name
        if header.name == IDS:
            fits, wanted = dtype == "uint8" and shape[1:] == (ID_BYTES,), f"uint8 [N, {ID_BYTES}]"
        else:
            fits = (dtype == "int64" and len(shape) == 1) or (dtype == "float32" and len(shape) in (1, 2))
            wanted = "int64 [N], float32 [N] or float32 [N, K]"
            if target is not None:
                fits = fits and math.prod(shape[1:]) == math.prod(target.shape_at(1)[1:]) and dtype in ("int64", target.dtype)
                wanted = f"labels for {target.dtype} {list(target.shape)}"
        if not fits or shape[0] > self._run.batch_size:
            raise CodecError(f"it arrived as {dtype} {list(shape)}; expected {wanted}, one row a sample of a batch")

    # ------------------------------------------------------------ backward

    def encode_backward(self, work: Work, grads: Mapping[str, Array], progress: float) -> dict[str, bytes]:
        """A payload an incoming edge: the gradients of what arrived on it. The step is over for its inputs. Raises CodecError."""
        received = self._step(work).received
        payloads = {}
        for end in self._slots[work.segment].inputs:
            items = []
            for name, support in received.get(end.edge, {}).items():
                if name in grads:
                    context = self._context(end.edge, work, "backward", name, progress, support)
                    items.append((name, grads[name], self._encode(end.edge, work, "backward", name, grads[name], context)))
            payloads[end.edge] = encode_tensors(items)
        self.discard(work)
        return payloads

    def decode_backward(self, work: Work, payloads: Mapping[str, bytes], progress: float) -> dict[str, Array]:
        """One gradient a tensor that was sent, as far as they came, summed over the edges. Encoders learn once all of them are sound.

        The step's outputs are let go. Raises CodecError, with nothing learned.
        """
        step = self._step(work)
        sent, step.sent = step.sent, {}
        if not step.received:
            self.discard(work)
        arrived: list[tuple[str, str, Array]] = []
        for edge, payload in payloads.items():
            tensors = sent.get(edge, {})

            def decode(header: Header, data: memoryview, edge: str = edge, tensors: Mapping[str, _Sent] = tensors) -> Decoded:
                mine = tensors.get(header.name)
                if mine is None:
                    raise CodecError("a gradient of what was not sent")
                if header.shape != mine.shape or header.dtype != mine.dtype:
                    raise CodecError(
                        f"its gradient arrived as {header.dtype} {list(header.shape)}; sent was {mine.dtype} {list(mine.shape)}"
                    )
                context = self._context(edge, work, "backward", header.name, progress, mine.support)
                return self._decode(edge, "backward", header, data, context)

            arrived += [(edge, name, decoded.array) for name, decoded in decode_tensors(payload, decode).items()]
        sums: dict[str, Array] = {}
        for edge, name, grad in arrived:
            mine = sent[edge][name]
            if mine.kept is not None:
                coder = self._coders[edge, self._lane_name(work.lane), "forward", name]
                grad = coder.encoder.learn(mine.kept, grad.astype(np.float32, copy=False), mine.context)
            sums[name] = np.add(sums[name], grad) if name in sums else grad
        return sums

    def discard(self, work: Work) -> None:
        """Nothing more will come of this step on this segment."""
        self._steps.pop((work.segment, work.lane, work.global_step), None)

    # ------------------------------------------------------------ state

    def state(self, segments: Collection[str] | None = None) -> dict[str, Array]:
        """The state of all encoders, or of those on these segments, as one table of tensors."""
        return {f"{prefix}{name}": value for prefix, coder in self._chosen(segments) for name, value in coder.encoder.state().items()}

    def load_state(self, state: Mapping[str, Array], segments: Collection[str] | None = None, *, surplus: bool = False) -> None:
        """Take up a ``state()`` and forget all steps in flight. ``surplus``: other tensors may stand beside ours.

        Raises CheckpointError for missing, surplus or misshapen tensors, before anything is changed.
        """
        wanted = self.state(segments)
        unknown = set() if surplus else set(state) - set(wanted)
        for name in sorted(set(wanted) - set(state)) + sorted(unknown):
            raise CheckpointError(f"the codec state {'has a surplus' if name in unknown else 'lacks'} `{name}`; it is of another run")
        for name, mine in wanted.items():
            if state[name].dtype != mine.dtype or state[name].shape != mine.shape:
                raise CheckpointError(
                    f"`{name}` of the codec state is {state[name].dtype} {list(state[name].shape)}, not {mine.dtype} {list(mine.shape)}"
                )
        for prefix, coder in self._chosen(segments):
            own = {name: np.array(state[prefix + name]) for name in coder.encoder.state()}
            try:
                coder.encoder.load_state(own)
            except ValueError as exc:
                raise CheckpointError(f"the codec state of {prefix[:-1]} cannot be taken up: {exc}") from exc
        self._steps.clear()

    def _chosen(self, segments: Collection[str] | None) -> Iterator[tuple[str, _Coder]]:
        for key, coder in self._coders.items():
            if segments is None or coder.segment in segments:
                yield "|".join(key) + "|", coder

    # ------------------------------------------------------------ small things

    def _step(self, work: Work) -> _Step:
        return self._steps.setdefault((work.segment, work.lane, work.global_step), _Step())

    def _context(
        self, edge: str, work: Work, direction: Direction, tensor: str, progress: float, support: Support | None = None
    ) -> Context:
        return Context(
            seed=self._run.seed,
            scope=(edge, direction, work.lane, work.global_step, tensor),
            train=work.mode is Mode.TRAIN,
            progress=progress,
            support=support,
        )

    def _encode(self, edge: str, work: Work, direction: Direction, name: str, array: Array, context: Context) -> Encoded:
        if array.dtype != np.float32:
            return encode_lossless(array)
        coder = self._coders[edge, self._lane_name(work.lane), direction, name]
        try:
            return encode_array(coder.codec, coder.encoder, array, context)
        except CodecError as exc:
            raise CodecError(f"`{name}`: {exc}") from exc

    def _decode(self, edge: str, direction: Direction, header: Header, data: memoryview, context: Context) -> Decoded:
        marks = direction == "forward" and self._codec(edge, direction).marks_support
        return decode_array(header.codec, data, header.dtype, header.shape, context, marks_support=marks)
