"""The manifest of a device bundle: written by ``export``, read by ``edge_client``.

A bundle is a folder:

    manifest.json            this file's dataclasses as JSON
    parameters.safetensors   initial parameters and buffers, under PyTorch's names
    forward.onnx             training forward
    backward.onnx            gradients
    step.onnx                gradients and one update of every trainable parameter, in one
    forward_low.onnx         the same three for boards with little memory: nothing is kept between forward and backward,
    backward_low.onnx        which computes the forward again
    step_low.onnx
    optimizer.onnx           one update of every trainable parameter
    infer.onnx               evaluation forward (BatchNorm from running statistics, no dropout)

Names of graph inputs and outputs are fixed, so an engine needs no table:

    in.{input}      segment input                      out.{output}    segment output
    p.{name}        parameter                          p.{name}.new    updated parameter
    b.{name}        buffer                             b.{name}.new    buffer after a training forward
    r.{n}           residual: forward output that backward reads
    m.{n}           dropout mask of one step, uint8: 1 keeps an element
    g.{output}      gradient of an output              gin.{input}     gradient of an input
    gp.{name}       gradient of a parameter
    s.{slot}.{name} optimizer state of a parameter     s.{slot}.{name}.new
    s.step          optimizer step count, int64 []     s.step.new
    lr              learning rate, float32 []

    forward    in.* p.* b.* m.*          -> out.* b.*.new r.*
    backward   g.* r.* and, where needed, in.* p.* b.* m.*   -> gin.* gp.*
    step       as backward, lr s.*       -> gin.* p.*.new s.*.new
    optimizer  lr p.* gp.* s.*           -> p.*.new s.*.new       (trainable parameters only)
    infer      in.* p.* b.*              -> out.*

``_low`` graphs read no r.*, but in.* p.* b.* as they were in the forward. ``step`` computes the gradient and updates at the same p.*.

A bundle may hold artifacts of onnxruntime-training 1.19.2 as well: then ``graphs`` has ``ort_training``, the training model, whose inputs
and outputs have that package's names (``ort_training_name``), and ``files`` lists what else its own programming interface reads. A reader
passes over graphs that it does not know, so this is still format 1; a change of what it does know makes another format.

A graph lists only the inputs that it reads. Optimizer slots start as zeros of the parameter's shape; ``s.step`` starts at 0.
A segment that holds its loss has ``loss`` set: its last input is ``target``, its first output ``loss`` is float32 [] (the mean over
the batch), and backward takes no ``g.*``: its seed is 1.

Nothing in a graph draws random numbers. Dropout masks are inputs, drawn by the engine for each training forward as
``wire.rng.keep_mask(seed, segment, step, n, shape, keep)``; its backward gets the same masks. The graph scales what is kept by 1 / keep.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from wire.errors import BundleError
from wire.limits import LIMITS
from wire.optim import Optimizer
from wire.parse import parse, plain

__all__ = [
    "BATCH",
    "FORMAT",
    "GRAPHS",
    "ORT_TRAINING",
    "BundleManifest",
    "EngineName",
    "FileEntry",
    "GraphEntry",
    "MaskSpec",
    "MemoryMode",
    "MemoryUse",
    "TensorSpec",
    "dump_manifest",
    "load_manifest",
    "ort_training_name",
]

FORMAT = 1
BATCH = "batch"  # the one symbolic dimension of a shape
GRAPHS = ("forward", "backward", "step", "forward_low", "backward_low", "step_low", "optimizer", "infer")
MemoryMode = Literal["fast", "low"]
EngineName = Literal["stock", "ort-training"]  # what a bundle can be run with
ORT_TRAINING = "ort_training"  # a graph that a bundle may have or not


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a tensor; a dimension is a number, ``"batch"``, or, of a residual, ``"4*batch+0"``.

    ``gradient`` says, of a segment input: backward returns its gradient; of a parameter: it is trained.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    gradient: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"`{self.name}` has dtype {self.dtype!r}; known: {', '.join(_DTYPES)}")
        if len(self.shape) > LIMITS.tensor_dims:
            raise ValueError(f"`{self.name}` has {len(self.shape)} dimensions; the limit is {LIMITS.tensor_dims}")
        for dim in self.shape:
            _check_dim(self.name, dim)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape may stand for this tensor (any batch size)."""
        return len(shape) == len(self.shape) and all(want in (BATCH, got) for want, got in zip(self.shape, shape, strict=True))

    def shape_at(self, batch: int) -> tuple[int, ...]:
        """The shape for a batch of this size."""
        return tuple(dim if isinstance(dim, int) else _dim_at(dim, batch) for dim in self.shape)

    def bytes_at(self, batch: int) -> int:
        """The memory that the tensor takes for a batch of this size."""
        return math.prod(self.shape_at(batch)) * _DTYPES[self.dtype]


