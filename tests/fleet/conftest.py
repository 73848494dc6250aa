"""What an operator has before they flash: a run cut for two boards, its bundle, an authority, a token, wheels."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.prepare import export_run
from export.slicing import write_slice
from fleet.flash.wheels import fetch_wheels
from tests.arm.boards import prepared
from tests.fleet.deploys import Field, deployable
from tests.fleet.fleets import RUN
from tests.fleet.images import BOOKWORM, TRIXIE, make_image
from wire.runfile import load_run

TOKEN = "tok-7f3e9c41d2aa-this-must-not-be-seen"
PASSPHRASE = "correct horse battery"


@dataclass(frozen=True, slots=True)
class Desk:
    """The operator's folder."""

    folder: Path

    def words(self, image: Path, out: Path, /, **more: str | None) -> list[str]:
        """``cutlayer flash`` for board-1; ``more``: options by name, in place of the usual ones."""
        options = {
            "image": image,
            "out": out,
            "device": "board-1",
            "run": self.folder / "board-1.toml",
            "bundle": self.folder / "bundles",
            "wheels": self.folder / "wheels",
            "broker": "mqtts://broker.example:8883",
            "fleet": self.folder / "fleet",
            "wifi": "Clinic West:DE",
            "wifi-passphrase-file": self.folder / "passphrase",
        } | more
        return ["flash", *(word for name, value in options.items() if value is not None for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    run = prepared(folder)
    shutil.copytree(load_run(run).bundles, folder / "bundles")
    write_slice(run, party="board-1", out=folder / "board-1.toml")
    (folder / "fleet" / "ca").mkdir(parents=True)
    (folder / "fleet" / "ca" / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    (folder / "fleet" / "tokens").mkdir()
    (folder / "fleet" / "tokens" / "board-1.token").write_text(TOKEN + "\n")
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    wheels = folder / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "cutlayer", "0.1.0", "py3-none-any", needs=("numpy>=2",))
    for python in ("cp311", "cp313"):
        write_wheel(wheels, "numpy", "2.4.6", f"{python}-{python}-manylinux_2_28_aarch64")
    write_wheel(wheels, "numpy", "2.4.6", "cp311-cp311-manylinux_2_28_x86_64")
    write_wheel(wheels, "pip", "26.3", "py3-none-any")
    return Desk(folder)


def write_wheel(folder: Path, name: str, version: str, tag: str, *, needs: tuple[str, ...] = (), filling: bytes = b"") -> Path:
    """A wheel that pip installs, with one module that has nothing but ``filling`` beside it."""
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        if filling:
            wheel.writestr(f"{name}/filling", filling)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", head + "".join(f"Requires-Dist: {each}\n" for each in needs))
        wheel.writestr(f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ``RUN``."""
    folder = tmp_path_factory.mktemp("made")
    path = folder / "run.toml"
    path.write_text(RUN.replace("PORT", "8883"))
    export_run(load_run(path), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def field(bundle: Path, tmp_path: Path) -> Iterator[Field]:
    with deployable(tmp_path, bundle) as found:
        yield found


@pytest.fixture(scope="session")
def bookworm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("bookworm") / "bookworm.img", BOOKWORM)


@pytest.fixture(scope="session")
def trixie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("trixie") / "trixie.img", TRIXIE, table="gpt")


@pytest.fixture(scope="session")
def host_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real wheels for this computer's own Python, the client built from this work tree among them."""
    said = subprocess.run(["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True)
    folder = tmp_path_factory.mktemp("wheels")
    fetch_wheels(folder, pythons=[said.stdout.strip()], arch="x86_64", client=None)
    assert sys.platform == "linux"
    return folder
