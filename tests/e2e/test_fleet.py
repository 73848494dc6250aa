"""A fleet by the commands that its operator types: authority, tokens, enrolment, a secured broker, and a run to its end over it.

Then the same run with somebody at the broker who sends every frame again, at once and later: it must end with the same weights.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import tomllib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet.state import Fleet
from tests.brokers import free_port
from tests.e2e.field import REPOSITORY, Field, small_run
from tests.fleet.fleets import secured

PARTIES = ("server", "c0", "c1")
STEPS_A_LANE = 2 * 6
_LATER = 25  # messages


class FleetField(Field):
    """Each party has its own run file, which names its own identity."""

    def command(self, name: str) -> list[str]:
        return [word if word != str(self.path) else str(self.path.with_name(f"{name}.toml")) for word in super().command(name)]


def cutlayer(*words: str | Path) -> str:
    command = [sys.executable, "-m", "cutlayer", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def authority(fleet: Path) -> Iterator[str]:
    """``cutlayer ca serve`` as a process; its address."""
    command = [sys.executable, "-m", "cutlayer", "ca", "serve", "--fleet", str(fleet), "--host", "127.0.0.1", "--port", str(free_port())]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert "https://" in said
        yield f"https://127.0.0.1:{said.split()[3].rpartition(':')[2]}"
    finally:
        process.terminate()
        assert process.wait(timeout=10) == 0
        process.stdout.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet whose parties, and ``tap``, have enrolled: identities by name, and the authority in ``fleet``."""
    home = tmp_path_factory.mktemp("home")
    cutlayer("ca", "init", "--fleet", home / "fleet")
    with authority(home / "fleet") as url:
        for name in (*PARTIES, "tap"):
            cutlayer("device", "add", name, "--fleet", home / "fleet", "--out", home / f"{name}.token")
            words = (
                "--name",
                name,
                "--url",
                url,
                "--ca",
                home / "fleet/ca/ca.pem",
                "--token",
                home / f"{name}.token",
                "--out",
                home / name,
            )
            command = [sys.executable, "-m", "edge_client.enroll", *map(str, words)]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            assert not (home / f"{name}.token").exists()
    assert cutlayer("device", "list", "--fleet", home / "fleet").count("enrolled") == 4
    return home


def trained(home: Path, folder: Path, *, tapped: bool) -> tuple[FleetField, int]:
    """The run, ended; and how many frames somebody has sent again."""
    port = free_port()
    url = f"mqtts://127.0.0.1:{port}"
    path = small_run(folder, samples=96, broker={"url": url})
    for name in PARTIES:
        keys = {"ca": str(home / name / "ca.pem"), "cert": str(home / name / "cert.pem"), "key": str(home / name / "key.pem")}
        table = tomllib.loads(path.read_text()) | {"broker": {"url": url, **keys}}
        path.with_name(f"{name}.toml").write_text(tomli_w.dumps(table))
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(
            secured(Fleet(folder=home / "fleet"), folder / "broker", run_file=path, port=port, insider="tap" if tapped else "")
        )
        tap = stack.enter_context(Tap(home, port)) if tapped else None
        run = FleetField(path, url)
        stack.callback(run.close)
        run.start()
        run.finish(timeout_s=240.0)
        run.check_ledgers(STEPS_A_LANE)
        log = (broker.folder / "log").read_text()
        assert "Denied" not in log
        for name in PARTIES:
            assert f" as {name} (" in log
        return run, 0 if tap is None else tap.replayed


class Tap:
    """Sends each message that crosses the broker again: at once, and once more when others have passed."""

    def __init__(self, home: Path, port: int) -> None:
        self.replayed = 0
        self._later: deque[MQTTMessage] = deque()
        up = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.tls_set(ca_certs=str(home / "tap/ca.pem"), certfile=str(home / "tap/cert.pem"), keyfile=str(home / "tap/key.pem"))
        self._client.on_message = self._heard
        self._client.on_subscribe = lambda *_: up.set()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("cl/#", options=SubscribeOptions(qos=1, noLocal=True))
        self._client.loop_start()
        assert up.wait(10)

    def _heard(self, client: Client, data: object, message: MQTTMessage) -> None:
        self._again(message)
        self._later.append(message)
        if len(self._later) > _LATER:
            self._again(self._later.popleft())

    def _again(self, message: MQTTMessage) -> None:
        self._client.publish(message.topic, message.payload, qos=1)
        self.replayed += 1

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def undisturbed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> FleetField:
    return trained(home, tmp_path_factory.mktemp("undisturbed"), tapped=False)[0]


def test_a_run_of_enrolled_parties_trains_to_its_end(undisturbed: FleetField) -> None:
    losses = [loss for _, loss in undisturbed.losses()]
    assert len(losses) == 2 * STEPS_A_LANE
    assert sum(losses[-6:]) < sum(losses[:6])


def test_frames_that_are_sent_again_change_nothing(home: Path, undisturbed: FleetField, tmp_path: Path) -> None:
    run, replayed = trained(home, tmp_path, tapped=True)
    assert replayed > 4 * STEPS_A_LANE
    assert run.weights() == undisturbed.weights()
    assert run.losses() == undisturbed.losses()
