"""Records in files: found, bounded, and brought into memory only as far as they are this party's own.

A reader finds the header of a file and describes what follows as a ``Block`` before a single record is allocated. The party's share then
becomes ``Rows``: held in memory as it lies in the file (8-bit images stay 8-bit), or, where it is large and the file is not compressed,
read from disk batch by batch, so that the client stays small whatever the data set's size.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from wire.engine import Array
from wire.errors import DataError
from wire.limits import LIMITS

__all__ = ["Block", "FileRows", "JoinedRows", "MemoryRows", "Pick", "Rows", "SpilledRows", "reading"]

Pick = Callable[[int, Callable[[], Array]], NDArray[np.int64]]
"""From the number of samples in a file to the (ascending) numbers of those that are this party's. All labels, as numbers, are
asked for only where shares follow them."""

_CHUNK_BYTES = 1 << 20
_SPILL_FOLDER = Path("/var/tmp")  # on disk, where /tmp may be in memory; a container's may be read-only
_DEFLATE_RATIO = 1032  # the most that deflate can unpack from one byte (zlib's technical details)


class Rows(Protocol):
    """This party's records, by their place in its share."""

    def __len__(self) -> int: ...

    def take(self, at: NDArray[np.int64]) -> Array:
        """The records at these places: [len(at), ...], a fresh array. Raises DataError where a file can no longer be read."""
        ...


class MemoryRows:
    """Records held in memory as one array."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def take(self, at: NDArray[np.int64]) -> Array:
        return self._array[at]


class FileRows:
    """Records left in an uncompressed file and read when they are asked for. The system's page cache does the rest."""

    def __init__(self, block: Block, picked: NDArray[np.int64]) -> None:
        self._block = block
        self._picked = picked

    def __len__(self) -> int:
        return len(self._picked)

    def take(self, at: NDArray[np.int64]) -> Array:
        block = self._block
        records = np.empty((len(at), block.record_bytes), np.uint8)
        with reading(block.path), block.path.open("rb", buffering=0) as file:
            for record, row in zip(records, self._picked[at].tolist(), strict=True):
                file.seek(block.offset_bytes + row * block.record_bytes)
                if file.readinto(record.data) != block.record_bytes:
                    raise EOFError("the file became shorter")
        return block.shaped(records[:, block.skip_bytes :])


class SpilledRows:
    """A compressed file's records, unpacked into a file that goes with the process: a small device has more disk than memory."""

    def __init__(self, block: Block, picked: NDArray[np.int64]) -> None:
        self._block = block
        self._count = len(picked)
        self._size = block.record_bytes - block.skip_bytes
        with reading(block.path):
            self._file = tempfile.TemporaryFile(dir=_SPILL_FOLDER if os.access(_SPILL_FOLDER, os.W_OK) else None)  # noqa: SIM115 - as long as we live
        weakref.finalize(self, self._file.close)
        for chunk in block.chunks(picked, slice(block.skip_bytes, block.record_bytes)):
            with reading(block.path):
                self._file.write(chunk.data)
        with reading(block.path):
            self._file.flush()

    def __len__(self) -> int:
        return self._count

    def take(self, at: NDArray[np.int64]) -> Array:
        records = np.empty((len(at), self._size), np.uint8)
        with reading(self._block.path):
            for record, row in zip(records, at.tolist(), strict=True):
                if os.preadv(self._file.fileno(), [record.data], row * self._size) != self._size:
                    raise EOFError("the unpacked copy became shorter")
        return self._block.shaped(records)


