"""The run file: one TOML file that says what is trained, by whom, on what, over which line. ``docs/run-file.md`` is made from it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wire.codecs import DIRECTIONS, Direction, parse_codec
from wire.data_config import DataConfig
from wire.errors import RunFileError
from wire.graph import Edge, Graph, Segment
from wire.limits import LIMITS
from wire.lr import LrSchedule
from wire.optim import Optimizer
from wire.parse import parse, plain
from wire.program import Plan
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
_SEGMENT_NAMES = {2: ("bottom", "top"), 3: ("bottom", "trunk", "head")}


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"`{what}` is {name!r}; use 1 to 64 letters, digits, `_` or `-`")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which network, and where it is cut.

    ``build`` is a bundled model's name or ``path.py:callable``, the path being relative to the run file. ``cut`` names submodules; the
    cut is taken after each. ``args`` go to the builder. ``input_shape`` is one sample's shape; bundled models know theirs.
    ``segments`` names the pieces; ``placement`` puts a piece on ``clients`` (one replica each) or on ``server``. ``freeze``: submodules and
    parameters that stay as they are, with ``*`` for any part of a name; a device computes no gradient that only they would need.
    """

    build: str
    cut: tuple[str, ...]
    args: dict[str, Any] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    segments: tuple[str, ...] | None = None
    placement: dict[str, Literal["clients", "server"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cut:
            raise ValueError("`cut` is empty; name the submodule after which the network is cut")
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
        """``clients`` or ``server``: by default the first segment is on the clients, and the last of three as well (U-shape)."""
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
    """How tensors cross the cuts: ``forward`` for activations, ``backward`` for their gradients.

    A codec is written ``name`` or ``name:key=value,key=value``, like "int8" or "topk:keep=0.05"; docs/guide-codecs.md lists them. ``cuts``:
    other codecs for single cuts, each a table ``[codec.cuts."bottom>trunk"]`` named by the segments at its ends.
    """

    forward: str = "fp32"
    backward: str = "fp32"
    cuts: dict[str, CutCodec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_codecs(self.forward, self.backward)

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
    """A party that holds raw data. ``data`` overrides single keys of the run's ``[data]``; ``threads``: left out, one a core.

    ``engine``: what its segments train with; "auto" is stock onnxruntime, "ort-training" onnxruntime-training 1.19.2
    (docs/guide-ort-training.md). ``memory``: "fast" keeps between forward and backward what both need, "low" computes it again;
    "auto" takes "fast" where it fits.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    engine: Literal["auto", "stock", "ort-training"] = "auto"
    memory: Literal["auto", "fast", "low"] = "auto"

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"`threads` is {self.threads}; it must be 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The party that trains the heavy segments. ``labels``: a CSV file of keyed id and label, where clients do not send labels."""

    name: str = "server"
    labels: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _check_name("name", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A checked run. Relative paths start at the run file's folder.

    ``name``: of the run; its state and its topics carry it. ``schedule``: with "relay" clients train one after the other and hand their
    segment's weights on; with "independent" they take turns step by step and keep weights of their own. ``weights_leave``: whether client
    weights may leave the device, which relay and ``cutlayer assemble`` need. ``in_flight``: steps of a client under way at once;
    1 means no stale weights. ``checkpoint_every``: global steps between checkpoints. ``clip_norm``: each segment's gradient is clipped to
    this norm. ``resend_after_s``: how long an answer may take before we repeat. ``topic_key``: secret from which topic
    names are made; by default the run's name. ``ids_key``: secret with which sample ids are hashed, where the server holds the labels.
    ``accumulate``: each segment's weights are updated by every so many of its steps, with the mean of their gradients; what is left over at
    the end of the run is not used.
    """

    name: str
    epochs: int
    batch_size: int
    model: ModelConfig
    optimizer: Optimizer
    clients: tuple[ClientConfig, ...]
    data: dict[str, Any]
    seed: int = 0
    loss: Literal["cross_entropy", "bce", "mse"] = "cross_entropy"
    in_flight: int = 1
    accumulate: int = 1
    checkpoint_every: int = 100
    weights_leave: bool = False
    schedule: Literal["relay", "independent"] = "relay"
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
    straggler: StragglerConfig = field(default_factory=StragglerConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    base: str = "."

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        for key, low in (("epochs", 1), ("batch_size", 1), ("in_flight", 1), ("accumulate", 1), ("checkpoint_every", 1), ("seed", 0)):
            if getattr(self, key) < low:
                raise ValueError(f"`{key}` is {getattr(self, key)}; it must be {low} or more")
        if not 1 <= len(self.clients) <= LIMITS.parties:
            raise ValueError(f"`clients` lists {len(self.clients)} parties; it must be 1 to {LIMITS.parties}")
        names = [client.name for client in self.clients] + [self.server.name]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two parties are called {name!r}; every party needs a name of its own")
        if self.schedule == "relay" and len(self.clients) > 1 and not self.weights_leave:
            raise ValueError(
                "`schedule` is 'relay' with several clients, which hands segment weights from one to the next; "
                'allow it with `weights_leave = true`, or use `schedule = "independent"`'
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"`clip_norm` is {self.clip_norm}; it must be above 0")
        if self.server.labels is not None and not self.ids_key:
            raise ValueError("`server.labels` joins records by keyed id: set `ids_key`, the secret that all parties share")
        edges = [edge.name for edge in self.graph().edges]
        for cut in self.codec.cuts:
            if cut not in edges:
                raise ValueError(f"`codec.cuts` names the cut {cut!r}; cuts are {', '.join(edges)}")
        for client in self.clients:
            self.data_of(client.name)

    # ------------------------------------------------------------ what follows from it

    def graph(self) -> Graph:
        """The graph of segments: a chain, in the order of the cuts; the loss is at its end."""
        clients = tuple(client.name for client in self.clients)
        names = self.model.names
        segments = tuple(
            Segment(
                name=name,
                parties=clients if self.model.place(name) == "clients" else (self.server.name,),
                loss=name == names[-1],
            )
            for name in names
        )
        edges = tuple(Edge(source=a, target=b) for a, b in itertools.pairwise(names))
        return Graph(segments=segments, edges=edges)

    def plan(self) -> Plan:
        return Plan(
            lanes=len(self.clients),
            epochs=self.epochs,
            schedule=self.schedule,
            checkpoint_every=self.checkpoint_every,
            evaluate_every=self.evaluate.every_epochs,
            splits=self.evaluate.splits,
            collect=self.weights_leave,
        )

    @property
    def absences(self) -> bool:
        """Whether the run can do without clients. Averages have no place for one that lacks the common weights."""
        return self.straggler.voids and self.schedule in ("relay", "independent")

    def data_of(self, client: str) -> DataConfig:
        """The data of one client: the run's ``[data]``, with the client's own keys over it. Raises RunFileError."""
        at = next(i for i, entry in enumerate(self.clients) if entry.name == client)
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
    def codecs(self) -> frozenset[str]:
        """All codecs that cuts of the run use, as they are written."""
        edges = [edge.name for edge in self.graph().edges]
        return frozenset(self.codec.of(edge, direction) for edge in edges for direction in DIRECTIONS)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over all that parties must agree on; where files lie and how the broker is reached is each one's own."""
        own = ("broker", "spool", "data", "state_dir", "base", "resend_after_s", "topic_key", "ids_key", "server", "clients", "straggler")
        shared = {key: value for key, value in plain(self).items() if key not in own}
        shared["parties"] = [client.name for client in self.clients] + [self.server.name]
        shared["straggler"] = self.straggler.policy
        shared["labels"] = "server" if self.server.labels else "clients"
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
    try:
        return parse_run(data, base=str(path.resolve().parent))
    except RunFileError as exc:
        raise RunFileError(f"{path}: {exc}") from exc
