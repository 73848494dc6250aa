"""A release: what one device is to run from now on, file by file, signed by the operator with Ed25519 (RFC 8032).

The signature is over the very bytes of the manifest, as they travel and as they are kept, so nobody has to agree on how JSON is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wire.enrolment import check_device_name
from wire.errors import BundleError
from wire.limits import LIMITS
from wire.parse import parse, plain, whole

__all__ = [
    "BUNDLE",
    "DEPLOY_PUB",
    "FORMAT",
    "RUN_FILE",
    "SIGNATURE_BYTES",
    "WHEELS",
    "Release",
    "ReleaseFile",
    "dump_release",
    "load_release",
]

FORMAT = 1
SIGNATURE_BYTES = 64
RUN_FILE = "run.toml"  # the device's slice of the run
BUNDLE = "bundle/"  # files of the device bundle are below
DEPLOY_PUB = "deploy.pub"  # the public key, or keys, whose releases a device takes: beside the operator's own, and in a device's folder
WHEELS = "wheels/"  # of the client's code, where it is not that which the card was written with

_CONTEXT = b"cutlayer release 1\n"  # so that a signature of this key can never stand for anything else
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,127}")  # never `.`, `..`, hidden or empty
_DEPTH = 4
_END_OF_TIME_S = 1 << 40
_VERSIONS = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFile:
    """``path``: relative, below one of the folders of a release, or ``RUN_FILE``; ``sha256`` in hex."""

    path: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if not 1 <= len(parts) <= _DEPTH or not all(_PART.fullmatch(part) for part in parts):
            raise ValueError(f"`path` is {self.path[:80]!r}; a release holds plain relative paths")
        if not (self.path == RUN_FILE or self.path.startswith(BUNDLE) or (self.path.startswith(WHEELS) and self.path.endswith(".whl"))):
            raise ValueError(f"`path` is {self.path[:80]!r}; a release holds {RUN_FILE}, {BUNDLE}… and {WHEELS}….whl")
        if not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"`sha256` of {self.path} is not 64 hexadecimal digits")
        whole(self.size_bytes, below=LIMITS.release_bytes + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """``version``: greater than any that ``device`` has had; one counter serves a whole fleet. ``minimum``: once this one has proved
    itself, the device takes and goes back to nothing below. ``expires_s``: seconds since 1970; from then on it is not accepted any more."""

    format: int
    version: int
    device: str
    minimum: int
    expires_s: int
    files: tuple[ReleaseFile, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format} of a release; this Cutlayer reads {FORMAT}; write the card anew")
        check_device_name(self.device)
        whole(self.version - 1, below=_VERSIONS - 1)
        whole(self.minimum, below=self.version + 1)
        whole(self.expires_s, below=_END_OF_TIME_S)
        paths = [file.path for file in self.files]
        if not 1 <= len(paths) <= LIMITS.release_files or len(set(paths)) != len(paths) or RUN_FILE not in paths:
            raise ValueError(f"{len(paths)} files; a release has {RUN_FILE}, each file once, and at most {LIMITS.release_files}")
        folders = {path.rpartition("/")[0] for path in paths}
        if any(path in folders or any(folder.startswith(path + "/") for folder in folders) for path in paths):
            raise ValueError("a path is both a file and a folder")
        if sum(file.size_bytes for file in self.files) > LIMITS.release_bytes:
            raise ValueError(f"the files are more than the limit of {LIMITS.release_bytes} bytes")

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def dump_release(release: Release, key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """(manifest, signature). Raises BundleError where the manifest is larger than what a device takes."""
    manifest = json.dumps(plain(release), sort_keys=True, separators=(",", ":")).encode()
    if len(manifest) > LIMITS.release_manifest_bytes:
        raise BundleError(
            f"the release's list of files is larger than {LIMITS.release_manifest_bytes} bytes; export fewer segments to a device"
        )
    return manifest, key.sign(_CONTEXT + manifest)


def load_release(manifest: bytes, signature: bytes, keys: Sequence[Ed25519PublicKey]) -> Release:
    """Raises BundleError unless one of ``keys`` has signed these very bytes, and they are a release; nothing of them is read before."""
    if len(manifest) > LIMITS.release_manifest_bytes or len(signature) != SIGNATURE_BYTES:
        raise BundleError(f"a release of {len(manifest)} bytes with a signature of {len(signature)}: neither may be what it is")
    if not any(_has_signed(key, manifest, signature) for key in keys):
        raise BundleError("the release is not signed by a key that this device was given; deploy with the key of its own fleet")
    try:
        return parse(Release, json.loads(manifest), where="", error=BundleError)
    except (ValueError, RecursionError) as exc:
        raise BundleError("the release is not JSON") from exc


def _has_signed(key: Ed25519PublicKey, manifest: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, _CONTEXT + manifest)
    except InvalidSignature:
        return False
    return True
