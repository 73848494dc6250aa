"""Tables 1 and 2 of the paper replayed: what must be assumed to come near its figures, and what the same comes to with codecs.

The paper gives neither cut nor batch size nor epochs, nor which ResNet. So whatever it leaves open is searched among what is usual, and the
nearest is taken; ``asked`` says what each choice would have needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from benchmarks.paper_costs import Traffic, built, client_flops, crossing, int8_weights, parameters, traffic
from benchmarks.paper_models import vgg16
from export.flops import Flops

__all__ = ["CLIENTS", "PAPER_GB", "PAPER_TFLOPS", "SAMPLES", "TABLE_2", "fitted", "misses", "split_gb", "tables"]

SAMPLES = 50_000  # of CIFAR-10 and CIFAR-100, for training
CLIENTS = (100, 500)
# By method, as printed, at 100 and at 500 clients.
PAPER_TFLOPS: Mapping[str, tuple[str, str]] = {"large-batch": ("29.4", "5.89"), "fedavg": ("29.4", "5.89"), "split": ("0.1548", "0.03")}
PAPER_GB: Mapping[str, tuple[str, str]] = {"large-batch": ("13", "14"), "fedavg": ("3", "2.4"), "split": ("6", "1.2")}
_MOST_EPOCHS = 400

# ------------------------------------------------------------ how near


def _range(printed: str) -> tuple[float, float]:
    """What would be printed so."""
    half = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return float(printed) - half, float(printed) + half


def misses(value: float, printed: str) -> float:
    """By what share ``value`` is outside what would be printed so; 0: it would be."""
    low, high = _range(printed)
    return max(low / value - 1 if value < low else 0.0, value / high - 1 if value > high else 0.0)


def _nearest(a_unit: Sequence[tuple[float, str]]) -> tuple[int, float]:
    """The whole number of units that comes nearest to all figures at once, and by what share it misses the worst of them."""

    def missed(count: int) -> tuple[float, float]:
        far = max(abs(count * value / float(printed) - 1) for value, printed in a_unit)
        return max(misses(count * value, printed) for value, printed in a_unit), far

    best = min(range(1, _MOST_EPOCHS), key=missed)
    return best, missed(best)[0]


# ------------------------------------------------------------ Table 1: client compute

_HEADS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "one linear layer": (10, ()),
    "512, 512, 10": (10, (512, 512)),
    "4096, 4096, 10": (10, (4096, 4096)),
    "4096, 4096, 1000 (ImageNet's)": (1000, (4096, 4096)),
}
_CUTS = ("relu1_1", "relu1_2", "relu2_1", "relu2_2")
_COUNTINGS = ("multiply-adds, forward", "FLOPs, forward", "multiply-adds, forward and backward", "FLOPs, forward and backward")


def _counted(flops: Flops, counting: str) -> float:
    found = flops.step if counting.endswith("backward") else flops.forward
    return found / 2 if counting.startswith("multiply") else found


def _table_1() -> list[dict[str, Any]]:
    """All assumptions, the nearest first: by head, cut, way of counting, with the epochs that come nearest."""
    clients = {at: client_flops(vgg16(10, ()), at) for at in _CUTS}  # the head makes no difference to them
    wholes = {head: client_flops(vgg16(classes, widths), None) for head, (classes, widths) in _HEADS.items()}
    rows = [
        {"head": head, "cut": at, "counting": counting, **fitted(_counted(wholes[head], counting), _counted(clients[at], counting))}
        for head, at, counting in product(_HEADS, _CUTS, _COUNTINGS)
    ]
    return sorted(rows, key=lambda row: float(row["missed"]))


def _all_counted(nearest: Mapping[str, Any]) -> dict[str, Any]:
    """The nearest network and cut, with every operation of a training step: the epochs that come nearest to the rows that are whole."""
    classes, widths = _HEADS[nearest["head"]]
    model = vgg16(classes, widths)
    whole, client = client_flops(model, None).step, client_flops(model, nearest["cut"]).step
    epochs, _ = _nearest(
        [(whole * SAMPLES / count / 1e12, printed) for count, printed in zip(CLIENTS, PAPER_TFLOPS["fedavg"], strict=True)]
    )
    return {"epochs": epochs, "tflops": _tflops(whole, client, epochs)}


def _tflops(whole: float, client: float, epochs: int) -> dict[str, list[float]]:
    units = {"large-batch": whole, "fedavg": whole, "split": client}
    return {method: [epochs * unit * SAMPLES / count / 1e12 for count in CLIENTS] for method, unit in units.items()}


def fitted(whole: float, client: float) -> dict[str, Any]:
    """``whole`` and ``client``: operations a sample. The epochs that come nearest to all of Table 1, and what they come to."""
    once = _tflops(whole, client, 1)
    epochs, missed = _nearest([pair for method in once for pair in zip(once[method], PAPER_TFLOPS[method], strict=True)])
    return {"epochs": epochs, "missed": missed, "tflops": _tflops(whole, client, epochs)}


# ------------------------------------------------------------ Table 2: client bandwidth


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A network of ``paper_models.py`` and where it is cut."""

    name: str
    build: str
    at: str


