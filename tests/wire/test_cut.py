"""The cuts of a party: what is kept of steps in flight, who learns when, and that state continues bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.wire.codecs.kit import read_any
from wire.codecs import CODECS, LOSSLESS, Context, Decoded, Direction, Encoded, Encoder, encode_lossless, registry
from wire.codecs.plain import Float32
from wire.codecs.sparse import TopK
from wire.cut import Cuts
from wire.errors import CheckpointError, CodecError, RunFileError
from wire.frames import Mode
from wire.graph import Edge, Graph, Segment
from wire.manifest import TensorSpec
from wire.messages import Work
from wire.runfile import Run, parse_run
from wire.tensors import encode_plain, encode_tensors

SHAPE = (4, 20)


def even(shape: tuple[int, ...]) -> np.ndarray:
    """The support of the test codec: every other column."""
    return np.broadcast_to(np.arange(shape[-1]) % 2 == 0, shape).copy()


class Offset(Encoder):
    """Sends what the encoder has learned, added up, with the tensor: payloads depend on every step before."""

    def __init__(self) -> None:
        self.total = np.zeros((), np.float32)
        self.learned: list[tuple[Any, int]] = []

    def encode(self, array: np.ndarray, context: Context) -> Encoded:
        moved = (array + self.total).astype(np.float16).astype(np.float32)
        if context.train:
            self.total = self.total + np.float32(0.25)
        pieces = (moved.astype("<f2").tobytes(),)  # half the bytes, so that there is no fallback
        return Encoded(number=Stateful.number, pieces=pieces, support=even(array.shape), kept=float(self.total))

    def learn(self, kept: Any, grad: np.ndarray, context: Context) -> np.ndarray:
        assert context.train
        assert context.scope[1] == "forward"
        self.learned.append((kept, int(context.scope[3])))
        self.total = self.total + np.float32(grad.sum())
        return grad * np.float32(2)

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if not np.isfinite(state["total"]):
            raise ValueError("the total is not finite")
        self.total = state["total"]


@dataclass(frozen=True, kw_only=True)
class Stateful(Float32):
    name = "stateful"
    number = 200
    marks_support = True

    limit: int = 10**6

    def encoder(self, tensor: TensorSpec, direction: Direction) -> Encoder:
        return Offset()

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype, shape: tuple[int, ...], context: Context) -> Decoded:
        return Decoded(array=np.frombuffer(data, "<f2").astype(np.float32).reshape(shape), support=even(shape))

    def check(self, tensor: TensorSpec, direction: Direction, batch_size: int) -> None:
        if tensor.bytes_at(1) > self.limit:
            raise ValueError(f"a sample takes {tensor.bytes_at(1)} bytes; `limit` is {self.limit}")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a codec of another module would be: by an entry of the registry."""
    monkeypatch.setattr(registry, "CODECS", {**CODECS, "stateful": Stateful})
    monkeypatch.setattr(registry, "_BY_NUMBER", {**registry._BY_NUMBER, Stateful.number: Stateful})
    registry.parse_codec.cache_clear()
    yield
    registry.parse_codec.cache_clear()


class Ends:
    """An engine's two ends; nothing is computed here."""

    def __init__(self, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()) -> None:
        self.inputs, self.outputs = inputs, outputs


def tensor(name: str = "act", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=("batch", *SHAPE[1:]), gradient=True)


LOSS = TensorSpec(name="loss", dtype="float32", shape=())
TARGET = TensorSpec(name="target", dtype="int64", shape=("batch",))


def make_run(forward: str = "stateful", backward: str = "fp32", schedule: str = "independent", clients: int = 2, **more: Any) -> Run:
    table = {
        "name": "r", "epochs": 1, "batch_size": 4, "model": {"build": "m", "cut": ["a"]}, "schedule": schedule, "weights_leave": True,
        "optimizer": {"kind": "sgd", "lr": 0.1}, "data": {"kind": "npz", "path": "d.npz"},
        "clients": [{"name": f"c{at}"} for at in range(clients)], "codec": {"forward": forward, "backward": backward, **more},
    }  # fmt: skip
    return parse_run(table, base=".")


