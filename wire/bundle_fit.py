"""Whether a device bundle is of a run: asked where it is given away, and once more where it is to train."""

from __future__ import annotations

from pathlib import Path

from wire.errors import BundleError
from wire.manifest import BundleManifest
from wire.runfile import Run

__all__ = ["check_bundle"]


def check_bundle(run: Run, segment: str, manifest: BundleManifest, path: Path, *, has_loss: bool) -> None:
    """Raises BundleError where the bundle at ``path`` is not of this segment, optimizer and loss."""
    if manifest.segment != segment:
        raise BundleError(f"{path} holds the segment `{manifest.segment}`; this party runs `{segment}`; give the right bundle")
    if manifest.optimizer != run.optimizer:
        raise BundleError(f"{path} was exported for {manifest.optimizer}, the run file says {run.optimizer}; export the bundle again")
    if manifest.loss != (run.loss_of(segment) if has_loss else None):
        raise BundleError(f"{path} was exported with loss {manifest.loss!r}, not what the run places here; export the bundle again")
