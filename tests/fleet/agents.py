"""A device's agent as somebody else would write one: with paho, from the description of the protocol, and nothing of ours.

It keeps in memory what an agent keeps on its disk, so that it can go and come back. What it does wrong, it is told to.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

__all__ = ["ASK", "CHUNK", "OFFER", "STATE", "WANT", "Agent", "framed"]

ASK, STATE, WANT, OFFER, CHUNK = range(5)
PIECE_BYTES = 48 << 10
PATIENCE_S = 30.0


def framed(kind: int, payload: bytes) -> bytes:
    tail = struct.pack("<I", len(payload)) + payload
    return b"CF" + struct.pack("<BBI", 1, kind, zlib.crc32(bytes([1, kind]) + tail)) + tail


@dataclass(kw_only=True)
class Agent:
    """``folder``: the device's identity. ``verdict``: how its releases end. ``hold_at``: after so many pieces it stops asking.
    ``insatiable``: it asks for what it has just been given."""

    name: str
    folder: Path
    port: int
    deploy_pub: Path
    verdict: str = "healthy"
    reason: str = ""
    hold_at: int | None = None
    release: int = 0
    highest: int = 0
    offered: int = 0
    stage: str = "none"
    files: dict[str, bytes] = field(default_factory=dict)  # by hash, whole and sound
    paths: dict[str, str] = field(default_factory=dict)  # of the release that runs: hash by path
    offers: list[dict[str, Any]] = field(default_factory=list)
    signed: bytes = b""  # the newest offer as it came
    asked: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[tuple[str, int]] = field(default_factory=list)
    unasked: list[tuple[str, int]] = field(default_factory=list)
    insatiable: bool = False
    on_offer: Callable[[Agent, dict[str, Any]], None] | None = None
    _wanted: list[dict[str, Any]] = field(default_factory=list)
    _client: Client | None = None

    # ------------------------------------------------------------ there and away

    @property
    def identity(self) -> str:
        return f"{self.name}.agent"

    def __enter__(self) -> Agent:
        up = threading.Event()
        self._client = client = Client(CallbackAPIVersion.VERSION2, client_id=self.identity, protocol=MQTTProtocolVersion.MQTTv5)
        client.tls_set(str(self.folder / "ca.pem"), str(self.folder / "agent.pem"), str(self.folder / "key.pem"))
        client.on_connect = lambda *_: client.subscribe(f"cl/1/d/{self.identity}/down/talk", 1)
        client.on_subscribe = lambda *_: (self.say(), up.set())
        client.on_message = lambda _, __, message: self._heard(message.payload)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        assert up.wait(PATIENCE_S)
        if self._wanted:
            self._want()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._client is not None
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, data: bytes) -> None:
        assert self._client is not None
        self._client.publish(f"cl/1/d/{self.identity}/up/talk", data, 1)

    # ------------------------------------------------------------ what it says

    def state(self, **more: Any) -> dict[str, Any]:
        have = sum(len(data) for data in self.files.values())
        known = self.signed and more.get("release", self.release)
        return {
            "token": 0,
            "boot": 1,
            "release": self.release,
            "digest": hashlib.sha256(self.signed[64:]).hexdigest() if known else "",
            "highest": self.highest,
            "offered": self.offered,
            "stage": self.stage,
            "have_bytes": have,
            "of_bytes": 4 * have,
            "reason": self.reason if self.stage in ("returned", "refused") else "",
            "client": "running",
            "run": "clinics",
            "step": 12,
            "code": "0.1.0",
            "agent": "0.1.0",
            "uptime_s": 5.0,
            "connections": 1,
            "disk_free_bytes": 1 << 30,
            "memory_free_bytes": 1 << 28,
            "certificate_until_s": 2e9,
            **more,
        }

    def say(self, **more: Any) -> None:
        self.publish(framed(STATE, json.dumps(self.state(**more)).encode()))

    def want(self, **asked: Any) -> None:
        self.publish(framed(WANT, json.dumps(asked).encode()))

    # ------------------------------------------------------------ what it hears

    def _heard(self, data: bytes) -> None:
        assert data[:2] == b"CF"
        kind, payload = data[3], data[12:]
        assert framed(kind, payload) == data
        if kind == ASK:
            self.say(token=json.loads(payload)["token"])
        elif kind == OFFER:
            self._take_offer(payload)
        elif kind == CHUNK:
            self._take_piece(payload[:32].hex(), struct.unpack("<Q", payload[32:40])[0], payload[40:])

    def _take_offer(self, payload: bytes) -> None:
        key = load_pem_public_key(self.deploy_pub.read_bytes())
        assert isinstance(key, Ed25519PublicKey)
        key.verify(payload[:64], b"cutlayer release 1\n" + payload[64:])
        release = json.loads(payload[64:])
        assert release["device"] == self.name
        self.offers.append(release)
        self.signed = payload
        self.offered = release["version"]
        if self.on_offer is not None:
            return self.on_offer(self, release)
        if self.verdict == "refused":
            self.stage = "refused"
            return self.say()
        assert release["version"] > self.highest or self.stage != "none"
        self.highest, self.stage = release["version"], "fetching"
        self._wanted = [
            {
                "version": release["version"],
                "sha256": file["sha256"],
                "offset": at,
                "count_bytes": min(PIECE_BYTES, file["size_bytes"] - at),
            }
            for file in release["files"]
            if file["sha256"] not in self.files
            for at in range(0, file["size_bytes"], PIECE_BYTES)
        ]
        self._parts: dict[str, dict[int, bytes]] = {}
        self.asked = list(self._wanted)
        self.say()
        self._want()

    def _want(self) -> None:
        if self.hold_at is not None and len(self.pieces) >= self.hold_at:
            return
        for asked in self._wanted[:4]:
            self.want(**asked)
        if not self._wanted and self.stage == "fetching":
            self._run()

    def _take_piece(self, sha256: str, offset: int, data: bytes) -> None:
        expected = [asked for asked in self._wanted if (asked["sha256"], asked["offset"]) == (sha256, offset)]
        if not expected:  # asked for twice, or never
            if not any((asked["sha256"], asked["offset"]) == (sha256, offset) for asked in self.asked):
                self.unasked.append((sha256, offset))
            return
        assert len(data) == expected[0]["count_bytes"]
        self.pieces.append((sha256, offset))
        if self.insatiable:
            return self.want(**expected[0])
        self._wanted.remove(expected[0])
        parts = self._parts.setdefault(sha256, {})
        parts[offset] = data
        if not any(asked["sha256"] == sha256 for asked in self._wanted):
            whole = b"".join(parts[at] for at in sorted(parts))
            assert hashlib.sha256(whole).hexdigest() == sha256
            self.files[sha256] = whole
        self._want()

    def _run(self) -> None:
        release = self.offers[-1]
        assert all(file["sha256"] in self.files for file in release["files"])
        self.stage = "trial"
        self.say(release=self.offered)
        self.stage = self.verdict
        if self.verdict == "healthy":
            self.release = self.offered
            self.paths = {file["path"]: file["sha256"] for file in release["files"]}
        self.say()

    def go_on(self) -> None:
        """Ask again, after ``hold_at``."""
        self.hold_at = None
        self._want()

    def finish(self) -> None:
        """Ask now and then, for the operator may not be there yet, until it runs the release."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not self.release:
            assert time.monotonic() < deadline_s
            self.go_on()
            wait_s = time.monotonic() + 1.0
            while not self.release and time.monotonic() < wait_s:
                time.sleep(0.02)
