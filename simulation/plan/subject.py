"""What is planned: a network, as a run file or the command line names it, and samples to train it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.data import open_source
from export.guess import example_of, guessed_example
from export.load import load_model
from export.models import BUNDLED
from export.prepare import build_model, input_shapes
from export.run_segment import EXAMPLES, target_example
from server.labels import load_labels
from simulation.datasets import DatasetFacts
from wire.engine import Array
from wire.errors import RunFileError, UsageError
from wire.feed import Batch, DataSource, LabelStore
from wire.ids import keyed_ids
from wire.rng import generator
from wire.runfile import CodecConfig, Run, ServerConfig, load_run, parse_run
from wire.straggler import StragglerConfig

__all__ = ["Samples", "Subject", "run_at", "subject_of", "subject_of_run"]

_BATCH_SIZE = 32
_RANDOM_EPOCH = 10_000  # samples
_ANY = "?"  # stands for the cut that is to be named


class Samples(Protocol):
    """``count``: samples of an epoch; ``batch_size``: of every batch."""

    @property
    def count(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def batch(self, step: int) -> Batch:
        """Full batches alone. Raises DataError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """``run``: of one client, with the cut and the codec still to be named (``run_at``). ``examples``: the model's inputs.

    ``labels``: where a server holds them. ``real``: the samples are data. ``notes``: what was assumed, for a person.
    """

    name: str
    run: Run
    model: nn.Module
    examples: tuple[Tensor, ...]
    samples: Samples
    real: bool
    labels: LabelStore | None = None
    notes: tuple[str, ...] = ()

    def target(self, batch: Batch) -> Array:
        """What the loss wants of a batch. Raises DataError: neither the data nor the server has labels."""
        if self.labels is not None:
            return self.labels.lookup(keyed_ids(self.run.ids_key.encode(), batch.ids))
        if batch.target is None:
            raise RunFileError("neither `[data]` nor `[server]` has labels; without them no step can be taken")
        return batch.target


def run_at(run: Run, cut: str, codec: str = "fp32") -> Run:
    """The subject's run, cut after one submodule, with one codec (``NAME`` or ``FORWARD/BACKWARD``)."""
    forward, _, backward = codec.partition("/")
    assert run.model is not None
    return dataclasses.replace(
        run, model=dataclasses.replace(run.model, cut=(cut,)), codec=CodecConfig(forward=forward, backward=backward or forward)
    )


# ------------------------------------------------------------ from a run file


def subject_of_run(path: str | Path, *, batch_size: int | None) -> tuple[Subject, str]:
    """The network, data, batch size and optimizer of a run file, of its clients the first that has data; and its codec as it is written.

    Raises CutlayerError.
    """
    run = load_run(path)
    if run.model is None:
        raise UsageError(f"{path}: `cutlayer plan` looks for the cut of one network; this run has a graph of [[segments]], cut already")
    client = next(client for client in run.clients if run.reads_data(client.name))
    labelled = next((server for server in run.all_servers if server.labels is not None), None)
    single = dataclasses.replace(
        run,
        clients=(client,),
        model=dataclasses.replace(run.model, cut=(_ANY,), segments=None, placement={}),
        batch_size=batch_size or run.batch_size,
        codec=CodecConfig(),
        schedule="relay",
        hand_over="server",
        round_steps=None,
        straggler=StragglerConfig(),
        reconstruct=None,
        servers=(),
        server=ServerConfig(labels=labelled.labels if labelled else None),
    )
    model = build_model(single)
    examples = tuple(torch.zeros(EXAMPLES, *shape) for shape in input_shapes(single))
    source = _open(single)
    labels = None
    if labelled is not None and labelled.labels is not None:
        labels = load_labels(run.path(labelled.labels), target="class" if run.loss == "cross_entropy" else "number")
    codec = run.codec.forward if run.codec.forward == run.codec.backward else f"{run.codec.forward}/{run.codec.backward}"
    subject = Subject(
        name=run.name,
        run=single,
        model=model,
        examples=examples,
        samples=_Real(source, single.batch_size),
        real=True,
        labels=labels,
        notes=_of_several(run, client.name),
    )
    return subject, codec


def _of_several(run: Run, client: str) -> tuple[str, ...]:
    if len(run.clients) == 1:
        return ()
    return (f"The run has {len(run.clients)} clients; an epoch here is one of {client}, over its own samples.",)


# ------------------------------------------------------------ from the command line