def cuts_of(run: Run, party: str, graph: Graph | None = None, names: tuple[str, ...] = ("act",)) -> Cuts:
    sides = {"top": Ends((*map(tensor, names), TARGET), (LOSS,))}
    sliced = (graph or run.graph()).slice_for(party)
    engines = {slot.segment: sides.get(slot.segment, Ends(outputs=tuple(map(tensor, names)))) for slot in sliced.slots}
    return Cuts(run, sliced, engines)  # type: ignore[arg-type]


def work(segment: str, step: int = 0, lane: int = 0, mode: Mode = Mode.TRAIN) -> Work:
    return Work(segment=segment, lane=lane, step=step, global_step=step, mode=mode)


def values(step: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(step).normal(size=SHAPE) * scale).astype(np.float32)


def encoder_of(cuts: Cuts, edge: str = "bottom>top", lane: str = "c0", direction: Direction = "forward") -> Any:
    return cuts._coders[edge, lane, direction, "act"].encoder


def step_through(client: Cuts, server: Cuts, step: int, lane: int = 0) -> tuple[bytes, bytes, np.ndarray]:
    """One training step of a lane: both payloads, and the gradient for the client's engine."""
    up = client.encode_forward(work("bottom", step, lane), {"act": values(step)}, {}, 0.5)["bottom>top"]
    server.decode_forward(work("top", step, lane), {"bottom>top": up}, 0.5)
    down = server.encode_backward(work("top", step, lane), {"act": values(step + 1000)}, 0.5)["bottom>top"]
    return up, down, client.decode_backward(work("bottom", step, lane), {"bottom>top": down}, 0.5)["act"]


# ------------------------------------------------------------ steps


def test_both_ends_have_the_support_until_the_gradient_and_nothing_after() -> None:
    run = make_run(backward="topk:keep=0.5,values=fp32")
    client, server = cuts_of(run, "c0"), cuts_of(run, "server")
    _, down, grad = step_through(client, server, 0)
    np.testing.assert_array_equal(grad, np.where(even(SHAPE), 2 * values(1000), 0))
    assert len(down) == 1 + 10 + 3 + 4 * 40, "positions were sent"
    assert client._steps == server._steps == {}


def test_topk_sends_gradients_without_positions() -> None:
    run = make_run("topk:keep=0.1", "topk:keep=0.1,values=fp32")
    client, server = cuts_of(run, "c0"), cuts_of(run, "server")
    up, down, grad = step_through(client, server, 0)
    kept = read_any(up)["act"] != 0
    np.testing.assert_array_equal(grad, np.where(kept, values(1000), 0))
    assert len(down) == 1 + 9 + 3 + 4 * kept.sum()


def test_an_encoder_learns_once_a_step_in_order_and_may_change_the_gradient() -> None:
    run = make_run()
    client, server = cuts_of(run, "c0"), cuts_of(run, "server")
    encoder = encoder_of(client)
    client.encode_forward(work("bottom", 0), {"act": values(0)}, {}, 0.5)  # two in flight
    up = client.encode_forward(work("bottom", 1), {"act": values(1)}, {}, 0.5)
    grads = {}
    for step in (0, 1):
        server.decode_forward(work("top", step), up, 0.5)
        down = server.encode_backward(work("top", step), {"act": values(step + 50)}, 0.5)
        grads[step] = client.decode_backward(work("bottom", step), down, 0.5)["act"]
        client.discard(work("bottom", step))
    assert [step for _, step in encoder.learned] == [0, 1]
    assert [kept for kept, _ in encoder.learned] == [0.25, 0.5]
    np.testing.assert_array_equal(grads[0], 2 * values(50))
    assert client._steps == server._steps == {}


@pytest.mark.parametrize("mode", [Mode.EVAL, Mode.INFER])
def test_evaluation_keeps_nothing_and_changes_nothing(mode: Mode) -> None:
    run = make_run()
    client, server = cuts_of(run, "c0"), cuts_of(run, "server")
    before = {name: value.tobytes() for name, value in client.state().items()}
    up = client.encode_forward(work("bottom", 3, mode=mode), {"act": values(0)}, {"@labels": np.arange(4)}, 1.0)
    found = server.decode_forward(work("top", 3, mode=mode), up, 1.0)
    assert found["@labels"].tolist() == [0, 1, 2, 3]
    assert client._steps == server._steps == {}
    assert {name: value.tobytes() for name, value in client.state().items()} == before


