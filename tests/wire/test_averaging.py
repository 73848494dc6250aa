"""Averages of weights: the mean is PyTorch's, all ends hold the same bits, and nothing but weights of the segment is read from a blob."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from server.engine import TorchEngine
from wire.averaging import Mean, Rounds, added, decode_difference, difference, encode_difference
from wire.codecs import PLAIN
from wire.errors import CheckpointError, CodecError, CutlayerError
from wire.limits import LIMITS
from wire.manifest import TensorSpec
from wire.optim import SGD
from wire.runfile import Run, parse_run
from wire.store import weights_of

CODECS = ["fp32", "fp16", "bf16", "int8", "int4", "int2", "mxfp4"]
ROUND = {"round": 7}
CLIENTS = 3


def run_of(schedule: str, weights: str = "fp32") -> Run:
    table: dict[str, Any] = {
        "name": "averages",
        "epochs": 1,
        "batch_size": 8,
        "schedule": schedule,
        "weights_leave": True,
        "model": {"build": "digits-cnn", "cut": [] if schedule in ("fedavg", "large-batch") else ["pool1"]},
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        "codec": {"weights": weights},
        "clients": [{"name": f"c{at}"} for at in range(CLIENTS)],
        "data": {"kind": "npz", "path": "none"},
    }
    return parse_run(table, base=".")


def network(segment: str) -> TorchEngine:
    """With BatchNorm, whose count of batches is a whole number, and a weight that is not trained."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5))
    module[3].bias.requires_grad_(False)
    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 6)),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", 5)),)
    return TorchEngine(module, inputs=inputs, outputs=outputs, optimizer=SGD(lr=0.1, momentum=0.9), segment=segment)


def train(engine: TorchEngine, seed: int, steps: int = 3) -> None:
    chance = np.random.default_rng(seed)
    for step in range(steps):
        engine.forward(step, chance.normal(size=(4, 6)).astype(np.float32))
        engine.backward(step, chance.normal(size=(4, 5)).astype(np.float32))


class Parties:
    """The ends of averages, without a network between them; ``groups``: which lanes give at a time."""

    def __init__(self, run: Run) -> None:
        graph = run.graph()
        (name,) = (segment.name for segment in graph.segments if len(segment.parties) > 1)
        shared = [segment.name for segment in graph.segments if len(segment.parties) == 1]
        self.name, self.clients = name, [network(name) for _ in run.clients]
        shapes = {key: (value.dtype, value.shape) for key, value in weights_of(self.clients[0]).items()}
        self.ends = [
            Rounds(run, graph.slice_for(client.name), {name: engine}, averaged={})
            for client, engine in zip(run.clients, self.clients, strict=True)
        ]
        copies = (
            [f"{top}@{lane}" if lane else top for top in shared for lane in range(CLIENTS)] if run.schedule == "splitfed-v1" else shared
        )
        self.copies = {copy: network(copy.partition("@")[0]) for copy in copies}
        self.server = Rounds(run, graph.slice_for("server"), self.copies, averaged={name: shapes})

    def average(self, samples: dict[int, int], groups: list[list[int]]) -> None:
        for at, group in enumerate(groups):
            blobs = {name: blob for lane in group for name, blob in self.ends[lane].offer(ROUND).items()}
            args = {**ROUND, "samples": {str(lane): samples[lane] for lane in group}, "first": at == 0, "last": at == len(groups) - 1}
            found = self.server.average(args, blobs)
        for end in self.ends:
            end.adopt(ROUND, found)


def mean_of(engines: list[TorchEngine], samples: dict[int, int]) -> dict[str, np.ndarray]:
    found = {}
    for name, like in weights_of(engines[0]).items():
        values = torch.stack([torch.from_numpy(weights_of(engine)[name]).double() for engine in engines])
        share = torch.tensor([float(samples.get(lane, 0)) for lane in range(len(engines))]).double()
        mean = (values * share.reshape(-1, *[1] * like.ndim)).sum(0) / share.sum()
        found[name] = mean.numpy() if like.dtype.kind == "f" else np.rint(mean.numpy())
    return found


