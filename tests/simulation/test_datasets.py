from __future__ import annotations

import gzip
import hashlib
import io
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from edge_client.data import DataSource, open_source
from simulation import datasets
from simulation.datasets import CIFAR10, FASHION_MNIST, NAMES, DatasetFacts, RemoteFile, RemoteSet, download, materialize, unpack
from wire.data_config import DataConfig
from wire.errors import DataError, RunFileError, StorageError
from wire.parse import parse

BODY = np.random.default_rng(0).bytes(600_000)  # more than one chunk
NO_SYSTEM = Path("/nonexistent")
DIGITS_TEST_LABELS = [3, 1, 8, 1, 5, 1, 2, 0, 7, 4, 4, 0, 9, 2, 1, 4, 9, 6, 2, 9]
DIGITS_TEST_SHA256 = "d0c9db6651f1d0baa3866705d878240eedc912eab3d7a9c9a6e7ec1cf7f1f540"


def remote_file(name: str, body: bytes) -> RemoteFile:
    return RemoteFile(name=name, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def remote_set(*mirrors: str, **bodies: bytes) -> RemoteSet:
    return RemoteSet(files=tuple(remote_file(name, body) for name, body in bodies.items()), mirrors=mirrors)


Answer = Callable[[BaseHTTPRequestHandler], object]


def answer(body: bytes, length: int | None = None, status: int = 200, **headers: str) -> Answer:
    """``length``: what the header claims, if it is not the truth."""

    def write(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return write


@dataclass
class Site:
    """A web server on this machine. ``pages``: path without the first slash to body or answer; ``asked``: the paths, in order."""

    url: str
    pages: dict[str, bytes | Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.path.removeprefix("/")
        self.site.asked.append(path)
        page = self.site.pages.get(path, answer(b"not here", status=404))
        (answer(page) if isinstance(page, bytes) else page)(self)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Site("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, found))
    found.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def opened(facts: DatasetFacts, split: Any, **keys: Any) -> DataSource:
    config = parse(DataConfig, {**facts.data, **keys}, where="data", error=RunFileError)
    return open_source(config, split, seed=0, segment="bottom", lane=0, batch_size=4096)


# ---------------------------------------------------------------- what scikit-learn brings


def test_the_digits_are_scikit_learns(tmp_path: Path) -> None:
    """Each image once, with its label, one in five of each class held back for the test."""
    images, labels = load_digits(return_X_y=True)
    facts = materialize("digits", tmp_path)
    plain = {split: opened(facts, split, normalize={}).batch(0, 0) for split in ("train", "test")}
    found = np.concatenate([batch.inputs[0] for batch in plain.values()]).reshape(-1, 64) * 16
    classes = np.concatenate([batch.target for batch in plain.values() if batch.target is not None])
    assert sorted((*row, label) for row, label in zip(found.tolist(), classes.tolist(), strict=True)) == sorted(
        (*row, label) for row, label in zip(images.tolist(), labels.tolist(), strict=True)
    )
    test = plain["test"].target
    assert test is not None
    assert np.bincount(test).tolist() == (np.bincount(labels) // 5).tolist()


def test_the_digits_test_split_is_the_same_everywhere(tmp_path: Path) -> None:
    """Another one would make published numbers incomparable."""
    with np.load(materialize("digits", tmp_path).data["path"]) as arrays:
        assert arrays["y_test"][:20].tolist() == DIGITS_TEST_LABELS
        assert hashlib.sha256(arrays["x_test"].tobytes()).hexdigest() == DIGITS_TEST_SHA256


def test_the_breast_cancer_table_is_scikit_learns(tmp_path: Path) -> None:
    values, labels = load_breast_cancer(return_X_y=True)
    facts = materialize("breast-cancer", tmp_path)
    plain = {split: opened(facts, split, normalize={}).batch(0, 0) for split in ("train", "test")}
    found = np.concatenate([np.column_stack([batch.inputs[0], np.asarray(batch.target)]) for batch in plain.values()])
    wanted = np.column_stack([values.astype(np.float32), labels])
    assert sorted(found.tolist()) == sorted(wanted.tolist())
    assert np.bincount(np.asarray(plain["test"].target)).tolist() == (np.bincount(labels) // 5).tolist()


@pytest.mark.parametrize(("name", "channels"), [("digits", (0, 2, 3)), ("breast-cancer", (0,))])
def test_the_facts_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, channels: tuple[int, ...]) -> None:
    """And the normalisation is that of the training samples: mean 0 and standard deviation 1."""
    monkeypatch.chdir(tmp_path)
    facts = materialize(name, "data")
    train, test = opened(facts, "train"), opened(facts, "test")
    assert facts.name == name
    assert (train.samples, test.samples) == (facts.train_samples, facts.test_samples)
    assert train.input_shapes == test.input_shapes == (facts.input_shape,)
    assert train.classes == test.classes == facts.classes
    inputs = train.batch(0, 0).inputs[0]
    assert np.abs(inputs.mean(axis=channels)).max() < 0.02
    assert np.abs(inputs.std(axis=channels) - 1).max() < 0.02
    assert all(Path(path).is_absolute() for path in (facts.data["path"], facts.data.get("test", {}).get("path", facts.data["path"])))


@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_what_is_there_is_used_as_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a/b"
    first = materialize(name, folder)
    before = {path.name: path.stat() for path in folder.iterdir()}
    assert materialize(name, folder) == first
    assert {path.name: path.stat() for path in folder.iterdir()} == before
    assert {path.suffix for path in folder.iterdir()} <= {".npz", ".csv"}


def test_names_and_sources_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data set 'mnist'; known: digits, breast-cancer, fashion-mnist, cifar10"):
        materialize("mnist", tmp_path / "new")
    for name in ("digits", "breast-cancer"):
        with pytest.raises(DataError, match=f"{name} comes with scikit-learn; it takes no folder"):
            materialize(name, tmp_path / "new", source=tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write to .*file: "):
        materialize(name, tmp_path / "file")


# ---------------------------------------------------------------- folders that people have


def idx_files(packed: bool) -> dict[str, bytes]:
    """Fashion-MNIST's four files with two images each; labels tell the splits apart."""
    files: dict[str, bytes] = {}
    for split, label in (("train", 3), ("t10k", 7)):
        images = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes([label]) * 2 * 784
        labels = struct.pack(">HBBI", 0, 8, 1, 2) + bytes([label]) * 2
        files |= {f"{split}-images-idx3-ubyte": images, f"{split}-labels-idx1-ubyte": labels}
    return {f"{name}.gz": gzip.compress(body, mtime=0) for name, body in files.items()} if packed else files


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder


def cifar_files() -> dict[str, bytes]:
    record = bytes([5]) + bytes(3072)
    return dict.fromkeys([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"], record)


def labels_of(facts: DatasetFacts) -> list[list[int]]:
    return [np.asarray(opened(facts, split).batch(0, 0).target).tolist() for split in ("train", "test")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_given_folder_is_used_where_it_is(tmp_path: Path, site: Site, packed: bool) -> None:
    given = lay(tmp_path / "given", idx_files(packed))
    facts = materialize("fashion-mnist", tmp_path / "data", source=given, remote=remote_set(site.url), system_folder=NO_SYSTEM)
    assert facts.data["path"] == str(given)
    assert facts.input_shape == opened(facts, "test").input_shapes[0]
    assert labels_of(facts) == [[3, 3], [7, 7]]
    given = lay(tmp_path / "cifar", cifar_files())
    facts = materialize("cifar10", tmp_path / "data", source=given, remote=remote_set(site.url))
    assert facts.data["path"] == str(given)
    assert facts.input_shape == opened(facts, "test").input_shapes[0]
    assert labels_of(facts) == [[5] * 5, [5]]
    assert site.asked == []


def test_a_given_folder_may_be_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lay(tmp_path / "mine", idx_files(True))
    assert materialize("fashion-mnist", tmp_path / "data", source="~/mine").data["path"] == str(tmp_path / "mine")


@pytest.mark.parametrize(("name", "lacks"), [("fashion-mnist", "t10k-images-idx3-ubyte"), ("cifar10", "data_batch_4.bin")])
def test_a_given_folder_must_hold_all_files(tmp_path: Path, site: Site, name: str, lacks: str) -> None:
    given = lay(tmp_path / "given", idx_files(False) | cifar_files())
    (given / lacks).unlink()
    with pytest.raises(DataError, match=rf"given has no {lacks}; the folder must hold .*{lacks}"):
        materialize(name, tmp_path / "data", source=given, remote=remote_set(site.url))
    with pytest.raises(DataError, match="nowhere has no "):
        materialize(name, tmp_path / "data", source=tmp_path / "nowhere", remote=remote_set(site.url))
    assert site.asked == []


def test_the_systems_folder_goes_before_a_download(tmp_path: Path, site: Site) -> None:
    system = lay(tmp_path / "system", idx_files(True))
    bodies = idx_files(True)
    site.pages |= bodies
    keys: dict[str, Any] = {"remote": remote_set(site.url, **bodies), "system_folder": system}
    assert materialize("fashion-mnist", tmp_path / "data", **keys).data["path"] == str(system)
    given = lay(tmp_path / "given", bodies)
    assert materialize("fashion-mnist", tmp_path / "data", source=given, **keys).data["path"] == str(given)
    assert site.asked == []
    (system / "train-labels-idx1-ubyte.gz").unlink()
    assert materialize("fashion-mnist", tmp_path / "data", **keys).data["path"] == str(tmp_path / "data")
    assert sorted(site.asked) == sorted(bodies)


def test_fashion_mnist_is_fetched_once(tmp_path: Path, site: Site) -> None:
    bodies = idx_files(True)
    site.pages |= bodies
    keys: dict[str, Any] = {"remote": remote_set(site.url, **bodies), "system_folder": NO_SYSTEM}
    facts = materialize("fashion-mnist", tmp_path / "data", **keys)
    assert labels_of(facts) == [[3, 3], [7, 7]]
    assert materialize("fashion-mnist", tmp_path / "data", **keys) == facts
    assert sorted(site.asked) == names(tmp_path / "data") == sorted(bodies)


def tar_gz(members: dict[str, bytes], more: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info in more:
            tar.addfile(info)
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def test_cifar10_is_fetched_unpacked_and_the_archive_removed(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"cifar-10-batches-bin/{name}": body for name, body in cifar_files().items()}
    monkeypatch.setattr(datasets, "_CIFAR10_MEMBERS", {name: len(body) for name, body in members.items()})  # 184 MB otherwise
    body = tar_gz({**members, "cifar-10-batches-bin/readme.html": b"hello"})
    site.pages["c.tar.gz"] = body
    remote = remote_set(site.url, **{"c.tar.gz": body})
    facts = materialize("cifar10", tmp_path / "data", remote=remote)
    assert labels_of(facts) == [[5] * 5, [5]]
    assert materialize("cifar10", tmp_path / "data", remote=remote) == facts
    assert site.asked == ["c.tar.gz"]
    assert names(tmp_path / "data") == sorted(cifar_files())


def test_an_archive_without_the_files_is_refused(tmp_path: Path, site: Site) -> None:
    body = tar_gz({"other": b"1"})
    site.pages["c.tar.gz"] = body
    with pytest.raises(DataError, match=r"c\.tar\.gz has no cifar-10-batches-bin/data_batch_1\.bin; it is not the archive"):
        materialize("cifar10", tmp_path / "data", remote=remote_set(site.url, **{"c.tar.gz": body}))


@pytest.mark.parametrize("remote", [FASHION_MNIST, CIFAR10])
def test_known_files_have_whole_checksums_and_mirrors_are_folders(remote: RemoteSet) -> None:
    for file in remote.files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.size_bytes > 0
        assert Path(file.name).name == file.name
    assert all(mirror.startswith(("https://", "http://")) and mirror.endswith("/") for mirror in remote.mirrors)


# ---------------------------------------------------------------- downloads


def test_a_download_is_what_was_asked_for(tmp_path: Path, site: Site) -> None:
    site.pages |= {"sub/a": BODY, "sub/b": b"b"}
    told: list[tuple[str, int, int]] = []
    paths = download(remote_set(f"{site.url}sub/", a=BODY, b=b"b"), tmp_path / "x/y", progress=lambda *step: told.append(step))
    assert paths == (tmp_path / "x/y/a", tmp_path / "x/y/b")
    assert [path.read_bytes() for path in paths] == [BODY, b"b"]
    assert names(tmp_path / "x/y") == ["a", "b"]
    assert told[-1] == ("b", 1, 1)
    done = [bytes_done for name, bytes_done, in_all in told if (name, in_all) == ("a", len(BODY))]
    assert len(done) == len(told) - 1 > 1
    assert done == sorted(set(done))
    assert done[-1] == len(BODY)


def test_files_with_the_right_content_are_not_fetched_again(tmp_path: Path, site: Site) -> None:
    site.pages |= {"a": BODY, "b": b"right", "c": b"c"}
    lay(tmp_path, {"a": BODY, "b": b"wrong"})
    download(remote_set(site.url, a=BODY, b=b"right", c=b"c"), tmp_path)
    assert site.asked == ["b", "c"]
    assert [(tmp_path / name).read_bytes() for name in "abc"] == [BODY, b"right", b"c"]


def flipped(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


BAD: dict[str, tuple[bytes | Answer, str]] = {
    "another content": (flipped(BODY), f"sha256 is {hashlib.sha256(flipped(BODY)).hexdigest()}, not the known one"),
    "an empty page": (b"", "ended after 0 of 600000 bytes"),
    "too little": (BODY[:-1], "ended after 599999 of 600000 bytes"),
    "too much": (BODY + b"x", "more than 600000 bytes"),
    "a line that breaks": (answer(BODY[:300_000], length=len(BODY)), "ended after 300000 of 600000 bytes"),
    "an error": (answer(b"oh", status=500), "Internal Server Error"),
    "not there": (answer(b"oh", status=404), "Not Found"),
    "no http": (lambda request: request.wfile.write(b"what?"), "what?"),
    "a way to a local file": (answer(b"", status=302, Location="file:///a/b"), "file:///a/b"),
}


@pytest.mark.parametrize("how", BAD)
def test_what_a_mirror_must_not_answer(tmp_path: Path, site: Site, how: str) -> None:
    """Nothing stays behind, and an older file of that name is as it was."""
    page, says = BAD[how]
    site.pages["a"] = page
    remote = remote_set(site.url, a=BODY)
    with pytest.raises(DataError) as caught:
        download(remote, tmp_path / "new")
    text = str(caught.value)
    assert text.startswith(f"could not fetch a ({site.url}a: ")
    assert says in text
    assert text.endswith(f"); put it into {tmp_path / 'new'} by hand, sha256 {remote.files[0].sha256}")
    assert "\n" not in text
    assert names(tmp_path / "new") == []
    lay(tmp_path / "old", {"a": b"mine"})
    with pytest.raises(DataError):
        download(remote, tmp_path / "old")
    assert names(tmp_path / "old") == ["a"]
    assert (tmp_path / "old/a").read_bytes() == b"mine"


@pytest.mark.parametrize("how", BAD)
def test_the_next_mirror_is_tried(tmp_path: Path, site: Site, how: str) -> None:
    site.pages |= {"bad/a": BAD[how][0], "good/a": BODY, "late/a": BODY}
    (path,) = download(remote_set(f"{site.url}bad/", f"{site.url}good/", f"{site.url}late/", a=BODY), tmp_path)
    assert path.read_bytes() == BODY
    assert names(tmp_path) == ["a"]
    assert site.asked == ["bad/a", "good/a"]


def test_a_mirror_may_send_the_client_elsewhere(tmp_path: Path, site: Site) -> None:
    site.pages |= {"a": answer(b"", status=302, Location="/moved"), "moved": BODY}
    (path,) = download(remote_set(site.url, a=BODY), tmp_path)
    assert path.read_bytes() == BODY


def test_a_mirror_that_says_nothing_is_given_up(tmp_path: Path, site: Site) -> None:
    site.pages |= {"a": lambda _: site.closing.wait()}
    with pytest.raises(DataError, match=r"timed out.*by hand"):
        download(remote_set(site.url, a=BODY), tmp_path, timeout_s=0.2)
    assert names(tmp_path) == []


def test_every_mirrors_failure_is_told(tmp_path: Path, site: Site) -> None:
    here = lay(tmp_path / "here", {"a": BODY})
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        nobody = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        with pytest.raises(DataError) as caught:
            download(remote_set(site.url, nobody, f"{here.as_uri()}/", a=BODY), tmp_path / "new")
    told = str(caught.value).split("; ")
    assert told[0] == f"could not fetch a ({site.url}a: Not Found"
    assert told[1].startswith(f"{nobody}a: ")
    assert told[2] == f"{here.as_uri()}/a: not an http address)"
    assert names(tmp_path / "new") == []


def test_files_before_the_one_that_fails_stay(tmp_path: Path, site: Site) -> None:
    site.pages |= {"a": BODY, "c": b"c"}
    with pytest.raises(DataError, match="could not fetch b"):
        download(remote_set(site.url, a=BODY, b=b"b", c=b"c"), tmp_path)
    assert names(tmp_path) == ["a"]
    site.pages["b"] = b"b"
    site.asked.clear()
    download(remote_set(site.url, a=BODY, b=b"b", c=b"c"), tmp_path)
    assert site.asked == ["b", "c"]


def test_a_disk_that_refuses_is_no_mirrors_fault(tmp_path: Path, site: Site) -> None:
    site.pages["a"] = BODY
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path, tmp_path / "file"):  # the name is a folder's; the folder is a file
        with pytest.raises(StorageError, match=f"cannot write to {folder}: "):
            download(remote_set(site.url, site.url, a=BODY), folder)
    assert site.asked == ["a"]
    assert names(tmp_path) == ["a", "file"]


# ---------------------------------------------------------------- archives

MEMBERS = {"top/one.bin": b"1" * 700, "top/sub/two.bin": np.random.default_rng(1).bytes(900)}
SIZES = {name: len(body) for name, body in MEMBERS.items()}


def test_only_the_members_that_are_wanted_are_taken(tmp_path: Path) -> None:
    lay(tmp_path, {"x.tar.gz": tar_gz({"top/more.bin": b"x", "../evil.bin": b"x", "/abs.bin": b"x", **MEMBERS, "one.bin": b"x"})})
    unpack(tmp_path / "x.tar.gz", lay(tmp_path / "in/out", {}), SIZES)
    assert names(tmp_path / "in/out") == ["one.bin", "two.bin"]
    assert names(tmp_path / "in") == ["out"]
    assert (tmp_path / "in/out/one.bin").read_bytes() == MEMBERS["top/one.bin"]
    assert (tmp_path / "in/out/two.bin").read_bytes() == MEMBERS["top/sub/two.bin"]


def test_no_path_of_the_archive_is_used_as_a_path(tmp_path: Path) -> None:
    lay(tmp_path, {"x.tar.gz": tar_gz({"../../up.bin": b"12", "/top.bin": b"345"})})
    unpack(tmp_path / "x.tar.gz", lay(tmp_path / "in/out", {}), {"../../up.bin": 2, "/top.bin": 3})
    assert names(tmp_path / "in/out") == ["top.bin", "up.bin"]
    assert names(tmp_path / "in") == ["out"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    secret = lay(tmp_path, {"secret": b""}) / "secret"
    info = tarfile.TarInfo("one.bin")
    info.type, info.linkname = kind, str(secret)
    lay(tmp_path, {"x.tar.gz": tar_gz({}, (info,))})
    with pytest.raises(DataError, match=r"x\.tar\.gz has one\.bin as something else than a file of 0 bytes"):
        unpack(tmp_path / "x.tar.gz", lay(tmp_path / "out", {}), {"one.bin": 0})
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("size", [0, 699, 701, 1 << 40])
def test_a_member_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    lay(tmp_path, {"x.tar.gz": tar_gz(MEMBERS)})
    with pytest.raises(DataError, match=rf"has top/one\.bin as something else than a file of {size} bytes"):
        unpack(tmp_path / "x.tar.gz", lay(tmp_path / "out", {}), {**SIZES, "top/one.bin": size})
    assert "one.bin" not in names(tmp_path / "out")


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    lay(tmp_path, {"x.tar.gz": tar_gz(MEMBERS)})
    with pytest.raises(DataError, match=r"x\.tar\.gz has no gone\.bin; it is not the archive that was expected"):
        unpack(tmp_path / "x.tar.gz", lay(tmp_path / "out", {}), {**SIZES, "gone.bin": 1})


def test_a_truncated_archive_is_refused_and_leaves_whole_files_alone(tmp_path: Path) -> None:
    members = {"one.bin": b"1" * 700, "two.bin": np.random.default_rng(1).bytes(100)}
    whole = tar_gz(members)
    out = lay(tmp_path / "out", {})
    enough = 0
    for size in range(10, len(whole)):  # gzip's header is 10 bytes
        lay(tmp_path, {"x.tar.gz": whole[:size]})
        for old in out.iterdir():
            old.unlink()
        try:
            unpack(tmp_path / "x.tar.gz", out, {"one.bin": 700, "two.bin": 100})
        except DataError as exc:
            assert "\n" not in str(exc)  # noqa: PT017 - or only what comes after the last member is missing
        else:
            assert names(out) == ["one.bin", "two.bin"]
            enough += 1
        assert all(path.read_bytes() == members[path.name] for path in out.iterdir())
    assert enough < 60


def test_a_changed_archive_gives_files_of_the_right_size_or_one_error(tmp_path: Path) -> None:
    """What is in them is for the download's checksum to tell."""
    whole = tar_gz({"one.bin": b"1" * 700, "two.bin": b"2" * 100})
    out = lay(tmp_path / "out", {})
    refused = 0
    for at in range(len(whole)):
        lay(tmp_path, {"x.tar.gz": whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]})
        for old in out.iterdir():
            old.unlink()
        try:
            unpack(tmp_path / "x.tar.gz", out, {"one.bin": 700, "two.bin": 100})
        except DataError as exc:
            assert "\n" not in str(exc)  # noqa: PT017 - or the files are there
            refused += 1
        else:
            assert names(out) == ["one.bin", "two.bin"]
        assert all(path.stat().st_size == {"one.bin": 700, "two.bin": 100}[path.name] for path in out.iterdir())
    assert refused


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for body in (b"", b"not an archive", gzip.compress(b"not an archive")):
        lay(tmp_path, {"x.tar.gz": body})
        with pytest.raises(DataError, match=r"x\.tar\.gz (is damaged|has no one\.bin)"):
            unpack(tmp_path / "x.tar.gz", lay(tmp_path / "out", {}), {"one.bin": 1})
