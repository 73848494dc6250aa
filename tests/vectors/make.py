"""Writes the golden vectors: ``python -m tests.vectors.make``. They change only with the protocol's version."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wire.codecs import PLAIN, Direction, encode_array, encode_lossless, parse_codec
from wire.control import Control, encode_control
from wire.frames import VERSION, Frame, Kind, Mode, Partial, encode
from wire.graph import Line, edge_token, topics
from wire.holdings import Holdings
from wire.manifest import TensorSpec
from wire.sealed import Place, seal
from wire.spool import digest_of
from wire.tensors import encode_tensors

FILE = Path(__file__).with_name("vectors.json")

RAMP = np.linspace(-1, 2, 12, dtype=np.float32)

# Codec (none: lossless, as labels travel), and what it carries.
ARRAYS: dict[str, tuple[str, np.ndarray[Any, Any]]] = {
    "raw int64": ("", np.array([-(2**62), 2**62], np.int64)),
    "raw uint8 ids": ("", np.arange(32, dtype=np.uint8).reshape(2, 16) * 37),
    "raw bool": ("", np.array([[True]])),
    "raw float64": ("", np.array([[0.1, -1e300]])),
    "packed labels of ten classes": ("", np.arange(12, dtype=np.int64) % 10),
    "packed negative": ("", np.array([-3, -5, -4, -3, -3, -5], np.int16)),
    "packed constant": ("", np.full((3, 2), 2**31 - 1, np.int32)),
    "packed bool": ("", np.arange(20).reshape(4, 5) % 3 == 0),
    "fp32": ("fp32", np.array([[0.0, -0.0, 1.5], [3.4e38, -1e-45, 0.1]], np.float32)),
    "fp16 saturates": ("fp16", np.array([1e9, -1e9, 65504.0, 1 / 3, 6e-8], np.float32)),
    "bf16 rounds to even": ("bf16", np.array([1.00390625, 1.01171875, 1 / 3, -3.4e38, 1e-40], np.float32)),
    "int8 by channel": ("int8", np.tile(RAMP, 4).reshape(2, 2, 12)),
    "int8 of zeros": ("int8", np.zeros((4, 3), np.float32)),
    "int8 falls back": ("int8", np.array(-7.0, np.float32).reshape(())),
    "int8 empty": ("int8", np.zeros((0, 4), np.float32)),
    "int4 by channel": ("int4", np.tile(RAMP, 4).reshape(2, 2, 12)),
    "int4 of odd size": ("int4", RAMP[:11].reshape(11, 1)),
    "int2 by channel": ("int2", np.tile(RAMP, 4).reshape(2, 2, 12)),
    "mxfp4 of two blocks": ("mxfp4", np.linspace(-100, 1, 37, dtype=np.float32) ** 3),
    "mxfp4 of zeros": ("mxfp4", np.array([0, -0.0, 0, 0, 1e-42], np.float32)),
    "topk by index": ("topk:keep=0.1", np.roll(np.linspace(-1, 2, 80, dtype=np.float32), 7).reshape(2, 2, 20)),
    "topk by bitmap, fp32": ("topk:keep=0.4,values=fp32", np.roll(RAMP, 5).reshape(1, 12)),
    "lowbit of maps": ("lowbit", np.maximum(np.roll(np.linspace(-3, 2, 96, dtype=np.float32), 11) ** 3, 0).reshape(2, 3, 4, 4)),
    "lowbit of rows with signs": ("lowbit:levels=2,step=0.7", np.linspace(-1.5, 2.5, 60, dtype=np.float32).reshape(4, 15) ** 3),
    "lowbit gradient": ("backward lowbit:step=3", np.linspace(-1, 1.5, 90, dtype=np.float32).reshape(6, 15) ** 5),
    "randtopk in evaluation": ("randtopk:keep=0.1,alpha=0.5", np.roll(np.linspace(-1, 2, 80, dtype=np.float32), 7).reshape(2, 2, 20)),
}


def encoded(codec: str, array: np.ndarray[Any, Any]) -> bytes:
    """The tensor as the message's only one, called `x`."""
    if not codec:
        return encode_tensors([("x", array, encode_lossless(array))])
    chosen = parse_codec(codec.removeprefix("backward "))
    shape = ("batch", *array.shape[1:]) if array.ndim else ()
    direction: Direction = "backward" if codec.startswith("backward ") else "forward"
    encoder = chosen.encoder(TensorSpec(name="x", dtype="float32", shape=shape), direction)
    return encode_tensors([("x", array, encode_array(chosen, encoder, array, PLAIN))])


def tensor_vectors() -> list[dict[str, Any]]:
    return [
        {"name": name, "codec": codec, "values": array.ravel().tolist(), "shape": list(array.shape), "dtype": array.dtype.name,
         "bytes": encoded(codec, array).hex()}
        for name, (codec, array) in ARRAYS.items()
    ]  # fmt: skip


