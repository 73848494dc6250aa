"""Artifacts of onnxruntime-training 1.19.2, the second engine, beside a bundle's own graphs.

That package shares its import name with stock onnxruntime and can kill the process that it runs in, so all of it happens in processes of
an interpreter that the caller names (``ort_training_worker.py``). It is handed a forward graph and differentiates that itself; the result
has to pass the same parity gate as our own graphs.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export.ort_training_forms import MEND, beginning, lowered, written_by_torch
from export.parity import Candidate, check_parity
from export.sessions import Array
from wire.errors import ExportError
from wire.limits import LIMITS
from wire.manifest import GraphEntry, ort_training_name
from wire.optim import SGD, Optimizer
from wire.parse import plain

__all__ = ["VERSION", "Artifacts", "build_artifacts"]

VERSION = "1.19.2"
_WORKER = Path(__file__).with_name("ort_training_worker.py")
_TRAINING, _OPTIMIZER, _CHECKPOINT = "training_model.onnx", "optimizer_model.onnx", "checkpoint"
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """``graph``: the training model's entry in the manifest. ``files``: contents by file name."""

    graph: GraphEntry
    files: Mapping[str, bytes]


def build_artifacts(candidate: Candidate, python: str | Path) -> Artifacts:
    """Have the interpreter ``python`` make the artifacts of a segment, and compare their gradients with PyTorch's.

    Raises ExportError, in one line: no such interpreter, or one without onnxruntime-training 1.19.2; an operation that 1.19.2 cannot
    differentiate or that kills it, by name; gradients that differ from PyTorch's.
    """
    interpreter = _interpreter(python)
    if not candidate.trained:
        raise ExportError("the segment has no parameter to train, and onnxruntime-training needs one; export with `--engines stock`")
    faults: list[ExportError] = []
    # As torch writes it, which is what 1.19.2 was made for; failing that in our own, simpler operations.
    for form in (written_by_torch, lowered):
        with tempfile.TemporaryDirectory(prefix="cutlayer-") as folder:
            try:
                return _Attempt(candidate, form(candidate), _Worker(interpreter, Path(folder))).artifacts()
            except ExportError as exc:
                faults.append(exc)
    raise faults[0]


# ------------------------------------------------------------ the foreign process


class _Died(ExportError):
    """A signal killed the worker; the text names it."""


