"""The other targets of ``cutlayer flash``: a card, a computer in reach, a compose project."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import cutlayer
from fleet.flash.compose import compose_table
from fleet.flash.disk import Disk, check_disk, look_at, write_disk
from fleet.flash.image import card_copy
from tests.fleet.conftest import TOKEN, Desk, write_wheel
from tests.fleet.root import ENTER, Root
from tools.arm_image import _CONTEXT
from wire.errors import StorageError, UsageError
from wire.runfile import load_run

# ------------------------------------------------------------------ a card

_MOUNTS = """\
21 1 259:2 / / rw,relatime - ext4 /dev/nvme0n1p2 rw
30 21 8:17 / /media/card\\040one rw - vfat /dev/sdb1 rw
31 21 0:44 / /tmp rw - tmpfs tmpfs rw
"""


class Kernel:
    """/sys and /proc as a kernel lays them out, with the disks that a test adds."""

    def __init__(self, folder: Path) -> None:
        self.sysfs, self.proc = folder / "sys", folder / "proc"
        (self.sysfs / "class/block").mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/mountinfo").write_text(_MOUNTS)
        (self.proc / "swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n/dev/sdc1 partition 100 0 -2\n")

    def add(self, name: str, number: str, *partitions: str, bus: str = "pci", **facts: str) -> None:
        block = self.sysfs / "devices" / bus / "block" / name
        for where, text in {"size": "62521344", "removable": "0", "ro": "0", "dev": number, "device/model": "Card  Reader"}.items():
            self._put(block / where, facts.get(where.rpartition("/")[2], text))
        (self.sysfs / "class/block" / name).symlink_to(block)
        for at, each in enumerate(partitions, 1):
            self._put(block / each / "partition", str(at))
            self._put(block / each / "dev", f"{number.partition(':')[0]}:{int(number.partition(':')[2]) + at}")
            (self.sysfs / "class/block" / each).symlink_to(block / each)

    def _put(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def look(self, device: str) -> Disk:
        return look_at(Path(device), sysfs=self.sysfs, proc=self.proc)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    found = Kernel(tmp_path)
    found.add("nvme0n1", "259:0", "nvme0n1p1", "nvme0n1p2")
    found.add("sda", "8:0", "sda1", bus="usb1")
    found.add("sdb", "8:16", "sdb1", removable="1")
    found.add("sdc", "8:32", "sdc1", removable="1")
    found.add("sdd", "8:48", removable="1", ro="1")
    found.add("sde", "8:64", removable="1", size="100")
    found.add("sdf", "8:80", "sdf1", removable="1")
    found.add("vda", "254:0")
    (found.sysfs / "class/block/sdf1/holders/dm-0").mkdir(parents=True)
    return found


def test_a_card_is_shown_as_the_kernel_sees_it(kernel: Kernel) -> None:
    disk = kernel.look("/dev/sda")
    assert disk.describe() == "/dev/sda: 32.0 GB, Card  Reader, removable, sda1"
    check_disk(disk, image_bytes=disk.size_bytes, fixed=False)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("/dev/nvme0n1", r"is in use \(mounted at /\)"),
        ("/dev/sdb", r"is in use \(mounted at /media/card"),
        ("/dev/sdc", r"is in use \(swap on /dev/sdc1\)"),
        ("/dev/sdf", r"is in use \(used by dm-0\)"),
        ("/dev/sdd", "is write-protected"),
        ("/dev/sde", "has 0 MiB, and the image 1"),
        ("/dev/vda", "is not removable .* say --fixed-disk"),
        ("/dev/sda1", "is a partition; name the whole disk"),
        ("/dev/nothing", "is no disk"),
        ("/dev/..", "is no disk"),
    ],
)
def test_disks_that_are_no_card_are_refused(kernel: Kernel, device: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_disk(kernel.look(device), image_bytes=1 << 20, fixed=False)


def test_a_system_disk_is_refused_whatever_is_said(kernel: Kernel) -> None:
    check_disk(kernel.look("/dev/vda"), image_bytes=1 << 20, fixed=True)
    with pytest.raises(UsageError, match="is in use"):
        check_disk(kernel.look("/dev/nvme0n1"), image_bytes=1 << 20, fixed=True)


def test_this_computer_s_own_disk_is_refused(bookworm: Path, desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the real kernel: whatever holds a file system that is mounted."""
    disks = {path.name for path in Path("/sys/class/block").iterdir() if not (path / "partition").exists()}
    in_use = sorted(name for name in disks if look_at(Path("/dev", name)).mounts)
    device = f"/dev/{in_use[0]}" if in_use else "/dev/null"
    assert cutlayer.main([*desk.words(bookworm, tmp_path / "copy.img"), "--to", device, "--yes"]) == 2
    assert "is in use" in (said := capsys.readouterr().err) or "is no disk" in said
    assert not (tmp_path / "copy.img").exists()


