"""The run file: one TOML file that says what is trained, by whom, on what, over which line. ``docs/run-file.md`` is made from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from wire.alignment import AlignConfig
from wire.codecs import DIRECTIONS, Direction, parse_codec
from wire.data_config import DataConfig
from wire.errors import GraphError, RunFileError, UsageError
from wire.graph import Graph, Line, PartySlice, edge_token, topics
from wire.limits import LIMITS
from wire.lr import LrSchedule
from wire.manifest import TensorSpec
from wire.metric_names import goes_with
from wire.optim import Optimizer
from wire.parse import parse, plain, read_key
from wire.placement import graph_of, hub_of
from wire.program import AVERAGING, FEDERATED, Plan, Schedule
from wire.schedules import check_copies, check_network, check_relay, check_rounds, check_weights_leave
from wire.segments import LossName, ReconstructConfig, SegmentConfig
from wire.slices import Slice
from wire.spool import SpoolConfig
from wire.straggler import StragglerConfig
from wire.transport.broker_config import BrokerConfig

__all__ = [
    "ClientConfig",
    "CodecConfig",
    "CutCodec",
    "EvaluateConfig",
    "ModelConfig",
    "Run",
    "ServerConfig",
    "load_run",
    "parse_run",
]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEGMENT_NAMES = {1: ("model",), 2: ("bottom", "top"), 3: ("bottom", "trunk", "head")}


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"`{what}` is {name!r}; use 1 to 64 letters, digits, `_` or `-`")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which network, and where it is cut.

    ``build`` is a bundled model's name or ``path.py:callable``, the path being relative to the run file. ``cut`` names submodules; the
    cut is taken after each; with the schedules "fedavg" and "large-batch" there is none. ``args`` go to the builder. ``input_shape`` is one
    sample's shape; bundled models know theirs. ``segments`` names the pieces; ``placement`` puts a piece on ``clients`` (one replica each),
    on ``server``, or on a party by its name. ``freeze``: submodules and
    parameters that stay as they are, with ``*`` for any part of a name; a device computes no gradient that only they would need.
    """

    build: str
    cut: tuple[str, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    segments: tuple[str, ...] | None = None
    placement: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.segments is not None and len(self.segments) != len(self.cut) + 1:
            raise ValueError(f"`segments` names {len(self.segments)} pieces, but {len(self.cut)} cuts make {len(self.cut) + 1}")
        for name in self.names:
            _check_name("segments", name)
        for name in self.placement:
            if name not in self.names:
                raise ValueError(f"`placement` names the segment {name!r}; segments are {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        pieces = len(self.cut) + 1
        return self.segments or _SEGMENT_NAMES.get(pieces) or tuple(f"part{at}" for at in range(pieces))

    def place(self, segment: str) -> str:
        """``clients``, ``server`` or a party: by default the first segment is on the clients, and the last of three as well (U-shape)."""
        default = {"bottom": "clients", "head": "clients"} if len(self.names) == 3 else {self.names[0]: "clients"}
        return self.placement.get(segment) or default.get(segment, "server")


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCodec:
    """One cut's own codecs, written as in ``[codec]``; left out, what stands there."""

    forward: str | None = None
    backward: str | None = None

    def __post_init__(self) -> None:
        _check_codecs(self.forward, self.backward)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    """How tensors cross the cuts: ``forward`` for activations, ``backward`` for their gradients; ``weights``: how what a round has changed
    of the weights crosses where they are averaged.

    A codec is written ``name`` or ``name:key=value,key=value``, like "int8" or "topk:keep=0.05"; docs/guide-codecs.md lists them. ``cuts``:
    other codecs for single cuts, each a table ``[codec.cuts."bottom>trunk"]`` named by the segments at its ends.
    """

    forward: str = "fp32"
    backward: str = "fp32"
    weights: str = "fp32"
    cuts: dict[str, CutCodec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_codecs(self.forward, self.backward)
        _check_weights_codec(self.weights)

    def of(self, edge: str, direction: Direction) -> str:
        """The codec of a cut as it is written."""
        cut = self.cuts.get(edge, CutCodec())
        return cut.forward or self.forward if direction == "forward" else cut.backward or self.backward


def _check_codecs(forward: str | None, backward: str | None) -> None:
    for key, text in (("forward", forward), ("backward", backward)):
        if text is not None:
            try:
                parse_codec(text)
            except ValueError as exc:
                raise ValueError(f"`{key}`: {exc}") from exc


def _check_weights_codec(text: str) -> None:
    """It must carry a tensor of any shape by itself: nothing is kept from one round to the next."""
    spec = TensorSpec(name="weight", dtype="float32", shape=(4, 4))
    try:
        codec = parse_codec(text)
    except ValueError as exc:
        raise ValueError(f"`weights`: {exc}") from exc
    try:
        codec.check(spec, "forward", 1)
        fits = not codec.encoder(spec, "forward").state()
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`weights` is {text!r}, which is for batches of activations; use fp32, fp16, bf16, int8, int4, int2 or mxfp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Which metrics, on which splits, how often. The first split decides early stopping, after ``patience`` evaluations without gain."""

    metrics: tuple[str, ...] = ("accuracy",)
    splits: tuple[Literal["validation", "test"], ...] = ("test",)
    every_epochs: int = 1
    patience: int | None = None
    watch: str = "loss"

    def __post_init__(self) -> None:
        if self.every_epochs < 1:
            raise ValueError(f"`every_epochs` is {self.every_epochs}; it must be 1 or more")
        if not self.splits:
            raise ValueError("`splits` is empty; name at least one of validation, test")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"`patience` is {self.patience}; it must be 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """A party that runs ONNX on a device. ``data`` overrides single keys of the run's ``[data]``; ``threads``: left out, one a core.

    ``engine``: what its segments train with; "auto" is stock onnxruntime, "ort-training" onnxruntime-training 1.19.2
    (docs/guide-ort-training.md). ``memory``: "fast" keeps between forward and backward what both need, "low" computes it again;
    "auto" takes "fast" where it fits. ``public_key``: as ``cutlayer key`` prints it there; who hands weights to this client in a relay
    with ``hand_over = "peer"`` takes no other.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    engine: Literal["auto", "stock", "ort-training"] = "auto"
    memory: Literal["auto", "fast", "low"] = "auto"
    public_key: str | None = None

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        if self.public_key is not None:
            try:
                read_key(self.public_key)
            except ValueError as exc:
                raise ValueError(f"`public_key`: {exc}; write what `cutlayer key` prints at this client") from exc
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"`threads` is {self.threads}; it must be 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A party that trains heavy segments. ``labels``: a CSV file of keyed id and label, where clients do not send labels."""

    name: str = "server"
    labels: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _check_name("name", self.name)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A checked run. Relative paths start at the run file's folder.

    The network is ``[model]`` with its cuts, a chain of segments, or a graph of ``[[segments]]``. ``[[servers]]`` instead of ``[server]``
    where there are several; the first that holds a loss coordinates the run. ``slice``: made by ``cutlayer slice``, never by hand.

    ``name``: of the run; its state and its topics carry it. ``schedule``: with "relay" clients train one after the other and hand their
    segment's weights on; with "independent" they take turns step by step and keep weights of their own; "splitfed-v1", "splitfed-v2",
    "fedavg" and "large-batch" average them (docs/guide-schedules.md). ``round_steps``: of each client between two averages; left out, an
    epoch. ``weights_leave``: whether client weights may leave the device, which ``cutlayer assemble`` and, with several clients, averages
    and relay through the server need. ``hand_over``: which way a relay hands
    weights on: "server", through the server, or "peer", from client to client, sealed so that only the next client can read them.
    ``in_flight``: steps of a client under way at once;
    1 means no stale weights. ``checkpoint_every``: global steps between checkpoints. ``clip_norm``: each segment's gradient is clipped to
    this norm. ``resend_after_s``: how long an answer may take before we repeat. ``topic_key``: secret from which topic
    names are made; by default the run's name. ``ids_key``: secret with which sample ids are hashed, where the server holds the labels
    or records are aligned.
    ``accumulate``: each segment's weights are updated by every so many of its steps, with the mean of their gradients; what is left over at
    the end of the run is not used.
    """

    name: str
    epochs: int
    batch_size: int
    optimizer: Optimizer
    clients: tuple[ClientConfig, ...] = ()
    model: ModelConfig | None = None
    segments: tuple[SegmentConfig, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    loss: LossName = "cross_entropy"
    in_flight: int = 1
    accumulate: int = 1
    checkpoint_every: int = 100
    weights_leave: bool = False
    schedule: Schedule = "relay"
    hand_over: Literal["server", "peer"] = "server"
    round_steps: int | None = None
    clip_norm: float | None = None
    state_dir: str = "state"
    resend_after_s: float = 10.0
    topic_key: str = ""
    ids_key: str = ""
    lr_schedule: LrSchedule = field(default_factory=LrSchedule)
    codec: CodecConfig = field(default_factory=CodecConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    align: AlignConfig | None = None
    straggler: StragglerConfig = field(default_factory=StragglerConfig)
    reconstruct: ReconstructConfig | None = None
    server: ServerConfig = field(default_factory=ServerConfig)
    servers: tuple[ServerConfig, ...] = ()
    slice: Slice | None = None
    base: str = "."

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        for key, low in (("epochs", 1), ("batch_size", 1), ("in_flight", 1), ("accumulate", 1), ("checkpoint_every", 1), ("seed", 0)):
            if getattr(self, key) < low:
                raise ValueError(f"`{key}` is {getattr(self, key)}; it must be {low} or more")
        if self.slice is None:
            self._check_parties()
        check_rounds(self)
        check_weights_leave(self)
        if self.hand_over == "peer" and self.schedule != "relay":
            raise ValueError(f"`hand_over` is 'peer', but with `schedule = \"{self.schedule}\"` no client hands weights to the next")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"`clip_norm` is {self.clip_norm}; it must be above 0")
        if self.slice is None and any(server.labels is not None for server in self.all_servers) and not self.ids_key and self.align is None:
            raise ValueError("`server.labels` joins records by keyed id: set `ids_key`, the secret that all parties share")
        for cut in self.codec.cuts:
            if cut not in self.edges:
                raise ValueError(f"`codec.cuts` names the cut {cut!r}; cuts are {', '.join(self.edges)}")
        unlabelled = [self.data_of(client.name).unlabelled for client in self.clients if self.reads_data(client.name)]
        if any(unlabelled):
            self._check_unlabelled()

    def _check_unlabelled(self) -> None:
        if self.reconstruct is None:
            raise ValueError(
                "`data.unlabelled`: samples without a label teach nothing unless the segment is an autoencoder; set `[reconstruct]`"
            )
        if self.loss != "cross_entropy" or any(
            slot.labels == "local" for client in self.clients for slot in self.slice_for(client.name).slots
        ):
            raise ValueError("`data.unlabelled` is for class labels and a loss on a server")

    def _check_parties(self) -> None:
        if not 1 <= len(self.clients) <= LIMITS.parties:
            raise ValueError(f"`clients` lists {len(self.clients)} parties; it must be 1 to {LIMITS.parties}")
        if self.servers and self.server != ServerConfig():
            raise ValueError("`server` and `servers` are both given; list all of them in `[[servers]]`")
        if len(self.servers) > LIMITS.parties:
            raise ValueError(f"`servers` lists {len(self.servers)} parties; it must be at most {LIMITS.parties}")
        names = [client.name for client in self.clients] + [server.name for server in self.all_servers]
        for name, times in Counter(names).items():
            if times > 1:
                raise ValueError(f"two parties are called {name!r}; every party needs a name of its own")
        check_network(self)
        graph = self.graph()
        check_copies(self, graph)
        check_relay(self, graph)
        held = frozenset(graph.parties)
        alone = self.schedule not in FEDERATED and all(segment.labels == "local" for segment in graph.segments if segment.loss)
        if self.evaluate.patience is not None and alone:
            raise ValueError("`evaluate.patience` stops early by what the server measures, but all losses stay at clients; leave it out")
        sources = [segment.name for segment in graph.segments if not any(edge.target == segment.name for edge in graph.edges)]
        if len(sources) > 1 and self.align is None:
            raise ValueError(f"segments {', '.join(sources)} take raw data of several parties; say in `[align]` how their records meet")
        if self.reconstruct is not None and self.reconstructed not in sources:
            raise ValueError(f"`reconstruct.segment` is {self.reconstruct.segment!r}; segments with raw data are {', '.join(sources)}")
        for name in names:
            if name not in held:
                raise ValueError(f"no segment is placed on the party {name!r}; place one there, or leave the party out")

    # ------------------------------------------------------------ what follows from it

    @property
    def averages(self) -> bool:
        """Whether lanes train at the same time and their weights are averaged."""
        return self.schedule in AVERAGING

    @property
    def all_servers(self) -> tuple[ServerConfig, ...]:
        return self.servers or (self.server,)

    def graph(self) -> Graph:
        """The graph of segments: a chain in the order of the cuts with the loss at its end, or as ``[[segments]]`` say; without a cut,
        where clients hold the whole network, one segment. Raises GraphError.

        A party that has only its slice does not know the graph: raises UsageError.
        """
        return self._graph

    @cached_property
    def _graph(self) -> Graph:
        if self.slice is not None:
            raise UsageError(
                f"this run file is the slice of `{self.slice.party}`, which does not know the whole run; use the run file itself"
            )
        clients = [client.name for client in self.clients]
        if self.schedule in FEDERATED and self.model is not None:
            return hub_of(self.model.names[0], clients=clients, server=self.all_servers[0].name)
        return graph_of(
            self.model if self.model is not None else self.segments,
            clients=clients,
            servers=[server.name for server in self.all_servers],
            with_labels=[server.name for server in self.all_servers if server.labels is not None],
            peers=self.hand_over == "peer",
        )

    def slice_for(self, party: str) -> PartySlice:
        """All that ``party`` needs to know of the graph. Raises GraphError, or UsageError where this is the slice of another."""
        if self.slice is None:
            return self.graph().slice_for(party)
        if self.slice.party != party:
            raise UsageError(f"this run file is the slice of `{self.slice.party}`, not of `{party}`; give that party its own")
        return self.slice.party_slice()

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the cuts, as far as they are known here."""
        if self.slice is None:
            return tuple(edge.name for edge in self.graph().edges)
        return tuple(dict.fromkeys(end.edge for slot in self.slice.slots for end in (*slot.inputs, *slot.outputs)))

    @cached_property
    def client_segments(self) -> tuple[str, ...]:
        """Segments that clients hold, in order."""
        clients = {client.name for client in self.clients}
        return tuple(segment.name for segment in self.graph().order() if clients.issuperset(segment.parties))

    def reads_data(self, client: str) -> bool:
        """Whether the client has raw data."""
        return any(slot.is_source for slot in self.slice_for(client).slots)

    @property
    def sinks(self) -> tuple[str, ...]:
        """The segments known here that own a loss."""
        if self.slice is not None:
            return tuple(slot.segment for slot in self.slice.slots if slot.is_sink)
        return tuple(segment.name for segment in self.graph().segments if segment.loss)

    @property
    def reconstructed(self) -> str | None:
        """The segment that is an autoencoder."""
        if self.reconstruct is None or self.reconstruct.segment is not None or self.slice is not None:
            return None if self.reconstruct is None else self.reconstruct.segment
        return self.graph().order()[0].name

    def loss_of(self, segment: str) -> LossName:
        """The loss at the end of the graph that ``segment`` is."""
        if self.slice is not None:
            return self.slice.losses.get(segment, self.loss)
        return next((each.loss for each in self.segments if each.name == segment and each.loss is not None), self.loss)

    def metrics_of(self, sink: str) -> tuple[str, ...]:
        """What is measured at this end of the graph: of several with different losses, those metrics that mean something with its own."""
        names = self.evaluate.metrics
        if self.slice is not None or len(self.sinks) == 1:
            return names
        return tuple(name for name in names if goes_with(name, self.loss_of(sink)))

    @property
    def lanes(self) -> int:
        return self.slice.lanes if self.slice is not None else self.graph().lanes

    @property
    def lane_names(self) -> tuple[str, ...]:
        """What encoders' state of each lane is called: the same in a run of one client alone, as for a prediction."""
        return self.slice.lane_names if self.slice is not None else self.graph().lane_names

    def across(self, line: Line) -> str:
        """The party at the other end of a peer line of this party."""
        return self.slice.peers[str(line.lane)] if self.slice is not None else self.graph().across(line)

    @property
    def public_keys(self) -> dict[str, str]:
        """By client, those that the run file pins, as far as this party has to know them."""
        own = {client.name: client.public_key for client in self.clients if client.public_key is not None}
        return self.slice.public_keys | own if self.slice is not None else own

    def topics(self, line: Line) -> tuple[str, str]:
        """(publish, subscribe) topics of a line of this party."""
        return topics(self.name, line, self.token(line.edge))

    def token(self, edge: str) -> str:
        """The opaque name of an edge or link in topics."""
        return self.slice.edges[edge] if self.slice is not None else edge_token(self.topic_key or self.name, edge)

    def plan(self) -> Plan:
        return Plan(
            lanes=self.lanes,
            epochs=self.epochs,
            schedule=self.schedule,
            checkpoint_every=self.checkpoint_every,
            evaluate_every=self.evaluate.every_epochs,
            splits=self.evaluate.splits,
            hand_over=self.hand_over,
            collect=self.weights_leave,
            round_steps=self.round_steps,
            batch_size=self.batch_size,
        )

    @property
    def absences(self) -> bool:
        """Whether the run can do without clients.

        Weights that clients hand to each other have no other way round one that is gone, averages no place for one that lacks the common
        weights, and a lane whose records several parties hold is nothing without one of them.
        """
        return self.straggler.voids and self.schedule in ("relay", "independent") and self.hand_over == "server" and self.align is None

    def is_client(self, name: str) -> bool:
        return name in self._client_at

    @cached_property
    def _client_at(self) -> dict[str, int]:
        """Place in ``clients``, by name."""
        return {client.name: at for at, client in enumerate(self.clients)}

    def client(self, name: str) -> ClientConfig:
        """Raises RunFileError where there is none of that name."""
        if name in self._client_at:
            return self.clients[self._client_at[name]]
        raise RunFileError(f"no client is called `{name}`; clients are {', '.join(client.name for client in self.clients)}")

    def server_called(self, name: str) -> ServerConfig:
        """Raises RunFileError where there is none of that name."""
        for server in self.all_servers:
            if server.name == name:
                return server
        raise RunFileError(f"no server is called `{name}`; servers are {', '.join(server.name for server in self.all_servers)}")

    def data_of(self, client: str) -> DataConfig:
        """The data of one client: the run's ``[data]``, with the client's own keys over it. Raises RunFileError."""
        at = self._client_at[client]
        return parse(DataConfig, _merge(self.data, self.clients[at].data), where=f"clients[{at}].data", error=RunFileError)

    def path(self, relative: str) -> Path:
        """A path of the run file, resolved against its folder."""
        return Path(self.base, relative).expanduser()

    def state_of(self, party: str) -> Path:
        """Where a party keeps checkpoints, ledger and results."""
        return self.path(self.state_dir) / self.name / party

    @property
    def bundles(self) -> Path:
        """Where ``cutlayer run`` puts the devices' bundles, and a client looks for its own unless told otherwise."""
        return self.path(self.state_dir) / self.name / "bundles"

    def with_broker(self, url: str | None) -> Run:
        """The same run over another broker; None: as it is. Raises RunFileError."""
        if url is None:
            return self
        try:
            return dataclasses.replace(self, broker=dataclasses.replace(self.broker, url=url))
        except ValueError as exc:
            raise RunFileError(f"broker: {exc}") from exc

    @property
    def coordinator(self) -> str:
        """The party that gives the commands. Raises UsageError where this is the slice of another party."""
        if self.slice is not None and self.slice.parent is None:
            return self.slice.party
        return self.graph().root()

    @property
    def codecs(self) -> frozenset[str]:
        """All codecs that the run uses, as far as they are known here, as they are written."""
        used = frozenset(self.codec.of(edge, direction) for edge in self.edges for direction in DIRECTIONS)
        return used | {self.codec.weights} if self.averages else used

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all that parties must agree on; where files lie and how the broker is reached is each one's own."""
        if self.slice is not None:
            return self.slice.digest
        own = (
            "broker",
            "spool",
            "data",
            "state_dir",
            "base",
            "resend_after_s",
            "topic_key",
            "ids_key",
            "server",
            "servers",
            "slice",
            "clients",
            "straggler",
        )
        shared = {key: value for key, value in plain(self).items() if key not in own}
        shared["parties"] = [client.name for client in self.clients] + [server.name for server in self.all_servers]
        shared["straggler"] = self.straggler.policy
        shared["labels"] = [bool(server.labels) for server in self.all_servers]
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    @property
    def tag(self) -> int:
        """The run's u32 in frame headers: frames of another run on the same topics are dropped."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "little")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = _merge(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_run(data: Mapping[str, Any], *, base: str) -> Run:
    """A run from plain data; relative paths start at ``base``. Raises RunFileError naming the key."""
    if "base" in data:
        raise RunFileError("unknown key `base`")
    return parse(Run, {**data, "base": base}, where="", error=RunFileError)


def load_run(path: str | Path) -> Run:
    """Read a run file. Raises RunFileError: not there, not TOML, or a key at fault; the text begins with the path."""
    path = Path(path)
    try:
        if path.stat().st_size > LIMITS.run_file_bytes:
            raise RunFileError(f"{path} is larger than {LIMITS.run_file_bytes} bytes; this is not a run file")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise RunFileError(f"cannot read the run file {path}: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RunFileError(f"{path} is not valid TOML: {exc}") from exc
    told = data.get("slice")
    base = told.get("base") if isinstance(told, dict) else None
    try:
        return parse_run(data, base=base if isinstance(base, str) else str(path.resolve().parent))
    except (RunFileError, GraphError) as exc:
        raise type(exc)(f"{path}: {exc}") from exc
