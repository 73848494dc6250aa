"""What a device must not take, offered to a real agent over a real mosquitto: refused, logged and shown; its client goes on."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.brokers import free_port
from tests.fleet.boards import Board, code_wheel, world
from tests.fleet.operator_peer import Operator, Signed, frame


class Fleet:
    """A device whose client waits for a server that never comes; versions go up by one a test."""

    def __init__(self, board: Board, operator: Operator) -> None:
        self.board, self.operator, self.version = board, operator, 10

    def next(self, files: dict[str, bytes | None] | None = None, **changes: Any) -> Signed:
        self.version += 1
        return self.board.release(self.version, files, **{"minimum": 0} | changes)

    def refused(self, release: Signed, *, version: int | None = None) -> str:
        """The reason, as the device's state and its log have it."""
        self.operator.ask("c0")  # after this, what was said before has come
        self.operator.offer(release, "c0")
        state = self.operator.stage(self.version if version is None else version, "refused")
        reason: str = state["reason"]
        assert reason[:200] in self.board.log
        assert state["client"] == "running"
        return reason


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with world(tmp_path_factory.mktemp("refusals")) as found, found.operator() as operator:
        found.board.options = ("--steady-s", "1", "--health-s", "20", "--pause-s", "0.2")
        found.board.start()
        operator.state(lambda state: state["client"] == "running", "the client of the card")
        yield Fleet(found.board, operator)
        pid = found.board.client_pid()
        assert found.board.stop() == 0
        assert not Path(f"/proc/{pid}").exists()


# ------------------------------------------------------------ offers


def test_a_release_signed_by_another_key(fleet: Fleet) -> None:
    assert "not signed by a key that this device was given" in fleet.refused(fleet.next(key=Ed25519PrivateKey.generate()), version=0)


@pytest.mark.parametrize("what", ["manifest", "signature"])
def test_a_release_that_was_changed_after_it_was_signed(fleet: Fleet, what: str) -> None:
    release = fleet.next()
    if what == "manifest":
        release.manifest = release.manifest.replace(b'"minimum": 0', b'"minimum": 1')
    else:
        release.signature = bytes(63) + b"\1"
    assert "not signed by a key that this device was given" in fleet.refused(release, version=0)


def test_a_release_for_another_device(fleet: Fleet) -> None:
    assert "is for `c1`, and this is `c0`" in fleet.refused(fleet.next(device="c1"))


def test_a_release_that_has_expired(fleet: Fleet) -> None:
    assert "was good until 2020-09-13" in fleet.refused(fleet.next(expires_s=1_600_000_000))


@pytest.mark.parametrize(
    "path",
    [
        "bundle/../../deploy.pub",
        "/etc/passwd",
        "bundle//x",
        "identity/key.pem",
        "bundle/.hidden",
        "wheels/x.py",
        "state.json",
        "bundle/a\0b",
    ],
)
def test_a_release_with_a_path_outside_its_folder(fleet: Fleet, path: str) -> None:
    assert "a release holds" in fleet.refused(fleet.next({path: b"x"}), version=0)


def test_a_release_that_is_too_large(fleet: Fleet) -> None:
    rows = [{"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for path, data in fleet.board.files.items()]
    rows[0]["size_bytes"] = (1 << 30) + 1
    assert "whole number" in fleet.refused(_with(fleet, rows), version=0)


def _with(fleet: Fleet, rows: list[dict[str, Any]]) -> Signed:
    release = fleet.next()
    table = json.loads(release.manifest) | {"files": rows}
    release.manifest = json.dumps(table).encode()
    release.signature = fleet.board.key.sign(b"cutlayer release 1\n" + release.manifest)
    return release


def test_a_manifest_that_is_too_large(fleet: Fleet) -> None:
    release = fleet.next()
    release.manifest = release.manifest[:-1] + b" " * (62 << 10) + b"}"
    release.signature = fleet.board.key.sign(b"cutlayer release 1\n" + release.manifest)
    assert "neither may be what it is" in fleet.refused(release, version=0)


def test_messages_that_are_none(fleet: Fleet) -> None:
    """Passed over, and the agent lives."""
    for data in (b"", b"CF", bytes(70), frame(99, b"{}"), frame(0, b"[" * 5000), frame(3, b"short"), frame(4, bytes(41)), frame(1, b"{}")):
        fleet.operator.say("c0", data)
    assert fleet.operator.ask("c0", token=1234)["client"] == "running"
    assert "a message is passed over" in fleet.board.log


# ------------------------------------------------------------ what is in it


def test_a_bundle_whose_bytes_are_not_those_that_were_signed(fleet: Fleet) -> None:
    release = fleet.next({"bundle/bottom/extra.bin": b"genuine" * 100})
    fleet.operator.serve = lambda digest, offset, count: bytes(count)
    try:
        assert "does not have the hash that was signed" in fleet.refused(release)
    finally:
        fleet.operator.serve = None
    assert not (fleet.board.home / f"releases/{fleet.version}.new").exists()


def _graph_with_data_at(place: str, *, nested: bool) -> bytes:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    if nested:  # in the body of an operator
        body = onnx.helper.make_graph([], "body", [], [], initializer=[tensor])
        node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
        return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])).SerializeToString()
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initializer=[tensor])).SerializeToString()