def test_a_discarded_step_leaves_nothing_and_its_gradient_is_refused() -> None:
    run = make_run()
    client, server = cuts_of(run, "c0"), cuts_of(run, "server")
    up = client.encode_forward(work("bottom"), {"act": values(0)}, {}, 0.0)
    server.decode_forward(work("top"), up, 0.0)
    down = server.encode_backward(work("top"), {"act": values(1)}, 0.0)
    client.discard(work("bottom"))
    with pytest.raises(CodecError, match="`act`: a gradient of what was not sent"):
        client.decode_backward(work("bottom"), down, 0.0)
    assert encoder_of(client).learned == []


def test_only_what_arrived_gets_a_gradient() -> None:
    run = make_run("int8", "int8")
    client, server = cuts_of(run, "c0", names=("act", "skip")), cuts_of(run, "server", names=("act", "skip"))
    up = client.encode_forward(work("bottom"), {"act": values(0), "skip": values(1)}, {}, 0.0)
    server.decode_forward(work("top"), up, 0.0)
    down = server.encode_backward(work("top"), {"act": values(2), "other": values(3)}, 0.0)
    assert list(client.decode_backward(work("bottom"), down, 0.0)) == ["act"]


def test_a_fan_out_sums_gradients_and_each_edge_has_encoders_of_its_own() -> None:
    segments = (
        Segment(name="bottom", parties=("c0",)),
        Segment(name="top", parties=("server",), loss=True),
        Segment(name="other", parties=("third",), loss=True),
    )
    graph = Graph(
        segments=segments, edges=(Edge(source="bottom", target="top"), Edge(source="bottom", target="other")), coordinator="server"
    )
    run = make_run(clients=1)
    client, server = cuts_of(run, "c0", graph), cuts_of(run, "server", graph)
    ups = client.encode_forward(work("bottom"), {"act": values(0)}, {}, 0.0)
    assert set(ups) == {"bottom>top", "bottom>other"}
    server.decode_forward(work("top"), {"bottom>top": ups["bottom>top"]}, 0.0)
    down = server.encode_backward(work("top"), {"act": values(1)}, 0.0)["bottom>top"]
    both = client.decode_backward(work("bottom"), {"bottom>top": down, "bottom>other": down}, 0.0)["act"]
    np.testing.assert_array_equal(both, 4 * values(1))  # each edge's encoder doubles its own
    one, two = (encoder_of(client, edge=edge) for edge in ups)
    assert one is not two
    assert len(one.learned) == len(two.learned) == 1


def test_an_edge_within_a_party_is_not_quantized() -> None:
    segments = (Segment(name="bottom", parties=("c0",)), Segment(name="top", parties=("c0",), loss=True))
    graph = Graph(segments=segments, edges=(Edge(source="bottom", target="top"),))
    cuts = cuts_of(make_run("int2", "int2", clients=1), "c0", graph)
    up = cuts.encode_forward(work("bottom"), {"act": values(0)}, {}, 0.0)
    np.testing.assert_array_equal(cuts.decode_forward(work("top"), up, 0.0)["act"], values(0))
    down = cuts.encode_backward(work("top"), {"act": values(1)}, 0.0)
    np.testing.assert_array_equal(cuts.decode_backward(work("bottom"), down, 0.0)["act"], values(1))


