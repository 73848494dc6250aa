"""What a check has found, as lines for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Finding", "Value", "failed", "lines_of", "ok", "skipped", "summary", "warning"]

Value = int | float | str
_NAME_WIDTH, _STATUS_WIDTH = 11, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``fact``: what is so, in a few words; ``advice``: what to do about it, where something is wrong. ``values``: for programs, with the
    unit in each name. "skipped": the check could not be made, or was not asked for."""

    check: str
    status: Literal["ok", "warning", "failed", "skipped"]
    fact: str
    advice: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)


def ok(check: str, fact: str, **values: Value) -> Finding:
    return Finding(check=check, status="ok", fact=fact, values=values)


def warning(check: str, fact: str, advice: str, **values: Value) -> Finding:
    return Finding(check=check, status="warning", fact=fact, advice=advice, values=values)


def failed(check: str, fact: str, advice: str, **values: Value) -> Finding:
    return Finding(check=check, status="failed", fact=fact, advice=advice, values=values)


def skipped(check: str, fact: str) -> Finding:
    return Finding(check=check, status="skipped", fact=fact)


def lines_of(finding: Finding) -> list[str]:
    """Aligned: check, status, fact; below, the advice."""
    lines = [f"{finding.check:<{_NAME_WIDTH}}  {finding.status:<{_STATUS_WIDTH}}  {finding.fact}"]
    if finding.advice:
        lines.append(f"{'':<{_NAME_WIDTH + _STATUS_WIDTH + 4}}-> {finding.advice}")
    return [_printable(line) for line in lines]


def summary(findings: Sequence[Finding]) -> str:
    """One line of JSON: ``{"ok": …, "findings": [{"check", "status", "fact", "advice", "values"}, …]}``."""
    return json.dumps(
        {"ok": all(each.status != "failed" for each in findings), "findings": [dataclasses.asdict(each) for each in findings]}
    )


def _printable(line: str) -> str:
    """Facts quote what brokers, files and other people's code say; none of it may move the cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in line)
