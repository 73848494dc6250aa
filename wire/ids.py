"""Sample ids on the line: only ever as a keyed hash, so that a broker or a neighbour without the key learns nothing from them.

A keyed id is the first 16 bytes of HMAC-SHA256(key, UTF-8 of the sample id): 2^64 samples before two are likely to meet. The key is the
run's secret (``ids_key``), shared by the parties that join records and by nobody else.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wire.errors import UsageError

__all__ = ["ID_BYTES", "keyed_id", "keyed_ids"]

ID_BYTES = 16


def keyed_id(key: bytes, sample_id: str) -> bytes:
    """The 16 bytes that stand for ``sample_id``. Raises UsageError for an empty key: anybody could try ids out."""
    if not key:
        raise UsageError("`ids_key` is empty; set it to a secret text that the parties of the run share")
    return hmac.digest(key, sample_id.encode(), "sha256")[:ID_BYTES]


def keyed_ids(key: bytes, sample_ids: Sequence[str]) -> NDArray[np.uint8]:
    """A batch's keyed ids as one uint8 tensor [N, 16], ready for an edge. Raises UsageError for an empty key."""
    joined = b"".join(keyed_id(key, sample_id) for sample_id in sample_ids)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(sample_ids), ID_BYTES).copy()
