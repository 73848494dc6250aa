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
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.wire import foreign_entropy

DTYPES = ["<f4", "<f2", "<f8", "<i8", "<i4", "<i2", "i1", "u1", "?"]


def read_frame(data: bytes) -> dict[str, Any]:
    magic, version, kind, mode, flags, lane = struct.unpack("<2sBBBBH", data[:8])
    run_tag, epoch, step, global_step = struct.unpack("<4I", data[8:24])
    part, parts, crc = struct.unpack("<HHI", data[24:32])
    assert magic == b"CL"
    assert version == 3
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


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def read_tensors(data: bytes) -> dict[str, Any]:
    count, at, found = data[0], 1, {}
    for _ in range(count):
        length = data[at]
        name = data[at + 1 : at + 1 + length].decode()
        at += 1 + length
        codec, dtype, dims = data[at], data[at + 1] % 16, data[at + 1] // 16
        at += 2
        shape = []
        for _ in range(dims):
            dim, at = read_varint(data, at)
            shape.append(dim)
        size, at = read_varint(data, at)
        found[name] = read_payload(codec, dtype, tuple(shape), data[at : at + size])
        at += size
    assert at == len(data)
    return found


def read_bits(data: bytes, width: int, count: int) -> list[int]:
    whole = int.from_bytes(data, "little")
    return [whole >> (width * at) & ((1 << width) - 1) for at in range(count)]


def read_payload(codec: int, dtype: int, shape: tuple[int, ...], payload: bytes) -> Any:
    count = math.prod(shape)
    if codec == 0:
        return np.frombuffer(payload, DTYPES[dtype]).reshape(shape)
    if codec in (1, 2):
        return np.frombuffer(payload, "<f4" if codec == 1 else "<f2").astype(np.float32).reshape(shape)
    if codec == 4:
        return np.array([bfloat16(payload[2 * at : 2 * at + 2]) for at in range(count)], np.float32).reshape(shape)
    if codec == 10:
        size = np.dtype(DTYPES[dtype]).itemsize
        low = int.from_bytes(payload[:size], "little", signed="i" in DTYPES[dtype])
        values = [low + above for above in read_bits(payload[size + 1 :], payload[size], count)]
        return np.array(values, DTYPES[dtype]).reshape(shape)
    if codec == 7:
        return np.array(read_mxfp4(payload, count), np.float32).reshape(shape)
    if codec == 16:
        return read_lowbit(payload, shape)
    if codec in (8, 9):
        return read_topk(payload, shape)
    return read_affine(payload, shape, AFFINE_BITS[codec])


AFFINE_BITS = {3: 8, 5: 4, 6: 2}


def bfloat16(two: bytes) -> float:
    (value,) = struct.unpack("<f", b"\0\0" + two)
    return float(value)


