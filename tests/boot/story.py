"""One board's life, step by step, with what was seen at each: for the page, and for whoever watches with ``-s``."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from tests.boot.card import Card

__all__ = ["Story"]

_TAKES_S = 1800.0  # of patience: an emulated board on a busy computer is slow
_SHOWN_CHARS = 130


@dataclass
class Story:
    title: str
    card: Card
    token: bytes
    lines: list[str] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    done: bool = False

    def say(self, what: str, *, at_s: float | None = None) -> float:
        """When it was."""
        at_s = self.card.machine.now_s() if at_s is None else at_s
        self.lines.append(f"{at_s:7.1f}  {what}")
        print(f"{self.title}: {self.lines[-1]}", flush=True)
        return at_s

    def see(self, pattern: str) -> float:
        """Wait until the machine says it, and tell."""
        at_s, line = self.card.machine.wait_for(pattern, _TAKES_S)
        said = re.sub(r"^\[ *[0-9.]+\] ", "", line)
        return self.say(f"    {said if len(said) <= _SHOWN_CHARS else said[:_SHOWN_CHARS] + '…'}", at_s=at_s)

    def power_on(self, why: str = "power on") -> float:
        self.card.power_on()
        return self.say(why)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def ended(self, what: str) -> float:
        """Wait until the system has ended or restarts."""
        return self.say(what, at_s=self.card.machine.wait_end(_TAKES_S))

    def cut(self, when: str) -> float:
        return self.say(f"POWER CUT {when}", at_s=self.card.machine.cut_power())

    def page(self) -> list[str]:
        return ["", f"## {self.title}", "", "```", *self.lines, "```"]
