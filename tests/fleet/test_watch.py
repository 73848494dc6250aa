"""Keeping a client alive and judging a release on trial, with real processes of a client that does what a test says and starts fast."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.agent.client import check_release
from edge_client.agent.shelf import Launch, Shelf
from edge_client.agent.updates import Updates
from edge_client.agent.watch import Patience, Watch
from edge_client.heartbeat import read_beat
from tests.fleet.fleets import until
from tests.fleet.operator_peer import signed
from wire.errors import BundleError
from wire.fleet.talk import Chunk, Offer

KEY = Ed25519PrivateKey.generate()
QUICK = Patience(steady_s=0.3, health_s=60.0, hung_s=60.0, stuck_s=60.0, pause_s=0.05, end_s=0.5)
# What a client is to its agent, in a few lines: `say(**facts)` writes the heartbeat.
HEAD = """\
import json, os, signal, sys, time
if "--check" in sys.argv: sys.exit(0)
number = 0
def say(**facts):
    global number
    number += 1
    path = os.environ["CUTLAYER_HEARTBEAT"]
    with open(path + ".tmp", "w") as file:
        json.dump({"pid": os.getpid(), "number": number, "run": "r", "code": CODE, "later": 1} | facts, file)
    os.replace(path + ".tmp", path)
def live(**facts):
    while True:
        say(**facts)
        time.sleep(0.05)
"""
SOUND = "live(linked=True)"


def pack(code: str, body: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as wheel:
        wheel.writestr("edge_client/__init__.py", "")
        wheel.writestr("edge_client/__main__.py", f"CODE = {code!r}\n" + HEAD + body + "\n")
    return data.getvalue()


class Device:
    def __init__(self, folder: Path, patience: Patience = QUICK, *, has_key: bool = True) -> None:
        self.said: list[str] = []
        shelf = Shelf(folder / "releases", name="pi-1", keys=[KEY.public_key()] if has_key else [])
        self.updates = Updates(shelf, name="pi-1", check=lambda launch: check_release(launch, name="pi-1"), say=self.said.append)
        heartbeat = folder / "heartbeat.json"
        self.watch = Watch(self.updates, name="pi-1", heartbeat=heartbeat, patience=patience, say=self.said.append)
        self.heartbeat, self.line_up, self.reached = heartbeat, True, True

    def install(self, version: int, body: str) -> None:
        wheel = pack(f"v{version}", body)
        release = signed(
            KEY, {"run.toml": b"[slice]\nbase = '/srv'\n", "wheels/c-1-py3-none-any.whl": wheel}, version=version, device="pi-1"
        )
        self.updates.offer(Offer(manifest=release.manifest, signature=release.signature))
        self.turn_until(lambda: self.updates.progress.stage in ("trial", "refused"), f"release {version}", stock=release.files)
        assert self.updates.progress.stage == "trial", self.updates.progress

    def turn_until(self, wanted: Callable[[], bool], what: str, stock: dict[str, bytes] | None = None) -> None:
        def look() -> bool | None:
            by_hash = {hashlib.sha256(data).hexdigest(): data for data in (stock or {}).values()}
            for want in self.updates.wants(time.monotonic(), piece_bytes=500):
                piece = by_hash[want.sha256][want.offset : want.offset + want.count_bytes]
                self.updates.take(Chunk(sha256=want.sha256, offset=want.offset, data=piece), time.monotonic())
            self.updates.step()
            self.watch.turn(line_up=self.line_up, reached=self.reached)
            return True if wanted() else None

        until(look, what)

    @property
    def code(self) -> str:
        return "" if self.watch.beat is None else self.watch.beat.code

    @property
    def runs(self) -> str:
        """The version of the code that runs and is connected."""
        beat = read_beat(self.heartbeat)
        return beat.code if beat is not None and beat.linked and self.watch.state == "running" else ""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The client of its card is found where the agent's own code is; it lives."""
    (tmp_path / "releases/0").mkdir(parents=True)
    (tmp_path / "releases/0/run.toml").write_text("x = 1\n")
    with zipfile.ZipFile(io.BytesIO(pack("v0", SOUND))) as wheel:
        wheel.extractall(tmp_path / "venv")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "venv"))
    found = Device(tmp_path)
    found.turn_until(lambda: found.runs == "v0", "the client of the card")
    yield found
    found.watch.kill()


def test_a_client_that_is_killed_is_started_again(device: Device) -> None:
    first = read_beat(device.heartbeat)
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    device.turn_until(
        lambda: device.runs == "v0" and (beat := read_beat(device.heartbeat)) is not None and beat.pid != first.pid, "another"
    )