def test_the_copy_for_a_card_takes_no_other_file_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "board-1.card.img"
    mine.write_bytes(b"mine")
    with card_copy(None, device="board-1") as first, card_copy(None, device="board-1") as second:
        assert len({mine, first, second}) == 3
        assert first.parent == tmp_path
        assert stat.S_IMODE(first.stat().st_mode) == 0o600
        first.write_bytes(b"card")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    with card_copy(mine, device="board-1") as out:
        assert out == mine
    assert mine.exists()


def test_a_card_is_written_and_read_back(tmp_path: Path) -> None:
    image, card = tmp_path / "image", tmp_path / "card"
    image.write_bytes(data := os.urandom((3 << 20) + 5))
    card.write_bytes(bytes(5 << 20))
    heard: list[int] = []
    assert write_disk(image, card, exclusive=False, say=heard.append) == len(data)
    assert card.read_bytes() == data + bytes((5 << 20) - len(data))
    assert heard == [1 << 20, 2 << 20, 3 << 20, (3 << 20) + 5]


def test_a_card_that_does_not_keep_what_is_written(tmp_path: Path) -> None:
    image, card = tmp_path / "image", tmp_path / "card"
    image.write_bytes(b"\1" * 1000)
    card.write_bytes(bytes(1000))

    def lose(_: int) -> None:
        with open(card, "r+b") as file:
            file.seek(512)
            file.write(b"\0")

    with pytest.raises(StorageError, match="does not hold what was written"):
        write_disk(image, card, exclusive=False, say=lose)


# ------------------------------------------------------------------ a computer in reach

_SSH = """\
#!/bin/sh
# The other computer, for `ssh -- TARGET SCRIPT`: its root file system is {root}.
printf '%s\\n' "$@" >>{log}
[ "$2" = gone ] && {{ echo "ssh: Could not resolve hostname gone" >&2; exit 255; }}
exec unshare --mount --propagation private /bin/sh -c '{enter}' sh {root} /usr /bin/sh -c "$3"
"""


