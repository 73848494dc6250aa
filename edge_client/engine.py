"""The engine that trains a bundle on stock onnxruntime: ordinary ONNX graphs for forward, backward, optimizer and inference.

Parameters live as OrtValues over numpy memory; an update writes the next version into spare memory and swaps. Residuals stay in
onnxruntime's own memory between forward and backward.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edge_client.bundle import Bundle, read_bundle
from edge_client.tensors import Tensor, TensorSet, Versions, tensor
from wire.engine import Array
from wire.errors import BundleError, CheckpointError, UsageError
from wire.manifest import BATCH, BundleManifest, TensorSpec
from wire.rng import keep_mask

__all__ = ["StockEngine", "load_engine"]

_ENGINES = ("auto", "stock")


def load_engine(
    bundle: str | Path, *, engine: str = "auto", threads: int | None = None, clip_norm: float | None = None, seed: int = 0
) -> StockEngine:
    """Open a device bundle for training and inference.

    ``engine``: "stock" is stock onnxruntime; "auto" takes the best that is installed. ``threads`` None: one a core. ``clip_norm``: the
    norm that this segment's gradient is clipped to, as ``torch.nn.utils.clip_grad_norm_`` does. ``seed``: the run's; dropout masks are a
    function of it, of the segment's name and of the step. Raises BundleError for a bundle that is damaged, newer, or holds a graph that
    this onnxruntime cannot run; UsageError for an engine that does not exist.
    """
    if engine not in _ENGINES:
        raise UsageError(f"`engine` is {engine!r}; it must be one of {', '.join(_ENGINES)}")
    return StockEngine(read_bundle(bundle), threads=threads, clip_norm=clip_norm, seed=seed)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """What a forward leaves for its backward: everything that the forward saw and the residuals that it made."""

    number: int
    seen: dict[str, ort.OrtValue]
    residuals: dict[str, ort.OrtValue]
    batch: int
    parameters: TensorSet
    buffers: TensorSet


class StockEngine:
    """Implements ``wire.engine.Engine``. Not thread-safe."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, clip_norm: float | None = None, seed: int = 0) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._options = _session_options(threads)
        self._forward = _Graph(bundle, "forward", self._options)
        self._backward = _Graph(bundle, "backward", self._options)
        self._optimizer = _Graph(bundle, "optimizer", self._options)
        self._infer: _Graph | None = None
        self._clip_norm = clip_norm
        self._seed = seed
        trained = [spec.name for spec in manifest.parameters if spec.gradient]
        named = {f"p.{spec.name}": bundle.tensors[spec.name] for spec in manifest.parameters}
        self._frozen = {key: tensor(np.array(value)) for key, value in named.items() if key[2:] not in trained}
        self._parameters = Versions({key: value for key, value in named.items() if key[2:] in trained})
        self._buffers = Versions({f"b.{spec.name}": bundle.tensors[spec.name] for spec in manifest.buffers})
        self._slots = Versions(_zero_state(manifest, trained, bundle.tensors))
        self._gradients = {f"gp.{name}": tensor(np.empty_like(bundle.tensors[name])) for name in trained}
        self._in_flight: dict[int, _InFlight] = {}
        self._forwards = 0
        del bundle  # the initial tensors are copied; nothing else of them is needed
        self._bundle = Bundle(folder=self._bundle.folder, manifest=manifest, tensors={})

    @property
    def manifest(self) -> BundleManifest:
        return self._bundle.manifest

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.outputs

    # ------------------------------------------------------------ a step

    def forward(self, step: int, *inputs: Array) -> tuple[Array, ...]:
        """See ``Engine.forward``. Raises ValueError where the arrays do not fit the manifest."""
        if step in self._in_flight:
            raise ValueError(f"step {step} is in flight already")
        seen, batch = self._checked_inputs(inputs)
        parameters, buffers = self._parameters.hold(), self._buffers.hold()
        feed = seen | _values(parameters) | _values(buffers) | _values(self._frozen) | self._masks(step, batch)
        outputs = {f"out.{spec.name}": _empty(spec, batch) for spec in self.outputs}
        new = self._buffers.spare()
        given = outputs | {f"{key}.new": one for key, one in new.items()}
        residuals = self._forward.run(feed, given)
        if new:
            self._buffers.advance(new)
        self._forwards += 1
        kept = {key: value for key, value in feed.items() if key in self._backward.reads}
        self._in_flight[step] = _InFlight(self._forwards, kept, residuals, batch, parameters, buffers)
        return tuple(one.array for one in outputs.values())

    def backward(self, step: int, *grads: Array | None, lr: float | None = None) -> tuple[Array | None, ...]:
        """See ``Engine.backward``. Raises KeyError for a step that is not in flight, ValueError where a gradient does not fit."""
        kept = self._in_flight[step]
        feed = kept.seen | kept.residuals
        if self.manifest.loss is None:
            feed |= self._checked_gradients(grads, kept.batch)
        wanted = {f"gin.{spec.name}": _empty(spec, kept.batch) for spec in self.inputs if spec.gradient}
        self._backward.run(feed, wanted | self._gradients)
        fault = self._not_finite(wanted)
        if fault is not None:
            self.discard(step)
            raise FloatingPointError(f"the gradient of `{fault}` is not finite")
        self._clip()
        self._update(self.manifest.optimizer.lr if lr is None else lr)
        self._release(step)
        return tuple(wanted[f"gin.{spec.name}"].array if spec.gradient else None for spec in self.inputs)

    def discard(self, step: int) -> None:
        """See ``Engine.discard``."""
        kept = self._in_flight.get(step)
        if kept is None:
            return
        if kept.number == self._forwards and kept.buffers:
            self._buffers.advance(kept.buffers)
        self._release(step)

    def infer(self, *inputs: Array) -> tuple[Array, ...]:
        """See ``Engine.infer``; a segment with a loss takes no target here."""
        if self._infer is None:
            self._infer = _Graph(self._bundle, "infer", self._options)
        feed = {f"in.{spec.name}": tensor(array).value for spec, array in zip(self.inputs, inputs, strict=False)}
        feed |= _values(self._parameters.current) | _values(self._buffers.current) | _values(self._frozen)
        found = self._infer.run(feed, {})
        return tuple(np.array(value.numpy()) for value in found.values())

    def _masks(self, step: int, batch: int) -> dict[str, ort.OrtValue]:
        """Dropout masks of a step, a byte an element; those that its backward reads stay with it."""
        segment = self.manifest.segment
        return {
            spec.name: tensor(keep_mask(self._seed, segment, step, spec.number, spec.shape_at(batch), spec.keep)).value
            for spec in self.manifest.masks
        }

    def _update(self, lr: float) -> None:
        rate = tensor(np.array(lr, np.float32))
        feed = {"lr": rate.value} | _values(self._parameters.current) | _values(self._slots.current) | _values(self._gradients)
        parameters, slots = self._parameters.spare(), self._slots.spare()
        self._optimizer.run(feed, {f"{key}.new": one for key, one in (parameters | slots).items()})
        self._parameters.advance(parameters)
        self._slots.advance(slots)

    def _clip(self) -> None:
        if self._clip_norm is None or not self._gradients:
            return
        flat = [one.array.astype(np.float32, copy=False).ravel() for one in self._gradients.values()]
        scale = self._clip_norm / (math.sqrt(sum(float(part @ part) for part in flat)) + 1e-6)
        if scale < 1:
            for part in flat:
                part *= np.float32(scale)  # a view of the gradient

    def _not_finite(self, wanted: TensorSet) -> str | None:
        for name, one in (wanted | self._gradients).items():
            if not np.isfinite(one.array).all():
                return name.partition(".")[2]
        return None

    def _release(self, step: int) -> None:
        kept = self._in_flight.pop(step)
        self._parameters.release(kept.parameters)
        self._buffers.release(kept.buffers)

    # ------------------------------------------------------------ state

    def parameters(self) -> dict[str, Array]:
        """See ``Engine.parameters``."""
        found = self._parameters.copies() | self._buffers.copies() | {key: np.array(one.array) for key, one in self._frozen.items()}
        return {key[2:]: value for key, value in found.items()}

    def state(self) -> dict[str, Array]:
        """See ``Engine.state``. Raises RuntimeError with steps in flight."""
        if self._in_flight:
            raise RuntimeError(f"steps {sorted(self._in_flight)} are in flight; a state is taken between steps")
        frozen = {key: np.array(one.array) for key, one in self._frozen.items()}
        return self._parameters.copies() | frozen | self._buffers.copies() | self._slots.copies()

    def load_state(self, state: Mapping[str, Array]) -> None:
        """See ``Engine.load_state``."""
        mine = self._parameters.current | self._frozen | self._buffers.current | self._slots.current
        for name in sorted(set(mine) ^ set(state)):
            fault = "missing from" if name in mine else "surplus in"
            raise CheckpointError(f"`{name}` is {fault} the state of segment {self.manifest.segment}; it is of another network")
        for name, one in mine.items():
            if one.array.shape != state[name].shape or one.array.dtype != state[name].dtype:
                raise CheckpointError(
                    f"`{name}` of segment {self.manifest.segment} is {one.array.dtype} {list(one.array.shape)}, "
                    f"the state has {state[name].dtype} {list(state[name].shape)}; it is of another network"
                )
        for step in list(self._in_flight):
            self._release(step)
        for versions in (self._parameters, self._buffers, self._slots):
            versions.load(state)
        for name, one in self._frozen.items():
            one.array[...] = state[name]

    # ------------------------------------------------------------ checks

    def _checked_inputs(self, inputs: tuple[Array, ...]) -> tuple[dict[str, ort.OrtValue], int]:
        if len(inputs) != len(self.inputs):
            raise ValueError(f"segment {self.manifest.segment} takes {len(self.inputs)} inputs, got {len(inputs)}")
        batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
        for spec, array in zip(self.inputs, inputs, strict=True):
            _check(spec, array, batch)
        return {f"in.{spec.name}": tensor(array).value for spec, array in zip(self.inputs, inputs, strict=True)}, batch

    def _checked_gradients(self, grads: tuple[Array | None, ...], batch: int) -> dict[str, ort.OrtValue]:
        if len(grads) != len(self.outputs):
            raise ValueError(f"segment {self.manifest.segment} has {len(self.outputs)} outputs, got {len(grads)} gradients")
        found: dict[str, ort.OrtValue] = {}
        for spec, grad in zip(self.outputs, grads, strict=True):
            array = np.zeros(_shape(spec, batch), spec.dtype) if grad is None else grad
            _check(spec, array, batch)
            found[f"g.{spec.name}"] = tensor(array).value
        return found