@pytest.mark.parametrize(("place", "nested"), [("../../../c0/key.pem", False), ("/etc/passwd", True), ("beside.bin", False)])
def test_a_graph_with_data_in_another_file(fleet: Fleet, place: str, nested: bool) -> None:
    """The bundle's own manifest is right about it."""
    path = next(path for path in fleet.board.files if path.endswith(".onnx"))
    graph, about = _graph_with_data_at(place, nested=nested), f"{path.rpartition('/')[0]}/manifest.json"
    table = json.loads(fleet.board.files[about])
    for row in table["files"]:
        if row["file"] == path.rpartition("/")[2]:
            row |= {"sha256": hashlib.sha256(graph).hexdigest(), "size_bytes": len(graph)}
    assert "keeps a tensor in another file" in fleet.refused(fleet.next({path: graph, about: json.dumps(table).encode()}))


def _wheel(**members: bytes) -> dict[str, bytes | None]:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return {"wheels/evil-1-py3-none-any.whl": data.getvalue()}


@pytest.mark.parametrize(
    "name", ["../../../evil.py", "/tmp/evil.py", "pack/../../evil.py", "evil-1.data/purelib/../../evil.py", "a\\..\\b.py"]
)
def test_a_wheel_with_a_file_outside(fleet: Fleet, name: str, tmp_path: Path) -> None:
    assert "which is no plain path" in fleet.refused(fleet.next(_wheel(**{name: b"x = 1"})))
    assert list(fleet.board.home.rglob("evil.py")) == []
    assert not Path("/tmp/evil.py").exists()


def test_a_wheel_with_a_link(fleet: Fleet) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        info = zipfile.ZipInfo("pack")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc")
    assert "which is no file" in fleet.refused(fleet.next({"wheels/link-1-py3-none-any.whl": data.getvalue()}))


def test_a_wheel_that_is_none(fleet: Fleet) -> None:
    assert "is no wheel" in fleet.refused(fleet.next({"wheels/none-1-py3-none-any.whl": b"PK, not really"}))


def test_a_bundle_that_names_a_file_outside(fleet: Fleet) -> None:
    about = next(path for path in fleet.board.files if path.endswith("/manifest.json"))
    table = json.loads(fleet.board.files[about])
    data = (fleet.board.home / "deploy.pub").read_bytes()
    table["files"].append({"file": "../../../../deploy.pub", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)})
    assert "../../../../deploy.pub" in fleet.refused(fleet.next({about: json.dumps(table).encode()}))


def _run(fleet: Fleet, **changes: Any) -> dict[str, bytes | None]:
    return {"run.toml": tomli_w.dumps(tomllib.loads(fleet.board.files["run.toml"].decode()) | changes).encode()}


def test_a_run_file_that_does_not_load(fleet: Fleet) -> None:
    assert "is not valid TOML" in fleet.refused(fleet.next({"run.toml": b"name = "}))
    assert "unknown key `epoch`" in fleet.refused(fleet.next(_run(fleet, epoch=3)))


def test_a_run_file_of_another_party(fleet: Fleet) -> None:
    table = tomllib.loads(fleet.board.files["run.toml"].decode())
    table["slice"]["party"] = "c1"
    assert "c0" in fleet.refused(fleet.next({"run.toml": tomli_w.dumps(table).encode()}))


def test_a_bundle_that_does_not_fit_the_run(fleet: Fleet) -> None:
    assert "was exported for SGD" in fleet.refused(fleet.next(_run(fleet, optimizer={"kind": "adam", "lr": 0.1})))


# ------------------------------------------------------------ releases that fail, and come back by themselves


def test_a_client_that_crashes_at_once_is_given_back(fleet: Fleet, tmp_path: Path) -> None:
    body = b"import sys\nif '--check' in sys.argv: sys.exit(0)\nsys.exit('this code is broken')\n"
    wheel = code_wheel(tmp_path / "cutlayer-2-py3-none-any.whl", version="2", members={"edge_client/__main__.py": body})
    fleet.operator.offer(fleet.next({f"wheels/{wheel.name}": wheel.read_bytes()}), "c0")
    _comes_back(fleet, "this code is broken")


def test_a_client_that_never_connects_is_given_back(fleet: Fleet) -> None:
    """Its broker is not there; the agent stays with the one that it knows, and can be reached all the time."""
    broker = tomllib.loads(fleet.board.files["run.toml"].decode())["broker"] | {"url": f"mqtts://127.0.0.1:{free_port()}"}
    fleet.operator.offer(fleet.next(_run(fleet, broker=broker)), "c0")
    fleet.operator.stage(fleet.version, "trial")
    assert fleet.operator.ask("c0")["release"] == fleet.version
    _comes_back(fleet, "not healthy after 20 s, and said last: ")


def _comes_back(fleet: Fleet, reason: str) -> None:
    before = json.loads((fleet.board.home / "releases/state.json").read_text())["previous"]
    state = fleet.operator.stage(fleet.version, "returned")
    assert state["release"] == before
    assert f"back to release {before}" in state["reason"]
    assert reason in state["reason"]
    assert state["reason"] in fleet.board.log
    fleet.operator.state(lambda state: state["client"] == "running" and state["release"] == before, "the client before")
    assert fleet.operator.ask("c0")["release"] == before


# ------------------------------------------------------------ back in time


def test_a_downgrade_and_a_replay(fleet: Fleet) -> None:
    old = fleet.next({"bundle/bottom/note.txt": b"old"})
    new = fleet.next({"bundle/bottom/note.txt": b"new"})
    fleet.operator.offer(old, "c0")
    fleet.operator.stage(fleet.version - 1, "healthy")
    fleet.operator.offer(new, "c0")
    fleet.operator.stage(fleet.version, "healthy")
    wants = len(fleet.operator.wants)
    reason = fleet.refused(old, version=fleet.version - 1)  # the very bytes that were good once
    assert f"is older than {fleet.version}" in reason
    fleet.operator.offer(new, "c0")
    assert fleet.operator.stage(fleet.version, "healthy")["release"] == fleet.version
    assert len(fleet.operator.wants) == wants