@pytest.fixture
def reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """An ``ssh`` that runs what it is given, really, in a root file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("a root file system of its own needs root (mount, chroot)")
    root = Root(tmp_path / "root")
    (root.folder / "run/systemd/system").mkdir(parents=True)
    (root.folder / "var/tmp").mkdir()
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    program.write_text(_SSH.format(root=root.folder, log=tmp_path / "ssh.log", enter=ENTER.replace("'", "'\\''")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return root


@pytest.fixture(scope="module")
def light_wheels(host_wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    shutil.copy(next(host_wheels.glob("pip-*.whl")), folder)
    write_wheel(folder, "cutlayer", "0.1.0", "py3-none-any")
    return folder


def _words(desk: Desk, **more: str | None) -> list[str]:
    return desk.words(Path("-"), Path("-"), **{"image": None, "out": None, "wifi": None, "wifi-passphrase-file": None} | more)


def test_a_computer_in_reach_is_installed(
    desk: Desk, reach: Root, light_wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cutlayer.main(_words(desk, ssh="me@board.local", wheels=str(light_wheels))) == 0
    said = capsys.readouterr().out
    assert "me@board.local is `board-1` now" in said
    assert reach.read("var/lib/cutlayer/identity/token").strip() == TOKEN
    assert reach.holders(TOKEN) == ["var/lib/cutlayer/identity/token"]
    assert reach.run("/opt/cutlayer/venv/bin/python", "-c", "import cutlayer").returncode == 0
    assert list((reach.folder / "var/tmp").iterdir()) == []
    assert TOKEN not in (tmp_path / "ssh.log").read_text() + said


@pytest.mark.parametrize(
    ("target", "said", "code"),
    [
        ("me@", "is not user@host", 2),
        ("gone", "gone: ssh: Could not resolve hostname gone", 1),
        ("-oProxyCommand=x", "is not user@host", 2),
        ("a b", "is not user@host", 2),
    ],
)
def test_a_computer_that_is_not_reached(
    target: str, said: str, code: int, desk: Desk, reach: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cutlayer.main([*_words(desk), f"--ssh={target}"]) == code
    assert said in (printed := capsys.readouterr().err)
    assert printed.count("\n") == 1


def test_a_computer_without_systemd(desk: Desk, reach: Root, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(reach.folder / "run/systemd")
    assert cutlayer.main(_words(desk, ssh="board.local")) == 2
    assert "is not run by systemd" in capsys.readouterr().err


# ------------------------------------------------------------------ a compose project


def test_a_compose_project_is_hardened_and_whole(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "project"
    assert cutlayer.main(_words(desk, compose=str(out), wheels=None)) == 0
    services = json.loads((out / "compose.yaml").read_text())["services"]
    assert list(services) == ["enrol", "renew", "client"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["platform"] == "linux/arm64"
    assert services["client"]["volumes"] == ["./data:/data", "./keys:/keys:ro"]
    assert services["client"]["entrypoint"] == ["python3", "-m", "edge_client.agent", "--home", "/data", "--name", "board-1"]
    assert stat.S_IMODE((out / "data/releases/0/run.toml").stat().st_mode) == 0o600
    run = load_run(out / "data/releases/0/run.toml")
    broker = run.broker
    assert run.base == "/data"  # its state outlives a release
    assert (broker.ca, broker.cert, broker.key) == ("/keys/ca.pem", "/keys/cert.pem", "/keys/key.pem")
    assert (out / "keys/token").read_text().strip() == TOKEN
    assert stat.S_IMODE((out / "keys/token").stat().st_mode) == 0o600
    assert TOKEN not in (out / "compose.yaml").read_text()
    assert {*_CONTEXT, "Dockerfile.arm"} <= {path.name for path in (out / "image").iterdir()}
    code = "import edge_client.process, sys; sys.exit('torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    assert subprocess.run([sys.executable, "-P", "-c", code], env=environment | {"PYTHONPATH": str(out / "image")}).returncode == 0


def test_a_compose_project_renews_its_certificate_each_day(tmp_path: Path) -> None:
    """The service's own command, with a day that is over at once and an enrolment that fails, until the third one."""
    services = compose_table("board-1", enrol="hub.example:8884", memory="512m")["services"]
    assert services["renew"]["depends_on"] == services["client"]["depends_on"]
    assert services["renew"]["restart"] == "always"
    shell, *words = [word.replace("$$", "$") for word in services["renew"]["entrypoint"]]
    for name, does in (("python3", 'echo "$@"; exit 1'), ("sleep", 'echo "$@"; [ "$(wc -l <"$0.log")" -lt 3 ] || kill $PPID')):
        (tmp_path / name).write_text(f'#!/bin/sh\necho >>"$0.log"\n{does}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["/bin/sh", *words], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    assert shell == "sh"
    assert done.stdout.splitlines() == [" ".join(services["enrol"]["entrypoint"][1:]), "86400"] * 3


def test_a_compose_project_does_not_write_over_anything(desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main(_words(desk, compose=str(tmp_path), wheels=None)) == 2
    assert "is there already" in capsys.readouterr().err


def test_two_targets_are_one_too_many(desk: Desk, bookworm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main([*desk.words(bookworm, tmp_path / "copy.img"), "--compose", str(tmp_path / "x")]) == 2
    assert "are two targets" in capsys.readouterr().err