class _Graph:
    """One session. ``run`` writes into the tensors that are given and returns the other outputs, in onnxruntime's memory."""

    def __init__(self, bundle: Bundle, name: str, options: ort.SessionOptions) -> None:
        entry = bundle.manifest.graphs[name]
        self.reads = frozenset(entry.inputs)
        self._inputs, self._outputs = entry.inputs, entry.outputs
        self._session: ort.InferenceSession | None = None
        if not entry.outputs:
            return  # a segment without parameters has nothing to update
        try:
            self._session = ort.InferenceSession(bundle.graph(name), options, providers=["CPUExecutionProvider"])
        except (RuntimeError, ValueError) as exc:
            reason, path = str(exc).splitlines()[0][:300], bundle.folder / entry.file
            raise BundleError(f"onnxruntime {ort.__version__} cannot run {path}: {reason}; update onnxruntime") from exc

    def run(self, feed: Mapping[str, ort.OrtValue], given: TensorSet) -> dict[str, ort.OrtValue]:
        if self._session is None:
            return {}
        binding = self._session.io_binding()
        for name in self._inputs:
            binding.bind_ortvalue_input(name, feed[name])
        for name in self._outputs:
            if name in given:
                binding.bind_ortvalue_output(name, given[name].value)
            else:
                binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        found = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        return {name: value for name, value in found.items() if name not in given}


