"""The documents keep to the truth where a machine can tell: links, commands, run files, code."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cutlayer
from docs import make_coverage
from wire.runfile import parse_run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert broken == []


def _commands(page: Path) -> Iterator[str]:
    for code in re.findall(r"`([^`]+)`", page.read_text(encoding="utf-8").replace("```", "\n")):
        yield from (line.strip().removeprefix("$ ") for line in code.splitlines() if re.match(r"\s*(\$ )?cutlayer [a-z]+( |$)", line))


def _verbs() -> set[str]:
    """Those of the command itself, and the acts of a verb that has some, like `device add`."""
    found = _choices(cutlayer._parser())
    return {*found, *(f"{verb} {act}" for verb, parser in found.items() for act in _choices(parser))}


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {name: each for action in parser._actions if isinstance(action.choices, dict) for name, each in action.choices.items()}


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_are_ones_that_exist(page: Path) -> None:
    for command in _commands(page):
        words = [word for word in shlex.split(command, comments=True)[1:] if word != "…"]
        if len(words) > 1 and " ".join(words) not in _verbs():  # a verb by itself names it, and is no command line
            cutlayer._parser().parse_args(words)
        else:
            assert " ".join(words) in _verbs()


def test_the_guides_run_file_is_accepted() -> None:
    whole = [text for text in _blocks(ROOT / "docs" / "guide-own-model.md", "toml") if text.startswith("# run.toml")]
    assert len(whole) == 1
    run = parse_run(tomllib.loads(whole[0]), base=".")
    assert [client.name for client in run.clients] == ["clinic-a", "clinic-b"]


def test_the_guides_data_table_is_accepted() -> None:
    run_file = next(text for text in _blocks(ROOT / "docs" / "guide-own-model.md", "toml") if text.startswith("# run.toml"))
    (data,) = _blocks(ROOT / "docs" / "guide-data.md", "toml")
    parse_run({**tomllib.loads(run_file), **tomllib.loads(data)}, base=".").data_of("clinic-a")


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_python_in_the_documents_is_python(page: Path) -> None:
    for block in _blocks(page, "python"):
        ast.parse(block)


def test_the_run_file_page_is_made_from_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from docs.make_run_file import page; print(page(), end='')"], capture_output=True, cwd=ROOT
    )
    assert done.stdout.decode() == (ROOT / "docs" / "run-file.md").read_text(encoding="utf-8"), "run docs/make_run_file.py"


def test_the_coverage_page_has_every_case() -> None:
    assert make_coverage.rows(make_coverage.PAGE.read_text(encoding="utf-8")) == make_coverage.names(), "run `make coverage-page`"


def test_the_readme_shows_command_and_output_first() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    assert "make demo" in head
    assert "<!-- demo output -->" in head