def subject_of(model: str, *, data: DatasetFacts | None, input_shape: tuple[int, ...] | None, batch_size: int | None) -> Subject:
    """``my_model.py:build`` or a bundled model; ``data``: None for random inputs. Raises CutlayerError."""
    args = {"classes": data.classes} if data is not None and model in BUNDLED else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = load_model(model, args, ".", key="MODEL")
    example, notes = _example(model, built, input_shape if data is None else data.input_shape)
    output = _output(built, example)
    loss = "cross_entropy" if data is not None or (output.dim() == 2 and output.shape[1] > 1) else "mse"
    run = parse_run(_table(model, args, example, loss, batch_size or _BATCH_SIZE, data), base=str(Path.cwd()))
    samples: Samples = _Real(_open(run), run.batch_size) if data else _Random(example, _targets(loss, output), run.batch_size)
    return Subject(name=model, run=run, model=built, examples=(example,), samples=samples, real=data is not None, notes=notes)


def _example(model: str, built: nn.Module, shape: tuple[int, ...] | None) -> tuple[Tensor, tuple[str, ...]]:
    """A batch that the model may take, and what was assumed."""
    if shape is None and model in BUNDLED:
        shape = BUNDLED[model].input_shape()
    if shape is not None:
        return example_of(built, shape), ()
    example, said = guessed_example(built)
    return example, (f"{said}.",)


def _table(model: str, args: Mapping[str, Any], example: Tensor, loss: str, batch_size: int, data: DatasetFacts | None) -> dict[str, Any]:
    return {
        "name": "plan",
        "epochs": 1,
        "batch_size": batch_size,
        "loss": loss,
        "model": {"build": model, "args": dict(args), "cut": [_ANY], "input_shape": list(example.shape[1:])},
        "optimizer": {"kind": "sgd", "lr": 0.01},
        "data": {"kind": "npz", "path": "random"} if data is None else dict(data.data),
        "clients": [{"name": "client"}],
    }


def _output(model: nn.Module, example: Tensor) -> Tensor:
    """Raises RunFileError where the model does not run on the example, or gives no single tensor."""
    modes = {module: module.training for module in model.modules()}
    shape = ",".join(str(size) for size in example.shape[1:])
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = model.eval()(example)
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        raise RunFileError(f"the model does not run on samples of shape {shape}: {str(exc).splitlines()[0][:200]}") from exc
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(found, Tensor):
        raise RunFileError(f"the model gives a {type(found).__name__}; a network with one loss at its end gives one tensor")
    if not 1 <= found.dim() <= 2:
        raise RunFileError(f"the model gives {list(found.shape[1:])} a sample; labels that cross a cut are a class, or a row of numbers")
    return found


# ------------------------------------------------------------ samples


def _open(run: Run) -> DataSource:
    return open_source(
        run.data_of(run.clients[0].name),
        "train",
        seed=run.seed,
        segment="bottom",
        lane=0,
        batch_size=run.batch_size,
        base_dir=run.base,
    )


class _Real:
    def __init__(self, source: DataSource, batch_size: int) -> None:
        self._source = source
        self.count = source.samples
        self.batch_size = min(batch_size, source.samples)

    def batch(self, step: int) -> Batch:
        return self._source.batch(*divmod(step, self.count // self.batch_size))


@dataclass(frozen=True, slots=True)
class _Random:
    """Normally distributed numbers, or whole ones where the model takes those; ``draw`` makes targets."""

    example: Tensor
    draw: Callable[[np.random.Generator, int], Array]
    batch_size: int
    count: int = field(default=_RANDOM_EPOCH, init=False)

    def batch(self, step: int) -> Batch:
        rng = generator(0, "plan", step)
        shape = (self.batch_size, *self.example.shape[1:])
        whole = not self.example.is_floating_point()
        values: Array = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape, np.float32)
        return Batch(inputs=(values,), target=self.draw(rng, self.batch_size), ids=tuple(map(str, range(self.batch_size))))


def _targets(loss: str, output: Tensor) -> Callable[[np.random.Generator, int], Array]:
    """Classes, or numbers of the output's shape."""
    classes, shape = output.shape[-1], tuple(target_example(loss, output).shape[1:])

    def draw(rng: np.random.Generator, count: int) -> Array:
        if loss == "cross_entropy":
            return rng.integers(0, classes, count)
        return rng.standard_normal((count, *shape), np.float32)

    return draw
