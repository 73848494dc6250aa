"""Real data sets for demonstrations and benchmarks, laid down as files that ``edge_client.data`` reads.

=============  =====================================================================================================================
digits         scikit-learn's: 1,797 images of 8x8, 10 classes; comes with a pip package, no network
breast-cancer  scikit-learn's table: 569 samples of 30 numbers, 2 classes; no network
fashion-mnist  70,000 images of 28x28, 10 classes (Xiao et al., arXiv 1708.07747): a folder that is given, Debian's package
               dataset-fashion-mnist, or a download checked by SHA-256
cifar10        60,000 images of 3x32x32, 10 classes (Krizhevsky 2009), the binary version: a folder that is given or a checked download
=============  =====================================================================================================================
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import numpy as np

from wire.engine import Array
from wire.errors import DataError, StorageError
from wire.rng import permutation

__all__ = [
    "CIFAR10",
    "FASHION_MNIST",
    "NAMES",
    "DatasetFacts",
    "Progress",
    "RemoteFile",
    "RemoteSet",
    "dataset_at",
    "download",
    "materialize",
    "unpack",
]

NAMES = ("digits", "breast-cancer", "fashion-mnist", "cifar10")

_BROUGHT = ("digits", "breast-cancer")  # by scikit-learn

Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes so far, bytes in all) while something is fetched."""

_CHUNK_BYTES = 1 << 18
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What a run needs to know. ``data`` is a ``[data]`` table with absolute paths; ``input_shape`` is one sample's, as batches give it."""

    name: str
    data: Mapping[str, Any]
    input_shape: tuple[int, ...]
    classes: int
    train_samples: int
    test_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file with the one content that is accepted."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSet:
    """Files and the places that have them; a mirror is a URL that ends with ``/``. They need not be trusted: the content is checked."""

    files: tuple[RemoteFile, ...]
    mirrors: tuple[str, ...]


