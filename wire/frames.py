from __future__ import annotations
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    FORWARD = 1
    BACKWARD = 2
    CONTROL = 3
    ACK = 4
    RESEND = 5
    HELLO = 6


class Mode(IntEnum):
    TRAIN = 0
    EVAL = 1
    INFER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    kind: Kind
    mode: Mode = Mode.TRAIN
    void: bool = False
    epoch: int = 0
    lane: int = 0
    step: int = 0
    global_step: int = 0
    payload: bytes = b""
