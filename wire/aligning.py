"""The two sides of an alignment: the coordinator's, as commands before those of a program; an institution's, behind its driver.

    ids      each party with data in the lane answers with the keyed ids of its records, a blob a split: ``ids/{lane}/{segment}/{split}``
    align    goes down with the lists, blobs of the same names, each only to where that name came from (``wire.actor``); answered with
             new numbers of batches

Each party keeps its alignment beside its checkpoints. At every join it names what it keeps by the coordinator's ``token``, so a run that is
started again asks anew only where a party keeps nothing, or something of other data.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from wire.alignment import Ids, common_ids, digest_of_ids, places_of, read_ids, repeated, returned
from wire.data_config import Split
from wire.engine import Array
from wire.errors import CheckpointError, DataError, GraphError, PeerMismatch, RunFileError
from wire.feed import DataSource, Feed
from wire.graph import PartySlice
from wire.ids import ID_BYTES, keyed_ids
from wire.limits import LIMITS
from wire.program import Command, Program
from wire.store import dump_state, load_state

__all__ = ["AlignedProgram", "Aligner", "counts_of"]

_CHUNK_RECORDS = 4096
_NAME = re.compile(r"ids/(?P<lane>[0-9]{1,5})/(?P<segment>[A-Za-z0-9_-]{1,64})/(?P<split>train|validation|test)")


# ---------------------------------------------------------------- the coordinator


class AlignedProgram(Program):
    """Another program, with the commands before it that align records; lane by lane, and only lanes that are not aligned yet.

    ``secret`` is the coordinator's own, and the same at each start of a run: what it draws must not change.
    """

    def __init__(
        self,
        inner: Program,
        *,
        missing: Literal["drop", "zero"],
        batch_size: int,
        splits: tuple[str, ...],
        lanes: int,
        secret: bytes,
    ) -> None:
        self._inner = inner
        self._missing: Literal["drop", "zero"] = missing
        self._batch_size = batch_size
        self._splits = splits
        self._lanes = lanes
        self._secret = secret
        self._facts: dict[str, Any] = {}
        self._todo: list[int] = []  # lanes that are not aligned
        self._segments: tuple[str, ...] = ()  # those that have answered `ids`
        self._next: Command | None = None

    def sized(self, facts: Mapping[str, Any]) -> None:
        self._facts = dict(facts)
        kept = {lane: set(facts.get("aligned", {}).get(str(lane), {}).values()) for lane in range(self._lanes)}
        self._todo = [lane for lane, tokens in kept.items() if tokens and (len(tokens) != 1 or "" in tokens)]
        self._next = self._ask()
        self._inner.sized(facts)

    def attend(self, absent: frozenset[int], *, at: int, epoch: int) -> None:
        self._inner.attend(absent, at=at, epoch=epoch)

    def load(self, state: Mapping[str, Any] | None) -> None:
        self._inner.load(state)

    def state(self) -> dict[str, Any]:
        return self._inner.state()

    def next(self) -> Command:
        return self._next or self._inner.next()

    def request_save(self) -> None:
        self._inner.request_save()

    def done(self, result: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Raises DataError where too few records are common, PeerMismatch where an answer does not fit."""
        if self._next is None:
            self._inner.done(result, blobs)
        elif self._next.op == "ids":
            self._next = self._answer(self._todo[0], result, blobs)
        else:
            self._aligned(self._todo[0], str(self._next.args["token"]), result.get("facts", {}))

    def _ask(self) -> Command | None:
        return Command(op="ids", lanes=(self._todo[0],)) if self._todo else None

    def _answer(self, lane: int, result: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Command:
        """The common lists of a lane, made of everybody's ids."""
        least: Mapping[str, int] = result.get("least", {}).get(str(lane), {})
        self._segments = tuple(sorted(least))
        if len(least) < 2:
            raise GraphError(f"`[align]` joins the records of several parties, but in lane {lane} only one has raw data; leave it out")
        lists = {split: {segment: self._list(lane, segment, split, blobs) for segment in self._segments} for split in self._splits}
        needed = [segment for segment in result.get("labels", {}).get(str(lane), {}) if segment in least]
        common = {split: common_ids(held, missing=self._missing, needed=needed, secret=self._secret) for split, held in lists.items()}
        self._check(lane, lists, common)
        back = {
            _name(lane, segment, split): returned(common[split], lists[split][segment]).tobytes() for split in lists for segment in least
        }
        args = {"token": self._token(lane, lists, common), "least": max(least.values())}
        return Command(op="align", lanes=(lane,), args=args, blobs=back)

    def _token(self, lane: int, lists: Mapping[str, Mapping[str, Ids]], common: Mapping[str, Ids]) -> str:
        """Keyed, or an institution could try out of whose records the common ones were made."""
        token = hmac.new(self._secret, f"{lane} {self._missing}".encode(), hashlib.sha256)
        for split, held in lists.items():
            token.update(split.encode() + b"\0" + digest_of_ids(common[split]) + b"".join(digest_of_ids(ids) for ids in held.values()))
        return token.hexdigest()[:32]

    def _list(self, lane: int, segment: str, split: str, blobs: Mapping[str, bytes]) -> Ids:
        name = _name(lane, segment, split)
        if name not in blobs:
            raise PeerMismatch(f"the party with segment `{segment}` sent no ids of its {split} records; all must run the same version")
        return read_ids(blobs[name], where=f"ids of segment `{segment}`")

    def _check(self, lane: int, lists: Mapping[str, Mapping[str, Ids]], common: Mapping[str, Ids]) -> None:
        """Whether that is enough to train and evaluate on, and not too much to send."""
        for split, ids in common.items():
            least = self._batch_size if split == "train" else 1
            if len(ids) < least:
                each = ", ".join(f"`{segment}` {len(held)}" for segment, held in lists[split].items())
                what = "are common to all" if self._missing == "drop" else "are left that have labels"
                raise DataError(
                    f"of the {split} records of lane {lane} {len(ids)} {what}, and {least} are needed ({each} are held): check that all "
                    "parties have the same `ids_key`, and that their id columns hold the same ids, written alike"
                )
        total = sum(len(ids) for ids in common.values())
        if total > LIMITS.aligned_records:
            raise DataError(f"{total} common records are more than can be aligned ({LIMITS.aligned_records}, LIMITS.aligned_records)")

    def _aligned(self, lane: int, token: str, facts: Mapping[str, Any]) -> None:
        taken = facts.get("aligned", {}).get(str(lane), {})
        if taken != dict.fromkeys(self._segments, token):
            raise PeerMismatch(f"a party of lane {lane} did not take the alignment; all must run the same version")
        for key in ("batches", "samples"):
            self._facts[key] = {**self._facts.get(key, {}), **facts.get(key, {})}
        self._todo.pop(0)
        self._next = self._ask()
        self._inner.sized(self._facts)


# ---------------------------------------------------------------- an institution


class Aligner:
    """One party's records on their way into the common order. ``feed`` serves that order once ``align`` is through, or was kept.

    ``lane`` is where its data are. ``load`` and ``keep`` read and write what outlives the process. Raises RunFileError without a key,
    DataError for ids that stand twice, of which it names only the number.
    """

    def __init__(
        self, party: PartySlice, feed: Feed, *, key: bytes, load: Callable[[], bytes | None], keep: Callable[[bytes], None]
    ) -> None:
        if not key:
            raise RunFileError("`[align]` joins records by keyed id: set `ids_key`, a secret that the parties with records share")
        slots = [slot for slot in party.slots if slot.is_source or slot.labels == "local"]
        lanes = sorted({lane for slot in slots for lane in slot.lanes})
        if len(lanes) != 1:
            raise GraphError(f"`{party.party}` has data in {len(lanes)} lanes; with `[align]` each lane needs a party of its own")
        self.lane, self._segment = lanes[0], slots[0].segment
        self._labels = any(slot.labels == "local" or any(end.labels or end.ids for end in slot.outputs) for slot in slots)
        self._feed = feed
        self._keep = keep
        self._token = ""
        self._ids: dict[Split, Ids] = {split: _own_ids(split, source, key) for split, source in feed.own.items()}
        held = sum(len(ids) for ids in self._ids.values())
        if held > LIMITS.aligned_records:
            raise DataError(f"{held} records are more than can be aligned ({LIMITS.aligned_records}, LIMITS.aligned_records)")
        self._take_up(load())

    def facts(self) -> dict[str, Any]:
        """By what token the records are aligned, empty for not yet; and once they are, ``batches`` and ``samples``."""
        lane, facts = str(self.lane), {}
        if self._token:
            facts["batches"] = {lane: self._feed.counts}
            facts["samples"] = {lane: {split: self._feed.samples(split) for split in self._ids}}
        return {"aligned": {lane: {self._segment: self._token}}, **facts}

    def ids(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The answer to ``ids``: result and blobs."""
        least = max(source.least for source in self._feed.own.values())
        blobs = {_name(self.lane, self._segment, split): ids.tobytes() for split, ids in self._ids.items()}
        lane = str(self.lane)
        return {"least": {lane: {self._segment: least}}, **({"labels": {lane: {self._segment: True}}} if self._labels else {})}, blobs

    def align(self, args: Mapping[str, Any], blobs: Mapping[str, bytes]) -> dict[str, Any]:
        """Take the common lists; durable when this returns the result. Raises PeerMismatch for lists that are not of our records."""
        state: dict[str, Array] = {"token": _bytes(args["token"].encode()), "least": np.array([args["least"]], np.int64)}
        for split, own in self._ids.items():
            blob = blobs.get(_name(self.lane, self._segment, split), b"")
            if not blob or len(blob) % ID_BYTES or len(blob) > LIMITS.message_bytes:
                raise PeerMismatch(f"no list of common {split} records came back; all parties must run the same version")
            state[f"{split}.places"] = places_of(np.frombuffer(blob, np.uint8).reshape(-1, ID_BYTES), own)
            state[f"{split}.digest"] = _bytes(digest_of_ids(own))
        kept = dump_state(state)
        self._keep(kept)
        self._take_up(kept)
        return {"facts": self.facts()}

    def _take_up(self, kept: bytes | None) -> None:
        """Serve what was kept, if it is of these records and this key."""
        try:
            state = {} if kept is None else load_state(kept, where="alignment.safetensors")
            if any(state[f"{split}.digest"].tobytes() != digest_of_ids(own) for split, own in self._ids.items()):
                return
            places = {split: state[f"{split}.places"].astype(np.int64, copy=False) for split in self._ids}
            self._feed.align(places, least=int(state["least"][0]))
            self._token = state["token"].tobytes().decode()
        except (KeyError, CheckpointError):
            return  # nothing was kept, or not of all splits, or it is damaged: the coordinator will ask


def counts_of(blobs: Mapping[str, bytes]) -> str:
    """For a person: how many records the lists of an ``align`` have, and how many of them each party holds."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, blob in blobs.items():
        if match := _NAME.fullmatch(name):
            rows = np.frombuffer(blob[: len(blob) // ID_BYTES * ID_BYTES], np.uint8).reshape(-1, ID_BYTES)
            held = f"`{match['segment']}` holds {int(rows.any(axis=1).sum())}"
            found.setdefault((match["lane"], f"{match['split']} {len(rows)}"), []).append(held)
    return "; ".join(f"lane {lane}, records aligned for {what} ({', '.join(held)})" for (lane, what), held in found.items())


def _own_ids(split: Split, source: DataSource, key: bytes) -> Ids:
    chunks = [np.arange(at, min(at + _CHUNK_RECORDS, source.samples)) for at in range(0, source.samples, _CHUNK_RECORDS)]
    ids = np.concatenate([keyed_ids(key, source.ids(at)) for at in chunks])
    twice = repeated(ids)
    if twice:
        raise DataError(f"{twice} of {len(ids)} {split} records have an id that another one has; to be aligned, each record needs its own")
    return ids


def _name(lane: int, segment: str, split: str) -> str:
    return f"ids/{lane}/{segment}/{split}"


def _bytes(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8)
