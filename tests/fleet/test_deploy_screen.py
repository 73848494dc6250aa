"""Lines of a deploy: a last one that changes on a terminal, and nothing but lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import select

from fleet.deploy.screen import Screen, printable


def test_no_terminal_gets_lines_alone() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.status("1 healthy")
    screen.say("c0: healthy")
    screen.clear()
    assert stream.getvalue()[8:] == " c0: healthy\n"


def test_a_terminal_keeps_one_line_that_changes() -> None:
    master, slave = pty.openpty()
    with open(slave, "w") as stream, open(master, "rb", buffering=0) as seen:
        screen = Screen(stream)
        screen.status("1 healthy, " + "x" * 500)
        screen.say("c0: healthy")
        text = b""
        while select.select([seen], [], [], 0.2)[0]:
            text += os.read(seen.fileno(), 4096)
    status, line = text.decode().split("\r\x1b[K")[1:]
    assert status.startswith("1 healthy, xx")
    assert len(status) < 500
    assert line.endswith(" c0: healthy\r\n")


def test_what_a_device_said_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2J\r\nb\u202ec") == "a\\x1b[2J  b\\u202ec"
    assert printable("x" * 300) == "x" * 200 + "…"
