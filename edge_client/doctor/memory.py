"""Is there memory for the bundle? What it needs follows from its manifest; what there is, from the kernel and the container's limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_client.doctor.finding import Finding, Value, failed, ok, skipped, warning
from edge_client.memory import MARGIN, choose_memory, needed_bytes, rooms
from wire.manifest import BundleManifest

__all__ = ["check_memory"]


def check_memory(manifests: Sequence[BundleManifest], *, batch: int, in_flight: int, root: Path) -> Finding:
    found = rooms(root)
    if not found:
        return skipped("memory", "this system does not say how much is free")
    room = min(found, key=lambda each: each.free_bytes)
    free = f"{_mb(room.free_bytes)} free ({room.where})"
    if not manifests:
        return skipped("memory", f"{free}; no bundle to compare it with")
    memory = choose_memory(manifests, batch=batch, in_flight=in_flight, root=root)
    need_bytes = needed_bytes(manifests, batch=batch, in_flight=in_flight, memory=memory)
    fact = f"about {_mb(need_bytes)} needed at batch {batch} with `memory` {memory}, {free}"
    values: dict[str, Value] = {"needed_bytes": need_bytes, "free_bytes": room.free_bytes, "batch": batch, "memory": memory}
    advice = "end other programs or raise the limit; or take a smaller `batch_size`, or an earlier cut"
    if need_bytes > room.free_bytes:
        return failed("memory", fact, advice, **values)
    if need_bytes > MARGIN * room.free_bytes:
        return warning("memory", fact, f"that is close: {advice}", **values)
    return ok("memory", fact, **values)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MB"
