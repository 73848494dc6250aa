"""Is there memory for the bundle? What it needs follows from its manifest; what there is, from the kernel and the container's limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_client.doctor.finding import Finding, Value, failed, ok, skipped, warning
from wire.manifest import GRAPHS, BundleManifest

__all__ = ["Room", "check_memory", "needed_bytes", "rooms"]

# Python, numpy, onnxruntime and the client's own code: 82 MB on x86-64, with a bundle of a few kilobytes; and something for the line.
PROCESS_BYTES = 100 << 20
_MARGIN = 0.8  # a board has other things to do; beyond this share of what is free it is close
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number of this size


def needed_bytes(manifests: Sequence[BundleManifest], *, batch: int, in_flight: int = 1) -> int:
    """About how much memory a client with these bundles takes at its peak."""
    return PROCESS_BYTES + sum(_bundle_bytes(manifest, max(batch, manifest.min_batch), in_flight) for manifest in manifests)


def _bundle_bytes(manifest: BundleManifest, batch: int, in_flight: int) -> int:
    trained = sum(spec.bytes_at(batch) for spec in manifest.parameters if spec.gradient)
    frozen = sum(spec.bytes_at(batch) for spec in manifest.parameters if not spec.gradient)
    buffers = sum(spec.bytes_at(batch) for spec in manifest.buffers)
    # Two versions of weights, optimizer slots and buffers take turns; each gradient has its place; while the bundle is opened, its file and
    # the tensors in it are there as well.
    held = trained * (5 + 2 * len(manifest.slots)) + frozen * 3 + buffers * 4
    ends = sum(spec.bytes_at(batch) for spec in (*manifest.inputs, *manifest.outputs))
    residuals = sum(spec.bytes_at(batch) for spec in manifest.residuals)
    # What backward makes on its way is about as large as what forward left for it; onnxruntime's arena rounds up.
    step = in_flight * (residuals + ends) + 2 * residuals + ends
    graphs = {manifest.graphs[name].file for name in GRAPHS}
    return held + step + sum(entry.size_bytes for entry in manifest.files if entry.file in graphs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory that a new process may take, and who says so."""

    free_bytes: int
    where: str


def rooms(root: Path) -> list[Room]:
    """What the computer has free, and what each memory limit above this process leaves. ``root``: where /proc and /sys are."""
    return [*_computer(root), *_limits(root)]


def check_memory(manifests: Sequence[BundleManifest], *, batch: int, in_flight: int, root: Path) -> Finding:
    found = rooms(root)
    if not found:
        return skipped("memory", "this system does not say how much is free")
    room = min(found, key=lambda each: each.free_bytes)
    free = f"{_mb(room.free_bytes)} free ({room.where})"
    if not manifests:
        return skipped("memory", f"{free}; no bundle to compare it with")
    need_bytes = needed_bytes(manifests, batch=batch, in_flight=in_flight)
    fact = f"about {_mb(need_bytes)} needed at batch {batch}, {free}"
    values: dict[str, Value] = {"needed_bytes": need_bytes, "free_bytes": room.free_bytes, "batch": batch}
    advice = "end other programs or raise the limit; or take a smaller `batch_size`, or an earlier cut"
    if need_bytes > room.free_bytes:
        return failed("memory", fact, advice, **values)
    if need_bytes > _MARGIN * room.free_bytes:
        return warning("memory", fact, f"that is close: {advice}", **values)
    return ok("memory", fact, **values)


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


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MB"
