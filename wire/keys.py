"""A party's own key, and those of the parties that it hands segment weights to.

    private.key     X25519, 32 bytes, readable by its owner alone; made at the first start, or by ``cutlayer key``
    peers.json      the public key of each party that has fetched from here, as it was first seen

A private key never leaves its folder: nothing here logs, prints or returns it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wire.control import Control, decode_control, encode_control
from wire.errors import GraphError, PeerMismatch, ProtocolError, RunFileError, StorageError
from wire.limits import LIMITS
from wire.parse import KEY_BYTES, key_text, read_key
from wire.sealed import OVERHEAD_BYTES, Place, open_sealed, seal
from wire.store import storage_errors, write_atomically

__all__ = ["PeerKeys", "load_key"]

_HEAD_BYTES = 4096  # of a message, beside what is sealed in it: more than it takes


def load_key(folder: Path) -> X25519PrivateKey:
    """The key in a party's state folder; made where there is none. Raises StorageError."""
    path = folder / "private.key"
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not path.exists():
                write_atomically(path, X25519PrivateKey.generate().private_bytes_raw(), private=True)
            found = path.read_bytes()
    if len(found) != KEY_BYTES:
        raise StorageError(f"{path} has {len(found)} bytes, so it is no key; remove it, and a new one is made at the next start")
    return X25519PrivateKey.from_private_bytes(found)


class PeerKeys:
    """One party's end of all hand-overs: seals what it gives to keys that it knows, opens what it takes.

    ``takers``: by lane, who fetches from here. ``pinned``: public keys by party, as the run file says, in base64; a party without one is
    known by the key that it brings first, which ``say`` tells a person. Raises RunFileError where the party's own key is another than its
    pinned one.
    """

    def __init__(
        self, folder: Path, *, run: str, party: str, takers: Mapping[int, str], pinned: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._run = run
        self._takers = takers
        self._pinned = pinned
        self._say = say
        self._key = load_key(folder)
        self._path = folder / "peers.json"
        self._seen = self._load_seen()
        self.public = self._key.public_key().public_bytes_raw()
        wanted = pinned.get(party)
        if wanted not in (None, key_text(self.public)):
            raise RunFileError(
                f"`public_key` of the client `{party}` in the run file is {wanted}, but the key in {folder} is {key_text(self.public)}; "
                "write this one into all run files, or bring the right key file back"
            )

    def seal(self, blobs: Mapping[str, bytes], *, key: bytes, lane: int, epoch: int, number: int) -> bytes:
        """``blobs`` for the taker of ``lane``, who says that its public key is ``key``.

        Raises PeerMismatch for another key than the known one, GraphError for more than a message takes.
        """
        peer, place = self._takers[lane], Place(run=self._run, lane=lane, epoch=epoch, number=number)
        self._check(peer, key)
        content = encode_control(Control(kind="weights", blobs=blobs))
        if len(content) + OVERHEAD_BYTES + _HEAD_BYTES > LIMITS.message_bytes:
            raise GraphError(
                f"the weights to hand over to `{peer}` take {len(content)} bytes, and a message at most {LIMITS.message_bytes}; "
                "cut the network further to the front"
            )
        try:
            sealed = seal(content, recipient=key, place=place)
        except ProtocolError as exc:
            raise PeerMismatch(f"`{peer}` asks for the weights with {key_text(key)}, which is no key; somebody is in the middle") from exc
        self._remember(peer, key)
        return sealed

    def open(self, sealed: bytes, *, lane: int, epoch: int, number: int) -> dict[str, bytes]:
        """The blobs that were sealed for this hand-over. Raises PeerMismatch."""
        try:
            content = open_sealed(sealed, key=self._key, place=Place(run=self._run, lane=lane, epoch=epoch, number=number))
            return dict(decode_control(content).blobs)
        except ProtocolError as exc:
            raise PeerMismatch(
                f"the weights that lane {lane} handed over cannot be opened ({exc}); somebody on the way may be tampering: "
                "compare the parties' keys (`cutlayer key`) before you start again"
            ) from exc

    def _check(self, peer: str, key: bytes) -> None:
        text = key_text(key)
        pinned, seen = self._pinned.get(peer), self._seen.get(peer)
        if pinned not in (None, text):
            raise PeerMismatch(
                f"`{peer}` asks for the weights with the key {text}, but its `public_key` in the run file is {pinned}; compare that "
                f"with what `cutlayer key` prints at `{peer}`: if it is the same, somebody is in the middle"
            )
        if pinned is None and seen not in (None, text):
            raise PeerMismatch(
                f"`{peer}` asks for the weights with the key {text}, but it had {seen} before; if `{peer}` was set up anew, "
                f"take it out of {self._path}, otherwise somebody is in the middle"
            )

    def _remember(self, peer: str, key: bytes) -> None:
        if peer in self._pinned or peer in self._seen:
            return
        self._seen[peer] = key_text(key)
        write_atomically(self._path, json.dumps(self._seen, indent=1).encode())
        self._say(f"`{peer}` has the key {self._seen[peer]}; `public_key` of [[clients]] would make sure of it")

    def _load_seen(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text())
            for key in found.values():
                read_key(key)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as exc:
            raise StorageError(f"{self._path} is not readable ({exc}); remove it to take the keys that come next") from exc
        return dict(found)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of two processes that find no key, one makes it."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