_RESNETS = {"ResNet-18": "resnet18", "ResNet-20": "resnet20", "ResNet-56": "resnet56", "ResNet-110": "resnet110"}
_LAYERS = ("stem", "layer1", "layer2", "layer3")
TABLE_2 = Choice(name="ResNet-18", build="resnet18", at="stem")
BATCH, CLASSES = 50, 100  # of a client's step: 10 or 2 steps an epoch


def _asked(choice: Choice) -> dict[str, Any]:
    """What the paper's gigabytes need of this network: epochs, rounds and steps, from elements of 4 bytes alone."""
    model = built(choice.build, CLASSES)
    activations, count = crossing(model, choice.at), parameters(model)
    epochs, missed = _nearest([(8 * activations * SAMPLES / clients / 1e9, PAPER_GB["split"][at]) for at, clients in enumerate(CLIENTS)])
    units = 8 * count / 1e9
    rounds, steps = ([round(float(figure) / units) for figure in PAPER_GB[method]] for method in ("fedavg", "large-batch"))
    return {
        **asdict(choice),
        "activations": activations,
        "parameters": count,
        "epochs": epochs,
        "missed": missed,
        "rounds": rounds,
        "steps": steps,
        "global_batch": [round(SAMPLES * epochs / max(1, each)) for each in steps],
    }


def split_gb(up: float, down: float, hand_over: float, *, epochs: int, clients: int) -> float:
    """Of a client: its samples' activations and gradients, and its segment fetched and handed on once an epoch."""
    return epochs * ((up + down) * SAMPLES / clients + 2 * hand_over) / 1e9


def _table_2() -> dict[str, Any]:
    choices = [Choice(name=name, build=build, at=at) for (name, build), at in product(_RESNETS.items(), _LAYERS)]
    asked = [_asked(choice) for choice in choices]
    mine = next(row for row in asked if (row["build"], row["at"]) == (TABLE_2.build, TABLE_2.at))
    found = traffic(TABLE_2.build, TABLE_2.at, classes=CLASSES, batch=BATCH)
    lowbit = traffic(TABLE_2.build, TABLE_2.at, classes=CLASSES, batch=BATCH, forward="lowbit", backward="lowbit")
    return {
        "asked": asked,
        "chosen": mine,
        "traffic": asdict(found),
        "lowbit_hand_over": lowbit.hand_over,
        "int8_weights": int8_weights(TABLE_2.build, CLASSES),
        "gb": _gigabytes(mine, found),
    }


def _gigabytes(mine: Mapping[str, Any], found: Traffic) -> dict[str, list[float]]:
    epochs = mine["epochs"]
    a_step, a_round = (found.weights + found.gradients) / 1e9, 2 * found.weights / 1e9
    return {
        "large-batch": [steps * a_step for steps in mine["steps"]],
        "fedavg": [rounds * a_round for rounds in mine["rounds"]],
        "fedavg, a round an epoch": [epochs * a_round for _ in CLIENTS],
        "split": [split_gb(found.up, found.down, found.hand_over, epochs=epochs, clients=clients) for clients in CLIENTS],
    }


def tables() -> dict[str, Any]:
    """Both, JSON-ready. Takes a minute."""
    rows = _table_1()
    return {"table_1": rows, "table_1_counted": _all_counted(rows[0]), "table_2": _table_2()}