_BATCH_DIM = re.compile(r"(?:([0-9]{1,9})\*)?batch(?:\+(-?[0-9]{1,9}))?")
_DTYPES = {"float32": 4, "float16": 2, "float64": 8, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}  # bytes


def _check_dim(name: str, dim: int | str) -> None:
    if not (isinstance(dim, int) and dim >= 0) and not (isinstance(dim, str) and _BATCH_DIM.fullmatch(dim)):
        raise ValueError(f"`{name}` has the dimension {dim!r}; it must be a whole number or {BATCH!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSpec:
    """A dropout mask ``m.{n}``, uint8; its shape is written as a residual's. ``keep`` is the probability of a 1."""

    name: str
    shape: tuple[int | str, ...]
    keep: float

    def __post_init__(self) -> None:
        if not re.fullmatch(r"m\.[0-9]{1,6}", self.name):
            raise ValueError(f"a mask is called {self.name!r}; it must be m. and a number")
        if not 0 <= self.keep <= 1:
            raise ValueError(f"`{self.name}` keeps {self.keep!r}; it must be between 0 and 1")
        if len(self.shape) > LIMITS.tensor_dims:
            raise ValueError(f"`{self.name}` has {len(self.shape)} dimensions; the limit is {LIMITS.tensor_dims}")
        for dim in self.shape:
            _check_dim(self.name, dim)
        if math.prod(dim for dim in self.shape if isinstance(dim, int)) > LIMITS.tensor_elements:
            raise ValueError(f"`{self.name}` has the shape {list(self.shape)}; the limit is {LIMITS.tensor_elements} elements")

    @property
    def number(self) -> int:
        return int(self.name[2:])

    def shape_at(self, batch: int) -> tuple[int, ...]:
        """The shape for a batch of this size. Raises ValueError where there is none."""
        found = tuple(dim if isinstance(dim, int) else _dim_at(dim, batch) for dim in self.shape)
        if any(dim < 0 for dim in found):
            raise ValueError(f"`{self.name}` has no shape for a batch of {batch}")
        return found


def _dim_at(dim: str, batch: int) -> int:
    match = _BATCH_DIM.fullmatch(dim)
    assert match is not None
    return int(match[1] or 1) * batch + int(match[2] or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of the bundle, by name inside its folder, with its SHA-256 in hex and its size."""

    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEntry:
    """One ONNX graph and the names it reads and gives, in the graph's order."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What tensors take at the most while a step is trained, parameters and optimizer included, as it grows with the batch.

    The runtime itself comes on top: 60 MB for a process with onnxruntime and MQTT.
    """

    fixed_bytes: int
    sample_bytes: int

    def __post_init__(self) -> None:
        if min(self.fixed_bytes, self.sample_bytes) < 0:
            raise ValueError(f"a use of {self.fixed_bytes} + {self.sample_bytes} bytes a sample is below 0")

    def at(self, batch: int) -> int:
        return self.fixed_bytes + self.sample_bytes * batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleManifest:
    """Everything an engine must know about a bundle."""

    format: int
    segment: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: tuple[TensorSpec, ...]
    buffers: tuple[TensorSpec, ...]
    residuals: tuple[TensorSpec, ...]
    optimizer: Optimizer
    slots: tuple[str, ...]  # e.g. ("momentum",) or ("exp_avg", "exp_avg_sq"); empty: none
    counts_steps: bool  # whether the optimizer graph reads and gives s.step
    min_batch: int  # BatchNorm over [N, C] needs two samples
    loss: Literal["cross_entropy", "bce", "mse"] | None
    graphs: dict[str, GraphEntry]
    files: tuple[FileEntry, ...]
    opset: int
    memory: dict[MemoryMode, MemoryUse]  # with residuals kept (fast), or computed again (low)
    masks: tuple[MaskSpec, ...] = ()
    producer: dict[str, str] = field(default_factory=dict)  # versions, for people

    def __post_init__(self) -> None:
        missing = [name for name in GRAPHS if name not in self.graphs]
        if missing:
            raise ValueError(f"graphs {', '.join(missing)} are not listed")
        if set(self.memory) != set(get_args(MemoryMode)):
            raise ValueError(f"memory is stated for {', '.join(self.memory) or 'nothing'}; it must be for fast and low")
        listed = {entry.file for entry in self.files}
        for name, graph in self.graphs.items():
            if graph.file not in listed:
                raise ValueError(f"graph {name} names {graph.file!r}, which `files` does not list")
        if self.min_batch < 1:
            raise ValueError(f"`min_batch` is {self.min_batch}; it must be 1 or more")
        for spec in (*self.inputs, *self.outputs):
            if any(isinstance(dim, str) and (at > 0 or dim != BATCH) for at, dim in enumerate(spec.shape)):
                raise ValueError(f"`{spec.name}` has the shape {list(spec.shape)}; only its first dimension may be the batch")
        self._check_graphs()

    def _check_graphs(self) -> None:
        """Each graph reads and gives names of the list above, of tensors that the manifest has."""
        states = {f"{kind}.{spec.name}" for kind, specs in (("p", self.parameters), ("b", self.buffers)) for spec in specs}
        states |= {f"s.{slot}.{spec.name}" for slot in self.slots for spec in self.parameters} | {"s.step"}
        gradients = {f"gp.{spec.name}" for spec in self.parameters}
        masks = [spec.name for spec in self.masks]
        if len(set(masks)) != len(masks):
            raise ValueError("`masks` has a name twice")
        ends = {f"{kind}.{spec.name}" for kind in ("in", "gin") for spec in self.inputs}
        ends |= {f"{kind}.{spec.name}" for kind in ("out", "g") for spec in self.outputs}
        known = {*states, *gradients, *masks, *ends, *(spec.name for spec in self.residuals), "lr"}
        known |= {f"{name}.new" for name in states}
        for name in GRAPHS:
            graph = self.graphs[name]
            # With a loss, inference gives what the loss is computed from, which has no entry of its own.
            allowed = known | set(graph.outputs) if name == "infer" else known
            for each in (*graph.inputs, *graph.outputs):
                if each not in allowed:
                    raise ValueError(f"graph {name} has {each!r}, which nothing in the manifest stands for")


def ort_training_name(name: str) -> str:
    """A name of the list above as the training model of onnxruntime-training has it.

    Parameters and buffers have PyTorch's names there. A parameter's gradient is written through an *input*, its accumulation buffer; with
    the input ``lazy_reset_grad`` true, a bool [1], it does not matter what that holds before.
    """
    kind, _, rest = name.partition(".")
    if kind in ("p", "b"):
        return rest
    if kind == "gp":
        return f"{rest}_grad.accumulation.buffer"
    return f"in.{rest}_grad" if kind == "gin" else name


def load_manifest(text: str, *, where: str) -> BundleManifest:
    """Parse a manifest; ``where`` is its path, for messages. Raises BundleError, first of all for a newer format."""
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise BundleError(f"{where} is not JSON ({exc}); export the bundle again") from exc
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(found, int):
        raise BundleError(f"{where} has no format number; this is not a Cutlayer bundle")
    if found > FORMAT:
        raise BundleError(f"{where} has format {found}, this client reads up to {FORMAT}; update the client, or export with an older one")
    if found < 1:
        raise BundleError(f"{where} has format {found}, which never was; export the bundle again")
    try:
        return parse(BundleManifest, data, where="", error=BundleError)
    except BundleError as exc:
        raise BundleError(f"{where}: {exc}; export the bundle again") from exc


def dump_manifest(manifest: BundleManifest) -> str:
    """The manifest as JSON text, stable for equal content."""
    return json.dumps(plain(manifest), indent=1, sort_keys=True) + "\n"
