"""Counter-based randomness: every random choice of a run is a pure function of the seed and of what it is for.

Parties that never met, the unsplit twin and a resumed process draw the same numbers, because a stream depends on (seed, scope) alone and
on nothing that was drawn before. The bit generator is Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
keyed by BLAKE2b-128 over an unambiguous encoding of (seed, scope).

numpy keeps the *raw* stream of a bit generator for ever, but may change how ``Generator`` makes distributions of it. So what parties
must agree on (``permutation``, ``keep_mask``, ``uniform``) is made of raw words here; ``generator`` is for what one party draws for itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["generator", "keep_mask", "permutation", "uniform"]


def generator(seed: int, *scope: str | int) -> np.random.Generator:
    """A fresh generator at the beginning of the stream of (``seed``, ``scope``).

    The same arguments give the same stream on every platform. Scopes are told apart by type and length as well as by text:
    ``("a", 1)``, ``("a", "1")`` and ``("a1",)`` are three streams.
    """
    return np.random.Generator(_philox(seed, scope))


def permutation(seed: int, segment: str, lane: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of ``n`` samples in one epoch: int64 [n], each of 0..n-1 once.

    Parties whose samples are joined at a fan-in must pass the same ``segment``, or their batches would not match.
    """
    words = _philox(seed, ("permutation", segment, lane, epoch)).random_raw(n)
    # Sorting random words shuffles without bias; a stable sort settles the (2^-64 rare) ties the same way everywhere.
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def keep_mask(seed: int, segment: str, step: int, number: int, shape: Sequence[int], keep: float) -> NDArray[np.uint8]:
    """What dropout leaves in one training forward: uint8 of ``shape``, 1 with probability ``keep`` and 0 otherwise.

    ``step`` is the run's global step. ``number`` counts the masks of the segment's forward, from 0, in the order in which PyTorch draws
    them. The device, the server and the unsplit twin draw by this rule alike. Each element takes 16 bits, so its probability is ``keep``
    to within 2^-17.
    """
    count = math.prod(shape)
    words = _philox(seed, ("dropout", segment, step, number)).random_raw(-(-count // 4))
    quarters = words.astype("<u8", copy=False).view("<u2")[:count]
    return (quarters < round(keep * 65536)).view(np.uint8).reshape(shape)


def uniform(shape: Sequence[int], seed: int, *scope: str | int) -> NDArray[np.float32]:
    """float32 of ``shape`` in [0, 1), multiples of 2^-24: the upper 24 bits of each half of the raw words, the lower half first."""
    count = math.prod(shape)
    words = _philox(seed, ("uniform", *scope)).random_raw(-(-count // 2))
    halves = words.astype("<u8", copy=False).view("<u4")[:count]
    return ((halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)).reshape(shape)


def _philox(seed: int, scope: tuple[str | int, ...]) -> np.random.Philox:
    digest = hashlib.blake2b(digest_size=16, person=b"cutlayer rng 1")
    for part in (seed, *scope):
        digest.update(_encode(part))
    low, high = np.frombuffer(digest.digest(), dtype="<u8").tolist()
    return np.random.Philox(key=np.array([low, high], dtype=np.uint64))


def _encode(part: object) -> bytes:
    """Type, length and text of one part; numpy's whole numbers count as int."""
    if isinstance(part, str):
        text, mark = part.encode(), b"s"
    elif isinstance(part, (int, np.integer)) and not isinstance(part, bool):
        text, mark = str(int(part)).encode(), b"i"
    else:
        raise TypeError(f"a scope is made of text and whole numbers, got {part!r}")
    return mark + len(text).to_bytes(4, "little") + text
