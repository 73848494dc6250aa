"""The import rule: which room may import what, in one table; checked in the text of every file and in fresh interpreters.

Lint (ruff TID251 and TID253 in pyproject.toml) says the same while one types, as far as one list for all files can say it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"wire", "edge_client", "server", "export", "simulation", "fleet"}

# Room -> rooms it may import beside itself.
MAY_IMPORT: dict[str, set[str]] = {
    "wire": set(),
    "edge_client": {"wire"},
    "server": {"wire"},
    "export": {"wire"},
    "fleet": {"wire"},
    "simulation": {"wire", "edge_client", "server", "export", "cutlayer"},
}
# Room -> the extra that installs what it imports; None: the base install, which is the device.
EXTRA = {"wire": None, "edge_client": None, "server": "server", "export": "export", "simulation": "simulation", "fleet": "fleet"}
# Import name -> distribution, where they differ.
DISTRIBUTION = {"PIL": "pillow", "paho": "paho-mqtt", "sklearn": "scikit-learn", "tomli_w": "tomli-w"}
# (room, import name): optional there, so imported only inside the function that needs it.
OPTIONAL = {("edge_client", "PIL")}

HEAVY = ["torch", "torchmetrics", "onnx", "onnxscript", "sklearn", "scipy", "rich", "iotcore", "PIL"]
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def _imports(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(absolute dotted name, node) of every import, in functions and behind TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the room's name"
            yield node.module or "", node
        elif isinstance(node, ast.Call) and _called(node) in ("importlib.import_module", "import_module", "__import__"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value, node


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _runs_at_import(tree: ast.Module) -> set[ast.AST]:
    """Nodes outside functions: what runs when the module is imported."""
    found: set[ast.AST] = set()
    left: list[ast.AST] = [tree]
    while left:
        for child in ast.iter_child_nodes(left.pop()):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                found.add(child)
                left.append(child)
    return found


def _declared(extra: str | None) -> set[str]:
    """Distributions that the base install and this extra bring by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])]
    found: set[str] = set()
    for row in rows:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[([a-z,]+)\])?", row)
        assert match is not None
        name, extras = match.groups()
        if name == "cutlayer":
            found |= set().union(*(_declared(other) for other in extras.split(",")))
        else:
            found.add(name.lower())
    return found


def _complaints(room: str, source: str, *, file: str) -> Iterator[str]:
    tree = ast.parse(source)
    at_import = _runs_at_import(tree)
    declared = _declared(EXTRA[room])
    for name, node in _imports(tree):
        top = name.partition(".")[0]
        where = f"{file}:{getattr(node, 'lineno', 0)} imports {name}"
        if top in sys.stdlib_module_names or top == room or top in MAY_IMPORT[room]:
            continue
        if top in ROOMS | {"cutlayer", "tests", "benchmarks"}:
            yield f"{where}: {room} may import {', '.join(sorted(MAY_IMPORT[room])) or 'no other room'}"
        elif (room, top) in OPTIONAL:
            if node in at_import:
                yield f"{where}: it is an extra there; import it in the function that needs it"
        elif DISTRIBUTION.get(top, top) not in declared:
            yield f"{where}: neither the base install nor the extra `{EXTRA[room]}` in pyproject.toml brings it"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_files_import_what_their_room_may(room: str) -> None:
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in _files(room)}
    assert files, f"{room}/ has no Python files"
    assert [complaint for file, source in files.items() for complaint in _complaints(room, source, file=file)] == []


def test_the_table_knows_every_room() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name for name in listed if "." not in name} == ROOMS
    assert set(MAY_IMPORT) == set(EXTRA) == ROOMS
    assert not any("simulation" in allowed for allowed in MAY_IMPORT.values())


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_folder_of_a_room_is_a_package(room: str) -> None:
    """A folder without ``__init__.py`` works here and is missing from the wheel."""
    folders = {path.parent for path in _files(room)} | {ROOT / room}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def _loaded_by(rooms: list[str]) -> set[str]:
    """Names of all modules that importing every module of these rooms loads, in a fresh interpreter."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for room in rooms for path in _files(room)]
    wanted = [name for name in modules if not name.endswith("__main__")]
    code = f"import importlib, json, sys\nfor name in {wanted!r}: importlib.import_module(name)\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("rooms", [["wire"], ["edge_client"], ["fleet"]], ids=lambda rooms: "+".join(rooms))
def test_the_device_loads_nothing_heavy(rooms: list[str]) -> None:
    tops = {name.partition(".")[0] for name in _loaded_by(rooms)}
    assert sorted(tops & set(HEAVY)) == []
    assert sorted(tops & ROOMS - MAY_IMPORT[rooms[0]] - {rooms[0]}) == []


@pytest.mark.parametrize("room", ["server", "export"])
def test_the_torch_rooms_load_no_other_room(room: str) -> None:
    tops = {name.partition(".")[0] for name in _loaded_by([room])}
    assert sorted((tops & ROOMS) - {room, "wire"}) == []


def test_the_command_loads_no_room_before_its_verb() -> None:
    code = "import sys, cutlayer; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert sorted(loaded & (ROOMS | set(HEAVY) | {"numpy", "onnxruntime", "paho"})) == ["wire"]


def _unsafe(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(ROOT)
    for name, node in _imports(tree):
        if name.partition(".")[0] in UNSAFE_MODULES:
            yield f"{where}:{getattr(node, 'lineno', 0)} imports {name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if _called(node) in ("eval", "exec", "torch.load", "torch.jit.load"):
            yield f"{where}:{node.lineno} calls {_called(node)}"
        if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords):
            yield f"{where}:{node.lineno} allows pickle"


def test_nothing_that_arrives_is_executed() -> None:
    """No pickle, torch.load, eval or exec anywhere in the product: weights are safetensors, graphs ONNX, manifests JSON."""
    files = [ROOT / "cutlayer.py", *(path for room in sorted(ROOMS) for path in _files(room))]
    assert [complaint for path in files for complaint in _unsafe(path)] == []


@pytest.mark.parametrize(
    ("room", "source", "said"),
    [
        ("wire", "import torch", "base install"),
        ("wire", "from edge_client import data", "no other room"),
        ("edge_client", "def f():\n    import server.train", "may import wire"),
        ("edge_client", "from PIL import Image", "it is an extra there"),
        ("edge_client", "import importlib\nimportlib.import_module('onnx.helper')", "base install"),
        ("server", "import simulation", "may import wire"),
        ("export", "from edge_client.engine import load_engine", "may import wire"),
        ("export", "import torchmetrics", "extra `export`"),
    ],
)
def test_the_check_sees_a_breach(room: str, source: str, said: str) -> None:
    """Otherwise the tests above could pass by looking at nothing."""
    complaints = list(_complaints(room, source, file="breach.py"))
    assert len(complaints) == 1
    assert said in complaints[0]


@pytest.mark.parametrize("module", ["edge_client.engine", "export"])
def test_nothing_keeps_a_device_id_or_reports_to_anybody(module: str, tmp_path: Path) -> None:
    """onnxruntime's own builds do, unless they are told not to before they are imported."""
    environment = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    code = f"import {module}, onnxruntime; onnxruntime.SessionOptions()"
    subprocess.run([sys.executable, "-c", code], env=environment | {"HOME": str(tmp_path)}, cwd=ROOT, check=True, timeout=120)
    assert not [path for path in tmp_path.rglob("*") if "icrosoft" in str(path) or "onnxruntime" in str(path)]
