"""The first start of a device, in a root of its own on this computer: the real script, the real wheels, and power cuts."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.flash.boot_files import FORMATS, FirstBoot
from fleet.flash.image import copy_image, provision
from fleet.flash.payload import Payload, carried, device_run, read_bundle_files
from fleet.flash.wheels import choose_wheels, fetch_wheels
from fleet.flash.wifi import Wifi
from tests.fleet.conftest import TOKEN, Desk, write_wheel
from tests.fleet.images import BOOKWORM, make_image, mtools
from tests.fleet.root import Root
from tools.arm_image import ArmImage, missing

PSK = "5" * 60 + "a0b1"
DEPLOY_PUB = "-----BEGIN PUBLIC KEY-----\n"
PYTHON = subprocess.run(
    ["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True
).stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Root:
    if os.geteuid() != 0:
        pytest.skip("a root file system of its own needs root (mount, chroot)")
    return Root(tmp_path / "root")


@pytest.fixture(scope="module")
def payload(desk: Desk, host_wheels: Path) -> Payload:
    return Payload(
        device="board-1",
        run=device_run(desk.folder / "board-1.toml", device="board-1", broker="mqtts://broker.example:8883", identity=True),
        bundle=read_bundle_files(desk.folder / "bundles"),
        wheels=choose_wheels(host_wheels, python=PYTHON, arch="x86_64"),
        ca=b"-----BEGIN CERTIFICATE-----\n",
        enrol="broker.example:8884",
        deploy=DEPLOY_PUB.encode(),
        floor=4,
    )


@pytest.fixture(scope="module")
def light(payload: Payload, host_wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Payload:
    """The same with a client that is installed in a second."""
    folder = tmp_path_factory.mktemp("light")
    shutil.copy(next(host_wheels.glob("pip-*.whl")), folder)
    write_wheel(folder, "cutlayer", "0.1.0", "py3-none-any")
    return dataclasses.replace(payload, wheels=sorted(folder.iterdir()))


def _flashed(kind: str, payload: Payload, source: Path, folder: Path) -> dict[str, bytes]:
    """The files of a flashed boot partition, as mtools reads them."""
    copy = folder / "copy.img"
    first = FirstBoot(host="board-1", instance="cutlayer-board-1-0", wifi=Wifi(ssid="Clinic West", country="DE", psk=PSK))
    copy_image(source, copy)
    done = provision(
        source, copy, kind=FORMATS[kind], first=first, extra=carried(payload, f"{TOKEN}\n".encode()), now=datetime(2026, 1, 2, tzinfo=UTC)
    )
    found = {name: mtools("mtype", copy, f"::{name}") for name in done.files}
    copy.unlink()
    return found


def _check_installed(root: Root, *, secrets_gone: bool = True) -> None:
    """All is there, the token where only the client reads it, and no secret on the boot partition."""
    assert root.read("var/lib/cutlayer/identity/token").strip() == TOKEN
    assert root.modes("var/lib/cutlayer/identity/token") == ("cutlayer", "600")
    assert root.modes("var/lib/cutlayer/identity") == ("cutlayer", "700")
    assert root.modes("var/lib/cutlayer/releases/0/run.toml") == ("cutlayer", "600")
    assert (root.folder / "var/lib/cutlayer/releases/0/bundle").is_dir()
    assert json.loads(root.read("var/lib/cutlayer/releases/state.json")) == {"highest": 4, "settled": 4}
    assert root.read("var/lib/cutlayer/deploy.pub") == DEPLOY_PUB
    assert not (root.folder / "var/lib/cutlayer/releases.new").exists()
    assert (root.folder / "opt/cutlayer/venv/bin/python").exists()
    wants = root.folder / "etc/systemd/system/multi-user.target.wants"
    assert sorted(path.name for path in wants.iterdir()) == ["cutlayer-enrol.service", "cutlayer.service"]
    assert (wants.with_name("timers.target.wants") / "cutlayer-enrol.timer").is_symlink()
    assert (wants.with_name("paths.target.wants") / "cutlayer-renewed.path").is_symlink()
    assert not [path.name for path in root.boot.iterdir() if path.name.startswith("cutlayer")]
    assert sorted(path.name for path in (root.folder / "opt/cutlayer").iterdir()) == ["enrol.sh", "venv"]
    assert not (root.folder / "etc/systemd/system/cutlayer-install.service").exists()
    if secrets_gone:
        assert root.holders(TOKEN) == ["var/lib/cutlayer/identity/token"]
        assert root.holders(PSK, below="boot") == []


def test_firstrun_ends_and_the_client_is_there(root: Root, payload: Payload, tmp_path: Path) -> None:
    _check_firstrun(root, payload, tmp_path)


@pytest.mark.timeout(1500)  # the first one bootstraps a Debian
def test_firstrun_ends_on_arm_and_the_client_is_there(payload: Payload, tmp_path: Path) -> None:
    """The same with the programs of an arm64 Debian and the wheels for it, all run by qemu-user."""
    if (lacking := missing()) is not None:
        pytest.skip(lacking)
    wheels = tmp_path / "wheels"
    fetch_wheels(wheels, pythons=["3.11"], arch="aarch64", client=None)
    root = Root(tmp_path / "root", usr=ArmImage().device_usr())
    assert root.run("/usr/bin/uname", "-m").stdout == "aarch64\n"
    chosen = dataclasses.replace(payload, wheels=choose_wheels(wheels, python="3.11", arch="aarch64"))
    _check_firstrun(root, chosen, tmp_path)
    libraries = (root.folder / "opt/cutlayer/venv/lib").rglob("*.so*")
    assert {path.read_bytes()[18:20] for path in libraries if path.is_file()} == {b"\xb7\x00"}, "not all for aarch64"


def _check_firstrun(root: Root, payload: Payload, tmp_path: Path) -> None:
    small = {name: 100 if isinstance(content, int) else content for name, content in BOOKWORM.items()}
    root.insert(_flashed("firstrun", payload, make_image(tmp_path / "image.img", small, size_mb=128), tmp_path))
    done = root.run("/bin/sh", "/boot/firmware/firstrun.sh")
    log = root.read("var/log/cutlayer-install.log")
    assert done.returncode == 0, done.stderr + log
    _check_installed(root)
    assert "cutlayer-install: done" in log
    assert [secret for secret in (TOKEN, PSK) if secret in log + done.stdout + done.stderr] == []
    assert root.read("etc/hostname") == "board-1\n"
    assert root.read("etc/hosts").splitlines()[1] == "127.0.1.1\tboard-1"
    network = root.read("etc/NetworkManager/system-connections/cutlayer.nmconnection")
    assert f"psk={PSK}" in network
    assert "ssid=" + "".join(f"{byte};" for byte in b"Clinic West") in network
    assert root.modes("etc/NetworkManager/system-connections/cutlayer.nmconnection") == ("root", "600")
    assert not (root.boot / "firstrun.sh").exists()
    assert "systemd." not in (root.boot / "cmdline.txt").read_text()
    assert (root.boot / "cmdline.txt").read_text().endswith(" cgroup_enable=memory\n")
    _check_client(root)


def _check_client(root: Root) -> None:
    """As the service starts it; the broker is not there, so the check that needs it fails and the others do not."""
    unit = root.read("etc/systemd/system/cutlayer.service")
    (start,) = (line.partition("=")[2].split() for line in unit.splitlines() if line.startswith("ExecStart="))
    assert root.run(*start[:3], "--help").returncode == 0
    doctor = ["/opt/cutlayer/venv/bin/cutlayer", "doctor", "--device", "--bundle", "/var/lib/cutlayer/releases/0/bundle/bottom", "--json"]
    done = root.run("/usr/sbin/chroot", "--userspec=cutlayer:cutlayer", "/", *doctor)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"check": "step", "status": "ok"' in done.stdout
    modules = "import sys, edge_client.process; sys.exit(bool({'torch', 'onnx', 'fleet'} & set(sys.modules)))"
    assert root.run("/opt/cutlayer/venv/bin/python", "-c", modules).returncode == 0


@pytest.mark.parametrize(
    ("kind", "image", "holds_key"), [("cloud-init", "trixie", "network-config"), ("preseed", "bookworm", "rpi-preseed.toml")]
)
def test_what_cloud_init_and_preseed_start_leaves_no_key_behind(
    kind: str, image: str, holds_key: str, root: Root, light: Payload, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root.insert(_flashed(kind, light, request.getfixturevalue(image), tmp_path))
    assert PSK in (root.boot / holds_key).read_text()
    done = root.run("/bin/sh", "/boot/firmware/cutlayer-install.sh", "/boot/firmware", "start")
    assert done.returncode == 0, done.stderr
    _check_installed(root)
    assert not (root.boot / holds_key).exists()
    again = root.run("/bin/sh", "/opt/cutlayer/enrol.sh")  # the one line that names the command; there is no authority here
    assert again.returncode != 0
    assert TOKEN not in again.stdout + again.stderr


def _cuts(script: str) -> list[int]:
    """Lines behind which the power may go: the last one of each statement that stands by itself."""
    lines = script.splitlines()
    begun = next(at for at, line in enumerate(lines) if line.startswith("mkdir -p $opt"))
    whole = [at for at in range(begun, len(lines)) if lines[at] and not lines[at].startswith(("#", " ", "if ", "for ", "cat >", "say"))]
    return [
        at + 1
        for at in whole
        if subprocess.run(["dash", "-n"], input="\n".join(lines[: at + 1]), text=True, capture_output=True).returncode == 0
    ]


def test_a_power_cut_anywhere_only_delays(root: Root, light: Payload, bookworm: Path, tmp_path: Path) -> None:
    """The script is ended behind every statement in turn, each time a little later, and what it left enabled for the next start does the
    rest. One root for all of them: a device may lose its power more than once."""
    files = _flashed("firstrun", light, bookworm, tmp_path)
    script = files["cutlayer-install.sh"].decode()
    cuts = _cuts(script)
    assert len(cuts) > 30
    lines = script.splitlines()
    for group in (cuts[0::3], cuts[1::3], cuts[2::3]):
        root.insert(files)
        for at in group:
            cut = "\n".join([*lines[:at], "kill -9 $$", *lines[at:]]) + "\n"
            (root.folder / "tmp/cut.sh").write_text(cut)
            done = root.run("/bin/sh", "/tmp/cut.sh", "/boot/firmware")
            assert done.returncode in (-9, 137, 0), done.stderr
        left = root.folder / "etc/systemd/system/cutlayer-install.service"
        if left.exists() and (root.boot / "cutlayer-payload.tar").exists():
            (start,) = (line.partition("=")[2].split() for line in left.read_text().splitlines() if line.startswith("ExecStart="))
            assert root.run(*start).returncode == 0
        _check_whole(root)


def _check_whole(root: Root) -> None:
    assert root.read("var/lib/cutlayer/identity/token").strip() == TOKEN
    assert root.holders(TOKEN) == ["var/lib/cutlayer/identity/token"]
    assert root.run("/opt/cutlayer/venv/bin/python", "-c", "import cutlayer").returncode == 0
    assert root.read("etc/systemd/system/cutlayer.service").startswith("[Unit]")
    assert not (root.boot / "cutlayer-payload.tar").exists()


def test_a_payload_that_the_card_has_damaged_installs_nothing(root: Root, light: Payload, bookworm: Path, tmp_path: Path) -> None:
    files = _flashed("firstrun", light, bookworm, tmp_path)
    root.insert(files | {"cutlayer-payload.tar": files["cutlayer-payload.tar"][:-5] + b"wrong"})
    done = root.run("/bin/sh", "/boot/firmware/cutlayer-install.sh", "/boot/firmware")
    assert done.returncode == 1
    assert "is damaged: write the card again" in done.stderr
    assert not (root.folder / "opt/cutlayer/venv").exists()


def test_links_of_a_client_that_is_no_longer_ours_lead_root_nowhere(root: Root, light: Payload, bookworm: Path, tmp_path: Path) -> None:
    """Installed again over ssh, while everything below the client's folder is as its code has left it."""
    files = _flashed("firstrun", light, bookworm, tmp_path)
    root.insert(files)
    assert root.run("/bin/sh", "/boot/firmware/cutlayer-install.sh", "/boot/firmware").returncode == 0
    home, guarded = root.folder / "var/lib/cutlayer", root.folder / "etc/guarded"
    guarded.mkdir()
    (guarded / "file").write_text("root's")
    before = {path: (path.lstat().st_uid, path.lstat().st_mode) for path in (guarded, guarded / "file")}
    for name in ("identity/token.new", "identity/token", "ca.pem", "deploy.pub", "identity", "releases.new", "releases"):
        shutil.rmtree(home / name, ignore_errors=True)
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to("/etc/guarded" if name.startswith(("identity", "releases")) and "/" not in name else "/etc/guarded/file")
        os.lchown(home / name, home.stat().st_uid, home.stat().st_gid)
        if name in ("deploy.pub", "releases"):
            root.insert(files)
            done = root.run("/bin/sh", "/boot/firmware/cutlayer-install.sh", "/boot/firmware")
            assert done.returncode == 0, done.stderr
            assert (guarded / "file").read_text() == "root's"
            assert {path: (path.lstat().st_uid, path.lstat().st_mode) for path in before} == before
            assert [path.name for path in guarded.iterdir()] == ["file"]
            _check_installed(root, secrets_gone=False)
    assert root.modes("var/lib/cutlayer/ca.pem")[0] == root.modes("var/lib/cutlayer/deploy.pub")[0] == "cutlayer"


