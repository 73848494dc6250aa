"""Averages of weights that lanes have trained at the same time, from one round to the next.

Theory of operation. All lanes begin with the same weights, the *common* ones. After a round each client gives the difference of its
weights to them, the coordinator makes the mean of these differences, weighted by the samples of the round, and everybody adds the mean to
the common weights: those are the new ones. Differences are smaller than weights and suffer less from a codec; and since all add the very
bytes that crossed, all hold the same weights, bit for bit, whatever the codec left out. The optimizer's state stays where it is.

Buffers (BatchNorm's running statistics) are averaged like parameters, and cross without loss: a variance that a codec has made negative
would be no variance. Whole numbers (batches that were counted) are averaged and rounded; buffers of bools and bytes stay as they are.

Arithmetic is in double precision and in the order of the lanes, so that a run that is resumed comes to the same weights.

With "splitfed-v1" the server keeps a copy of its segments for each lane, and averages them too; nothing of that crosses a line.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.codecs import Context, Decoded, decode_array, decode_lossless, encode_array, encode_lossless, parse_codec
from wire.engine import Array, Engine
from wire.errors import CheckpointError, CodecError, CutlayerError
from wire.graph import PartySlice, Slot
from wire.limits import LIMITS
from wire.manifest import TensorSpec
from wire.runfile import Run
from wire.store import weights_of
from wire.tensors import Header, decode_tensors, encode_tensors

__all__ = ["Mean", "Rounds", "Shapes", "added", "decode_difference", "difference", "encode_difference", "engine_names"]

_LENGTH = struct.Struct("<I")
_BETWEEN = "|"  # of a segment's name and a tensor's, in what is saved

Shapes = Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]]


def engine_names(slot: Slot, schedule: str) -> dict[int, str]:
    """The name of the engine that serves each lane of ``slot``: the segment's, but for the copies of the lanes after the first."""
    copies = schedule == "splitfed-v1"
    return {lane: f"{slot.segment}@{lane}" if copies and lane != slot.lanes[0] else slot.segment for lane in slot.lanes}


# ------------------------------------------------------------ arithmetic


def difference(state: Mapping[str, Array], common: Mapping[str, Array]) -> dict[str, Array]:
    """What is to be added to ``common`` to get ``state``, by tensor; those that are the same are left out."""
    changed = [name for name, base in common.items() if base.dtype.kind in "fi" and not np.array_equal(state[name], base)]
    return {name: np.asarray(np.subtract(state[name], common[name])) for name in changed}


def added(common: Mapping[str, Array], mean: Mapping[str, Array]) -> dict[str, Array]:
    """``common`` with a difference added to it; dtypes stay."""
    return {name: np.asarray(np.add(base, mean[name]), base.dtype) if name in mean else base for name, base in common.items()}


