"""Every error Cutlayer raises on purpose.

    CutlayerError                 one line: what was wrong, where, what to do
    ├── UsageError                the person can mend it: run file, paths, names, data      (exit code 2)
    │   ├── RunFileError          a key or value of the run file
    │   ├── GraphError            the graph of segments, or a cut that cannot be made
    │   ├── DataError             a data file or its shapes
    │   ├── BundleError           a device bundle: checksum, format, optimizer
    │   ├── ExportError           a segment that cannot become a bundle; names the operation
    │   ├── CheckpointError       saved state that is missing, damaged or of another run
    │   └── StorageError          the disk: full, read-only, not there
    ├── LinkError                 the line between two parties
    │   ├── BrokerUnreachable     no TCP/TLS connection (retried with backoff; raised only where asked)
    │   └── BrokerRefused         the broker said no: credentials, access list, protocol        (exit code 2)
    ├── CheckFailed               `cutlayer doctor` has found something unfit, and shown it
    ├── DeployIncomplete          `cutlayer deploy` has ended, and not every device runs the release
    └── ProtocolError             what the peer sent does not follow docs/protocol.md
        ├── FrameError            a truncated or corrupt frame: dropped, counted, asked for again
        │   └── OtherVersion      a sound frame of another version of the protocol
        ├── CodecError            a payload whose header and bytes disagree
        └── PeerMismatch          the peer runs another run, version or optimizer           (exit code 2)

Errors of third-party libraries are mapped to these at the one boundary that calls the library.
"""

from __future__ import annotations

__all__ = [
    "BrokerRefused",
    "BrokerUnreachable",
    "BundleError",
    "CheckFailed",
    "CheckpointError",
    "CodecError",
    "CutlayerError",
    "DataError",
    "DeployIncomplete",
    "ExportError",
    "FrameError",
    "GraphError",
    "LinkError",
    "OtherVersion",
    "PeerMismatch",
    "ProtocolError",
    "RunFileError",
    "StorageError",
    "UsageError",
    "exit_code",
]


class CutlayerError(Exception):
    """Base of all errors raised on purpose; its text is one line that a person can act on."""


class UsageError(CutlayerError):
    """The person who runs the command can mend this."""


class RunFileError(UsageError):
    """A run file key is unknown, missing or has a bad value; the text names the key."""


class GraphError(UsageError):
    """The graph of segments is refused, or a cut cannot be made where it was asked for."""


class DataError(UsageError):
    """A data file is missing, malformed, or does not fit the segment's shapes."""


class BundleError(UsageError):
    """A device bundle is damaged, of a newer format, or does not belong to this run."""


class ExportError(UsageError):
    """A segment cannot be turned into a device bundle; the text names the operation at fault."""


class CheckpointError(UsageError):
    """Saved state is missing, damaged or belongs to another run."""


class StorageError(UsageError):
    """A disk refused: full, read-only or not there."""


class LinkError(CutlayerError):
    """The line between two parties failed."""


class BrokerUnreachable(LinkError):
    """No connection to the broker could be made."""


class BrokerRefused(LinkError):
    """The broker answered and said no."""


class CheckFailed(CutlayerError):
    """A check of ``cutlayer doctor`` failed."""


class DeployIncomplete(CutlayerError):
    """Devices did not take a release, or were not there."""


class ProtocolError(CutlayerError):
    """What a peer sent does not follow docs/protocol.md."""


class FrameError(ProtocolError):
    """Bytes that are not a whole, undamaged frame."""


class OtherVersion(FrameError):
    """A frame whose checksum holds, of another version of the protocol."""


class CodecError(ProtocolError):
    """A payload whose header and bytes disagree, or a tensor that the codec cannot carry."""


class PeerMismatch(ProtocolError):
    """The peer's run, version or optimizer is not ours."""


def exit_code(error: CutlayerError) -> int:
    """What a process ends with: 2 where the person who started it can mend it, 1 where the reason lies elsewhere."""
    return 2 if isinstance(error, (UsageError, BrokerRefused, PeerMismatch)) else 1