# ------------------------------------------------------------ whatever arrives


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"act": np.zeros((5, 20), np.float32)}, "`act`: it arrived as float32 [5, 20]; expected float32 ['batch', 20]"),  # over the batch
        ({"act": np.zeros((4, 21), np.float32)}, "`act`: it arrived as float32 [4, 21]"),
        ({"act": np.zeros(4, np.float32)}, "`act`: it arrived as float32 [4]"),
        ({"act": np.zeros((4, 20))}, "`act`: it arrived as float64 [4, 20]"),
        ({"act2": np.zeros((4, 20), np.float32)}, "`act2`: the segment takes no such tensor"),
        ({"target": np.zeros(4, np.int64)}, "`target`: the segment takes no such tensor"),
        ({"@labels": np.zeros(5, np.int64)}, "`@labels`: it arrived as int64 [5]; expected labels for int64 ['batch'], one row a sample"),
        ({"@labels": np.zeros((1, 1 << 20), np.int64)}, "`@labels`: it arrived as int64 [1, 1048576]; expected"),
        ({"@labels": np.zeros((4, 3), np.float32)}, "`@labels`: it arrived as float32 [4, 3]; expected"),
        ({"@labels": np.zeros(4, np.float32)}, "`@labels`: it arrived as float32 [4]; expected"),
        ({"@labels": np.zeros((), np.int64)}, "`@labels`: it arrived as int64 []; expected"),
        ({"@ids": np.zeros((), np.uint8)}, "`@ids`: it arrived as uint8 []; expected uint8 [N, 16], one row a sample"),
        ({"@ids": np.zeros((4, 1 << 20), np.uint8)}, "`@ids`: it arrived as uint8 [4, 1048576]; expected"),
        ({"@ids": np.zeros((5, 16), np.uint8)}, "`@ids`: it arrived as uint8 [5, 16]; expected"),
        ({"@ids": np.zeros((4, 16), np.int64)}, "`@ids`: it arrived as int64 [4, 16]; expected"),
    ],
)
def test_what_a_segment_does_not_take_is_refused_by_its_header(tensors: dict[str, np.ndarray], said: str) -> None:
    server = cuts_of(make_run(), "server")
    with pytest.raises(CodecError) as caught:
        server.decode_forward(work("top"), {"bottom>top": encode_plain(tensors)}, 0.0)
    assert said in str(caught.value)


@pytest.mark.parametrize("extra", [{"@labels": np.zeros(3, np.int64)}, {"@ids": np.zeros((3, 16), np.uint8)}])
def test_the_tensors_of_a_step_are_of_one_batch(extra: dict[str, np.ndarray]) -> None:
    payload = {"bottom>top": encode_plain({"act": values(0), **extra})}
    with pytest.raises(CodecError, match=r"of different batches, by rows: \{'act': 4, '@"):
        cuts_of(make_run(), "server").decode_forward(work("top"), payload, 0.0)


@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        (np.arange(4), True),  # classes: whatever the loss, it takes them as numbers
        (np.zeros(4, np.float32), False),
        (np.ones((4, 3), np.float32), True),
        (np.ones((4, 2), np.float32), False),
        (np.ones((4, 3)), False),
        (np.ones((4, 3, 1), np.float32), False),
    ],
)
def test_labels_have_as_many_numbers_as_the_loss_takes(labels: np.ndarray, fits: bool) -> None:
    run = make_run("fp32")
    columns = () if labels.dtype == np.int64 else (3,)
    target = TensorSpec(name="target", dtype="float32", shape=("batch", *columns))
    server = Cuts(run, run.graph().slice_for("server"), {"top": Ends((tensor(), target), (LOSS,))})  # type: ignore[dict-item]
    payload = {"bottom>top": encode_plain({"act": values(0), "@labels": labels})}
    if fits:
        np.testing.assert_array_equal(server.decode_forward(work("top"), payload, 0.0)["@labels"], labels)
    else:
        with pytest.raises(CodecError, match="`@labels`: it arrived as"):
            server.decode_forward(work("top"), payload, 0.0)


@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        (np.arange(4), True),
        (np.ones((4, 300), np.float32), True),
        (np.zeros((1, 1 << 20), np.int64), False),
        (np.ones((5, 3), np.float32), False),
    ],
)
def test_a_party_on_the_way_passes_on_what_labels_look_like(labels: np.ndarray, fits: bool) -> None:
    """It does not know what the loss takes; packed numbers are one a sample there, and others are as long as they come."""
    segments = tuple(Segment(name=name, parties=(party,), loss=party == "server") for name, party in
                     (("bottom", "c0"), ("middle", "hop"), ("top", "server")))  # fmt: skip
    graph = Graph(segments=segments, edges=(Edge(source="bottom", target="middle"), Edge(source="middle", target="top")))
    hop = Cuts(make_run("fp32", clients=1), graph.slice_for("hop"), {"middle": Ends((tensor(),), (tensor(),))})  # type: ignore[dict-item]
    payload = {"bottom>middle": encode_plain({"act": values(0), "@labels": labels})}
    if fits:
        np.testing.assert_array_equal(hop.decode_forward(work("middle"), payload, 0.0)["@labels"], labels)
    else:
        with pytest.raises(CodecError, match=r"`@labels`: it arrived as .*; expected int64 \[N\], float32"):
            hop.decode_forward(work("middle"), payload, 0.0)


