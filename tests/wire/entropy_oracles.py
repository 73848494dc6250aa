"""Coders that are not ours, to compare sizes with: constriction (Bamler, arXiv 2201.01741) and Zstandard."""

from __future__ import annotations

from collections.abc import Sequence

import constriction
import numpy as np
import zstandard

__all__ = ["constriction_bytes", "zstd_bytes"]


def constriction_bytes(symbols: np.ndarray, counts: Sequence[int]) -> int:
    """Bytes of constriction's rANS for groups whose exact distributions its decoder is told for nothing."""
    coder = constriction.stream.stack.AnsCoder()
    for group in np.split(symbols, np.cumsum(counts)[:-1]):
        found = np.bincount(group, minlength=2).astype(np.float64)
        if np.count_nonzero(found) > 1:
            model = constriction.stream.model.Categorical(found / found.sum(), perfect=True)
            coder.encode_reverse(group.astype(np.int32), model)
    return 4 * len(coder.get_compressed())


def zstd_bytes(symbols: np.ndarray) -> int:
    """Bytes of Zstandard at level 19 for symbols of 2 bits: one a byte or four a byte, whichever is fewer."""
    rows = symbols.reshape(-1, 4)
    packed = rows[:, 0] | rows[:, 1] << 2 | rows[:, 2] << 4 | rows[:, 3] << 6
    compressor = zstandard.ZstdCompressor(level=19, write_checksum=False, write_content_size=False)
    return min(len(compressor.compress(symbols.tobytes())), len(compressor.compress(packed.tobytes())))