def frame_vectors() -> list[dict[str, Any]]:
    control = Control(kind="cmd", body={"seq": 3, "op": "save", "lanes": [0, 1], "args": {"id": 7}}, blobs={"b": b"xy"})
    fetch = Control(kind="fetch", body={"seq": 5, "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="})
    weights = Control(kind="weights", body={"seq": 5}, blobs={"sealed": b"\x01 and so on"})
    referring = Control(kind="cmd", body={"seq": 4, "op": "take"}, blobs={"bottom": digest_of(b"weights")}, references=("bottom",))
    frames = {
        "forward": Frame(kind=Kind.FORWARD, epoch=2, lane=1, step=17, global_step=35, payload=b"activation"),
        "backward, void": Frame(kind=Kind.BACKWARD, void=True, epoch=2, lane=1, step=17, global_step=35),
        "evaluation": Frame(kind=Kind.FORWARD, mode=Mode.EVAL, epoch=9, step=4, payload=bytes(range(8))),
        "control": Frame(kind=Kind.CONTROL, epoch=2, lane=1, step=(5 << 16) + 1, payload=encode_control(control)),
        "fetch": Frame(kind=Kind.CONTROL, epoch=2, lane=1, step=(5 << 16) + 2, payload=encode_control(fetch)),
        "weights": Frame(kind=Kind.CONTROL, epoch=2, lane=1, step=(6 << 16) + 1, payload=encode_control(weights)),
        "resend": Frame(kind=Kind.RESEND, epoch=2, lane=1, payload=resend()),
        "ack": Frame(kind=Kind.ACK, epoch=2, lane=1, step=(5 << 16) + 1),
        "held": Frame(kind=Kind.HELD, epoch=3, lane=1, payload=struct.pack("<BIIBII", 0, 100, 20, 1, 7, 1)),
        "reference": Frame(kind=Kind.REFERENCE, epoch=3, lane=1, step=17, global_step=35, payload=digest_of(b"activation")),
        "referring": Frame(kind=Kind.REFERRING, epoch=3, lane=1, step=(5 << 16) + 2, payload=encode_control(referring)),
        "largest fields": Frame(
            kind=Kind.FORWARD, mode=Mode.INFER, epoch=2**32 - 1, lane=2**16 - 1, step=2**32 - 1, global_step=2**32 - 1, payload=b"z" * 100
        ),
    }
    return [
        {
            "name": name,
            "run_tag": 0xC0FFEE01,
            "part_bytes": 80,
            "kind": int(frame.kind),
            "mode": int(frame.mode),
            "void": frame.void,
            "epoch": frame.epoch,
            "lane": frame.lane,
            "step": frame.step,
            "global_step": frame.global_step,
            "payload": frame.payload.hex(),
            "parts": [part.hex() for part in encode(frame, run_tag=0xC0FFEE01, part_bytes=80)],
        }
        for name, frame in frames.items()
    ]


def resend() -> bytes:
    partial = Partial(kind=Kind.FORWARD, mode=Mode.TRAIN, step=17, parts=10, held=frozenset({0, 1, 9}))
    return Holdings(
        asks=True, number=7, part_bytes=4096, ranges={(Kind.CONTROL, Mode.TRAIN): (327681, 327683)}, partial=(partial,)
    ).encode()


def topic_vectors() -> list[dict[str, Any]]:
    return [
        {
            "run": "field",
            "key": key,
            "edge": "bottom>top",
            "lane": lane,
            "topics": list(topics("field", Line("bottom>top", lane, True), edge_token(key, "bottom>top"))),
        }
        for key, lane in (("field", 0), ("another key", 12))
    ]


def sealed_vectors() -> list[dict[str, Any]]:
    """With ephemeral keys that are written here, and so are good for nothing else."""
    made = []
    places = (("field", 1, 3, 17, b"weights"), ("a-b_c", 65535, 2**32 - 1, 2**32 - 1, bytes(100)), ("empty", 0, 1, 2, b""))
    for run, lane, epoch, number, content in places:
        recipient, ephemeral = (hashlib.sha256(f"{run} {who}".encode()).digest() for who in ("recipient", "ephemeral"))
        key = X25519PrivateKey.from_private_bytes(recipient)
        public = key.public_key().public_bytes_raw()
        place = Place(run=run, lane=lane, epoch=epoch, number=number)
        data = seal(content, recipient=public, place=place, ephemeral=X25519PrivateKey.from_private_bytes(ephemeral))
        entry = {"run": run, "lane": lane, "epoch": epoch, "number": number, "content": content.hex(), "bytes": data.hex()}
        made.append(entry | {"recipient_private": recipient.hex(), "recipient_public": public.hex(), "ephemeral_private": ephemeral.hex()})
    return made


def vectors() -> dict[str, Any]:
    return {
        "version": VERSION,
        "tensors": tensor_vectors(),
        "frames": frame_vectors(),
        "topics": topic_vectors(),
        "sealed": sealed_vectors(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")
