"""The operator's end of the conversation, written from docs/protocol.md ("The fleet") alone: paho, struct, json, and nothing of Cutlayer's.

It serves what devices ask for, and has knobs: how much it serves, and what it sends instead.
"""

from __future__ import annotations

import hashlib
import json
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

PATIENCE_S = 60.0
ASK, STATE, WANT, OFFER, CHUNK = range(5)


def frame(kind: int, payload: bytes) -> bytes:
    rest = struct.pack("<I", len(payload)) + payload
    return struct.pack("<2sBBI", b"CF", 1, kind, zlib.crc32(bytes([1, kind]) + rest)) + rest


def unframe(data: bytes) -> tuple[int, bytes]:
    magic, version, kind, crc, length = struct.unpack_from("<2sBBII", data)
    assert (magic, version, length) == (b"CF", 1, len(data) - 12)
    assert crc == zlib.crc32(bytes([version, kind]) + data[8:])
    return kind, data[12:]


@dataclass(kw_only=True)
class Signed:
    """A release as the operator has it."""

    manifest: bytes
    signature: bytes
    files: dict[str, bytes]

    @property
    def offer(self) -> bytes:
        return frame(OFFER, self.signature + self.manifest)


def signed(key: Ed25519PrivateKey, files: Mapping[str, bytes], *, version: int, device: str, **changes: Any) -> Signed:
    """``changes``: of the manifest's keys."""
    rows = [{"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for path, data in files.items()]
    table = {"format": 1, "version": version, "device": device, "minimum": 0, "expires_s": int(time.time()) + 3600, "files": rows} | changes
    manifest = json.dumps(table).encode()
    return Signed(manifest=manifest, signature=key.sign(b"cutlayer release 1\n" + manifest), files=dict(files))


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass(kw_only=True)
class Operator:
    """``identity``: its folder, as a device's. ``serve``: what to answer to (hash, offset, count); None: nothing."""

    identity: Path
    port: int
    stock: dict[str, bytes] = field(default_factory=dict)
    wants: list[tuple[str, int, int]] = field(default_factory=list)
    states: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)
    seen: list[dict[str, Any]] = field(default_factory=list)
    serve: Callable[[str, int, int], bytes | None] | None = None

    def __enter__(self) -> Operator:
        up = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id="operator", protocol=MQTTProtocolVersion.MQTTv5)
        where = self.identity
        self.client.tls_set(ca_certs=str(where / "ca.pem"), certfile=str(where / "cert.pem"), keyfile=str(where / "key.pem"))
        self.client.on_message = self._heard
        self.client.on_connect = lambda *_: self.client.subscribe("cl/1/d/+/up/talk", 1)
        self.client.on_subscribe = lambda *_: up.set()
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()
        assert up.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def say(self, device: str, message: bytes) -> None:
        self.client.publish(f"cl/1/d/{device}.agent/down/talk", message, qos=1)

    def offer(self, release: Signed, device: str) -> None:
        self.stock |= {hashlib.sha256(data).hexdigest(): data for data in release.files.values()}
        self.say(device, release.offer)

    def ask(self, device: str, token: int = 7) -> dict[str, Any]:
        self.say(device, frame(ASK, json.dumps({"token": token}).encode()))
        return self.state(lambda state: state["token"] == token, f"an answer to {token}")

    def answers(self, device: str) -> None:
        """Until it answers; either line may still be down."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            self.say(device, frame(ASK, b'{"token": 99}'))
            try:
                self.state(lambda state: state["token"] == 99, "an answer", timeout_s=1.0)
                return
            except AssertionError:
                continue
        raise AssertionError(f"{device} does not answer")

    def state(self, wanted: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next State that is ``wanted``."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                found = self.states.get(timeout=0.2)
            except queue.Empty:
                continue
            self.seen.append(found)
            if wanted(found):
                return found
        raise AssertionError(f"not seen: {what}; the last states were {self.seen[-5:]}")

    def stage(self, version: int, *stages: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        return self.state(lambda state: state["offered"] == version and state["stage"] in stages, f"{version} {stages}", timeout_s)

    def _heard(self, client: Client, data: object, message: MQTTMessage) -> None:
        device = message.topic.split("/")[3].removesuffix(".agent")
        kind, payload = unframe(message.payload)
        found = json.loads(payload)
        if kind == STATE:
            self.states.put(found | {"device": device})
            return
        assert kind == WANT
        digest, offset, count = found["sha256"], found["offset"], found["count_bytes"]
        self.wants.append((digest, offset, count))
        whole = self.stock.get(digest)
        piece = whole[offset : offset + count] if whole is not None else None
        if self.serve is not None:
            piece = self.serve(digest, offset, count)
        if piece:
            self.say(device, frame(CHUNK, bytes.fromhex(digest) + struct.pack("<Q", offset) + piece))