@pytest.mark.parametrize("name", ["@labels", "@ids"])
@pytest.mark.parametrize("number", sorted({codec.number for codec in CODECS.values()} - set(LOSSLESS.values())))
def test_labels_and_ids_cross_without_loss_or_not_at_all(name: str, number: int) -> None:
    array = np.zeros(4, np.int64) if name == "@labels" else np.zeros((4, 16), np.uint8)
    data = encode_tensors([(name, array, Encoded(number=number, pieces=(bytes(12),)))])
    with pytest.raises(CodecError, match=f"`{name}`: codec number {number} is not for it; it must be raw, fp32, packed"):
        cuts_of(make_run(), "server").decode_forward(work("top"), {"bottom>top": data}, 0.0)


def test_gradients_of_another_shape_are_refused_and_nothing_is_learned() -> None:
    client = cuts_of(make_run(), "c0")
    for bad, said in [
        (np.zeros((4, 19), np.float32), "`act`: its gradient arrived as float32 [4, 19]; sent was float32 [4, 20]"),
        (np.zeros((3, 20), np.float32), "its gradient arrived as float32 [3, 20]"),
        (np.zeros((4, 20)), "its gradient arrived as float64"),
    ]:
        client.encode_forward(work("bottom"), {"act": values(0)}, {}, 0.0)
        with pytest.raises(CodecError) as caught:
            client.decode_backward(work("bottom"), {"bottom>top": encode_plain({"act": bad})}, 0.0)
        assert said in str(caught.value)
    assert encoder_of(client).learned == []


def test_a_gradient_that_claims_a_support_that_is_not_there_is_refused() -> None:
    client = cuts_of(make_run("int8", "topk"), "c0")
    client.encode_forward(work("bottom"), {"act": values(0)}, {}, 0.0)
    claims = Encoded(number=TopK.number, pieces=(b"\x04\x00\x00", bytes(8)))
    with pytest.raises(CodecError, match="`act`: the positions are said to be known"):
        client.decode_backward(work("bottom"), {"bottom>top": encode_tensors([("act", values(0), claims)])}, 0.0)


def test_a_tensor_that_cannot_be_sent_is_named() -> None:
    client = cuts_of(make_run("int8"), "c0")
    with pytest.raises(CodecError, match="`act`: a value is not finite"):
        client.encode_forward(work("bottom"), {"act": values(0) * np.float32(np.nan)}, {}, 0.0)
    assert client._steps == {}


# ------------------------------------------------------------ codecs that do not fit