@dataclass(frozen=True, slots=True)
class _Worker:
    """A folder, and the interpreter that works in it."""

    python: Path
    folder: Path

    def call(self, verb: str) -> str:
        """What the worker printed. Raises ExportError with its last words, _Died where it had none."""
        command = [str(self.python), "-I", str(_WORKER), verb, str(self.folder)]
        try:
            done = subprocess.run(command, cwd=self.folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S)
        except OSError as exc:
            raise ExportError(f"it cannot be run: {exc.strerror or exc}") from exc
        except subprocess.TimeoutExpired as exc:
            raise ExportError(f"onnxruntime-training took longer than {_TIMEOUT_S:.0f} s over the segment; {MEND}") from exc
        if done.returncode < 0:
            raise _Died(_signal(-done.returncode))
        if done.returncode:
            raise ExportError(_last_words(done.stderr))
        return done.stdout.decode(errors="replace")

    def read(self, name: str) -> bytes:
        data = (self.folder / name).read_bytes()
        if len(data) > LIMITS.graph_bytes:
            raise ExportError(f"onnxruntime-training's {name} is larger than the limit of {LIMITS.graph_bytes} bytes; {MEND}")
        return data


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(stderr: bytes) -> str:
    """The worker's last line, less the C++ around what it says."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    said = re.sub(r"^.*( was false\. |\[ONNXRuntimeError\] : \d+ : \w+ : )", "", lines[-1] if lines else "it did not say why")
    return said[:300]


def _interpreter(python: str | Path) -> Path:
    """The absolute path of ``python``, which may be a name to look up. Raises ExportError unless 1.19.2 is there."""
    wanted = f"name one with onnxruntime-training {VERSION} and onnx (docs/guide-ort-training.md says how to make it)"
    found = shutil.which(python)
    if found is None:
        raise ExportError(f"{python} is not a program that can be run; {wanted}")
    path = Path(found).absolute()  # not resolved: a virtual environment is where its link lies
    with tempfile.TemporaryDirectory(prefix="cutlayer-") as folder:
        try:
            said = json.loads(_Worker(path, Path(folder)).call("versions"))
        except _Died as exc:
            raise ExportError(f"{python} dies of {exc} as it imports onnxruntime; {wanted}") from exc
        except ExportError as exc:
            raise ExportError(f"{python} cannot make artifacts ({exc}); {wanted}") from exc
        except ValueError as exc:
            raise ExportError(f"{python} is no Python interpreter; {wanted}") from exc
    if said["onnxruntime"] != VERSION or not said["trains"]:
        raise ExportError(f"{python} has onnxruntime {said['onnxruntime']}{'' if said['trains'] else ' without training'}; {wanted}")
    return path


# ------------------------------------------------------------ one form of the segment


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A forward graph of the segment and the folder where its artifacts are made. A ``Backward`` for the parity gate."""

    candidate: Candidate
    forward: onnx.ModelProto
    worker: _Worker

    def artifacts(self) -> Artifacts:
        """Build, compare, read. Raises ExportError."""
        wanted = _own_optimizer(self.candidate.optimizer)
        self._build(self.forward, wanted, has_loss=self.candidate.loss is not None)
        check_parity(self.candidate, backward=self)
        names = [_TRAINING, _CHECKPOINT, *([_OPTIMIZER] if wanted else [])]
        files = {name: self.worker.read(name) for name in names}
        graph = onnx.load_from_string(files[_TRAINING]).graph
        entry = GraphEntry(
            file=_TRAINING, inputs=tuple(each.name for each in graph.input), outputs=tuple(each.name for each in graph.output)
        )
        return Artifacts(graph=entry, files=files)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Gradients of one step, ``gin.*`` and ``gp.*``, from ``in.* p.* b.* g.*``. Raises ExportError where 1.19.2 cannot."""
        read = {ort_training_name(name): value for name, value in feed.items() if name.startswith(("in.", "p.", "b.", "g."))}
        np.savez(self.worker.folder / "feed.npz", allow_pickle=False, **read)
        try:
            self.worker.call("run")
        except _Died as exc:
            raise ExportError(f"onnxruntime-training {VERSION} dies of {exc} {self._culprit()}; {MEND}") from exc
        except ExportError as exc:
            raise ExportError(f"onnxruntime-training {VERSION} cannot train the segment: {exc}; {MEND}") from exc
        with np.load(self.worker.folder / "result.npz") as archive:
            found = dict(archive)
        wanted = [f"gin.{name}" for name in self.candidate.input_gradients] + [f"gp.{name}" for name in self.candidate.trained]
        missing = [name for name in wanted if ort_training_name(name) not in found]
        if missing:
            raise ExportError(f"onnxruntime-training {VERSION} gives no gradient `{missing[0]}`; {MEND}")
        return {name: found[ort_training_name(name)] for name in wanted}

    def _build(self, model: onnx.ModelProto, optimizer: Mapping[str, object] | None, *, has_loss: bool) -> None:
        known = [each.name for each in model.graph.initializer]
        state = dict(self.candidate.module.named_parameters()) | dict(self.candidate.module.named_buffers())
        request = {
            "trained": [name for name in known if name in self.candidate.trained],
            "fixed": [name for name in known if name in state and name not in self.candidate.trained],
            "input_gradients": [f"in.{name}" for name in self.candidate.input_gradients],
            "outputs": {} if has_loss else {f"out.{name}": f"g.{name}" for name in self.candidate.outputs},
            "optimizer": optimizer,
        }
        (self.worker.folder / "request.json").write_text(json.dumps(request))
        (self.worker.folder / "forward.onnx").write_bytes(model.SerializeToString())
        try:
            self.worker.call("build")
        except _Died as exc:
            raise ExportError(f"onnxruntime-training {VERSION} dies of {exc} as it differentiates the segment; {MEND}") from exc
        except ExportError as exc:
            raise ExportError(f"onnxruntime-training {VERSION} cannot differentiate the segment: {exc}; {MEND}") from exc

    # ------------------------------------------------------------ what it died of

    def _culprit(self) -> str:
        """The first node that a step dies of, found by halving: the sum of its results becomes the loss. The feed is there already."""
        nodes = self.forward.graph.node
        low, high = 0, len(nodes) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._kills(middle) else (middle + 1, high)
        return f"at {nodes[low].op_type} ({nodes[low].name or 'unnamed'})"

    def _kills(self, last: int) -> bool:
        try:
            self._build(beginning(self.forward, last), None, has_loss=True)
            self.worker.call("run")
        except _Died:
            return True
        except ExportError:
            pass  # whatever else keeps a part of the graph from running, it is not this
        return False


def _own_optimizer(optimizer: Optimizer) -> Mapping[str, object] | None:
    """What 1.19.2's own optimizer is asked for, or None where it has none that is equal to PyTorch's. Our engine uses the bundle's own."""
    if isinstance(optimizer, SGD):
        return None if optimizer.momentum or optimizer.weight_decay else {"kind": "sgd"}
    found: Mapping[str, object] = plain(optimizer)
    return found if optimizer.kind == "adamw" or not optimizer.weight_decay else None