@pytest.mark.parametrize("schedule", ["splitfed-v1", "splitfed-v2", "fedavg"])
@pytest.mark.parametrize("samples", [{0: 4, 1: 12, 2: 7}, {0: 1, 2: 1}])
def test_all_ends_come_to_the_mean_by_samples(schedule: str, samples: dict[int, int]) -> None:
    parties = Parties(run_of(schedule))
    for turn in range(2):  # the second round begins with what the first has made
        for lane, engine in enumerate(parties.clients):
            train(engine, seed=10 * turn + lane, steps=2 + lane)
        for lane, engine in enumerate(parties.copies.values()):
            train(engine, seed=100 + 10 * turn + lane)
        optimizers = [{key: value for key, value in engine.state().items() if key.startswith("s.")} for engine in parties.clients]
        before = [weights_of(engine) for engine in parties.copies.values()]
        wanted = mean_of(parties.clients, samples)
        tops = mean_of(list(parties.copies.values()), samples) if parties.copies else {}
        parties.average(samples, [[lane] for lane in samples] if turn else [list(samples)])
        for engine, optimizer in zip(parties.clients, optimizers, strict=True):
            for name, value in weights_of(engine).items():
                np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-6)
                assert value.dtype == weights_of(parties.clients[0])[name].dtype
                assert np.array_equal(value, weights_of(parties.clients[0])[name]), "all have the same bits"
            assert all(np.array_equal(engine.state()[key], value) for key, value in optimizer.items()), "its optimizer is its own"
        for engine, mine in zip(parties.copies.values(), before, strict=True):
            for name, value in weights_of(engine).items():
                if schedule == "splitfed-v1":
                    np.testing.assert_allclose(value, tops[name], rtol=1e-6, atol=1e-7)
                else:
                    assert np.array_equal(value, mine[name]), "one server segment, and nothing to average"


@pytest.mark.parametrize("codec", CODECS)
def test_whatever_a_codec_leaves_out_all_hold_the_same(codec: str) -> None:
    parties = Parties(run_of("fedavg", codec))
    start = weights_of(network(parties.name))
    for lane, engine in enumerate(parties.clients):
        train(engine, seed=lane)
    wanted = mean_of(parties.clients, {0: 1, 1: 1, 2: 1})
    parties.average({0: 1, 1: 1, 2: 1}, [[0, 1, 2]])
    found = [weights_of(engine) for engine in parties.clients]
    for name in start:
        assert all(np.array_equal(each[name], found[0][name]) for each in found)
        moved = np.abs(wanted[name] - start[name]).max()
        error = np.abs(found[0][name] - wanted[name]).max()
        assert error <= (moved if codec == "int2" else moved / 3) + 1e-6, "it has gone the mean's way"
        if name.startswith("b."):
            np.testing.assert_allclose(found[0][name], wanted[name], rtol=1e-5, atol=1e-6)


def test_what_a_checkpoint_holds_brings_the_common_weights_back() -> None:
    parties, other = Parties(run_of("fedavg")), Parties(run_of("fedavg"))
    for lane in range(CLIENTS):
        train(parties.clients[lane], seed=lane)
    parties.average({0: 2, 1: 3, 2: 4}, [[0, 1, 2]])
    train(parties.clients[1], seed=9)
    other.clients[1].load_state(parties.clients[1].state())
    other.ends[1].load_state(parties.ends[1].state())
    assert other.ends[1].offer(ROUND) == parties.ends[1].offer(ROUND)
    state = parties.ends[1].state()
    del state[min(state)]
    with pytest.raises(CheckpointError, match="common weights"):
        other.ends[1].load_state(state)


def test_what_has_not_changed_does_not_cross() -> None:
    engine = network("bottom")
    common = weights_of(engine)
    assert encode_difference(difference(common, common), "fp32", lambda name: PLAIN) == b""
    train(engine, seed=1)
    assert "p.3.bias" not in difference(weights_of(engine), common), "it is frozen"
    parties = Parties(run_of("fedavg"))
    parties.average({0: 1, 1: 1, 2: 1}, [[0, 1, 2]])
    assert all(np.array_equal(weights_of(parties.clients[0])[name], value) for name, value in common.items())