@pytest.mark.parametrize("party", ["c0", "server"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_codec_that_does_not_fit_is_named_at_both_ends_before_the_first_step(party: str, direction: str) -> None:
    run = make_run(**{"forward": "fp32", "backward": "fp32", direction: "stateful:limit=79"})
    with pytest.raises(RunFileError) as caught:
        cuts_of(run, party)
    said = "`stateful` does not fit the tensor `act` ['batch', 20]: a sample takes 80 bytes; `limit` is 79"
    assert str(caught.value) == f"codec.{direction} of the cut bottom>top: {said}"


@pytest.mark.parametrize(
    ("shape", "said"), [((), "the tensor has no batch"), ((4, 20), "the tensor has no batch"), (("batch",), "a sample is one number")]
)
def test_topk_needs_samples_of_several_numbers(shape: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TopK().check(TensorSpec(name="x", dtype="float32", shape=shape), "forward", 8)


# ------------------------------------------------------------ state


def payloads(run: Run, upto: int, *, cut_at: int | None = None, schedule_lanes: int = 2) -> tuple[list[bytes], dict[str, bytes]]:
    """All payloads of ``upto`` steps; at ``cut_at`` both parties are new ones that take up the saved state, and repeat a lost step."""
    lanes = [(f"c{lane}", lane) for lane in range(schedule_lanes)]
    clients, server = {name: cuts_of(run, name) for name, _ in lanes}, cuts_of(run, "server")
    found: list[bytes] = []
    saved = None
    for step in range(upto):
        if step == cut_at:
            saved = {name: cuts.state() for name, cuts in (*clients.items(), ("server", server))}
            step_through(clients["c0"], server, step)  # of a future that is given up
            clients, server = {name: cuts_of(run, name) for name, _ in lanes}, cuts_of(run, "server")
            for name, cuts in (*clients.items(), ("server", server)):
                cuts.load_state(saved[name])
        name, lane = lanes[step % len(lanes)]
        up, down, grad = step_through(clients[name], server, step, lane)
        found += [up, down, grad.tobytes()]
    last = {f"{name}:{key}": value.tobytes() for name, cuts in clients.items() for key, value in cuts.state().items()}
    return found, last | {f"server:{key}": value.tobytes() for key, value in server.state().items()}


@pytest.mark.parametrize("cut_at", [0, 1, 5, 9])
@pytest.mark.parametrize("codecs", [("stateful", "stateful"), ("randtopk:alpha=0.5", "randtopk:alpha=0.5"), ("int4", "stateful")])
def test_a_run_that_is_resumed_sends_the_same_bytes(cut_at: int, codecs: tuple[str, str]) -> None:
    run = make_run(*codecs)
    assert payloads(run, 10, cut_at=cut_at) == payloads(run, 10)


def test_lanes_have_encoders_of_their_own_unless_the_run_is_a_relay() -> None:
    names = set(cuts_of(make_run("stateful", "stateful"), "server").state())
    assert names == {f"bottom>top|c{lane}|backward|act|total" for lane in range(2)}
    relay = make_run("stateful", "stateful", schedule="relay")
    assert set(cuts_of(relay, "server").state()) == {"bottom>top|*|backward|act|total"}
    assert set(cuts_of(relay, "c1").state()) == {"bottom>top|*|forward|act|total"}


def test_a_relay_hands_the_state_of_the_shared_segment_over() -> None:
    run = make_run("stateful", "stateful", schedule="relay")
    one, two, server = cuts_of(run, "c0"), cuts_of(run, "c1"), cuts_of(run, "server")
    for step in range(3):
        step_through(one, server, step, lane=0)
    two.load_state(one.state(["bottom"]), ["bottom"])
    assert one.state(["nothing"]) == {}
    alone, top = cuts_of(run, "c0"), cuts_of(run, "server")
    wanted = [step_through(alone, top, step, lane=0) for step in range(5)]
    found = [step_through(two, server, step, lane=1) for step in (3, 4)]
    assert [each[:2] for each in found] == [each[:2] for each in wanted[3:]]


def test_a_prediction_finds_its_lane_among_those_of_the_run() -> None:
    whole, alone = make_run(clients=2), make_run(clients=1)
    saved = cuts_of(whole, "server").state() | cuts_of(whole, "c0").state() | cuts_of(whole, "c1").state()
    cuts_of(alone, "c0").load_state(saved, surplus=True)
    with pytest.raises(CheckpointError, match="has a surplus"):
        cuts_of(alone, "c0").load_state(saved)


def test_a_state_that_is_not_ours_is_refused_and_changes_nothing() -> None:
    client = cuts_of(make_run(), "c0")
    client.encode_forward(work("bottom"), {"act": values(0)}, {}, 0.0)
    name = "bottom>top|c0|forward|act|total"
    good = client.state()
    for bad, said in [
        ({}, f"the codec state lacks `{name}`; it is of another run"),
        ({**good, "x": np.zeros(1)}, "the codec state has a surplus `x`"),
        ({name: np.zeros(2, np.float32)}, f"`{name}` of the codec state is float32 [2], not float32 []"),
        ({name: np.zeros((), np.int64)}, "is int64 [], not float32 []"),
        ({name: np.array(np.nan, np.float32)}, "cannot be taken up: the total is not finite"),
    ]:
        with pytest.raises(CheckpointError) as caught:
            client.load_state(bad)
        assert said in str(caught.value)
    assert client.state() == good
    assert client._steps
    client.load_state(good)
    assert client._steps == {}, "steps in flight are of another time"


def test_labels_ride_along_packed() -> None:
    run = make_run("int8")
    labels = np.array([9, 0, 3, 7])
    up = cuts_of(run, "c0").encode_forward(work("bottom"), {"act": values(0)}, {"@labels": labels}, 0.0)["bottom>top"]
    assert encode_lossless(labels).size_bytes == 9 + 2
    assert read_any(up)["@labels"].tolist() == labels.tolist()
