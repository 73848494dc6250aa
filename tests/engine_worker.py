"""Runs engines for another process: messages come on stdin, answers go to stdout. ``python -m tests.engine_worker``

A message is two blocks, each with its length as 8 bytes before it: a JSON object, and arrays as NPZ.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edge_client import StockEngine, load_engine
from wire.engine import Array
from wire.errors import CutlayerError
from wire.parse import plain

__all__ = ["receive", "send"]


def send(file: BinaryIO, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **arrays)
    for block in (json.dumps(head).encode(), archive.getvalue()):
        file.write(len(block).to_bytes(8, "little"))
        file.write(block)
    file.flush()


def receive(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Array]]:
    """Raises EOFError where the other side has gone."""
    head, archive = (_block(file) for _ in range(2))
    with np.load(io.BytesIO(archive)) as arrays:
        return json.loads(head), dict(arrays)


def _block(file: BinaryIO) -> bytes:
    length = file.read(8)
    if len(length) < 8:
        raise EOFError
    return file.read(int.from_bytes(length, "little"))


class _Worker:
    """Engines by number. A method for each message: what it returns is the answer's head and arrays."""

    def __init__(self) -> None:
        self._engines: dict[int, StockEngine] = {}

    def answer(self, head: dict[str, Any], arrays: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        call, number = head.pop("call"), head.pop("number")
        if call == "open":
            engine = load_engine(**head)
            self._engines[number] = engine
            modules = sorted({name.partition(".")[0] for name in sys.modules})
            return {"inputs": plain(engine.inputs), "outputs": plain(engine.outputs), "kind": type(engine).__name__, "modules": modules}, {}
        if call == "native":
            return {}, _train_natively(Path(head["bundle"]), head["lr"], arrays)
        engine = self._engines[number]
        if call in ("forward", "infer"):
            found = engine.forward(head["step"], *arrays.values()) if call == "forward" else engine.infer(*arrays.values())
            return {}, _numbered(found)
        if call == "backward":
            given = (arrays.get(str(at)) for at in range(head["count"]))
            back = engine.backward(head["step"], *given, lr=head["lr"])
            return {"count": len(back)}, _numbered(back)
        if call == "load_state":
            engine.load_state(arrays)
        elif call == "discard":
            engine.discard(head["step"])
        else:
            return {}, engine.parameters() if call == "parameters" else engine.state()
        return {}, {}


def _numbered(found: tuple[Array | None, ...]) -> dict[str, Array]:
    return {str(at): array for at, array in enumerate(found) if array is not None}


def _train_natively(bundle: Path, lr: float, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Steps with onnxruntime-training's own Module and Optimizer. ``arrays``: a step's inputs as ``{step}/{name}``."""
    from benchmarks.ort_training_step import open_module

    module, optimizer, state = open_module(bundle, threads=1)
    optimizer.set_learning_rate(lr)
    for step in range(len(arrays) // len(module.input_names())):
        module(*(arrays[f"{step}/{name}"] for name in module.input_names()))
        optimizer.step()
        module.lazy_reset_grad()
    return {name: parameter.data for name, parameter in state.parameters}


def main() -> None:
    worker = _Worker()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            head, arrays = receive(source)
        except EOFError:
            return
        try:
            answer = worker.answer(head, arrays)
        except (CutlayerError, FloatingPointError, KeyError, RuntimeError, ValueError) as exc:
            answer = {"fault": type(exc).__name__, "text": str(exc.args[0]) if exc.args else ""}, {}
        send(sink, *answer)


if __name__ == "__main__":
    main()
