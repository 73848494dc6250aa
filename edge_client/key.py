"""``cutlayer key``: a client's public key, to be written into the run files of the others."""

from __future__ import annotations

from pathlib import Path

from wire.errors import RunFileError
from wire.parse import key_text
from wire.runfile import load_run

__all__ = ["public_key"]


def public_key(run_file: str | Path, *, party: str) -> str:
    """In base64; the private one stays in the client's state folder, where it is made if it is not there. Raises CutlayerError."""
    from wire.keys import load_key  # loads a cryptographic library

    run = load_run(run_file)
    names = [client.name for client in run.clients]
    if party not in names:
        raise RunFileError(f"no client is called `{party}`; clients are {', '.join(names)}")
    return key_text(load_key(run.state_of(party)).public_key().public_bytes_raw())