class JoinedRows:
    """Several files' records one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, at: NDArray[np.int64]) -> Array:
        part_of = np.searchsorted(self._ends, at, side="right")
        taken: Array | None = None
        for number in np.unique(part_of).tolist():
            mine = part_of == number
            start = int(self._ends[number]) - len(self._parts[number])
            records = self._parts[number].take(at[mine] - start)
            if taken is None:
                taken = np.empty((len(at), *records.shape[1:]), records.dtype)
            taken[mine] = records
        return self._parts[0].take(at) if taken is None else taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """``count`` records of one shape and dtype, lying one after the other.

    ``name`` is for messages. ``skip_bytes`` of each record come before its array (CIFAR's labels). ``unpack`` opens compressed bytes at the
    first record; without it they lie in ``path`` at ``offset_bytes``. ``packed_bytes`` of them are on disk.
    Raises DataError if the records cannot be there.
    """

    name: str
    path: Path
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    packed_bytes: int
    offset_bytes: int = 0
    skip_bytes: int = 0
    unpack: Callable[[], BinaryIO] | None = None
    record_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        # Python's whole numbers: dimensions from a damaged header must not wrap around.
        object.__setattr__(self, "record_bytes", self.skip_bytes + self.dtype.itemsize * math.prod(self.shape))
        if self.count < 1 or self.record_bytes <= self.skip_bytes:
            raise DataError(f"{self.name} holds no samples (its header says {self.count} of shape {list(self.shape)})")
        total = self.count * self.record_bytes
        if total > LIMITS.dataset_bytes:
            raise DataError(f"{self.name} claims {total} bytes of data; the limit is {LIMITS.dataset_bytes} (LIMITS.dataset_bytes)")
        most = self.packed_bytes if self.unpack is None else self.packed_bytes * _DEFLATE_RATIO
        if total > most:
            raise DataError(f"{self.name} is truncated: its header promises {total} bytes, the file has at most {most}; get it again")
        if self.unpack is None and total < self.packed_bytes:
            raise DataError(f"{self.name} has {self.packed_bytes - total} bytes more than its header says; it is damaged")

    def shaped(self, raw: NDArray[np.uint8]) -> Array:
        """Bytes [n, bytes of one array] as [n, *shape] of the block's dtype."""
        return np.ascontiguousarray(raw).view(self.dtype).reshape(len(raw), *self.shape)

    def rows(self, picked: NDArray[np.int64], *, in_memory: bool) -> Rows:
        """The picked records. Compressed ones are unpacked here, into memory or into a file without a name; that also proves them whole."""
        if in_memory:
            return MemoryRows(self.load(picked))
        return FileRows(self, picked) if self.unpack is None else SpilledRows(self, picked)

    def load(self, picked: NDArray[np.int64]) -> Array:
        """The picked records' arrays: [len(picked), *shape]."""
        return self.shaped(self._copy(picked, slice(self.skip_bytes, self.record_bytes)))

    def load_skipped(self, picked: NDArray[np.int64]) -> NDArray[np.uint8]:
        """What comes before the picked records' arrays: uint8 [len(picked), skip_bytes]."""
        return self._copy(picked, slice(0, self.skip_bytes))

    def _copy(self, picked: NDArray[np.int64], part: slice) -> NDArray[np.uint8]:
        """Some bytes of the picked records, in memory."""
        kept = np.empty((len(picked), part.stop - part.start), np.uint8)
        first = 0
        for chunk in self.chunks(picked, part):
            kept[first : first + len(chunk)] = chunk
            first += len(chunk)
        return kept

    def chunks(self, picked: NDArray[np.int64], part: slice) -> Iterator[NDArray[np.uint8]]:
        """Go through all records once, a chunk at a time, for some bytes of the picked ones: [some, bytes] each time, C-contiguous."""
        step = max(1, _CHUNK_BYTES // self.record_bytes)
        with reading(self.path), self._open() as stream:
            for start in range(0, self.count, step):
                stop = min(self.count, start + step)
                first, last = np.searchsorted(picked, (start, stop))
                chunk = _read_exactly(stream, (stop - start) * self.record_bytes)
                records = np.frombuffer(chunk, np.uint8).reshape(stop - start, self.record_bytes)
                yield np.ascontiguousarray(records[picked[first:last] - start, part])
            if self.unpack is not None and stream.read(1):  # reading to the end is also what checks the checksum
                raise DataError(f"{self.name} unpacks to more bytes than its header says; it is damaged")

    def _open(self) -> BinaryIO:
        if self.unpack is not None:
            return self.unpack()
        stream = self.path.open("rb")
        stream.seek(self.offset_bytes)
        return stream


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    """``size`` bytes, or EOFError. Decompressing streams may return less than was asked for before their end."""
    parts: list[bytes] = []
    missing = size
    while missing:
        part = stream.read(missing)
        if not part:
            raise EOFError(f"{missing} bytes are missing")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """The one boundary at which what goes wrong in reading a data file becomes a DataError naming the file."""
    try:
        yield
    except FileNotFoundError as exc:
        raise DataError(f"{path} does not exist; check `path` in [data]") from exc
    except EOFError as exc:
        raise DataError(f"{path} is truncated ({exc}); get it again") from exc
    except (zlib.error, BadZipFile, NotImplementedError) as exc:  # the last: a zip feature that zipfile lacks
        raise DataError(f"{path} is damaged ({exc}); get it again") from exc
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror or exc}") from exc