class Mean:
    """The weighted mean of tables of tensors; a tensor that a table lacks counts as zeros there. Only numbers with a sign have one."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._total = 0

    def add(self, tensors: Mapping[str, Array], weight: int) -> None:
        self._total += weight
        for name, array in tensors.items():
            if array.dtype.kind not in "fi":
                continue
            term = array.astype(np.float64) * weight
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._dtypes[name] = array.dtype

    def result(self) -> dict[str, Array]:
        """In the dtypes that came; whole numbers are rounded. Raises ValueError where all weights are 0."""
        if not self._total:
            raise ValueError("nothing has a weight, so there is no mean")
        means = {name: total / self._total for name, total in self._sums.items()}
        return {
            name: np.asarray(np.rint(mean) if self._dtypes[name].kind == "i" else mean).astype(self._dtypes[name])
            for name, mean in means.items()
        }


# ------------------------------------------------------------ bytes


def encode_difference(tensors: Mapping[str, Array], codec: str, context: Callable[[str], Context]) -> bytes:
    """A blob: messages of tensors (docs/protocol.md, sections 4 and 6). Raises CodecError for a value that is not finite."""
    chosen, messages = parse_codec(codec), []
    waiting = iter(tensors)
    while names := tuple(islice(waiting, LIMITS.tensors_per_message)):
        items = []
        for name in names:
            array = tensors[name]
            if _has_codec(name, array.dtype):
                spec = TensorSpec(name=name, dtype="float32", shape=array.shape)
                items.append((name, array, encode_array(chosen, chosen.encoder(spec, "forward"), array, context(name))))
            else:
                items.append((name, array, encode_lossless(array)))
        messages.append(encode_tensors(items))
    return b"".join(_LENGTH.pack(len(message)) + message for message in messages)


def decode_difference(data: bytes, shapes: Shapes, context: Callable[[str], Context]) -> dict[str, Array]:
    """The inverse. ``shapes``: of all tensors that may be there. Raises CodecError for anything else."""
    found: dict[str, Array] = {}

    def decode(header: Header, payload: memoryview) -> Decoded:
        if shapes.get(header.name) != (header.dtype, header.shape) or header.name in found:
            raise CodecError(f"it came as {header.dtype} {list(header.shape)}, which is no tensor of the segment, or stands twice")
        if _has_codec(header.name, header.dtype):
            return decode_array(header.codec, payload, header.dtype, header.shape, context(header.name))
        return decode_lossless(header.codec, payload, header.dtype, header.shape)

    for message in _messages(data):
        found |= {name: decoded.array for name, decoded in decode_tensors(message, decode).items()}
    return found


def _has_codec(name: str, dtype: np.dtype[np.generic]) -> bool:
    return name.startswith("p.") and dtype == np.float32


def _messages(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + _LENGTH.size
        length = _LENGTH.unpack_from(data, at)[0] if end <= len(data) else 0
        if end + length > len(data) or not length:
            raise CodecError("the message of weights is cut short")
        yield data[end : end + length]
        at = end + length


# ------------------------------------------------------------ one party's part


class Rounds:
    """What one party does about averages. Not thread-safe.

    ``averaged``, of the coordinator: the dtypes and shapes of all segments that have replicas, by segment and by name as in
    ``Engine.state``; others need none. Names of engines are ``engine_names``'.
    """

    def __init__(self, run: Run, party: PartySlice, engines: Mapping[str, Engine], *, averaged: Mapping[str, Shapes]) -> None:
        self._run = run
        self._engines = engines
        self._averaged = {name: averaged[name] for name in sorted(averaged)}
        active = run.averages and party.lanes > 1
        self._lanes = {slot.segment: slot.lanes[0] for slot in party.slots if active and slot.replicated}
        shared = [slot for slot in party.slots if active and run.schedule == "splitfed-v1" and not slot.replicated]
        self._copies = {slot.segment: engine_names(slot, run.schedule) for slot in shared}
        self._common = {name: weights_of(engines[name]) for name in self._lanes}
        self._means: dict[str, Mean] = {}

    def offer(self, args: Mapping[str, Any]) -> dict[str, bytes]:
        """This party's differences to the common weights, as blobs by ``LANE.SEGMENT``."""
        blobs = {}
        for name, lane in self._lanes.items():
            found = difference(weights_of(self._engines[name]), self._common[name])
            try:
                blobs[f"{lane}.{name}"] = encode_difference(found, self._run.codec.weights, self._context(name, lane, args))
            except CodecError as exc:
                raise CutlayerError(f"the weights of segment `{name}` cannot be averaged: {exc}; lower the learning rate") from exc
        return blobs

    def average(self, args: Mapping[str, Any], blobs: Mapping[str, bytes]) -> dict[str, bytes]:
        """Coordinator: take in what some lanes have offered; after the last of them, the mean difference by segment."""
        samples = {int(lane): int(count) for lane, count in args["samples"].items()}
        if args["first"]:
            self._means = {name: Mean() for name in (*self._averaged, *self._copies)}
        for lane in sorted(samples):
            for name, shapes in self._averaged.items():
                context = self._context(name, lane, args)
                found = _decoded(blobs.get(f"{lane}.{name}"), shapes, context, f"segment `{name}` from lane {lane}")
                self._means[name].add(found, samples[lane])
            for name, names in self._copies.items():
                self._means[name].add(weights_of(self._engines[names[lane]]), samples[lane])
        if not args["last"]:
            return {}
        for name, names in self._copies.items():
            mean = self._means[name].result()
            for copy in names.values():
                self._engines[copy].load_state(self._engines[copy].state() | mean)
        results = {name: self._means[name].result() for name in self._averaged}
        self._means = {}
        return {name: encode_difference(mean, self._run.codec.weights, self._context(name, -1, args)) for name, mean in results.items()}

    def adopt(self, args: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Go on from the common weights with the mean difference added. Raises CutlayerError for what does not fit."""
        for name, common in self._common.items():
            shapes = {key: (value.dtype, value.shape) for key, value in common.items()}
            mean = _decoded(blobs.get(name), shapes, self._context(name, -1, args), f"the mean of segment `{name}`")
            self._common[name] = added(common, mean)
            self._engines[name].load_state(self._engines[name].state() | self._common[name])

    def _context(self, segment: str, lane: int, args: Mapping[str, Any]) -> Callable[[str], Context]:
        """``lane`` -1: the mean."""
        number = int(args["round"])
        return lambda tensor: Context(seed=self._run.seed, scope=("weights", segment, lane, number, tensor), train=True)

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Array]:
        """The common weights, as one table."""
        return {f"{name}{_BETWEEN}{key}": value for name, common in self._common.items() for key, value in common.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Take up a ``state()``, the engines having been restored. Raises CheckpointError for one of another network."""
        self._means = {}
        for name, common in self._common.items():
            mine = {key: state.get(f"{name}{_BETWEEN}{key}") for key in common}
            for key, value in mine.items():
                if value is None or value.dtype != common[key].dtype or value.shape != common[key].shape:
                    raise CheckpointError(f"the checkpoint lacks the common weights `{key}` of segment `{name}`; it is of another run")
            self._common[name] = {key: value for key, value in mine.items() if value is not None}


def _decoded(blob: bytes | None, shapes: Shapes, context: Callable[[str], Context], what: str) -> dict[str, Array]:
    try:
        if blob is None:
            raise CodecError("they did not come")
        return decode_difference(blob, shapes, context)
    except CodecError as exc:
        raise CutlayerError(f"weights of {what} cannot be averaged: {exc}; all ends must run the same version and run file") from exc
