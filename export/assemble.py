"""Puts the trained segments together again: one PyTorch state and one ONNX file.

Runs where the server ran: at the end of a run whose file has ``weights_leave = true``, the server was given the clients' weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from export.autoencoder import SEGMENT
from export.built import BuiltGraph
from export.declared import as_tuple
from export.graphs import build_inference
from export.prepare import build_model, build_segments, input_shapes
from export.trace import trace_inference
from wire.engine import Array
from wire.errors import CheckpointError, ExportError, UsageError
from wire.runfile import Run, load_run
from wire.store import collected_path, load_state, newest_checkpoint, write_atomically

__all__ = ["assemble", "assembled_state"]


def assemble(run_file: str | Path, *, out: str | Path) -> None:
    """Write ``model.safetensors`` (the model's own state dict) and ``model.onnx`` (inference, any batch size) into the folder ``out``.

    With independent clients, whose bottoms differ, there is a folder a client in ``out``. The ONNX file is compared with PyTorch before it
    is written. Raises UsageError where weights may not leave, CheckpointError where the run has not ended here, ExportError.
    """
    run = load_run(run_file)
    _check_may_leave(run)
    lanes = list(range(run.lanes)) if run.schedule == "independent" else [run.lanes - 1]
    for lane in lanes:
        folder = Path(out) if len(lanes) == 1 else Path(out) / run.lane_names[lane]
        state = assembled_state(run, lane)
        model = build_model(run)
        model.load_state_dict(state)
        write_atomically(folder / "model.safetensors", dump_tensors({name: value.contiguous() for name, value in state.items()}))
        write_atomically(folder / "model.onnx", _onnx(run, model.eval()).SerializeToString())
        print(f"{folder}: model.safetensors, model.onnx")


def assembled_state(run: Run, lane: int) -> dict[str, Tensor]:
    """The state dict of the whole network as one lane's clients and the server left it. Raises CheckpointError.

    What no segment holds, a layer that never runs, is as it was built.
    """
    held: dict[str, Mapping[str, Array]] = {}
    for party in run.all_servers:
        held |= newest_checkpoint(run.state_of(party.name))
    server = run.state_of(run.graph().root())
    for name in run.client_segments:
        path = collected_path(server, lane, name)
        if not path.is_file():
            raise CheckpointError(f"{path} is not there: the server was not given the weights of `{name}`; train the run again")
        held[name] = load_state(path.read_bytes(), where=str(path))
    state: dict[str, Tensor] = dict(build_model(run).state_dict())
    for name, segment in build_segments(run).items():
        mine = {key[2:]: torch.from_numpy(np.array(value)) for key, value in held[name].items() if key.startswith(("p.", "b."))}
        if name == run.reconstructed:
            mine = {key.removeprefix(f"{SEGMENT}."): value for key, value in mine.items() if key.startswith(f"{SEGMENT}.")}
        wanted = set((segment.module.get_submodule(SEGMENT) if name == run.reconstructed else segment.module).state_dict())
        if not wanted <= set(mine):
            raise CheckpointError(f"the checkpoint of `{name}` lacks `{min(wanted - set(mine))}`; it is of another network")
        prefix = "" if run.model is not None else f"{name}."
        state |= {prefix + key: mine[key] for key in wanted}
    return state


def _check_may_leave(run: Run) -> None:
    if not run.weights_leave and run.client_segments:
        raise UsageError("this run keeps the clients' weights on their devices; assemble needs `weights_leave = true` before training")


def _onnx(run: Run, model: nn.Module) -> onnx.ModelProto:
    shapes = input_shapes(run)
    names = ("x",) if len(shapes) == 1 else tuple(f"x{at}" for at in range(len(shapes)))
    examples = {name: torch.zeros(2, *shape) for name, shape in zip(names, shapes, strict=True)}
    outputs = _output_names(model, list(examples.values()))
    found = _with_weights(build_inference(trace_inference(model, examples, outputs)), model)
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.randn((3, *value.shape[1:]), generator=generator) for name, value in examples.items()}
    session = ort.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = as_tuple(model(*inputs.values()))
    given = session.run(list(outputs), {name: value.numpy() for name, value in inputs.items()})
    for mine, theirs in zip(given, wanted, strict=True):
        if not np.abs(mine - theirs.numpy()).max() <= 1e-5 + 2e-4 * np.abs(theirs.numpy()).max():
            raise ExportError("the ONNX file gives other outputs than PyTorch; nothing was written, please report it")
    return found


def _output_names(model: nn.Module, examples: list[Tensor]) -> tuple[str, ...]:
    with torch.no_grad():
        count = len(as_tuple(model(*examples)))
    return ("y",) if count == 1 else tuple(f"y{at}" for at in range(count))


def _with_weights(graph: BuiltGraph, model: nn.Module) -> onnx.ModelProto:
    """Parameters and buffers as initializers; inputs and outputs under their plain names."""
    found = onnx.ModelProto()
    found.CopyFrom(graph.model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for value in list(found.graph.input):
        if value.name.startswith(("p.", "b.")):
            found.graph.input.remove(value)
            array = tensors[value.name[2:]].detach().contiguous().numpy()
            found.graph.initializer.append(numpy_helper.from_array(array, value.name))
    names = {value.name: value.name.partition(".")[2] for value in (*found.graph.input, *found.graph.output)}
    for each in (*found.graph.input, *found.graph.output):
        each.name = names.get(each.name, each.name)
    for node in found.graph.node:
        for row in (node.input, node.output):
            for at, name in enumerate(row):
                row[at] = names.get(name, name)
    onnx.checker.check_model(found)
    return found
