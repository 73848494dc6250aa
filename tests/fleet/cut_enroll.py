"""A device that enrols and loses power at its n-th deed: ``python cut_enroll.py N NAME URL CA TOKEN FOLDER``. Exit code 9: it was cut off.

Deeds are what Python's audit events show: files of the identity and the token that are opened, renamed and removed, and the connection
that is made. Each is cut right before it happens, which is right after the one before it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edge_client.enroll.enroll import enroll

_FILES = {"open", "os.rename", "os.remove", "os.mkdir"}
_NET = {"socket.connect"}


def main(at: int, name: str, url: str, ca: str, token: str, folder: str) -> None:
    left = [at]

    def deed(event: str, values: tuple[object, ...]) -> None:
        if event not in _FILES | _NET:
            return
        if event in _FILES and not any(str(value).startswith((folder, token)) for value in values):
            return
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)

    sys.addaudithook(deed)
    enroll(name, url=url, ca=Path(ca), token=Path(token), folder=Path(folder), timeout_s=0.0)
    print(at - left[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