def test_what_a_client_has_started_ends_with_it(device: Device, tmp_path: Path) -> None:
    helper = "import subprocess\npid = subprocess.Popen(['sleep', '600']).pid\n"
    helper += "from pathlib import Path\nPath(os.environ['CUTLAYER_HEARTBEAT'] + '.helper').write_text(str(pid))\n"
    device.install(1, helper + SOUND)
    device.turn_until(lambda: device.runs == "v1", "the client")
    pid = int((tmp_path / "heartbeat.json.helper").read_text())
    device.watch.kill()
    status = Path(f"/proc/{pid}/stat")
    until(lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z" or None, "its end")


def test_who_only_looks_goes_before_the_client(device: Device, tmp_path: Path) -> None:
    """Where memory runs out; as the system has it."""
    folder = tmp_path / "looked"
    code = "import pathlib, sys, time\ntime.sleep(0.5)\nsys.exit('score ' + pathlib.Path('/proc/self/oom_score_adj').read_text())\n"
    (folder / "site/edge_client").mkdir(parents=True)
    (folder / "site/edge_client/__init__.py").write_text("")
    (folder / "site/edge_client/__main__.py").write_text(code)
    (folder / "run.toml").write_text("[slice]\nbase = '/srv'\n")
    with pytest.raises(BundleError, match="score 800"):
        list(map(time.sleep, check_release(Launch(version=1, folder=folder), name="pi-1")))
    beat = read_beat(device.heartbeat)
    assert beat is not None
    assert Path(f"/proc/{beat.pid}/oom_score_adj").read_text().strip() == "500"


def test_a_release_that_lives_is_kept(device: Device) -> None:
    device.install(1, SOUND)
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")
    assert (device.runs, device.updates.books.current, device.updates.books.trial) == ("v1", 1, False)
    device.install(2, SOUND)
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")
    device.install(3, SOUND)
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")
    assert sorted(path.name for path in (device.heartbeat.parent / "releases").iterdir() if path.is_dir()) == ["0", "2", "3"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('no'); sys.exit('out of luck')", "out of luck"),
        ("say(linked=True); sys.exit(3)", "it ended with 3"),
        ("say(linked=True); os.kill(os.getpid(), signal.SIGSEGV)", "it ended with -11"),
        ("live(linked=False)", "not healthy after 2 s"),
        ("time.sleep(1000)", "it hung: no word from it"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); live(linked=False)", "not healthy after 2 s"),
        ("sys.exit(0)", "it ended with 0"),  # without a word that the run is over
    ],
)
def test_a_release_that_fails_is_given_back_by_itself(device: Device, body: str, reason: str) -> None:
    device.watch.patience = replace(
        QUICK, **({"health_s": 2.0} if "not healthy" in reason else {"hung_s": 3.0} if "hung" in reason else {})
    )
    device.install(1, body)
    device.turn_until(lambda: device.updates.progress.stage == "returned", "returned")
    assert reason in device.updates.progress.reason
    assert "back to release 0" in device.updates.progress.reason
    device.turn_until(lambda: device.runs == "v0", "the client of the card")
    assert [line for line in device.said if reason in line]
    device.install(2, SOUND)  # and a better one is taken
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")


def test_time_without_the_line_does_not_count_against_a_release(device: Device) -> None:
    device.watch.patience = replace(QUICK, health_s=1.0)
    device.line_up = False
    device.install(1, "while number < 40: say(); time.sleep(0.05)\n" + SOUND)
    device.turn_until(lambda: device.updates.progress.stage != "trial", "an end")
    assert device.updates.progress.stage == "healthy"


@pytest.mark.parametrize("body", [SOUND, "say(linked=True, over=True); sys.exit(0)"])
def test_a_release_at_whose_broker_the_agent_is_not_let_in(device: Device, body: str) -> None:
    """The line to where it was before may be down by then."""
    device.reached, device.line_up = False, False
    device.watch.patience = replace(QUICK, health_s=1.0)
    device.install(1, body)
    device.turn_until(lambda: device.updates.progress.stage != "trial", "an end")
    assert device.updates.progress.stage == "returned"
    assert "the client reaches its broker, and the agent does not" in device.updates.progress.reason
    device.reached = True
    device.install(2, body)
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")