def _session_options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    # A client spends its time waiting for the peer; threads that spin meanwhile would take the cores from everybody else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Planning memory by pattern keeps a block for each batch size and graph; without it, an arena is both faster and smaller than malloc.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options


def _zero_state(manifest: BundleManifest, trained: Iterable[str], tensors: Mapping[str, Array]) -> dict[str, Array]:
    state: dict[str, Array] = {f"s.{slot}.{name}": np.zeros_like(tensors[name]) for slot in manifest.slots for name in trained}
    if manifest.counts_steps:
        state["s.step"] = np.zeros((), np.int64)
    return state


def _values(tensors: Mapping[str, Tensor]) -> dict[str, ort.OrtValue]:
    return {name: one.value for name, one in tensors.items()}


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return tuple(batch if dim == BATCH else int(dim) for dim in spec.shape)


def _empty(spec: TensorSpec, batch: int) -> Tensor:
    return tensor(np.empty(_shape(spec, batch), spec.dtype))


def _check(spec: TensorSpec, array: Array, batch: int) -> None:
    if array.dtype != spec.dtype or array.shape != _shape(spec, batch):
        raise ValueError(f"`{spec.name}` is {array.dtype} {list(array.shape)}; expected {spec.dtype} {list(_shape(spec, batch))}")