FASHION_MNIST = RemoteSet(
    files=(
        RemoteFile(
            name="train-images-idx3-ubyte.gz",
            size_bytes=26421880,
            sha256="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        RemoteFile(
            name="train-labels-idx1-ubyte.gz",
            size_bytes=29515,
            sha256="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        RemoteFile(
            name="t10k-images-idx3-ubyte.gz",
            size_bytes=4422102,
            sha256="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        RemoteFile(
            name="t10k-labels-idx1-ubyte.gz",
            size_bytes=5148,
            sha256="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
)

CIFAR10 = RemoteSet(
    files=(
        RemoteFile(
            name="cifar-10-binary.tar.gz",
            size_bytes=170052171,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
)

_CIFAR10_BYTES = 10000 * 3073
_CIFAR10_MEMBERS = {
    f"cifar-10-batches-bin/{name}": _CIFAR10_BYTES for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")
}


def materialize(
    name: str,
    directory: str | Path,
    *,
    source: str | Path | None = None,
    remote: RemoteSet | None = None,
    system_folder: Path = _DEBIAN_FASHION_MNIST,
    timeout_s: float = 30.0,
    progress: Progress | None = None,
) -> DatasetFacts:
    """Make sure that a data set is there, and say how to read it. What is there already is used as it is.

    ``source`` is a folder that the user has (fashion-mnist, cifar10); without it ``system_folder`` is looked at, then the files are fetched
    into ``directory`` from ``remote`` (default: the known one). ``timeout_s`` bounds each wait for the network.
    Raises DataError (unknown name, files missing, nothing could be fetched) or StorageError.
    """
    directory = Path(directory).resolve()
    if name not in NAMES:
        raise DataError(f"there is no data set {name!r}; known: {', '.join(NAMES)}")
    if source is not None and name in _BROUGHT:
        raise DataError(f"{name} comes with scikit-learn; it takes no folder ({source})")
    with _storing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if name == "digits":
            return _digits(directory)
        if name == "breast-cancer":
            return _breast_cancer(directory)
    if name == "fashion-mnist":
        return _fashion_mnist(directory, source, remote or FASHION_MNIST, system_folder, timeout_s, progress)
    return _cifar10(directory, source, remote or CIFAR10, timeout_s, progress)


def dataset_at(name: str, given: Path | None, folder: Path) -> DatasetFacts:
    """The data set in the folder that a user names, where its files lie or are to be put; without one, in ``folder``. Raises as
    ``materialize``."""
    if given is not None and given.is_dir() and any(given.iterdir()) and name not in _BROUGHT:
        return materialize(name, folder, source=given)
    return materialize(name, given or folder)


# ---------------------------------------------------------------- data sets that scikit-learn brings


def _digits(directory: Path) -> DatasetFacts:
    images, labels = _sklearn("load_digits")
    train, test = _stratified(labels)
    path = directory / "digits.npz"
    pixels = images.reshape(-1, 8, 8).astype(np.uint8)  # whole numbers from 0 to 16
    if not path.exists():
        with _replacing(path) as file:
            np.savez(file, x_train=pixels[train], y_train=labels[train], x_test=pixels[test], y_test=labels[test])
    data = {"kind": "npz", "path": str(path), "scale": 16.0, "normalize": {"mean": [0.3], "std": [0.375]}}
    return DatasetFacts(name="digits", data=data, input_shape=(1, 8, 8), classes=10, train_samples=len(train), test_samples=len(test))


def _breast_cancer(directory: Path) -> DatasetFacts:
    values, labels = _sklearn("load_breast_cancer")
    train, test = _stratified(labels)
    paths = {"train": directory / "breast-cancer-train.csv", "test": directory / "breast-cancer-test.csv"}
    for path, rows in zip(paths.values(), (train, test), strict=True):
        if not path.exists():
            with _replacing(path) as file:
                file.write(_csv_text(values[rows], labels[rows]).encode())
    mean, std = values[train].mean(axis=0), values[train].std(axis=0)
    data = {
        "kind": "csv",
        "path": str(paths["train"]),
        "labels": "benign",
        "normalize": {"mean": mean.round(6).tolist(), "std": std.round(6).tolist()},
        "test": {"path": str(paths["test"])},
    }
    return DatasetFacts(name="breast-cancer", data=data, input_shape=(30,), classes=2, train_samples=len(train), test_samples=len(test))


def _sklearn(loader: str) -> tuple[Array, Array]:
    try:
        from sklearn import datasets
    except ImportError as exc:
        raise DataError("this data set comes with scikit-learn, which is not installed; run `pip install scikit-learn`") from exc
    values, labels = getattr(datasets, loader)(return_X_y=True)
    return np.asarray(values), np.asarray(labels, np.int64)


def _stratified(labels: Array, every: int = 5) -> tuple[Array, Array]:
    """Row numbers for training and test: one in ``every`` of each class, drawn the same way on every machine."""
    test = np.zeros(len(labels), bool)
    for number in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == number)
        test[rows[permutation(0, "stratified test split", number, 0, len(rows))[: len(rows) // every]]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def _csv_text(values: Array, labels: Array) -> str:
    header = ",".join([*(f"feature_{column:02}" for column in range(values.shape[1])), "benign"])
    rows = (",".join([*map(repr, row), str(label)]) for row, label in zip(values.tolist(), labels.tolist(), strict=True))
    return "\n".join([header, *rows]) + "\n"


# ---------------------------------------------------------------- data sets that are fetched


def _fashion_mnist(
    directory: Path, source: str | Path | None, remote: RemoteSet, system_folder: Path, timeout_s: float, progress: Progress | None
) -> DatasetFacts:
    names = [file.name.removesuffix(".gz") for file in FASHION_MNIST.files]
    folder = directory
    if source is not None:
        folder = _given(source, names)
    elif _has_all(system_folder, names):
        folder = system_folder
    elif not _has_all(directory, names):
        download(remote, directory, timeout_s=timeout_s, progress=progress)
    data = {"kind": "idx", "path": str(folder), "normalize": {"mean": [0.286], "std": [0.353]}}
    return DatasetFacts(name="fashion-mnist", data=data, input_shape=(1, 28, 28), classes=10, train_samples=60000, test_samples=10000)


def _cifar10(directory: Path, source: str | Path | None, remote: RemoteSet, timeout_s: float, progress: Progress | None) -> DatasetFacts:
    names = [Path(member).name for member in _CIFAR10_MEMBERS]
    if source is not None:
        directory = _given(source, names)
    elif not _has_all(directory, names):
        (archive,) = download(remote, directory, timeout_s=timeout_s, progress=progress)
        unpack(archive, directory, _CIFAR10_MEMBERS)
        archive.unlink()
    data = {"kind": "cifar10", "path": str(directory), "normalize": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}}
    return DatasetFacts(name="cifar10", data=data, input_shape=(3, 32, 32), classes=10, train_samples=50000, test_samples=10000)


def _has_all(folder: Path, names: Sequence[str]) -> bool:
    return not _missing(folder, names)


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file()]


def _given(source: str | Path, names: Sequence[str]) -> Path:
    folder = Path(source).expanduser().resolve()
    missing = _missing(folder, names)
    if missing:
        raise DataError(f"{folder} has no {missing[0]}; the folder must hold {', '.join(names)}")
    return folder


def download(remote: RemoteSet, directory: Path, *, timeout_s: float = 30.0, progress: Progress | None = None) -> tuple[Path, ...]:
    """Fetch files that are not in ``directory`` with the right content; each appears whole and checked, or not at all.

    Mirrors are tried in order. Raises DataError naming what each of them answered, or StorageError.
    """
    paths = []
    for file in remote.files:
        path = directory / file.name
        with _storing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if not _is_whole(path, file):
                _fetch(file, remote.mirrors, path, timeout_s, progress)
        paths.append(path)
    return tuple(paths)


def _is_whole(path: Path, file: RemoteFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _fetch(file: RemoteFile, mirrors: Sequence[str], path: Path, timeout_s: float, progress: Progress | None) -> None:
    failures = []
    for mirror in mirrors:
        url = urljoin(mirror, file.name)
        try:
            with _replacing(path) as out:
                _copy_checked(url, file, out, timeout_s, progress)
            return
        except _BadDownload as exc:
            failures.append(f"{url}: {exc}")
    raise DataError(f"could not fetch {file.name} ({'; '.join(failures)}); put it into {path.parent} by hand, sha256 {file.sha256}")


class _BadDownload(Exception):
    """One mirror's failure; the next is tried."""


def _copy_checked(url: str, file: RemoteFile, out: IO[bytes], timeout_s: float, progress: Progress | None) -> None:
    digest = hashlib.sha256()
    done = 0
    for chunk in _chunks(url, timeout_s):
        done += len(chunk)
        if done > file.size_bytes:
            raise _BadDownload(f"more than {file.size_bytes} bytes")
        digest.update(chunk)
        out.write(chunk)
        if progress is not None:
            progress(file.name, done, file.size_bytes)
    if done != file.size_bytes:
        raise _BadDownload(f"ended after {done} of {file.size_bytes} bytes")
    if digest.hexdigest() != file.sha256:
        raise _BadDownload(f"sha256 is {digest.hexdigest()}, not the known one")


def _chunks(url: str, timeout_s: float) -> Iterator[bytes]:
    """The body of a URL. Only the network's errors become _BadDownload; the disk's are the caller's."""
    if not url.startswith(("https://", "http://")):
        raise _BadDownload("not an http address")
    try:
        with urlopen(Request(url, headers={"User-Agent": "cutlayer"}), timeout=timeout_s) as response:
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
    except URLError as exc:
        raise _BadDownload(str(exc.reason)) from exc
    except (OSError, HTTPException) as exc:
        raise _BadDownload(str(exc) or type(exc).__name__) from exc


def unpack(archive: Path, directory: Path, members: Mapping[str, int]) -> None:
    """Take exactly these members (name → size) out of a tar.gz file into ``directory``, by their last names. Others are passed over.

    No path of the archive is used as a path. Raises DataError for a damaged archive, a missing member or one of another size.
    """
    wanted = dict(members)
    with _storing(directory):
        try:
            with tarfile.open(archive, "r|gz") as tar:
                for member in tar:
                    size = wanted.pop(member.name, None)
                    if size is not None:
                        _extract(tar, member, size, directory, archive)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise DataError(f"{archive} is damaged ({exc}); remove it and try again") from exc
    if wanted:
        raise DataError(f"{archive} has no {min(wanted)}; it is not the archive that was expected")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, size: int, directory: Path, archive: Path) -> None:
    stream = tar.extractfile(member) if member.isreg() and member.size == size else None
    if stream is None:
        raise DataError(
            f"{archive} has {member.name} as something else than a file of {size} bytes; it is not the archive that was expected"
        )
    with _replacing(directory / Path(member.name).name) as out:
        while chunk := stream.read(_CHUNK_BYTES):
            out.write(chunk)


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name only when it is whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _storing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageError(f"cannot write to {directory}: {exc.strerror or exc}") from exc