def test_more_tensors_than_a_message_holds() -> None:
    tensors = {f"p.{at}": np.full((3,), at, np.float32) for at in range(2 * LIMITS.tensors_per_message + 5)}
    shapes = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    found = decode_difference(encode_difference(tensors, "fp32", lambda name: PLAIN), shapes, lambda name: PLAIN)
    assert all(np.array_equal(found[name], value) for name, value in tensors.items())
    assert list(found) == list(tensors)


GOOD = {"p.w": np.arange(6, dtype=np.float32).reshape(2, 3), "b.n": np.array(4, np.int64), "b.v": np.ones(3, np.float32)}
SHAPES = {name: (value.dtype, value.shape) for name, value in GOOD.items()}


@pytest.mark.parametrize("codec", CODECS)
def test_a_blob_that_is_cut_short_anywhere_is_refused(codec: str) -> None:
    blob = encode_difference(GOOD, codec, lambda name: PLAIN)
    assert set(decode_difference(blob, SHAPES, lambda name: PLAIN)) == set(GOOD)
    for end in range(1, len(blob)):
        with pytest.raises(CodecError):
            decode_difference(blob[:end], SHAPES, lambda name: PLAIN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"p.other": np.zeros(3, np.float32)},
        {"p.w": np.zeros((3, 2), np.float32)},
        {"p.w": np.zeros((2, 3), np.float64)},
        {"b.n": np.zeros(1 << 20, np.int64)},  # packed: a few bytes that stand for eight million
    ],
)
def test_tensors_that_the_segment_does_not_have_are_refused(wrong: dict[str, np.ndarray]) -> None:
    with pytest.raises(CodecError, match="no tensor of the segment"):
        decode_difference(encode_difference(wrong, "fp32", lambda name: PLAIN), SHAPES, lambda name: PLAIN)


def test_a_tensor_that_stands_twice_is_refused() -> None:
    blob = encode_difference({"p.w": GOOD["p.w"]}, "fp32", lambda name: PLAIN)
    with pytest.raises(CodecError, match="stands twice"):
        decode_difference(blob + blob, SHAPES, lambda name: PLAIN)


def test_what_is_missing_or_not_finite_is_said_with_its_segment() -> None:
    parties = Parties(run_of("splitfed-v2"))
    args = {**ROUND, "samples": {"1": 4}, "first": True, "last": True}
    with pytest.raises(CutlayerError, match="segment `bottom` from lane 1 cannot be averaged: they did not come"):
        parties.server.average(args, {"0.bottom": b""})
    with pytest.raises(CutlayerError, match="the mean of segment `bottom`"):
        parties.ends[0].adopt(ROUND, {"bottom": b"\x01"})
    state = parties.clients[0].state()
    state["p.0.weight"][0, 0] = np.inf
    parties.clients[0].load_state(state)
    with pytest.raises(CutlayerError, match=r"segment `bottom` cannot be averaged: .*lower the learning rate"):
        parties.ends[0].offer(ROUND)


def test_a_mean_needs_weight_and_rounds_whole_numbers() -> None:
    mean = Mean()
    with pytest.raises(ValueError, match="nothing has a weight"):
        mean.result()
    mean.add({"n": np.array(10), "flag": np.array(True), "v": np.array([1.0], np.float32)}, 1)
    mean.add({"n": np.array(13), "flag": np.array(False)}, 2)
    found = mean.result()
    assert (found["n"], found["n"].dtype, found["v"].dtype) == (12, np.int64, np.float32)
    assert found["v"][0] == np.float32(1 / 3)
    assert "flag" not in found


def test_a_variance_stays_above_zero() -> None:
    """The nearest a buffer can come to it: a difference of almost all that there was."""
    common = {"b.v": np.array([1.0, 3e7, 1e-30], np.float32)}
    mean = Mean()
    for tiny in (1e-12, 3e-9, 0.0):
        mean.add(difference({"b.v": np.full(3, tiny, np.float32)}, common), 5)
    assert (added(common, mean.result())["b.v"] >= 0).all()
