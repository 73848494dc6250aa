"""Memory: what there is, what a bundle takes, and which of its two ways to train fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wire.manifest import BundleManifest, MemoryMode

__all__ = ["Room", "choose_memory", "needed_bytes", "rooms"]

# Python, numpy, onnxruntime and the client's own code: 82 MB on x86-64, with a bundle of a few kilobytes; and something for the line.
PROCESS_BYTES = 100 << 20
MARGIN = 0.8  # a board has other things to do; beyond this share of what is free it is close
_ARENA = 1.25  # onnxruntime's arena rounds up, and keeps what fits nothing else
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number of this size


def choose_memory(manifests: Sequence[BundleManifest], *, batch: int, in_flight: int = 1, root: Path = Path("/")) -> MemoryMode:
    """ "fast" where it fits into what is free, with a margin, or where nothing says what is free."""
    free_bytes = min((room.free_bytes for room in rooms(root)), default=None)
    needed = needed_bytes(manifests, batch=batch, in_flight=in_flight, memory="fast")
    return "fast" if free_bytes is None or needed <= MARGIN * free_bytes else "low"


def needed_bytes(manifests: Sequence[BundleManifest], *, batch: int, in_flight: int = 1, memory: MemoryMode = "fast") -> int:
    """About how much memory a client with these bundles takes at its peak."""
    return PROCESS_BYTES + sum(_bundle_bytes(manifest, max(batch, manifest.min_batch), in_flight, memory) for manifest in manifests)


def _bundle_bytes(manifest: BundleManifest, batch: int, in_flight: int, memory: MemoryMode) -> int:
    ends = sum(spec.bytes_at(batch) for spec in (*manifest.inputs, *manifest.outputs))
    kept = ends + (sum(spec.bytes_at(batch) for spec in manifest.residuals) if memory == "fast" else 0)
    # While the bundle is opened, its file and the tensors in it are there beside the weights and the optimizer's state.
    weights = sum(spec.bytes_at(batch) for spec in (*manifest.parameters, *manifest.buffers))
    opened = weights * (3 + len(manifest.slots))
    return max(opened, round(_ARENA * manifest.memory[memory].at(batch)) + (in_flight - 1) * kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory that a new process may take, and who says so."""

    free_bytes: int
    where: str


def rooms(root: Path) -> list[Room]:
    """What the computer has free, and what each memory limit above this process leaves. ``root``: where /proc and /sys are."""
    return [*_computer(root), *_limits(root)]


def _computer(root: Path) -> Iterator[Room]:
    for row in _read(root / "proc/meminfo").splitlines():
        words = row.split()
        if len(words) >= 2 and words[0] == "MemAvailable:":
            yield Room(free_bytes=int(words[1]) * 1024, where="MemAvailable of this computer")


# ------------------------------------------------------------ control groups


@dataclass(frozen=True, slots=True)
class _Names:
    """Files of one version of control groups, and the row of memory.stat with what the kernel gives back before it refuses."""

    limit: str
    usage: str
    reclaimable: str


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names("memory.max", "memory.current", "inactive_file")


def _limits(root: Path) -> Iterator[Room]:
    """A limit anywhere above us counts: docker, systemd and Kubernetes put it at different heights."""
    for row in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*row.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            yield from _along(root, root / "sys/fs/cgroup/memory", path, _V1)
        elif not controllers:
            yield from _along(root, root / "sys/fs/cgroup", path, _V2)


def _along(root: Path, mount: Path, path: str, names: _Names) -> Iterator[Room]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # seen from a namespace that we are outside of
        parts = []
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        limit = _number(folder / names.limit)
        if limit is not None and limit < _NO_LIMIT_BYTES:
            used = (_number(folder / names.usage) or 0) - _reclaimable(folder, names)
            yield Room(free_bytes=max(0, limit - max(0, used)), where=f"limit in /{(folder / names.limit).relative_to(root)}")


def _reclaimable(folder: Path, names: _Names) -> int:
    for row in _read(folder / "memory.stat").splitlines():
        key, _, value = row.partition(" ")
        if key == names.reclaimable and value.isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None  # v2 says "max" where there is no limit


def _read(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
