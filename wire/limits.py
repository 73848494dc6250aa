"""Every bound on what may arrive from outside, in one place, with its unit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Named limits; the defaults fit a 512 MB board."""

    frame_bytes: int = 1 << 20  # one MQTT payload (a part of a message)
    message_bytes: int = 64 << 20  # a message put together from its parts
    reassembly_bytes: int = 128 << 20  # all unfinished messages of one party, with what their parts take beside their payload
    resend_bytes: int = 4096  # what a RESEND frame says of its sender's holdings
    control_json_bytes: int = 2 << 20  # the JSON head of a control message: of a server between, with a hundred bytes for each of its lanes
    unfinished_messages: int = 256  # messages of which parts are missing
    line_unfinished_messages: int = 4  # of a party with so many lines that these come to more
    line_reassembly_bytes: int = 64 << 10
    inbox_bytes: int = 128 << 20  # frames received and not yet handled by one party
    outbox_bytes: int = 128 << 20  # frames handed to the transport and not yet on the line
    tensor_dims: int = 8
    tensor_elements: int = 1 << 26
    unpacked_bytes: int = 256 << 20  # all tensors of one message, decoded: a few bytes may stand for many elements
    tensors_per_message: int = 64
    packed_elements: int = 1 << 20  # of one message of which the receiver expects no shapes: packed, ten bytes may stand for all of them
    manifest_bytes: int = 4 << 20
    graph_bytes: int = 1 << 30  # one ONNX file of a bundle
    missed_steps: int = 1 << 22  # of a lane, that a party which comes back writes down
    run_file_bytes: int = 1 << 20
    enrolment_bytes: int = 32 << 10  # what a device and the fleet's certificate authority say to each other, or a PEM file of theirs
    release_files: int = 512  # of one release
    release_bytes: int = 1 << 30  # of all files of one release
    release_manifest_bytes: int = 60 << 10  # goes into one message
    chunk_bytes: int = 48 << 10  # of a release's file, in one message
    talk_bytes: int = 64 << 10  # a message between the operator and a device
    request_bytes: int = 4096  # a file by which another command asks a running party for something
    dataset_bytes: int = 8 << 30  # one data file, unpacked
    gathered_bytes: int = 32 << 20  # weights that lanes give to the coordinator at a time, unless one lane's are more
    gathered_lanes: int = 64
    answered_bytes: int = 256 << 20  # blobs that all parties together answer one command with
    parties: int = 16384  # clients, or servers, of a run
    batches: int = 1 << 22  # of one split of one client
    aligned_records: int = 1 << 20  # that one party brings to an alignment, all splits together; 16 bytes each on the line
    claimed_epoch: int = (1 << 31) - 1  # the epoch of a run that a party may bring to a coordinator that is behind it
    held_ranges: int = 4096  # ranges of steps that a party says it holds of a line


LIMITS = Limits()
