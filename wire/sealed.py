"""Bytes that only one party can read: sealed to its X25519 key, for one place in one run (docs/protocol.md, section 9).

    u8 version, 1 | ephemeral public key, 32 bytes | ChaCha20-Poly1305 of the content, with its tag of 16 bytes

Key and nonce come from HKDF-SHA256 over the shared secret of the ephemeral and the recipient's key, so each is used once. The place is
the associated data: what was sealed for another one does not open. A sealed box says nothing of who made it.

Pure: no file; the one thing drawn is the ephemeral key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wire.errors import ProtocolError
from wire.parse import KEY_BYTES

__all__ = ["OVERHEAD_BYTES", "Place", "open_sealed", "seal"]

OVERHEAD_BYTES = 1 + KEY_BYTES + 16

_VERSION = b"\x01"
_INFO = b"cutlayer sealed 1"
_NONCE_BYTES = 12
_PLACE = struct.Struct("<HII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a sealed message is for: one hand-over of one lane (the giver's) in one epoch of one run."""

    run: str
    lane: int
    epoch: int
    number: int

    def encode(self) -> bytes:
        return _PLACE.pack(self.lane, self.epoch, self.number) + self.run.encode()


def seal(content: bytes, *, recipient: bytes, place: Place, ephemeral: X25519PrivateKey | None = None) -> bytes:
    """``content``, ``OVERHEAD_BYTES`` longer, for the holder of the key whose public part is ``recipient`` (``KEY_BYTES`` long).

    ``ephemeral`` is drawn where it is left out, which it must be but for tests. Raises ProtocolError for a ``recipient`` that is no key.
    """
    ephemeral = ephemeral or X25519PrivateKey.generate()
    public = ephemeral.public_key().public_bytes_raw()
    key, nonce = _key_and_nonce(_shared(ephemeral, recipient), public, recipient)
    return b"".join((_VERSION, public, ChaCha20Poly1305(key).encrypt(nonce, content, place.encode())))


def open_sealed(sealed: bytes, *, key: X25519PrivateKey, place: Place) -> bytes:
    """The inverse of ``seal``. Raises ProtocolError: changed on its way, for another key, or of another place."""
    if len(sealed) < OVERHEAD_BYTES or sealed[:1] != _VERSION:
        raise ProtocolError(f"{len(sealed)} bytes that are not sealed as version 1 says")
    public = sealed[1 : 1 + KEY_BYTES]
    secret, nonce = _key_and_nonce(_shared(key, public), public, key.public_key().public_bytes_raw())
    try:
        return ChaCha20Poly1305(secret).decrypt(nonce, sealed[1 + KEY_BYTES :], place.encode())
    except InvalidTag as exc:
        raise ProtocolError("it was changed on its way, sealed to another key, or for another place") from exc


def _shared(key: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as exc:  # of another length, or one of the few points that make every secret zero
        raise ProtocolError(f"{len(public)} bytes that are no X25519 key") from exc


def _key_and_nonce(secret: bytes, ephemeral: bytes, recipient: bytes) -> tuple[bytes, bytes]:
    derived = HKDF(SHA256(), length=KEY_BYTES + _NONCE_BYTES, salt=ephemeral + recipient, info=_INFO).derive(secret)
    return derived[:KEY_BYTES], derived[KEY_BYTES:]