def read_affine(payload: bytes, shape: tuple[int, ...], bits: int) -> Any:
    channels = shape[1] if len(shape) > 1 else 1
    scale = [np.float32(bfloat16(payload[2 * at : 2 * at + 2])) for at in range(channels)]
    at = 2 * channels
    size = -(-channels * bits // 8)
    zero = read_bits(payload[at : at + size], bits, channels)
    codes = read_bits(payload[at + size :], bits, math.prod(shape))
    inner = math.prod(shape[2:])
    values = [np.float32(code - zero[at // inner % channels]) * scale[at // inner % channels] for at, code in enumerate(codes)]
    return np.array(values, np.float32).reshape(shape)


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def read_mxfp4(payload: bytes, count: int) -> list[float]:
    blocks = -(-count // 32)
    codes = read_bits(payload[blocks:], 4, count)
    return [math.copysign(E2M1[code % 8], -1 if code > 7 else 1) * 2.0 ** (payload[at // 32] - 127) for at, code in enumerate(codes)]


def read_lowbit(payload: bytes, shape: tuple[int, ...]) -> Any:
    if payload[0] == 2:
        return read_lowbit_gradient(payload, shape)
    channels = shape[1] if len(shape) > 2 else 1
    levels, base = payload[1], int.from_bytes(payload[2:4], "little", signed=True)
    steps = [np.float32(np.float32(2.0 ** (n % 8 / 8)) * 2.0 ** (n // 8)) for n in (base + offset for offset in payload[4 : 4 + channels])]
    at = 4 + channels + 2 * levels
    centroids = [np.float32(each) for each in np.frombuffer(payload[4 + channels : at], "<f2")]
    size = len(payload) - at
    if payload[0] == 1:
        size, at = read_varint(payload, at)
    batch, others = shape[0], shape[2:] if len(shape) > 2 else shape[1:]
    height, width = math.prod(others[:-1]), others[-1]
    places = foreign_entropy.read_maps(payload[at : at + size], (batch, channels, height, width), levels + 1)
    found = np.zeros((batch, channels, height, width), np.float32)
    for sample, channel, row, column in np.ndindex(found.shape):
        symbol = places[channel, row, column, sample]
        found[sample, channel, row, column] = steps[channel] * centroids[symbol - 1] if symbol else 0
    with_signs(found.reshape(-1), payload[at + size :] if payload[0] == 1 else b"")
    return found.reshape(shape)


def read_lowbit_gradient(payload: bytes, shape: tuple[int, ...]) -> Any:
    """Without a support."""
    (unit,) = struct.unpack("<f", payload[1:5])
    size, at = read_varint(payload, 5)
    classes = foreign_entropy.read_groups(payload[at : at + size], [shape[0]], 16)
    size, at = read_varint(payload, at + size)
    each = math.prod(shape[1:])
    order = [sample for number in range(16) for sample in range(shape[0]) if classes[sample] == number]
    symbols = foreign_entropy.read_groups(payload[at : at + size], [each * classes.count(number) for number in range(16)], 16)
    found = np.zeros((shape[0], each), np.float32)
    for turn, sample in enumerate(order):
        mine = symbols[turn * each : (turn + 1) * each]
        found[sample] = [np.float32(unit) * 2.0 ** (symbol - 1) if symbol else 0 for symbol in mine]
    with_signs(found.reshape(-1), payload[at + size :])
    return found.reshape(shape)


def with_signs(values: Any, signs: bytes) -> None:
    places = np.flatnonzero(values)
    for place, negative in zip(places, read_bits(signs, 1, len(places)) if signs else [0] * len(places), strict=True):
        values[place] *= -1 if negative else 1


def read_topk(payload: bytes, shape: tuple[int, ...]) -> Any:
    samples, size = shape[0], math.prod(shape[1:])
    single, kind = payload[0] & 1, payload[0] >> 1
    scale = 2.0 ** int.from_bytes(payload[1:2], "little", signed=True)
    k, at = read_varint(payload, 2)
    width = (size - 1).bit_length()
    length = -(-samples * (k * width if kind == 0 else size) // 8)
    if kind == 0:
        places = [(index // k, place) for index, place in enumerate(read_bits(payload[at : at + length], width, samples * k))]
    else:
        assert kind == 1, "there is no support in a vector"
        places = [divmod(index, size) for index, bit in enumerate(read_bits(payload[at : at + length], 1, samples * size)) if bit]
    values = np.frombuffer(payload[at + length :], "<f4" if single else "<f2").astype(np.float32)
    found = np.zeros((samples, size), np.float32)
    for (row, place), value in zip(places, values, strict=True):
        found[row, place] = value * np.float32(scale)
    return found.reshape(shape)


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


def open_sealed(data: bytes, private: bytes, run: str, lane: int, epoch: int, number: int) -> bytes:
    """Curve and cipher are the library's; the derivation is RFC 5869 by hand."""
    assert data[0] == 1
    key = X25519PrivateKey.from_private_bytes(private)
    secret = key.exchange(X25519PublicKey.from_public_bytes(data[1:33]))
    extracted = hmac.digest(data[1:33] + key.public_key().public_bytes_raw(), secret, "sha256")
    first = hmac.digest(extracted, b"cutlayer sealed 1\x01", "sha256")
    second = hmac.digest(extracted, first + b"cutlayer sealed 1\x02", "sha256")
    place = struct.pack("<H", lane) + struct.pack("<I", epoch) + struct.pack("<I", number) + run.encode()
    return ChaCha20Poly1305(first).decrypt(second[:12], data[33:], place)


def topic_pair(run: str, key: str, edge: str, lane: int) -> list[str]:
    token = hmac.new(key.encode(), edge.encode(), hashlib.sha256).hexdigest()[:16]
    return [f"cl/1/{run}/{token}/{lane}/{way}" for way in "fb"]