def test_a_client_that_computes_is_left_alone_for_long_and_not_for_ever(device: Device) -> None:
    """Nobody is on trial: what computes without a word is started again after ``stuck_s``."""
    spin = "once = os.environ['CUTLAYER_HEARTBEAT'] + '.once'\nend = time.monotonic() + 1\nwhile time.monotonic() < end: say(linked=True)\n"
    spin += "if not os.path.exists(once):\n    open(once, 'w').close()\n    while True: pass\n"
    device.install(1, spin + SOUND)
    device.turn_until(lambda: device.heartbeat.with_name("heartbeat.json.once").exists(), "spinning")
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")
    device.watch.patience = replace(QUICK, hung_s=6.0, stuck_s=8.0)
    device.turn_until(lambda: any("it hung" in line for line in device.said), "started again")
    said = next(line for line in device.said if "it hung" in line)
    assert float(said.rpartition("for ")[2].split()[0]) >= 8
    device.turn_until(lambda: device.runs == "v1", "another start")


def test_a_client_whose_run_is_over_stays_ended(device: Device) -> None:
    device.install(1, "say(linked=True, over=True, step=41); sys.exit(0)")
    device.turn_until(lambda: device.watch.state == "over", "over")
    assert device.updates.progress.stage == "healthy"
    assert device.watch.beat is not None
    assert device.watch.beat.step == 41
    for _ in range(5):
        device.watch.turn(line_up=True)
    assert device.watch.state == "over"
    device.install(2, SOUND)
    device.turn_until(lambda: device.runs == "v2", "the next one")


def test_launches_that_we_end_ourselves_do_not_count(device: Device) -> None:
    device.line_up = False
    device.install(1, "live(linked=False)")
    for _ in range(4):
        device.turn_until(lambda: device.watch.state == "running" and device.code == "v1", "the client on trial")
        assert device.updates.books.launches == 1
        pid = device.watch.beat.pid if device.watch.beat is not None else 0
        device.watch.end()
        device.turn_until(lambda pid=pid: device.watch.beat is None or device.watch.beat.pid != pid, "another client")
    assert (device.updates.books.current, device.updates.progress.stage) == (1, "trial")


def test_power_cuts_on_trial_count_as_launches(device: Device, tmp_path: Path) -> None:
    """Such a release may be what takes the power away."""

    def trial(found: Device, launches: int) -> None:
        found.line_up = False
        found.turn_until(lambda: found.watch.state == "running" and found.code == "v1", "the client on trial")
        assert found.updates.books.launches == launches
        found.watch.kill()

    device.install(1, "live(linked=False)")
    trial(device, 1)
    trial(Device(tmp_path), 2)
    trial(Device(tmp_path), 3)
    last = Device(tmp_path)
    last.turn_until(lambda: last.runs == "v0", "the client of the card")
    assert "was started 3 times and did not prove itself" in last.updates.progress.reason
    last.watch.kill()


def test_a_release_that_rots_on_the_disk(device: Device, tmp_path: Path) -> None:
    device.install(1, SOUND)
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")
    device.watch.kill()
    site = tmp_path / "releases/1/site/edge_client/__main__.py"
    site.write_bytes(site.read_bytes()[:-9] + b"# rotten\n")
    device.turn_until(lambda: device.runs == "v1", "what was unpacked is mended")
    wheel = tmp_path / "releases/1/wheels/c-1-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-9] + b"# rotten\n")
    device.watch.kill()
    device.turn_until(lambda: device.runs == "v0", "the release before")
    assert "is damaged; back to release 0" in device.updates.progress.reason


def test_a_disk_that_refuses_on_trial(device: Device, tmp_path: Path) -> None:
    """What cannot be written down is done all the same: a client runs, and a broken release is given back."""
    device.install(1, "say(linked=True); sys.exit('out of luck')")
    device.watch.patience = replace(QUICK, pause_s=0.5)
    (tmp_path / "releases/state.json.new").mkdir()  # where the next state would be written
    device.turn_until(lambda: device.updates.books.current == 0, "the release before")
    device.turn_until(lambda: device.runs == "v0", "the client of the card")
    assert any("not written down: cannot write" in line for line in device.said)


def test_a_device_whose_key_for_releases_is_gone_goes_on_with_what_it_has(device: Device, tmp_path: Path) -> None:
    device.install(1, SOUND)
    device.turn_until(lambda: device.updates.progress.stage == "healthy", "healthy")
    device.watch.kill()
    other = Device(tmp_path, has_key=False)
    other.turn_until(lambda: other.runs == "v1", "the client")
    assert (other.updates.books.current, other.updates.books.failed) == (1, 0)
    other.watch.kill()
