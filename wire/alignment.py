"""Records of the same people at several institutions: which of them a run uses, and in what order.

Pure functions over lists of keyed ids (``wire.ids``), uint8 [N, 16] each. The coordinator makes the common list of what institutions hold
and gives each of them back its own ids only, so that nobody learns whom another one has.

The order is that of the hashes where every institution holds every record. Where some lack some, that would tell too much: a missing
record lies between two hashes of one's own, and whoever has the key could try people out. There the order is drawn by a secret of the
coordinator's. Neither depends on the order of anybody's file.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wire.errors import PeerMismatch
from wire.ids import ID_BYTES
from wire.limits import LIMITS

__all__ = ["BLANK", "STREAM", "AlignConfig", "Ids", "common_ids", "digest_of_ids", "places_of", "read_ids", "repeated", "returned"]

Ids = NDArray[np.uint8]
BLANK = bytes(ID_BYTES)
STREAM = "aligned"  # of the shuffles that all parties of a lane share: a party need not know the name of another's segment


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignConfig:
    """Several parties hold other columns, or another modality, of the same records; their samples are joined by a keyed hash of their ids.

    ``missing``: what becomes of a record that some lack. "drop": it is left out; "zero": who lacks it feeds zeros, after normalisation.
    docs/guide-vertical.md says what each side learns.
    """

    missing: Literal["drop", "zero"] = "drop"


def read_ids(blob: bytes, *, where: str) -> Ids:
    """Ids as they crossed a line: [N, 16], none of them blank, none twice. Raises PeerMismatch."""
    if len(blob) % ID_BYTES or len(blob) > LIMITS.aligned_records * ID_BYTES:
        raise PeerMismatch(f"{where}: {len(blob)} bytes are no list of at most {LIMITS.aligned_records} keyed ids")
    ids = np.frombuffer(blob, np.uint8).reshape(-1, ID_BYTES)
    if repeated(ids) or not ids.any(axis=1).all():
        raise PeerMismatch(f"{where}: keyed ids are blank or stand twice; all parties must run the same version")
    return ids


def repeated(ids: Ids) -> int:
    """How many ids have stood before in the list."""
    return len(ids) - len(np.unique(_texts(ids)))


def common_ids(lists: Mapping[str, Ids], *, missing: Literal["drop", "zero"], needed: Collection[str] = (), secret: bytes = b"") -> Ids:
    """The records of a run, in their common order. ``lists`` has no id twice in one list.

    drop: those that all hold, by hash. zero: those that at least one holds and all ``needed`` do, by their HMAC under ``secret``.
    """
    texts = {name: _texts(ids) for name, ids in lists.items()}
    if missing == "drop":
        return _ids(np.unique(functools.reduce(np.intersect1d, texts.values())))
    united = np.unique(np.concatenate(list(texts.values())))
    for name in sorted(needed):
        united = np.intersect1d(united, texts[name])
    found = _ids(united)
    order = sorted(range(len(found)), key=lambda at: hmac.digest(secret, found[at].tobytes(), "sha256"))
    return found[np.array(order, np.int64)]


def returned(common: Ids, own: Ids) -> Ids:
    """What one institution gets back: the common list, with a blank in place of each id that it does not hold."""
    back = common.copy()
    back[~np.isin(_texts(common), _texts(own))] = 0
    return back


def places_of(listed: Ids, own: Ids) -> NDArray[np.int64]:
    """Where the records of a list that came back are among one's own: int64 [N], -1 for a blank.

    Raises PeerMismatch for an id that is not among ``own``, or that stands twice.
    """
    places = np.full(len(listed), -1, np.int64)
    here = listed.any(axis=1)
    wanted, had = _texts(listed[here]), _texts(own)
    order = np.argsort(had, kind="stable")
    found = np.searchsorted(had, wanted, sorter=order)
    sound = len(np.unique(wanted)) == len(wanted) and bool((found < len(had)).all())
    if not sound or not np.array_equal(had[order[found]], wanted):
        raise PeerMismatch(
            "the list of common records that came back has records that this party did not name; all must run the same version"
        )
    places[here] = order[found]
    return places


def digest_of_ids(ids: Ids) -> bytes:
    """16 bytes that stand for a list of ids in its order."""
    return hashlib.blake2b(ids.tobytes(), digest_size=16, person=b"cutlayer ids 1").digest()


def _texts(ids: Ids) -> NDArray[Any]:
    """Each id as one element that numpy compares bytewise. Its strings end with zeros or without: of one length they are the same."""
    return np.ascontiguousarray(ids).view(f"S{ID_BYTES}").reshape(-1)


def _ids(texts: NDArray[Any]) -> Ids:
    return np.ascontiguousarray(texts).view(np.uint8).reshape(-1, ID_BYTES)
