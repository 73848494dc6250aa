"""``export_segment``: a torch module becomes a device bundle, or an error that says why it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import onnx
import onnxruntime as ort
import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from export.built import BuiltGraph
from export.bundle import MANIFEST, file_entries, write_folder
from export.graphs import build_inference, build_training
from export.losses import Loss
from export.lowering.context import OPSET
from export.memory import memory_of
from export.ops import Affine, Trace, Value
from export.optimizers import build_optimizer, counts_steps, slots_of
from export.ort_training import Artifacts, build_artifacts
from export.parity import Candidate, check_parity
from export.refusals import check_modules
from export.trace import parameters_reached, trace_inference, trace_training
from wire.errors import ExportError
from wire.manifest import FORMAT, ORT_TRAINING, BundleManifest, EngineName, GraphEntry, MaskSpec, TensorSpec, dump_manifest
from wire.optim import Optimizer

__all__ = ["build_candidate", "export_segment", "manifest_of"]

TARGET = "target"


def export_segment(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    out: str | Path,
    *,
    optimizer: Optimizer,
    loss: Loss | None = None,
    name: str = "segment",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    input_gradients: Sequence[bool] | None = None,
    engines: Sequence[EngineName] = ("stock",),
    ort_training_python: str | Path | None = None,
) -> BundleManifest:
    """Write ``module`` as a device bundle into the folder ``out`` and return its manifest.

    ``example_inputs``: one tensor an input, batch first; with a ``loss`` the target comes last (int64 [N] for ``cross_entropy``, float32
    for ``bce`` and ``mse``). ``input_gradients``: for each input, whether backward returns its gradient; default: no, as for raw data.
    ``engines``: with "ort-training" the bundle gets artifacts of onnxruntime-training 1.19.2 too, made by the interpreter
    ``ort_training_python`` of an environment that has it. The module is left as it was. Nothing is written unless the parity gate holds.

    Raises ExportError: an operation without an ONNX form, a shape that cannot follow the batch size, a result that differs from PyTorch's
    (each with the operation's name); StorageError.
    """
    examples = _named(example_inputs, input_names, loss)
    wanted = _asked(examples, input_gradients)
    check_modules(module)
    _check_dtypes(module, examples, loss)
    with _restored(module):
        candidate = build_candidate(module, examples, output_names, optimizer=optimizer, loss=loss, input_gradients=wanted)
        check_parity(candidate)
        artifacts = _artifacts(candidate, engines, ort_training_python)
    manifest, files = _pack(candidate, name, artifacts)
    write_folder(Path(out), {**files, MANIFEST: dump_manifest(manifest).encode()})
    return manifest


def manifest_of(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    optimizer: Optimizer,
    name: str = "segment",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> BundleManifest:
    """What ``export_segment`` would say of a segment that takes raw data and has no loss; nothing is written, nor compared with PyTorch.

    The module is left as it was. Raises ExportError.
    """
    examples = _named(example_inputs, input_names, None)
    check_modules(module)
    _check_dtypes(module, examples, None)
    with _restored(module):
        candidate = build_candidate(module, examples, output_names, optimizer=optimizer, loss=None, input_gradients=())
    return _pack(candidate, name, None)[0]


def build_candidate(
    module: nn.Module,
    examples: dict[str, Tensor],
    output_names: Sequence[str] | None,
    *,
    optimizer: Optimizer,
    loss: Loss | None,
    input_gradients: Sequence[str],
) -> Candidate:
    """Trace and lower, without comparing or writing anything. Changes the module's training flag. Raises ExportError."""
    data = {key: value for key, value in examples.items() if loss is None or key != TARGET}
    evaluated = _output_names(module.eval(), tuple(data.values()), output_names)
    outputs = ("loss",) if loss is not None else evaluated
    trained = parameters_reached(module, examples, loss=loss)
    trace = trace_training(module, examples, outputs, loss=loss, trained=trained, input_gradients=input_gradients)
    shapes = {name: _shape(value) for name, value in module.named_parameters() if name in trained}
    return Candidate(
        module=module,
        trace=trace,
        training=build_training(trace, optimizer, shapes),
        optimizer_graph=build_optimizer(optimizer, shapes),
        inference_trace=(inference := trace_inference(module, data, evaluated)),
        inference=build_inference(inference),
        optimizer=optimizer,
        loss=loss,
        inputs=examples,
        outputs=outputs,
        trained=tuple(trained),
        input_gradients=tuple(input_gradients),
        min_batch=_min_batch(trace),
    )


def _artifacts(candidate: Candidate, engines: Sequence[EngineName], python: str | Path | None) -> Artifacts | None:
    unknown = [each for each in engines if each not in get_args(EngineName)]
    if unknown or "stock" not in engines:
        raise ExportError(f"`engines` is {', '.join(engines) or 'empty'}; it must be stock, or stock,ort-training")
    if "ort-training" not in engines:
        return None
    if python is None:
        raise ExportError("ort-training needs --ort-training-python, the interpreter of an environment with onnxruntime-training 1.19.2")
    return build_artifacts(candidate, python)


@contextlib.contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Whatever tracing and comparing do, the module and the random numbers are afterwards what they were."""
    flags = {each: each.training for each in module.modules()}
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for each, flag in flags.items():
            each.training = flag
        for name, value in module.named_buffers():
            value.copy_(buffers[name])


def _named(inputs: Sequence[Tensor], names: Sequence[str] | None, loss: Loss | None) -> dict[str, Tensor]:
    if not inputs:
        raise ExportError("a segment without inputs cannot be exported; give `example_inputs`")
    count = len(inputs) - (loss is not None)
    named = list(names) if names is not None else (["x"] if count == 1 else [f"x{at}" for at in range(count)])
    if loss is not None and named[-1:] != [TARGET]:
        named.append(TARGET)
    if len(named) != len(inputs):
        raise ExportError(f"{len(inputs)} example inputs, but {len(named)} names; with a loss the target comes last")
    for name, value in zip(named, inputs, strict=True):
        if value.dim() < 1:
            raise ExportError(f"example input `{name}` has no batch dimension; its first dimension must be the batch")
    return dict(zip(named, inputs, strict=True))


def _asked(examples: dict[str, Tensor], input_gradients: Sequence[bool] | None) -> list[str]:
    """Names of the inputs whose gradient is asked for; nothing need be said of the target."""
    asked = list(input_gradients) if input_gradients is not None else []
    data = [name for name in examples if name != TARGET]
    if input_gradients is not None and len(asked) not in (len(data), len(examples)):
        raise ExportError(f"`input_gradients` has {len(asked)} entries for {len(data)} inputs; give one an input")
    wanted = [name for name, each in zip(examples, asked, strict=False) if each]
    for name in wanted:
        if name == TARGET or not examples[name].dtype.is_floating_point:
            raise ExportError(f"input `{name}` is {examples[name].dtype}, which has no gradient; do not ask for it in `input_gradients`")
    return wanted


def _check_dtypes(module: nn.Module, examples: dict[str, Tensor], loss: Loss | None) -> None:
    if loss is not None and loss not in get_args(Loss):
        raise ExportError(f"the loss {loss!r} is not known; choose one of {', '.join(get_args(Loss))}")
    kinds: dict[str, Tensor] = {f"parameter `{name}`": value for name, value in module.named_parameters()}
    kinds |= {f"buffer `{name}`": value for name, value in module.named_buffers()}
    for name, value in (kinds | {f"input `{name}`": value for name, value in examples.items()}).items():
        if (value.dtype.is_floating_point or value.dtype.is_complex) and value.dtype != torch.float32:
            raise ExportError(f"{name} is {value.dtype}; a device trains in float32: call .float() on it")
    whole = loss == "cross_entropy"
    if loss is not None and examples[TARGET].dtype != (torch.int64 if whole else torch.float32):
        raise ExportError(f"the target of {loss} is {examples[TARGET].dtype}; it must be {'int64' if whole else 'float32'}")


def _output_names(module: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str] | None) -> tuple[str, ...]:
    try:
        with torch.no_grad():
            found = module(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        raise ExportError(f"the segment does not run on the example inputs: {str(exc).splitlines()[0][:300]}") from exc
    found = (found,) if isinstance(found, Tensor) else found
    if not isinstance(found, (tuple, list)) or not all(isinstance(each, Tensor) for each in found):
        raise ExportError("the segment must return a tensor or a tuple of tensors")
    if names is not None and len(names) != len(found):
        raise ExportError(f"the segment returns {len(found)} tensors, but {len(names)} output names were given")
    return tuple(names) if names is not None else (("y",) if len(found) == 1 else tuple(f"y{at}" for at in range(len(found))))


def _min_batch(trace: Trace) -> int:
    """BatchNorm cannot train on one value a channel."""
    for op in trace.ops:
        shape = trace.value(op.args[0]).shape if op.kind == "native_batch_norm" else ()
        if shape[:1] == (Affine(1, 0),) and all(dim == 1 for dim in shape[2:]):
            return 2
    return 1


def _shape(value: Tensor) -> Value:
    return Value(tuple(value.shape), value.dtype)


# ------------------------------------------------------------ the manifest


def _pack(candidate: Candidate, name: str, artifacts: Artifacts | None) -> tuple[BundleManifest, dict[str, bytes]]:
    training = candidate.training
    graphs: dict[str, BuiltGraph | None] = {
        "forward": training.forward,
        "backward": training.backward,
        "step": training.step,
        "forward_low": training.forward_low,
        "backward_low": training.backward_low,
        "step_low": training.step_low,
        "optimizer": candidate.optimizer_graph,
        "infer": candidate.inference,
    }
    files = {f"{key}.onnx": b"" if graph is None else graph.model.SerializeToString() for key, graph in graphs.items()}
    state = dict(candidate.module.named_parameters()) | dict(candidate.module.named_buffers())
    files["parameters.safetensors"] = dump_tensors({key: value.detach().contiguous().clone() for key, value in state.items()})
    entries = {
        key: GraphEntry(file=f"{key}.onnx", inputs=graph.inputs if graph else (), outputs=graph.outputs if graph else ())
        for key, graph in graphs.items()
    }
    if artifacts is not None:
        files |= artifacts.files
        entries[ORT_TRAINING] = artifacts.graph
    known = {found.name: found.value for found in candidate.trace.inputs.values()}
    made = {key: candidate.trace.value(ref) for key, ref in candidate.trace.outputs.items()}
    manifest = BundleManifest(
        format=FORMAT,
        segment=name,
        inputs=tuple(_spec(key, known[f"in.{key}"], gradient=key in candidate.input_gradients) for key in candidate.inputs),
        outputs=tuple(_spec(key, made[f"out.{key}"]) for key in candidate.outputs),
        parameters=tuple(
            _spec(key, _shape(value), gradient=key in candidate.trained) for key, value in candidate.module.named_parameters()
        ),
        buffers=tuple(_spec(key, _shape(value)) for key, value in candidate.module.named_buffers()),
        residuals=tuple(_spec(key, value) for key, value in candidate.training.residuals.items()),
        optimizer=candidate.optimizer,
        slots=slots_of(candidate.optimizer),
        counts_steps=counts_steps(candidate.optimizer),
        min_batch=candidate.min_batch,
        loss=candidate.loss,
        graphs=entries,
        files=file_entries(files),
        opset=OPSET,
        memory=memory_of(candidate),
        masks=_masks(candidate.trace, graphs),
        producer={"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
    )
    return manifest, files


def _masks(trace: Trace, graphs: Mapping[str, BuiltGraph | None]) -> tuple[MaskSpec, ...]:
    """Those that a graph reads."""
    read = {name for graph in graphs.values() if graph is not None for name in graph.inputs}
    shapes = {found.name: found.value.shape for found in trace.inputs.values()}
    return tuple(
        MaskSpec(name=name, shape=tuple(_dim(dim) for dim in shapes[name]), keep=keep) for name, keep in trace.masks.items() if name in read
    )


def _spec(name: str, value: Value, *, gradient: bool = False) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(_dim(dim) for dim in value.shape), gradient=gradient)


def _dim(dim: int | Affine) -> int | str:
    if not isinstance(dim, Affine):
        return dim
    return "batch" if dim == Affine(1, 0) else f"{dim.slope}*batch+{dim.offset}"
