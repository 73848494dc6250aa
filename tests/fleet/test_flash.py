"""``cutlayer flash``: from an image as published to one that sets a device up, by the command."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import cutlayer
from fleet.flash.boot_files import CLOUD_INIT_KEYS
from fleet.flash.wifi import parse_wifi, read_wifi
from tests.fleet.conftest import PASSPHRASE, TOKEN, Desk, write_wheel
from tests.fleet.images import BOOKWORM, SECTOR, START, TRIXIE, fsck, make_image, mtools
from wire.errors import UsageError
from wire.runfile import load_run


@pytest.fixture(scope="module")
def psk(desk: Desk) -> str:
    """As wpa_supplicant makes it."""
    found = read_wifi(("Clinic West", "DE"), passphrase_file=desk.folder / "passphrase", open_network=False).psk
    assert found is not None
    return found


def _flash(words: list[str]) -> int:
    return cutlayer.main(words)


def _on(image: Path, name: str) -> bytes:
    return mtools("mtype", image, f"::{name}")


def _payload(image: Path) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(_on(image, "cutlayer-payload.tar"))) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def old(desk: Desk, bookworm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("old") / "copy.img"
    assert _flash(desk.words(bookworm, out)) == 0
    return out


@pytest.fixture(scope="module")
def new(desk: Desk, trixie: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = tmp_path_factory.mktemp("new") / "keys"
    keys.write_text('# mine\nssh-ed25519 AAAAC3Nz operator\'s "laptop"\n')
    out = keys.with_name("copy.img")
    assert _flash([*desk.words(trixie, out), "--user", "operator", "--authorized-keys", str(keys)]) == 0
    return out


# ------------------------------------------------------------------ what lands


@pytest.mark.parametrize("which", ["old", "new"])
def test_the_image_is_as_it_was_and_others_read_the_copy(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    copy: Path = request.getfixturevalue(which)
    source: Path = request.getfixturevalue({"old": "bookworm", "new": "trixie"}[which])
    one, other = source.read_bytes(), copy.read_bytes()
    boot_end = len(one) - 4096 * SECTOR
    assert one[: START * SECTOR] == other[: START * SECTOR], "the partition table"
    assert one[boot_end:] == other[boot_end:], "the root file system and what is behind it"
    published = BOOKWORM if which == "old" else TRIXIE
    for name in published:
        if name not in ("cmdline.txt", "user-data", "network-config", "meta-data"):
            assert _on(copy, name) == _on(source, name), name
    fsck(copy, tmp_path)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_bookworm_starts_firstrun(old: Path, bookworm: Path) -> None:
    before, after = _on(bookworm, "cmdline.txt").decode(), _on(old, "cmdline.txt").decode()
    run = " systemd.run=/boot/firstrun.sh systemd.run_success_action=reboot systemd.unit=kernel-command-line.target"
    assert after == before.rstrip() + run + " cgroup_enable=memory\n"
    script = _on(old, "firstrun.sh").decode()
    assert script.startswith("#!/bin/sh\n")
    assert "echo board-1 >/etc/hostname" in script
    assert "user-data" not in mtools("mdir", old, "-b", "::/").decode()


def test_the_scripts_are_posix_shell_without_a_complaint(old: Path, tmp_path: Path) -> None:
    scripts = {name: _on(old, name) for name in ("firstrun.sh", "cutlayer-install.sh")} | {"enrol.sh": _payload(old)["enrol.sh"]}
    for name, data in scripts.items():
        (tmp_path / name).write_bytes(data)
        subprocess.run(["dash", "-n", tmp_path / name], check=True, timeout=60)
        done = subprocess.run(["shellcheck", tmp_path / name], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


def test_the_first_ram_disk_of_bookworm_does_not_break_the_script(old: Path, tmp_path: Path) -> None:
    """It puts /boot/firmware in the place of /boot in cmdline.txt, and cuts a script off before a line that ends in firstrun.sh."""
    path = tmp_path / "firstrun.sh"
    path.write_bytes(_on(old, "firstrun.sh"))
    subprocess.run(["sed", "-n", "-i", r"/rm.*firstrun\.sh$/q;p", path], check=True, timeout=60)
    assert path.read_bytes() == _on(old, "firstrun.sh")


def test_trixie_has_cloud_init_do_it(new: Path, psk: str, tmp_path: Path) -> None:
    user = json.loads(_on(new, "user-data").decode().removeprefix("#cloud-config\n"))
    assert set(user) <= CLOUD_INIT_KEYS
    assert user["runcmd"][-1] == ["sh", "/boot/firmware/cutlayer-install.sh", "/boot/firmware", "start"]
    assert user["user"] == {
        "name": "operator",
        "lock_passwd": True,
        "ssh_authorized_keys": ['ssh-ed25519 AAAAC3Nz operator\'s "laptop"'],
        "sudo": None,
    }
    instance = json.loads(_on(new, "meta-data"))["instance-id"]
    assert re.fullmatch(r"cutlayer-board-1-[0-9a-f]{16}", instance)
    assert _on(new, "cmdline.txt").decode().endswith(f" rootwait resize ds=nocloud;i={instance} cgroup_enable=memory\n")
    network = json.loads(_on(new, "network-config"))["network"]
    assert network["ethernets"]["eth0"]["dhcp4"] is True
    assert network["wifis"]["wlan0"]["access-points"] == {"Clinic West": {"password": psk}}
    assert network["wifis"]["wlan0"]["regulatory-domain"] == "DE"
    for name, kind in (("user-data", "cloud-config"),):
        (tmp_path / name).write_bytes(_on(new, name))
        done = subprocess.run(["cloud-init", "schema", "-c", tmp_path / name], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{kind}: {done.stderr}{done.stdout}"
        assert "Valid" in done.stdout


def test_cloud_init_s_validator_sees_what_is_wrong(tmp_path: Path) -> None:
    """Otherwise the test above could pass by looking at nothing."""
    (tmp_path / "user-data").write_text('#cloud-config\n{"runcmd": 3}\n')
    done = subprocess.run(["cloud-init", "schema", "-c", tmp_path / "user-data"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0


def test_preseed_is_toml_that_its_reader_takes(desk: Desk, bookworm: Path, psk: str, tmp_path: Path) -> None:
    out = tmp_path / "copy.img"
    assert _flash(desk.words(bookworm, out, format="preseed", wheels=str(desk.folder / "wheels"))) == 0
    table = tomllib.loads(_on(out, "rpi-preseed.toml").decode())
    assert table["config_version"] == "1.1"
    assert table["wlan"] == {"ssid": "Clinic West", "password": psk, "password_encrypted": True, "country": "DE"}
    assert table["runcmd"]["late"] == ["sh /boot/firmware/cutlayer-install.sh /boot/firmware start"]


def test_the_payload_is_the_device_s_own_and_whole(old: Path, new: Path, desk: Desk, tmp_path: Path) -> None:
    for copy, python in ((old, "cp311"), (new, "cp313")):
        found = _payload(copy)
        wheels = {name.removeprefix("wheels/") for name in found if name.startswith("wheels/")}
        numpy = f"numpy-2.4.6-{python}-{python}-manylinux_2_28_aarch64.whl"
        assert wheels == {"cutlayer-0.1.0-py3-none-any.whl", "pip-26.3-py3-none-any.whl", numpy}
        assert hashlib.sha256(_on(copy, "cutlayer-payload.tar")).hexdigest() in _on(copy, "cutlayer-payload.sha256").decode()
        bundles = desk.folder / "bundles"
        sent = {name.removeprefix("bundle/"): data for name, data in found.items() if name.startswith("bundle/")}
        assert sent == {str(path.relative_to(bundles)): path.read_bytes() for path in bundles.rglob("*") if path.is_file()}
        (tmp_path / "run.toml").write_bytes(found["run.toml"])
        run = load_run(tmp_path / "run.toml")
        assert run.digest == load_run(desk.folder / "board-1.toml").digest
        assert run.broker.url == "mqtts://broker.example:8883"
        assert (run.broker.ca, run.broker.cert, run.broker.key) == (
            "/var/lib/cutlayer/identity/ca.pem",
            "/var/lib/cutlayer/identity/cert.pem",
            "/var/lib/cutlayer/identity/key.pem",
        )
        assert b"--name board-1 --url https://broker.example:8884 " in found["enrol.sh"]
        assert b"@" not in re.sub(rb"SystemCallFilter=@system-service", b"", found["cutlayer.service"] + found["cutlayer-enrol.service"])


def test_the_services_are_hardened_as_systemd_counts_it(old: Path, tmp_path: Path) -> None:
    for name, data in _payload(old).items():
        if name.startswith("cutlayer"):
            (tmp_path / name).write_bytes(data.replace(b"/opt/cutlayer/venv/bin/python", b"/bin/sh"))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", tmp_path / "cutlayer.service"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *tmp_path.glob("cutlayer*")], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "cutlayer" in line]
    assert complaints == []


@pytest.mark.parametrize(("up_s", "code", "waits"), [(60, 1, False), (1800, 1, True), (1800, 2, True), (1800, 0, False)])
def test_who_is_not_let_in_asks_more_rarely(old: Path, tmp_path: Path, up_s: int, code: int, waits: bool) -> None:
    """The script as systemd starts it, with an enrolment that ends like this."""
    (tmp_path / "uptime").write_text(f"{up_s}.25 7.00\n")
    for name, does in (("python", f"exit {code}"), ("sleep", 'echo "$1"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    script = _payload(old)["enrol.sh"].decode()
    for there, here in (("/opt/cutlayer/venv/bin/python", "python"), ("/proc/uptime", "uptime")):
        assert there in script
        script = script.replace(there, str(tmp_path / here))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "INVOCATION_ID": "1"}
    done = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "270\n" if waits else "")


# ------------------------------------------------------------------ secrets


@pytest.mark.parametrize("which", ["bookworm", "trixie"])
def test_secrets_are_where_they_must_be_and_nowhere_else(
    which: str, desk: Desk, psk: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = desk.words(request.getfixturevalue(which), tmp_path / "copy.img", manifest=str(tmp_path / "list.json"))
    assert _flash(words) == 0
    said = capsys.readouterr()
    for secret in (TOKEN, PASSPHRASE, psk):
        assert secret not in said.out + said.err + " ".join(words)
        assert secret not in (tmp_path / "list.json").read_text()
        assert secret.encode() not in b"".join(_payload(tmp_path / "copy.img").values())
    data = (tmp_path / "copy.img").read_bytes()
    assert PASSPHRASE.encode() not in data
    assert data.count(TOKEN.encode()) == 1
    assert _on(tmp_path / "copy.img", "cutlayer-token").decode().strip() == TOKEN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.img", "list.json"]


def test_a_broker_without_tls_gets_no_token(desk: Desk, bookworm: Path, tmp_path: Path) -> None:
    assert _flash(desk.words(bookworm, tmp_path / "copy.img", broker="mqtt://10.0.0.2:1883")) == 0
    assert b"cutlayer-token" not in mtools("mdir", tmp_path / "copy.img", "-b", "::/")
    assert tomllib.loads(_payload(tmp_path / "copy.img")["run.toml"].decode())["broker"] == {
        key: value
        for key, value in tomllib.loads((desk.folder / "board-1.toml").read_text())["broker"].items()
        if key not in ("url", "ca", "cert", "key")
    } | {"url": "mqtt://10.0.0.2:1883"}


def test_the_key_of_a_network_is_wpa_s(tmp_path: Path) -> None:
    """The test vectors of IEEE 802.11i, annex H.4."""
    for ssid, passphrase, key in (
        ("IEEE", "password", "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"),
        ("ThisIsASSID", "ThisIsAPassword", "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af"),
        ("Z" * 32, "a" * 32, "becb93866bb8c3832cb777c2f559807c8c59afcb6eae734885001300a981cc62"),
        (
            "hex",
            "F42C6FC52DF0EBEF9EBB4B90B38A5F902E83FE1B135A70E23AED762E9710A12E",
            "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e",
        ),
    ):
        (tmp_path / "file").write_text(passphrase + "\nsecond line\n")
        assert read_wifi((ssid, None), passphrase_file=tmp_path / "file", open_network=False).psk == key


def test_networks_are_named_with_or_without_a_country() -> None:
    assert parse_wifi("Clinic:DE") == ("Clinic", "DE")
    assert parse_wifi("Clinic:gb") == ("Clinic", "GB")
    assert parse_wifi("a:b:c") == ("a:b:c", None)
    assert parse_wifi("Praxis Müller") == ("Praxis Müller", None)
    for text in ("", "x" * 33, "ü" * 17, "a\nb"):
        with pytest.raises(ValueError, match="is not the name of a wireless network"):
            parse_wifi(text)


# ------------------------------------------------------------------ what is refused, in one line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"image": "nowhere.img"}, "nowhere.img: no such file"),
        ({"device": "a b"}, "--device: `name` is 'a b'; use 1 to 64 letters"),
        ({"device": "board-2"}, "is the part of `board-1`"),
        ({"bundle": "."}, "holds no device bundle"),
        ({"wheels": "nowhere"}, "cutlayer flash fetch-wheels --wheels nowhere"),
        ({"wheels": "EMPTY"}, "lacks a wheel for Python 3.11 on aarch64"),
        ({"broker": "http://x"}, "must begin with mqtt:// or mqtts://"),
        ({"broker": None}, "needs --broker"),
        ({"out": None}, "needs --out"),
        ({"out": "IMAGE"}, "is the image itself"),
        ({"fleet": "nowhere"}, "nowhere/ca/ca.pem is not there"),
        ({"token-file": "nowhere"}, "nowhere is not there; make the token with `cutlayer device add board-1 --out nowhere`"),
        ({"wifi": "x" * 40}, "is not the name of a wireless network"),
        ({"wifi-passphrase-file": "SHORT"}, "has to have 8 to 63 characters"),
        ({"user": "operator"}, "--user and --authorized-keys go together"),
        ({"user": "pi", "authorized-keys": "SHORT"}, "--user 'pi' cannot be used"),
        ({"user": "o", "authorized-keys": "PRIVATE"}, "holds no public keys"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_is_wrong_is_one_line(
    more: dict[str, str | None], said: str, desk: Desk, bookworm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    places = {
        "EMPTY": tmp_path / "empty",
        "IMAGE": bookworm,
        "SHORT": tmp_path / "short",
        "PRIVATE": tmp_path / "private",
    }
    options = {name: str(places.get(value, value)) if value is not None else None for name, value in more.items()}
    before = bookworm.read_bytes()
    left = cutlayer.main(desk.words(bookworm, tmp_path / "copy.img", **options))
    printed = capsys.readouterr().err
    assert left == 2, printed
    assert said in printed
    assert printed.count("\n") == 1
    assert bookworm.read_bytes() == before
    assert not (tmp_path / "copy.img").exists(), "nothing half-made is left"
    assert not list(tmp_path.glob("*.new"))


def test_a_boot_partition_without_room(desk: Desk, bookworm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheels = shutil.copytree(desk.folder / "wheels", tmp_path / "wheels")
    write_wheel(wheels, "cutlayer", "0.1.0", "py3-none-any", needs=("ballast",))
    with zipfile.ZipFile(write_wheel(wheels, "ballast", "1", "py3-none-any"), "a") as ballast:
        ballast.writestr("ballast/data", os.urandom(50 << 20))
    assert cutlayer.main(desk.words(bookworm, tmp_path / "copy.img", wheels=str(wheels))) == 2
    assert re.search(r"the boot partition has \d+ MiB free, and \d+ are needed", capsys.readouterr().err)
    assert not (tmp_path / "copy.img").exists()


def test_a_bundle_that_was_changed_is_refused(desk: Desk, bookworm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = shutil.copytree(desk.folder / "bundles", tmp_path / "bundle")
    graph = next(bundle.rglob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0\0")
    assert cutlayer.main(desk.words(bookworm, tmp_path / "copy.img", bundle=str(bundle))) == 2
    assert "does not have the checksum of its manifest" in capsys.readouterr().err


# ------------------------------------------------------------------ beside


def test_an_image_that_is_packed(desk: Desk, bookworm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "bookworm.img.xz"
    small = make_image(tmp_path / "small.img", {k: 100 if isinstance(v, int) else v for k, v in BOOKWORM.items()}, size_mb=40)
    packed.write_bytes(data := lzma.compress(small.read_bytes(), preset=0))
    assert cutlayer.main(desk.words(packed, tmp_path / "copy.img")) == 0
    assert _on(tmp_path / "copy.img", "config.txt") == _on(small, "config.txt")
    capsys.readouterr()
    packed.write_bytes(data[: len(data) // 2])
    assert cutlayer.main(desk.words(packed, tmp_path / "other.img")) == 2
    assert "cannot be unpacked" in capsys.readouterr().err


def test_imager_s_list_names_the_copy_and_leaves_it_as_it_is(
    desk: Desk, bookworm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cutlayer.main(desk.words(bookworm, tmp_path / "a copy.img", manifest=str(tmp_path / "list.json"))) == 0
    (entry,) = json.loads((tmp_path / "list.json").read_text())["os_list"]
    data = (tmp_path / "a copy.img").read_bytes()
    # What Imager's published schema requires.
    assert {
        "name",
        "description",
        "icon",
        "url",
        "extract_size",
        "extract_sha256",
        "image_download_size",
        "release_date",
        "devices",
    } <= set(entry)
    assert entry["extract_sha256"] == hashlib.sha256(data).hexdigest()
    assert entry["extract_size"] == entry["image_download_size"] == len(data)
    assert entry["url"] == (tmp_path / "a copy.img").as_uri()
    assert entry["init_format"] == "none"
    assert f"rpi-imager --cli --sha256 {entry['extract_sha256']} '{tmp_path}/a copy.img' /dev/…" in capsys.readouterr().out


def test_two_cards_of_one_device_are_two_instances(desk: Desk, trixie: Path, tmp_path: Path) -> None:
    found = set()
    for name in ("one.img", "two.img"):
        assert cutlayer.main(desk.words(trixie, tmp_path / name)) == 0
        found.add(_on(tmp_path / name, "meta-data"))
    assert len(found) == 2


def test_no_terminal_and_no_file(desk: Desk) -> None:
    done = subprocess.run(
        ["setsid", "/usr/bin/env", "python3", "-c",
         "from fleet.flash.wifi import read_wifi; read_wifi(('a', None), passphrase_file=None, open_network=False)"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60,
    )  # fmt: skip
    assert UsageError.__name__ in done.stderr
    assert "--wifi-passphrase-file" in done.stderr
