"""The broker that the command starts: it comes up, carries what it must, survives its clients, and ends with its parent."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.broker import BrokerEngine, BrokerProcess, run_broker, start_broker
from tests.links import mqtt_link
from wire.errors import StorageError, UsageError
from wire.limits import LIMITS
from wire.transport.base import Delivered, LinkUp, Received
from wire.transport.broker_config import BrokerConfig

ROOT = Path(__file__).parent.parent.parent
ENGINES: list[BrokerEngine] = ["mosquitto", "embedded"]


@pytest.fixture(params=ENGINES)
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    with start_broker(engine=request.param) as found:
        yield found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline_s, "the broker has outlived its parent"
        time.sleep(0.02)


@pytest.mark.parametrize("size", [65536, LIMITS.frame_bytes])
def test_it_carries_the_longest_payload_both_ways(broker: BrokerProcess, size: int) -> None:
    config = BrokerConfig(url=broker.url)
    payload = bytes(range(256)) * (size // 256)
    with mqtt_link(config, "up", client_id="a") as a, mqtt_link(config, "down", client_id="b") as b:
        for at in range(20):
            a.transport.publish("down", payload, at)
            b.transport.publish("up", payload, at)
        for link in (a, b):
            assert all(link.next(Received).payload == payload for _ in range(20))


def test_it_survives_a_client_that_is_killed(broker: BrokerProcess) -> None:
    """In the middle of a stream of publishes."""
    code = f"""
        import sys, time
        from wire.transport.broker_config import BrokerConfig
        from wire.transport.mqtt import MqttTransport
        transport = MqttTransport(BrokerConfig(url="{broker.url}"), client_id="victim")
        transport.open(("to/victim",), lambda event: None)
        while True:
            transport.publish("to/us", bytes(65536), 1)
            time.sleep(0.001)
    """
    with mqtt_link(BrokerConfig(url=broker.url), "to/us", client_id="us") as us:
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT) as victim:
                assert us.next(Received).payload == bytes(65536)
                us.transport.publish("to/victim", bytes(65536), 2)
                victim.kill()
        us.transport.publish("to/us", b"still here", 3)
        while us.next(Received).payload != b"still here":
            pass


def test_it_starts_again_on_the_same_port(broker: BrokerProcess) -> None:
    with mqtt_link(BrokerConfig(url=broker.url), "t") as link:
        port, pid = broker.port, broker.pid
        broker.restart()
        assert broker.port == port
        assert broker.pid != pid
        link.next(LinkUp)
        link.transport.publish("t", b"x", 1)
        assert link.next(Delivered).token == 1


def test_it_leaves_nothing_behind(broker: BrokerProcess) -> None:
    pid, folder = broker.pid, broker.folder
    assert broker.running
    broker.stop()
    broker.stop()
    assert gone(pid)
    assert not folder.exists()
    assert not broker.running
    with pytest.raises(RuntimeError):
        _ = broker.pid


def test_a_folder_that_was_given_is_kept(tmp_path: Path) -> None:
    with start_broker(engine="mosquitto", folder=tmp_path / "broker") as broker:
        assert broker.folder == tmp_path / "broker"
    assert (tmp_path / "broker" / "mosquitto.conf").is_file()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        start_broker(folder=tmp_path / "file" / "broker")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
@pytest.mark.parametrize("engine", ENGINES)
def test_it_ends_with_a_parent_that_is_killed(engine: str) -> None:
    code = f"from server.broker import start_broker; import time; print(start_broker(engine={engine!r}).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    wait_until_gone(pid)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_port_in_use(engine: BrokerEngine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="address already in use"):
            start_broker(port=taken.getsockname()[1], engine=engine)


@pytest.mark.parametrize("host", ["no-such-computer.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours(host: str) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on {host}"):
        start_broker(host=host)


def test_a_host_by_name() -> None:
    with start_broker(host="localhost", engine="embedded") as broker, mqtt_link(BrokerConfig(url=broker.url)):
        assert broker.host in ("127.0.0.1", "::1")


def without_mosquitto(code: str) -> subprocess.CompletedProcess[str]:
    """Run in a process that finds no mosquitto, whatever is installed here."""
    prelude = "import shutil, sys; shutil.which = lambda *_, **__: None\n"
    return subprocess.run([sys.executable, "-c", prelude + textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_without_mosquitto_the_embedded_broker_is_chosen() -> None:
    done = without_mosquitto("from server.broker import start_broker\nwith start_broker() as broker: print(broker.engine)")
    assert done.stdout == "embedded\n", done.stderr


def test_mosquitto_asked_for_and_not_installed() -> None:
    done = without_mosquitto("import cutlayer; sys.exit(cutlayer.main(['broker', '--engine', 'mosquitto']))")
    assert done.returncode == 2
    assert done.stderr.startswith("cutlayer: error: mosquitto is not installed; install it")
    assert done.stderr.count("\n") == 1


def test_no_broker_at_all() -> None:
    done = without_mosquitto("import cutlayer; sys.modules['iotcore'] = None; sys.exit(cutlayer.main(['broker']))")
    assert done.returncode == 2
    assert "no broker is installed; install mosquitto" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_says_how_to_connect_and_stops(engine: str, number: signal.Signals) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "cutlayer.py", "broker", "--port", str(port), "--engine", engine]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "Ctrl-C" not in lines[-1]:
            assert lines[-1], process.communicate()[1]
            lines.append(process.stdout.readline())
        said = "".join(lines)
        assert "password" not in said
        found = re.search(r'url = "(mqtt://\S+)"', said)
        assert found is not None
        with mqtt_link(BrokerConfig(url=found[1])):
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


def test_the_command_warns_where_others_can_connect() -> None:
    command = [sys.executable, "cutlayer.py", "broker", "--port", str(_free_port()), "--host", "0.0.0.0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            said += process.stdout.readline()
        process.send_signal(signal.SIGINT)
    assert "no password, no encryption" in said
    assert "0.0.0.0" not in "".join(re.findall(r"mqtt://\S+", said))
    assert "mqtt://127.0.0.1:" in said


def test_the_command_tells_when_the_broker_ends_by_itself() -> None:
    command = [sys.executable, "cutlayer.py", "broker", "--port", str(_free_port()), "--engine", "mosquitto"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "Ctrl-C" not in process.stdout.readline():
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "has ended by itself" in err


def test_the_command_gives_signals_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError):
            run_broker(port=taken.getsockname()[1])
    assert signal.getsignal(signal.SIGTERM) == before


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
