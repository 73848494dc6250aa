"""The agent's parts, each by itself: graphs, wheels, keys, the broker of a release, and what systemd is told."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

from edge_client.agent.line import agent_broker
from edge_client.agent.notify import notify
from edge_client.agent.offers import check_offer
from edge_client.agent.shelf import Books, load_deploy_keys
from edge_client.agent.wheels import mend_site, unpack_wheels
from edge_client.external import check_file, check_no_external_data
from edge_client.heartbeat import Heartbeat, read_beat
from wire.errors import BundleError, UsageError
from wire.fleet.release import Release, ReleaseFile

# ------------------------------------------------------------ graphs


def elsewhere(*, location: bool = True) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    if location:
        tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../key.pem")
    return tensor


def model(graph: GraphProto | None = None, **more: object) -> ModelProto:
    return helper.make_model(graph or GraphProto(name="g"), **more)


def with_attribute(attribute: AttributeProto) -> ModelProto:
    return model(GraphProto(name="g", node=[NodeProto(op_type="Constant", output=["y"], attribute=[attribute])]))


def inside(graph: GraphProto, depth: int) -> GraphProto:
    for _ in range(depth):
        graph = GraphProto(name="g", node=[NodeProto(op_type="If", attribute=[AttributeProto(name="then_branch", g=graph)])])
    return graph


SPARSE = SparseTensorProto(values=elsewhere())
PLACES: dict[str, Callable[[], ModelProto]] = {
    "initializer": lambda: model(GraphProto(name="g", initializer=[elsewhere()])),
    "without the word external": lambda: model(GraphProto(name="g", initializer=[elsewhere(location=False)])),
    "sparse values": lambda: model(GraphProto(name="g", sparse_initializer=[SPARSE])),
    "sparse indices": lambda: model(GraphProto(name="g", sparse_initializer=[SparseTensorProto(indices=elsewhere())])),
    "attribute": lambda: with_attribute(AttributeProto(name="value", t=elsewhere())),
    "attributes": lambda: with_attribute(AttributeProto(name="value", tensors=[TensorProto(), elsewhere()])),
    "sparse attribute": lambda: with_attribute(AttributeProto(name="value", sparse_tensor=SPARSE)),
    "sparse attributes": lambda: with_attribute(AttributeProto(name="value", sparse_tensors=[SPARSE])),
    "graphs": lambda: with_attribute(AttributeProto(name="b", graphs=[GraphProto(initializer=[elsewhere()])])),
    "deep": lambda: model(inside(GraphProto(initializer=[elsewhere()]), 20)),
    "function": lambda: model(
        functions=[onnx.FunctionProto(name="f", node=[NodeProto(attribute=[AttributeProto(name="v", t=elsewhere())])])]
    ),
    "function's default": lambda: model(
        functions=[onnx.FunctionProto(name="f", attribute_proto=[AttributeProto(name="v", t=elsewhere())])]
    ),
    "training": lambda: ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=GraphProto(initializer=[elsewhere()]))]),
    "training's start": lambda: ModelProto(training_info=[onnx.TrainingInfoProto(initialization=GraphProto(initializer=[elsewhere()]))]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_is_named(place: str) -> None:
    with pytest.raises(BundleError, match=r"x\.onnx keeps a tensor in another file"):
        check_no_external_data(PLACES[place]().SerializeToString(), what="x.onnx")


def test_a_tensor_is_found_in_two_halves_of_a_graph() -> None:
    """A protocol buffer may hold a message in pieces that are put together when it is read."""
    halves = model(GraphProto(name="g")).SerializeToString() + ModelProto(graph=GraphProto(initializer=[elsewhere()])).SerializeToString()
    assert onnx.load_from_string(halves).graph.initializer[0].external_data
    with pytest.raises(BundleError, match="keeps a tensor in another file"):
        check_no_external_data(halves, what="x.onnx")


def test_sound_graphs_pass() -> None:
    tensor = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32), "w")
    inner = GraphProto(name="g", initializer=[tensor], doc_string="location: /etc/passwd")
    check_no_external_data(model(inside(inner, 3)).SerializeToString(), what="x.onnx")
    check_no_external_data(with_attribute(helper.make_attribute("value", tensor)).SerializeToString(), what="x.onnx")


def test_what_is_no_graph_is_refused_and_breaks_nothing() -> None:
    data = PLACES["deep"]().SerializeToString()
    whole = model(inside(GraphProto(), 3)).SerializeToString()
    refused = 0
    for cut in range(1, len(whole)):
        try:
            check_no_external_data(whole[:cut], what="x.onnx")
        except BundleError:
            refused += 1
    assert refused >= len(whole) - 6  # but between two fields of the model itself
    draw = random.Random(4)
    for _ in range(300):
        noise = bytearray(data)
        for _ in range(draw.randrange(1, 9)):
            noise[draw.randrange(len(noise))] = draw.randrange(256)
        try:
            check_no_external_data(bytes(noise), what="x.onnx")
        except BundleError:
            continue


def test_a_graph_on_the_disk_is_seen_as_it_is_in_memory(tmp_path: Path) -> None:
    """Across the pages that are read of it, and where it ends early."""
    path, far = tmp_path / "x.onnx", helper.make_tensor("w", TensorProto.FLOAT, [50_000], np.zeros(50_000, np.float32).tobytes(), raw=True)
    path.write_bytes(model(GraphProto(name="g", initializer=[far, far])).SerializeToString())
    check_file(path, what="x.onnx")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BundleError, match="is not an ONNX file"):
        check_file(path, what="x.onnx")
    path.write_bytes(model(GraphProto(name="g", initializer=[far, elsewhere()])).SerializeToString())
    with pytest.raises(BundleError, match="keeps a tensor in another file"):
        check_file(path, what="x.onnx")
    path.write_bytes(b"")
    check_file(path, what="x.onnx")


# ------------------------------------------------------------ wheels


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def unpack(*wheels: Path, site: Path) -> None:
    for _ in unpack_wheels(wheels, site):
        pass


def test_a_wheel_lands_where_it_is_imported_from(tmp_path: Path) -> None:
    members = {
        "p/__init__.py": b"1",
        "p-1.data/purelib/q.py": b"2",
        "p-1.data/platlib/r/s.so": b"3",
        "p-1.data/scripts/run": b"4",
        "p-1.data/data/etc/x": b"5",
    }
    one = wheel(tmp_path / "p.whl", members)
    unpack(one, site=tmp_path / "site")
    found = {str(path.relative_to(tmp_path / "site")): path.read_bytes() for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert found == {"p/__init__.py": b"1", "q.py": b"2", "r/s.so": b"3"}


def test_what_was_unpacked_is_mended_and_no_more(tmp_path: Path) -> None:
    one, site = wheel(tmp_path / "p.whl", {"p/__init__.py": b"1", "q.py": b"2", "r/s.so": b"3"}), tmp_path / "site"
    unpack(one, site=site)
    sound = site / "p/__init__.py"
    before = sound.stat().st_ino
    (site / "q.py").write_bytes(b"9")
    (site / "sitecustomize.py").write_bytes(b"of nobody")
    (site / "r/s.so").unlink()
    (site / "r").rmdir()
    (site / "r").symlink_to(tmp_path)
    (site / "q").mkdir()
    for _ in mend_site([one], site):
        pass
    assert {str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()} == {
        "p/__init__.py": b"1",
        "q.py": b"2",
        "r/s.so": b"3",
    }
    assert not (site / "r").is_symlink()
    assert not (site / "q").exists()
    assert sound.stat().st_ino == before
    assert one.is_file()


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_wheel_that_is_packed_otherwise(kind: int, tmp_path: Path) -> None:
    """There is no end to what other packings raise where they are damaged."""
    with zipfile.ZipFile(tmp_path / "p.whl", "w", kind) as file:
        file.writestr("x.py", b"1" * 500)
    with pytest.raises(BundleError, match="neither stored nor deflated"):
        unpack(tmp_path / "p.whl", site=tmp_path / "site")


def test_a_wheel_of_a_later_time(tmp_path: Path) -> None:
    one = wheel(tmp_path / "p.whl", {"x.py": b"1"})
    data = bytearray(one.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 6] = 99  # the version that is needed: 9.9
    one.write_bytes(data)
    with pytest.raises(BundleError, match=r"is no wheel \(zip file version 9\.9\)"):
        unpack(one, site=tmp_path / "site")


@pytest.mark.parametrize("name", ["x" * 300 + ".py", "/".join(["abcdefg"] * 200)])
def test_a_wheel_with_a_name_that_no_disk_takes(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="longer than what a disk takes"):
        unpack(wheel(tmp_path / "p.whl", {name: b"1"}), site=tmp_path / "site")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../x": b""}, "no plain path"),
        ({"/x": b""}, "no plain path"),
        ({"a/../../x": b""}, "no plain path"),
        ({"a//x": b""}, "no plain path"),
        ({"a\\..\\x": b""}, "no plain path"),
        ({"./x": b""}, "no plain path"),
        ({"p-1.data/platlib/../../x": b""}, "no plain path"),
        ({"x": b"1", "p-1.data/purelib/x": b"2"}, "twice"),
    ],
)
def test_a_wheel_that_would_land_elsewhere(members: dict[str, bytes], said: str, tmp_path: Path) -> None:
    one = wheel(tmp_path / "p.whl", members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=said):
        unpack(one, site=tmp_path / "a/b/site")
    with pytest.raises(BundleError, match=said):
        next(mend_site([one], tmp_path / "a/b/site"))
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path not in before and path.name != "x"] == []


def test_special_members_of_a_wheel(tmp_path: Path) -> None:
    for at, kind in enumerate((stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)):
        path = tmp_path / f"{at}.whl"
        with zipfile.ZipFile(path, "w") as file:
            info = zipfile.ZipInfo("x")
            info.create_system, info.external_attr = 3, (kind | 0o777) << 16
            file.writestr(info, "/etc/passwd")
        with pytest.raises(BundleError, match="which is no file"):
            unpack(path, site=tmp_path / f"site{at}")


def test_a_wheel_that_unpacks_to_more_than_there_may_be(tmp_path: Path) -> None:
    """What its list says counts: zeros would unpack from next to nothing."""
    one = wheel(tmp_path / "p.whl", {f"z{at}": bytes(40 << 20) for at in range(3)})
    data = bytearray(one.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (0x7FFFFFFF).to_bytes(4, "little")  # the size of the last one
    one.write_bytes(data)
    with pytest.raises(BundleError, match="unpack to more than the limit"):
        unpack(one, site=tmp_path / "site")


def test_two_wheels_with_one_file_and_a_damaged_one(tmp_path: Path) -> None:
    one, two = wheel(tmp_path / "p.whl", {"x.py": b"1" * 500}), wheel(tmp_path / "q.whl", {"x.py": b"2"})
    with pytest.raises(BundleError, match="and another wheel does as well"):
        unpack(one, two, site=tmp_path / "site")
    data = bytearray(one.read_bytes())
    data[36] ^= 0xFF
    one.write_bytes(data)
    with pytest.raises(BundleError, match=r"p\.whl is damaged at 'x\.py'"):
        unpack(one, site=tmp_path / "other")


# ------------------------------------------------------------ offers, keys, brokers


def release(**changes: object) -> Release:
    files = (
        ReleaseFile(path="run.toml", sha256="0" * 64, size_bytes=9),
        ReleaseFile(path="wheels/a.whl", sha256="1" * 64, size_bytes=50 << 20),
    )
    return Release(**{"format": 1, "version": 7, "device": "pi-1", "minimum": 0, "expires_s": 2000, "files": files} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "books", "said"),
    [
        (release(), Books(), None),
        (release(), Books(highest=7), None),
        (release(), Books(highest=8), "is older than 8"),
        (release(), Books(highest=6, floor=9), "is older than 9"),
        (release(device="pi-2"), Books(), "is for `pi-2`"),
        (release(expires_s=1000), Books(), "was good until 1970-01-01 00:16 UTC"),
    ],
)
def test_offers_that_are_taken_on_and_not(found: Release, books: Books, said: str | None) -> None:
    def check(free_bytes: int) -> None:
        check_offer(found, books, name="pi-1", now_s=1000, free_bytes=free_bytes)

    if said is None:
        check(300 << 20)
        with pytest.raises(BundleError, match=r"needs 282 MB of disk, and 200 are free"):
            check(200 << 20)
    else:
        with pytest.raises(BundleError, match=said):
            check(300 << 20)


def test_keys_of_operators(tmp_path: Path) -> None:
    path = tmp_path / "deploy.pub"
    assert load_deploy_keys(path) == ()
    keys = [Ed25519PrivateKey.generate().public_key() for _ in range(2)]
    path.write_bytes(b"".join(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys))
    assert list(load_deploy_keys(path)) == keys
    other = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data, said in ((other, "another kind of key"), (b"-----END PUBLIC KEY-----", "no public key"), (b"\xff", "cannot read")):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=said):
            load_deploy_keys(path)


BROKER = '[broker]\nurl = "mqtts://b.example"\nca = "/k/ca.pem"\ncert = "keys/cert.pem"\nkey = "keys/key.pem"\n'


def test_the_broker_of_a_release(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    (tmp_path / "keys").mkdir()
    run.write_text("later = 1\n" + BROKER + 'later = "of a newer Cutlayer"\n')
    assert agent_broker(run) is None  # the certificate has not come yet
    (tmp_path / "keys/agent.pem").write_text("")
    found = agent_broker(run)
    assert found is not None
    assert (found.url, found.ca, found.cert, found.key) == (
        "mqtts://b.example",
        "/k/ca.pem",
        str(tmp_path / "keys/agent.pem"),
        str(tmp_path / "keys/key.pem"),
    )
    for text in (
        '[broker]\nurl = "mqtt://b.example"\n',
        "[broker]\nurl = 3\n",
        "broker = 3\n",
        "[",
        "",
        "x = " + "[" * 5000,
        BROKER.replace("keys/cert", "~nobody-at-all/cert"),
    ):
        run.write_text(text)
        assert agent_broker(run) is None
    run.unlink()
    assert agent_broker(run) is None


# ------------------------------------------------------------ words to systemd, and of the client


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1\nWATCHDOG=1")
        assert line.recv(100) == b"READY=1\nWATCHDOG=1"
    notify("READY=1")  # nobody listens any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_a_heartbeat_says_what_a_client_does(tmp_path: Path) -> None:
    now_s, heard = [100.0], []
    path = tmp_path / "beat"
    beat = Heartbeat(path, lambda event, **fields: heard.append(event), run="r", clock=lambda: now_s[0])
    assert beat.pulse() == 5.0
    first = read_beat(path)
    assert first is not None
    assert (first.pid, first.number, first.run, first.linked, first.step, first.over) == (os.getpid(), 1, "r", False, -1, False)
    now_s[0] += 3
    beat("step", global_step=4)
    assert beat.pulse() == 2.0
    assert read_beat(path) == first
    beat("link", up=True)  # said at once
    beat.pulse()
    second = read_beat(path)
    assert second is not None
    assert (second.number, second.linked, second.step) == (2, True, 4)
    beat("finished")
    third = read_beat(path)
    assert third is not None
    assert third.over
    assert heard == ["step", "link", "finished"]
    for data in (b"", b"[]", b"{}", b'{"pid": "x"}', b"\xff", b"[" * 4000):
        path.write_bytes(data)
        assert read_beat(path) is None


def test_a_device_without_releases_is_told_in_a_line(tmp_path: Path) -> None:
    for words, said in (
        (["--home", str(tmp_path), "--name", "pi-1"], "set this device up with `cutlayer flash`"),
        (["--home", str(tmp_path), "--name", "../x"], "--name: `name` is '../x'"),
    ):
        done = subprocess.run([sys.executable, "-m", "edge_client.agent", *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert done.stderr.startswith("cutlayer: error: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr


def test_the_agent_is_small() -> None:
    """Boards have 512 MB, and the client needs them."""
    code = "import sys, edge_client.agent.__main__; sys.exit(bool({'numpy', 'onnxruntime', 'safetensors'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