def test_a_second_start_of_the_script_does_nothing(root: Root, light: Payload, bookworm: Path, tmp_path: Path) -> None:
    root.insert(_flashed("firstrun", light, bookworm, tmp_path))
    logged = "".join(f'{name}() {{ echo "{name} $*" >>/tmp/deeds; command {name} "$@"; }}\n' for name in ("sync", "rm", "systemctl"))
    (root.folder / "tmp/install.sh").write_text(logged + (root.boot / "cutlayer-install.sh").read_text())
    assert root.run("/bin/sh", "/tmp/install.sh", "/boot/firmware").returncode == 0
    _check_order(root.read("tmp/deeds").splitlines())
    done = root.run("/bin/sh", "/tmp/install.sh", "/boot/firmware")
    assert done.returncode == 0
    assert "has been installed already" in done.stdout
    _check_installed(root, secrets_gone=False)


def _check_order(deeds: list[str]) -> None:
    """What the next start needs is on the disk before the card loses what it was made of."""
    enabled = deeds.index("systemctl enable cutlayer-install.service")
    assert deeds[enabled + 1 : enabled + 3] == ["sync -f /opt/cutlayer", "sync -f /etc/systemd/system"]
    token, payload = (deeds.index(f"rm -f /boot/firmware/cutlayer-{name}") for name in ("token", "payload.tar"))
    assert "sync -f /var/lib/cutlayer" in deeds[enabled:token]
    assert {"sync -f /opt/cutlayer", "sync -f /etc/systemd/system", "sync -f /var/lib/cutlayer"} <= set(deeds[token:payload])
