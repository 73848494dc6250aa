"""``cutlayer plan``: from a network, a line and a device to a table of its cuts."""

from __future__ import annotations

import json as encoder
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge_client.memory import needed_bytes
from simulation.datasets import dataset_at
from simulation.field.device import Device
from simulation.field.link import Link
from simulation.field.presets import load_device, load_link
from simulation.field.simulate import check_line
from simulation.plan.cost import Board, epoch_of, part_bytes_on
from simulation.plan.measure import leakage_at, measure, train_whole
from simulation.plan.places import Place, find_places
from simulation.plan.show import show
from simulation.plan.subject import Subject, subject_of, subject_of_run
from simulation.plan.table import CodecCost, Plan, Row
from simulation.screen import Screen
from wire.errors import UsageError
from wire.manifest import MemoryMode

__all__ = ["CODECS", "plan_of", "run_plan"]

CODECS = ("fp32", "fp16", "int8", "int4", "lowbit")
_USUAL = "int8"
_SERVER = "server"  # the device at the other end
_MODES: tuple[MemoryMode, ...] = ("fast", "low")


def run_plan(
    model: str,
    *,
    link: str,
    device: str,
    codec: Sequence[str] | None,
    data: str | None,
    data_dir: Path | None,
    input_shape: tuple[int, ...] | None,
    batch_size: int | None,
    samples: int,
    steps: int,
    epoch_samples: int | None,
    json: bool,
) -> None:
    """Print the plan, as a table or as one JSON object. Raises CutlayerError: also after that, where no cut fits the device."""
    line, board = load_link(link), load_device(device)
    with tempfile.TemporaryDirectory(prefix="cutlayer-plan-") as folder, Screen() as screen:
        if model.endswith(".toml"):
            _check_run_file(data, data_dir, input_shape)
            subject, own = subject_of_run(model, batch_size=batch_size)
        else:
            facts = None if data is None else dataset_at(data, data_dir, Path(folder))
            subject, own = subject_of(model, data=facts, input_shape=input_shape, batch_size=batch_size), _USUAL
        check_line(subject.run, line)
        plan = plan_of(
            subject,
            line,
            board,
            codecs=tuple(dict.fromkeys(codec or (*CODECS, own))),
            main=codec[0] if codec else own,
            samples=samples,
            steps=steps,
            epoch_samples=epoch_samples,
            screen=screen,
        )
    if json:
        print(encoder.dumps(plan.plain()))
    else:
        show(plan)
    if plan.recommended is None:
        raise UsageError(plan.verdict)


def _check_run_file(data: str | None, data_dir: Path | None, input_shape: tuple[int, ...] | None) -> None:
    given = {"--data": data, "--data-dir": data_dir, "--input-shape": input_shape}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"the run file says already what {option} would say; leave out one of the two")


def plan_of(
    subject: Subject,
    link: Link,
    device: Device,
    *,
    codecs: Sequence[str],
    main: str,
    samples: int,
    steps: int,
    epoch_samples: int | None,
    screen: Screen,
) -> Plan:
    """Train the network for ``steps``, then measure each of its cuts with each of ``codecs``. ``main``: that of which the front is, one of
    them. Raises CutlayerError."""
    with screen.bar("training") as advance:
        for done in train_whole(subject, steps):
            advance(done, steps)
    with screen.bar("cutting") as advance:
        places = find_places(subject, progress=advance)
    epoch = epoch_samples or subject.samples.count
    rows: list[Row] = []
    with screen.bar("measuring") as advance:
        for place in places.found:
            advance(len(rows), len(places.found))
            rows.append(_row(subject, link, device, place, codecs=codecs, samples=samples, epoch=epoch))
        advance(len(rows), len(places.found))
    return Plan(
        model=subject.name,
        link=link,
        device=device,
        batch_size=subject.samples.batch_size,
        in_flight=subject.run.in_flight,
        epoch_samples=epoch,
        codecs=tuple(codecs),
        main=main,
        rows=tuple(rows),
        refused=places.refused,
        notes=_notes(subject),
    )


def _row(subject: Subject, link: Link, device: Device, place: Place, *, codecs: Sequence[str], samples: int, epoch: int) -> Row:
    run = subject.run
    memory, memory_bytes = _memory(place, device, batch=subject.samples.batch_size, in_flight=run.in_flight)
    found = measure(subject, place, codecs, part_bytes=part_bytes_on(link, most_bytes=run.broker.part_bytes))
    client = Board(device=device, flops=place.flops, memory=memory)
    server = Board(device=load_device(_SERVER), flops=place.server_flops)
    costs = {}
    for codec, traffic in found.traffic.items():
        cost = epoch_of(link, client, server, traffic=traffic, samples=epoch, in_flight=run.in_flight)
        costs[codec] = CodecCost(
            up_bytes=traffic.up_bytes,
            down_bytes=traffic.down_bytes,
            seconds=cost.seconds,
            line_bytes=cost.line_bytes,
            joules=cost.joules.total,
            busy_joules=cost.joules.busy,
        )
    return Row(
        cut=place.names[0],
        also=place.names[1:],
        tensors=place.shapes,
        activations=place.activations,
        parameters=place.parameters,
        flops=place.flops,
        memory=memory,
        memory_bytes=memory_bytes,
        fits=memory_bytes <= device.memory_bytes,
        leakage=leakage_at(subject, place, samples) if subject.real else None,
        costs=costs,
        refused=found.refused,
    )


def _memory(place: Place, device: Device, *, batch: int, in_flight: int) -> tuple[MemoryMode, int]:
    """How a client would train there, and what it takes: with little memory only where the other way does not fit."""
    fast, low = (needed_bytes([place.manifest], batch=batch, in_flight=in_flight, memory=memory) for memory in _MODES)
    return ("fast", fast) if fast <= device.memory_bytes or fast <= low else ("low", low)


def _notes(subject: Subject) -> tuple[str, ...]:
    if subject.real:
        return subject.notes
    return (
        *subject.notes,
        "Inputs and labels are random: leakage is of no meaning then, and is left out; give --data or a run file to measure it.",
    )
