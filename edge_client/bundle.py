"""Reads a device bundle from disk: nothing is used whose size and SHA-256 were not checked against the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from edge_client.external import check_no_external_data
from wire.engine import Array
from wire.errors import BundleError
from wire.limits import LIMITS
from wire.manifest import BundleManifest, FileEntry, TensorSpec, load_manifest

__all__ = ["Bundle", "bundle_path", "read_bundle", "read_manifest"]

_PARAMETERS = "parameters.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A checked bundle. ``tensors``: initial parameters and buffers, under PyTorch's names."""

    folder: Path
    manifest: BundleManifest
    tensors: Mapping[str, Array]

    def graph(self, name: str) -> bytes:
        """The ONNX bytes of one of ``wire.manifest.GRAPHS``, checked when read. Raises BundleError."""
        return _graph(self.folder, self.manifest, name)


def read_bundle(folder: str | Path) -> Bundle:
    """Raises BundleError: not there, damaged, a wrong checksum, a newer format, a graph with tensors in other files."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    graphs = {graph.file for graph in manifest.graphs.values()}
    for entry in manifest.files:  # all of them now: better here than in the middle of a run
        data = _checked(folder, entry, LIMITS.graph_bytes)
        if entry.file in graphs:
            check_no_external_data(data, what=str(folder / entry.file))
    data = _checked(folder, _entry(folder, manifest, _PARAMETERS), LIMITS.graph_bytes)
    try:
        tensors = dict(load_tensors(data))
    except (SafetensorError, ValueError, KeyError) as exc:
        raise BundleError(f"{folder / _PARAMETERS} is not readable as safetensors ({exc}); export the bundle again") from exc
    _check_tensors(folder / _PARAMETERS, manifest, tensors)
    return Bundle(folder=folder, manifest=manifest, tensors=tensors)


def read_manifest(folder: Path) -> BundleManifest:
    """Raises BundleError: not there, damaged, a newer format. The files that it lists are not looked at."""
    path = folder / "manifest.json"
    text = _read(path, LIMITS.manifest_bytes)
    try:
        return load_manifest(text.decode(), where=str(path))
    except UnicodeDecodeError as exc:
        raise BundleError(f"{path} is not text; export the bundle again") from exc


def bundle_path(folder: Path, segment: str) -> Path:
    """Where a segment's bundle lies: ``folder`` holds one a segment, or is the bundle itself."""
    return folder / segment if (folder / segment).is_dir() else folder


def _graph(folder: Path, manifest: BundleManifest, name: str) -> bytes:
    file = manifest.graphs[name].file
    data = _checked(folder, _entry(folder, manifest, file), LIMITS.graph_bytes)
    check_no_external_data(data, what=str(folder / file))
    return data


def _entry(folder: Path, manifest: BundleManifest, file: str) -> FileEntry:
    for entry in manifest.files:
        if entry.file == file:
            return entry
    raise BundleError(f"{folder / 'manifest.json'} does not list {file}; export the bundle again")


def _checked(folder: Path, entry: FileEntry, limit_bytes: int) -> bytes:
    if Path(entry.file).name != entry.file:
        raise BundleError(f"{folder / 'manifest.json'} names the file {entry.file!r}, which is not a plain name; do not trust this bundle")
    path = folder / entry.file
    data = _read(path, limit_bytes)
    if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{path} has a wrong checksum: damaged, or of another bundle; copy the bundle again or export it again")
    return data


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            # Not all that is allowed: `read` takes that much memory before it reads, and a small board has less.
            data = file.read(min(os.fstat(file.fileno()).st_size, limit_bytes) + 1)
    except FileNotFoundError as exc:
        raise BundleError(f"{path} is not there; give the folder that `cutlayer export` wrote") from exc
    except OSError as exc:
        raise BundleError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if len(data) > limit_bytes:
        raise BundleError(f"{path} is larger than the limit of {limit_bytes} bytes")
    return data


def _check_tensors(path: Path, manifest: BundleManifest, tensors: Mapping[str, Array]) -> None:
    wanted = {spec.name: spec for spec in (*manifest.parameters, *manifest.buffers)}
    for name in sorted(set(wanted) ^ set(tensors)):
        raise BundleError(f"{path}: `{name}` is {'missing' if name in wanted else 'not in the manifest'}; export the bundle again")
    for name, spec in wanted.items():
        if not _is(spec, tensors[name]):
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise BundleError(f"{path}: `{name}` is {found}, not {spec.dtype} {list(spec.shape)}; export the bundle again")


def _is(spec: TensorSpec, array: Array) -> bool:
    return array.dtype == spec.dtype and tuple(array.shape) == tuple(spec.shape)
