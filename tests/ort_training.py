"""The environment with onnxruntime-training 1.19.2, and engines that run in a process of it."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engine_worker import receive, send
from wire.engine import Array
from wire.errors import BundleError, CheckpointError, UsageError
from wire.manifest import TensorSpec
from wire.parse import parse

__all__ = ["EngineProcess", "RemoteEngine", "environment"]

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "ort-training.txt"
INSTALL_TIMEOUT_S = 120
_FAULTS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (BundleError, CheckpointError, FloatingPointError, KeyError, RuntimeError, UsageError, ValueError)
}


def environment() -> Path:
    """The interpreter of a virtual environment with ``ort-training.txt``: made once, kept beside other temporary files. Skips where it
    cannot be made."""
    base = _base_interpreter()
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + base.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cutlayer-ort-training-{os.getuid()}-{key}"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one test process makes it, the others wait
        if not (folder / "complete").exists():
            _run(base, "-m", "venv", "--clear", str(folder))
            _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS))
            (folder / "complete").touch()
    return folder / "bin" / "python"


def _base_interpreter() -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"onnxruntime-training has no wheels for {platform.machine()}")
    names = [sys.executable] if sys.version_info < (3, 13) else [shutil.which(name) for name in ("python3.12", "python3.11")]
    found = next((name for name in names if name), None)
    if found is None:
        pytest.skip("onnxruntime-training needs CPython 3.12 or older, and there is none")
    return found


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(command[1:4])} takes longer than {INSTALL_TIMEOUT_S} s")
    if done.returncode:
        pytest.skip(f"{' '.join(command[1:4])}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")


class EngineProcess:
    """A process of that environment, in which engines run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(environment()), "-m", "tests.engine_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        self._numbers = itertools.count()

    def open(self, bundle: Path, engine: str = "ort-training", clip_norm: float | None = None, accumulate: int = 1) -> RemoteEngine:
        """As ``load_engine``, on one thread."""
        return RemoteEngine(
            self,
            next(self._numbers),
            {"bundle": str(bundle), "engine": engine, "threads": 1, "clip_norm": clip_norm, "accumulate": accumulate},
        )

    def call(self, call: str, number: int, arrays: Mapping[str, Array], **more: Any) -> tuple[dict[str, Any], dict[str, Array]]:
        """The answer; a fault of the other side is raised here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        send(self._process.stdin, {"call": call, "number": number, **more}, arrays)
        head, found = receive(self._process.stdout)
        if "fault" in head:
            raise _FAULTS[head["fault"]](head["text"])
        return head, found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()


class RemoteEngine:
    """A ``wire.engine.Engine`` in an ``EngineProcess``."""

    def __init__(self, process: EngineProcess, number: int, options: Mapping[str, Any]) -> None:
        self._process, self._number = process, number
        self.facts, _ = process.call("open", number, {}, **options)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._specs("inputs")

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._specs("outputs")

    def forward(self, step: int, *inputs: Array) -> tuple[Array, ...]:
        return tuple(self._call("forward", _numbered(inputs), step=step)[1].values())

    def backward(self, step: int, *grads: Array | None, lr: float | None = None) -> tuple[Array | None, ...]:
        given = {str(at): grad for at, grad in enumerate(grads) if grad is not None}
        head, found = self._call("backward", given, step=step, lr=lr, count=len(grads))
        return tuple(found.get(str(at)) for at in range(head["count"]))

    def discard(self, step: int) -> None:
        self._call("discard", {}, step=step)

    def infer(self, *inputs: Array) -> tuple[Array, ...]:
        return tuple(self._call("infer", _numbered(inputs))[1].values())

    def parameters(self) -> dict[str, Array]:
        return self._call("parameters", {})[1]

    def state(self) -> dict[str, Array]:
        return self._call("state", {})[1]

    def load_state(self, state: Mapping[str, Array]) -> None:
        self._call("load_state", state)

    def _call(self, call: str, arrays: Mapping[str, Array], **more: Any) -> tuple[dict[str, Any], dict[str, Array]]:
        return self._process.call(call, self._number, arrays, **more)

    def _specs(self, key: str) -> tuple[TensorSpec, ...]:
        return tuple(parse(TensorSpec, row, where=key, error=UsageError) for row in self.facts[key])


def _numbered(arrays: tuple[Array, ...]) -> dict[str, Array]:
    return {str(at): array for at, array in enumerate(arrays)}
