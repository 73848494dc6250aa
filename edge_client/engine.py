"""The engine that trains a bundle on stock onnxruntime: ordinary ONNX graphs for forward, backward, optimizer and inference.

Parameters, optimizer state and residuals stay in onnxruntime's own memory from one run to the next; numpy arrays are views of it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime as ort

from edge_client.bundle import Bundle, read_bundle
from edge_client.gradients import Accumulated, Tensors, clip, not_finite
from wire.engine import Array
from wire.errors import BundleError, CheckpointError, UsageError
from wire.manifest import BundleManifest, MemoryMode, TensorSpec
from wire.rng import keep_mask

__all__ = ["Graph", "StockEngine", "load_engine"]

_ENGINES = ("auto", "stock", "ort-training")


def load_engine(
    bundle: str | Path,
    *,
    engine: str = "auto",
    threads: int | None = None,
    clip_norm: float | None = None,
    memory: MemoryMode = "fast",
    accumulate: int = 1,
    seed: int = 0,
    beside: StockEngine | None = None,
) -> StockEngine:
    """Open a device bundle for training and inference.

    ``engine``: "stock" is stock onnxruntime, and what "auto" takes; "ort-training" is onnxruntime-training 1.19.2. ``threads`` None: one a
    core. ``clip_norm``: the norm that this segment's gradient is clipped to, as ``torch.nn.utils.clip_grad_norm_`` does. ``memory``: "low"
    keeps nothing between forward and backward, which computes the forward again. ``accumulate``: parameters are updated by every so many
    backwards, with the mean of their gradients. ``seed``: the run's; dropout masks are a function of it, of the segment's name and of the
    step. ``beside``: an engine of the same bundle and options in this process, whose sessions are to serve this one as well.

    Raises BundleError for a bundle that is damaged, newer, lacks the engine's artifacts, or holds a graph that this onnxruntime cannot run;
    UsageError for an engine that does not exist or is not installed.
    """
    if engine not in _ENGINES:
        raise UsageError(f"`engine` is {engine!r}; it must be one of {', '.join(_ENGINES)}")
    if memory not in get_args(MemoryMode):
        raise UsageError(f"`memory` is {memory!r}; it must be one of {', '.join(get_args(MemoryMode))}")
    if accumulate < 1 or not (clip_norm is None or clip_norm > 0):
        raise UsageError(f"`accumulate` is {accumulate} and `clip_norm` {clip_norm}; they must be 1 or more, and above 0 or None")
    made = StockEngine
    if engine == "ort-training":
        from edge_client.ort_training_engine import OrtTrainingEngine

        made = OrtTrainingEngine
    options = {"threads": threads, "clip_norm": clip_norm, "memory": memory, "accumulate": accumulate, "seed": seed}
    return made(read_bundle(bundle), **options, beside=beside)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _InFlight:
    """What a forward leaves for its backward: what the backward reads of what the forward saw, and the residuals that it made."""

    number: int
    feed: Tensors
    batch: int
    parameters: Tensors
    buffers: Tensors


class StockEngine:
    """Implements ``wire.engine.Engine``. Not thread-safe.

    A backward is one run of the graph ``step``, which differentiates and updates. Where a gradient is needed by itself (clipping,
    accumulation), or other parameters have to be updated than the forward saw (several steps in flight), it is ``backward`` and then
    ``optimizer``. Parameters, buffers and optimizer state are never written to: an update is a new set, in the memory that onnxruntime
    wrote it to, and a step in flight goes on holding the set that its forward has seen.
    """

    _one_graph_a_step = True

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        clip_norm: float | None = None,
        memory: MemoryMode = "fast",
        accumulate: int = 1,
        seed: int = 0,
        beside: StockEngine | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._options = _session_options(threads, one_arena=memory == "low")
        self._low = "_low" if memory == "low" else ""
        self._graphs: dict[str, Graph] = {} if beside is None else beside._graphs  # a session keeps nothing from one run to the next
        self._clip_norm = clip_norm
        self._seed = seed
        self._halves = not self._one_graph_a_step or clip_norm is not None or accumulate > 1
        for name in ("forward", *(("backward", "optimizer") if self._halves else ("step",))):
            self._graph(name)
        trained = [spec.name for spec in manifest.parameters if spec.gradient]
        named = {f"p.{spec.name}": np.array(bundle.tensors[spec.name]) for spec in manifest.parameters}
        self._frozen = {key: value for key, value in named.items() if key[2:] not in trained}
        self._parameters = {key: value for key, value in named.items() if key[2:] in trained}
        self._buffers: Tensors = {f"b.{spec.name}": np.array(bundle.tensors[spec.name]) for spec in manifest.buffers}
        self._slots = _zero_state(manifest, trained, bundle.tensors)
        self._accumulated = Accumulated({name: bundle.tensors[name] for name in trained}, every=accumulate)
        self._in_flight: dict[int, _InFlight] = {}
        self._forwards = 0
        self._fault: str | None = None
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
        feed = seen | self._parameters | self._buffers | self._frozen | self._masks(step, batch)
        found = self._graph("forward").run(feed)
        outputs = tuple(found.pop(f"out.{spec.name}") for spec in self.outputs)
        reads = self._graph("backward" if self._halves else "step").reads
        kept = {key: value for key, value in (feed | found).items() if key in reads}
        self._forwards += 1
        self._in_flight[step] = _InFlight(self._forwards, kept, batch, self._parameters, self._buffers)
        if self._buffers:
            self._buffers = _renewed(self._buffers, found)
        return outputs

    def backward(self, step: int, *grads: Array | None, lr: float | None = None) -> tuple[Array | None, ...]:
        """See ``Engine.backward``. Raises KeyError for a step that is not in flight, ValueError where a gradient does not fit."""
        kept = self._in_flight[step]
        feed = dict(kept.feed)
        if self.manifest.loss is None:
            feed |= self._checked_gradients(grads, kept.batch)
        rate = np.array(self.manifest.optimizer.lr if lr is None else lr, np.float32)
        halves = self._halves or kept.parameters is not self._parameters
        found = self._differentiate(feed, rate) if halves else self._take_step(feed, rate)
        if found is None:
            self.discard(step)
            raise FloatingPointError(f"the gradient of `{self._fault}` is not finite")
        del self._in_flight[step]
        return tuple(found[f"gin.{spec.name}"] if spec.gradient else None for spec in self.inputs)

    def discard(self, step: int) -> None:
        """See ``Engine.discard``."""
        kept = self._in_flight.pop(step, None)
        if kept is not None and kept.number == self._forwards:
            self._buffers = kept.buffers

    def infer(self, *inputs: Array) -> tuple[Array, ...]:
        """See ``Engine.infer``; a segment with a loss takes no target here."""
        feed = {f"in.{spec.name}": array for spec, array in zip(self.inputs, inputs, strict=False)}
        return tuple(self._graph("infer").run(feed | self._parameters | self._buffers | self._frozen).values())

    def _masks(self, step: int, batch: int) -> Tensors:
        """Dropout masks of a step, a byte an element; those that its backward reads stay with it."""
        segment = self.manifest.segment
        return {
            spec.name: keep_mask(self._seed, segment, step, spec.number, spec.shape_at(batch), spec.keep) for spec in self.manifest.masks
        }

    def _graph(self, name: str) -> Graph:
        """A graph of the bundle; its session is made when it is first asked for."""
        if name not in self._graphs:
            self._graphs[name] = self._open(name)
        return self._graphs[name]

    def _open(self, name: str) -> Graph:
        """In the memory mode's form."""
        return Graph(self._bundle, name + (self._low if name in ("forward", "backward", "step") else ""), self._options)

    def _take_step(self, feed: Tensors, rate: Array) -> Tensors | None:
        """Differentiate and update in one; None, with nothing updated, where ``_fault`` names what is not finite."""
        found = self._graph("step").run(feed | {"lr": rate} | self._parameters | self._slots)
        self._fault = not_finite(found, ("gin.", "p."))
        if self._fault is None:
            self._parameters, self._slots = _renewed(self._parameters, found), _renewed(self._slots, found)
        return found if self._fault is None else None

    def _differentiate(self, feed: Tensors, rate: Array) -> Tensors | None:
        """Differentiate, and update where it is time to; None, with nothing updated, where ``_fault`` names what is not finite."""
        found = self._graph("backward").run(feed)
        self._fault = not_finite(found, ("gin.", "gp."))
        if self._fault is not None:
            return None
        gradients = {key: value for key, value in found.items() if key.startswith("gp.")}
        sums, due = self._accumulated.added(gradients)
        self._fault = not_finite(sums, ("a.",))
        if self._fault is None and due:
            clip(gradients, self._clip_norm)
            new = self._graph("optimizer").run(gradients | {"lr": rate} | self._parameters | self._slots)
            self._fault = not_finite(new, ("p.",))
            if self._fault is None:
                self._parameters, self._slots = _renewed(self._parameters, new), _renewed(self._slots, new)
        if self._fault is not None:
            return None
        self._accumulated.sums = sums
        return found

    # ------------------------------------------------------------ state

    def parameters(self) -> dict[str, Array]:
        """See ``Engine.parameters``."""
        return {key[2:]: np.array(value) for key, value in (self._parameters | self._buffers | self._frozen).items()}

    def state(self) -> dict[str, Array]:
        """See ``Engine.state``. Raises RuntimeError with steps in flight."""
        if self._in_flight:
            raise RuntimeError(f"steps {sorted(self._in_flight)} are in flight; a state is taken between steps")
        return {key: np.array(value) for key, value in self._tensors().items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """See ``Engine.load_state``."""
        mine = self._tensors()
        for name in sorted(set(mine) ^ set(state)):
            fault = "missing from" if name in mine else "surplus in"
            raise CheckpointError(f"`{name}` is {fault} the state of segment {self.manifest.segment}; it is of another network")
        for name, one in mine.items():
            if one.shape != state[name].shape or one.dtype != state[name].dtype:
                raise CheckpointError(
                    f"`{name}` of segment {self.manifest.segment} is {one.dtype} {list(one.shape)}, "
                    f"the state has {state[name].dtype} {list(state[name].shape)}; it is of another network"
                )
        self._in_flight.clear()
        groups = (self._parameters, self._buffers, self._slots, self._frozen, self._accumulated.sums)
        fresh = [{name: np.array(state[name]) for name in group} for group in groups]
        self._parameters, self._buffers, self._slots, self._frozen, self._accumulated.sums = fresh

    def _tensors(self) -> Tensors:
        return self._parameters | self._frozen | self._buffers | self._slots | self._accumulated.sums

    # ------------------------------------------------------------ checks

    def _checked_inputs(self, inputs: tuple[Array, ...]) -> tuple[Tensors, int]:
        if len(inputs) != len(self.inputs):
            raise ValueError(f"segment {self.manifest.segment} takes {len(self.inputs)} inputs, got {len(inputs)}")
        batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
        for spec, array in zip(self.inputs, inputs, strict=True):
            _check(spec, array, batch)
        return {f"in.{spec.name}": array for spec, array in zip(self.inputs, inputs, strict=True)}, batch

    def _checked_gradients(self, grads: tuple[Array | None, ...], batch: int) -> Tensors:
        if len(grads) != len(self.outputs):
            raise ValueError(f"segment {self.manifest.segment} has {len(self.outputs)} outputs, got {len(grads)} gradients")
        found: Tensors = {}
        for spec, grad in zip(self.outputs, grads, strict=True):
            array = np.zeros(spec.shape_at(batch), spec.dtype) if grad is None else grad
            _check(spec, array, batch)
            found[f"g.{spec.name}"] = array
        return found


class Graph:
    """One session."""

    def __init__(self, bundle: Bundle, name: str, options: ort.SessionOptions) -> None:
        entry = bundle.manifest.graphs[name]
        self.reads = frozenset(entry.inputs)
        self._inputs, self._outputs = entry.inputs, list(entry.outputs)
        self._session: ort.InferenceSession | None = None
        if not entry.outputs:
            return  # a segment without parameters has nothing to update
        try:
            self._session = ort.InferenceSession(bundle.graph(name), options, providers=["CPUExecutionProvider"])
        except (RuntimeError, ValueError) as exc:
            reason, path = str(exc).splitlines()[0][:300], bundle.folder / entry.file
            raise BundleError(f"onnxruntime {ort.__version__} cannot run {path}: {reason}; update onnxruntime") from exc

    def run(self, feed: Mapping[str, Array]) -> Tensors:
        """All outputs by name. Neither inputs nor outputs are copied: an array that is returned is onnxruntime's own memory."""
        if self._session is None:
            return {}
        found = self._session.run(self._outputs, {name: feed[name] for name in self._inputs})
        # A tensor without dimensions comes as a number.
        return {name: each if isinstance(each, np.ndarray) else np.asarray(each) for name, each in zip(self._outputs, found, strict=True)}


def _renewed(tensors: Tensors, found: Tensors) -> Tensors:
    """What a graph has made anew of each."""
    return {name: found.get(f"{name}.new", value) for name, value in tensors.items()}


@functools.cache
def _register_arena() -> None:
    """Memory that sessions share: otherwise each keeps what it needed at its peak, forward and backward both."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def _session_options(threads: int | None, *, one_arena: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    # A client spends its time waiting for the peer; threads that spin meanwhile would take the cores from everybody else. While a graph
    # runs they may: its nodes are short.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Planning memory by pattern keeps a block for each batch size and graph; without it, an arena is both faster and smaller than malloc.
    options.enable_mem_pattern = False
    if one_arena:
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 3
    return options


def _zero_state(manifest: BundleManifest, trained: Iterable[str], tensors: Mapping[str, Array]) -> Tensors:
    state: Tensors = {f"s.{slot}.{name}": np.zeros_like(tensors[name]) for slot in manifest.slots for name in trained}
    if manifest.counts_steps:
        state["s.step"] = np.zeros((), np.int64)
    return state


def _check(spec: TensorSpec, array: Array, batch: int) -> None:
    if array.dtype != spec.dtype or array.shape != spec.shape_at(batch):
        raise ValueError(f"`{spec.name}` is {array.dtype} {list(array.shape)}; expected {spec.dtype} {list(spec.shape_at(batch))}")
