"""A decoder written from docs/protocol.md alone: it imports nothing of ours."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
import zlib
from typing import Any

import numpy as np

DTYPES = ["<f4", "<f2", "<f8", "<i8", "<i4", "<i2", "i1", "u1", "?"]


def read_frame(data: bytes) -> dict[str, Any]:
    magic, version, kind, mode, flags, lane = struct.unpack("<2sBBBBH", data[:8])
    run_tag, epoch, step, global_step = struct.unpack("<4I", data[8:24])
    part, parts, crc = struct.unpack("<HHI", data[24:32])
    assert magic == b"CL"
    assert version == 1
    assert crc == zlib.crc32(data[:28] + data[32:])
    return {
        "kind": kind,
        "mode": mode,
        "void": bool(flags & 1),
        "lane": lane,
        "run_tag": run_tag,
        "epoch": epoch,
        "step": step,
        "global_step": global_step,
        "part": part,
        "parts": parts,
        "payload": data[32:],
    }


def read_tensors(data: bytes) -> dict[str, Any]:
    count, at, found = data[0], 1, {}
    for _ in range(count):
        length = data[at]
        name = data[at + 1 : at + 1 + length].decode()
        at += 1 + length
        codec, dtype, dims = data[at : at + 3]
        shape = struct.unpack_from(f"<{dims}I", data, at + 3)
        at += 3 + 4 * dims
        (size,) = struct.unpack_from("<I", data, at)
        payload = data[at + 4 : at + 4 + size]
        at += 4 + size
        found[name] = read_payload(codec, dtype, shape, payload)
    assert at == len(data)
    return found


def read_payload(codec: int, dtype: int, shape: tuple[int, ...], payload: bytes) -> Any:
    if codec == 0:
        return np.frombuffer(payload, DTYPES[dtype]).reshape(shape)
    if codec in (1, 2):
        return np.frombuffer(payload, "<f4" if codec == 1 else "<f2").astype(np.float32).reshape(shape)
    channels = shape[1] if len(shape) > 1 else 1
    scale = np.frombuffer(payload[: 4 * channels], "<f4")
    zero = payload[4 * channels : 5 * channels]
    codes = payload[5 * channels :]
    inner = math.prod(shape[2:])
    values = [(code - zero[at // inner % channels]) * scale[at // inner % channels] for at, code in enumerate(codes)]
    return np.array(values, np.float32).reshape(shape)


def read_control(data: bytes) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    (length,) = struct.unpack("<I", data[:4])
    head = json.loads(data[4 : 4 + length])
    at, blobs = 4 + length, {}
    for name, size in head["blobs"]:
        blobs[name] = data[at : at + size]
        at += size
    assert at == len(data)
    return head["kind"], head["body"], blobs


def read_resend(data: bytes) -> tuple[bool, int, list[tuple[int, ...]], list[tuple[int, int, int, int, list[int]]]]:
    flags, _, part_bytes, count = struct.unpack("<BBIB", data[:7])
    assert flags in range(4)
    at, ranges, partial = 7, [], []
    for _ in range(count):
        ranges.append(struct.unpack_from("<BBII", data, at))
        at += 10
    count = data[at]
    at += 1
    for _ in range(count):
        kind, mode, step, parts = struct.unpack_from("<BBIH", data, at)
        at += 8
        size = (parts + 7) // 8
        number = int.from_bytes(data[at : at + size], "little")
        partial.append((kind, mode, step, parts, [part for part in range(parts) if number >> part & 1]))
        at += size
    assert at == len(data)
    return flags & 1 == 1, part_bytes, ranges, partial


def topic_pair(run: str, key: str, edge: str, lane: int) -> list[str]:
    token = hmac.new(key.encode(), edge.encode(), hashlib.sha256).hexdigest()[:16]
    return [f"cl/1/{run}/{token}/{lane}/{way}" for way in "fb"]
