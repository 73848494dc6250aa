"""Public names are in ``__all__``; everything else is underscored."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("wire", "edge_client", "server", "export", "simulation", "fleet")
FILES = [ROOT / "cutlayer.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
PUBLIC = [path for path in FILES if path.stem in ("__init__",) or not path.stem.startswith("_")]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _defined(tree: ast.Module) -> list[str]:
    """Functions and classes that the module defines under public names."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@pytest.mark.parametrize("path", PUBLIC, ids=_name)
def test_all_names_what_is_public(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if path.stem == "__init__" and not ast.parse(source).body[1:]:
        return  # a docstring, or nothing: it has no names
    names = getattr(importlib.import_module(_name(path)), "__all__", None)
    assert names is not None, "no __all__"
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("_")] == []
    assert sorted(set(_defined(ast.parse(source))) - set(names)) == [], "public by name and not in __all__"


@pytest.mark.parametrize("path", PUBLIC, ids=_name)
def test_names_in_all_exist(path: Path) -> None:
    module = importlib.import_module(_name(path))
    assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), "no module docstring"
