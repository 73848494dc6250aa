"""Writes the golden vectors: ``python -m tests.vectors.make``. They change only with the protocol's version."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from wire.control import Control, encode_control
from wire.frames import Frame, Kind, Mode, encode
from wire.graph import Line, topics
from wire.spool import digest_of
from wire.tensors import encode_tensors

FILE = Path(__file__).with_name("vectors.json")

ARRAYS: dict[str, tuple[str, np.ndarray[Any, Any]]] = {
    "raw int64 labels": ("raw", np.array([3, 0, -1, 2**40], np.int64)),
    "raw uint8 ids": ("raw", np.arange(32, dtype=np.uint8).reshape(2, 16)),
    "raw bool": ("raw", np.array([[True, False]])),
    "fp32": ("fp32", np.array([[0.0, -0.0, 1.5], [3.4e38, -1e-45, 0.1]], np.float32)),
    "fp16 saturates": ("fp16", np.array([1e9, -1e9, 65504.0, 1 / 3, 6e-8], np.float32)),
    "int8 by channel": ("int8", np.array([[[0.0, 1.0], [-2.0, 0.5]], [[0.25, 0.0], [2.0, 0.0]]], np.float32)),
    "int8 of zeros": ("int8", np.zeros((2, 3), np.float32)),
    "int8 scalar": ("int8", np.array(-7.0, np.float32)),
    "int8 empty": ("int8", np.zeros((0, 4), np.float32)),
}


def tensor_vectors() -> list[dict[str, Any]]:
    return [
        {"name": name, "codec": codec, "values": array.ravel().tolist(), "shape": list(array.shape), "dtype": array.dtype.name,
         "bytes": encode_tensors([("x", array, codec)]).hex()}
        for name, (codec, array) in ARRAYS.items()
    ]  # fmt: skip


def frame_vectors() -> list[dict[str, Any]]:
    control = Control(kind="cmd", body={"seq": 3, "op": "save", "lanes": [0, 1], "args": {"id": 7}}, blobs={"b": b"xy"})
    referring = Control(kind="cmd", body={"seq": 4, "op": "take"}, blobs={"bottom": digest_of(b"weights")}, references=("bottom",))
    frames = {
        "forward": Frame(kind=Kind.FORWARD, epoch=2, lane=1, step=17, global_step=35, payload=b"activation"),
        "backward, void": Frame(kind=Kind.BACKWARD, void=True, epoch=2, lane=1, step=17, global_step=35),
        "evaluation": Frame(kind=Kind.FORWARD, mode=Mode.EVAL, epoch=9, step=4, payload=bytes(range(8))),
        "control": Frame(kind=Kind.CONTROL, epoch=2, lane=1, step=(5 << 16) + 1, payload=encode_control(control)),
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


def topic_vectors() -> list[dict[str, Any]]:
    return [
        {
            "run": "field",
            "key": key,
            "edge": "bottom>top",
            "lane": lane,
            "topics": list(topics("field", key, Line("bottom>top", lane, True))),
        }
        for key, lane in (("field", 0), ("another key", 12))
    ]


def vectors() -> dict[str, Any]:
    return {"version": 1, "tensors": tensor_vectors(), "frames": frame_vectors(), "topics": topic_vectors()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")
