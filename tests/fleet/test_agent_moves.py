"""A release that moves a device to another broker, over two real ones: the client is small, the agent is the real one, in a thread."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from pathlib import Path

import pytest
import tomli_w

from edge_client.agent.agent import Agent
from edge_client.agent.watch import Patience
from fleet.state import Fleet
from tests.brokers import free_port
from tests.fleet.boards import board, enrolled
from tests.fleet.fleets import secured
from tests.fleet.operator_peer import Operator
from tests.fleet.test_watch import SOUND, pack


def test_a_device_moves_to_another_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client is connected at once, as it says; the agent only when that broker is there. Both operators hear how it went."""
    fleet = Fleet(folder=tmp_path / "fleet")
    fleet.create("test fleet")
    for name in ("c0", "operator"):
        enrolled(fleet, name, tmp_path / name, agent=name == "c0")
    with zipfile.ZipFile(io.BytesIO(pack("v0", SOUND))) as wheel:
        wheel.extractall(tmp_path / "venv")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "venv"))
    ports = {place: free_port() for place in ("old", "new")}

    def run_file(place: str) -> bytes:
        keys = {key: str(tmp_path / f"c0/{key}.pem") for key in ("ca", "cert", "key")}
        broker = {"url": f"mqtts://127.0.0.1:{ports[place]}"} | keys
        return tomli_w.dumps({"slice": {"base": str(tmp_path)}, "broker": broker}).encode()

    for place in ports:
        (tmp_path / place).mkdir()
    mine = board("c0", tmp_path / "home", files={"run.toml": run_file("old")})
    agent = Agent(mine.home, name="c0", run_dir=tmp_path / "run", patience=Patience(steady_s=0.2, health_s=60.0))
    thread = threading.Thread(target=agent.run)
    with secured(fleet, tmp_path / "old/broker", port=ports["old"]), Operator(identity=tmp_path / "operator", port=ports["old"]) as before:
        thread.start()
        try:
            before.state(lambda state: state["client"] == "running", "the client of the card")
            release = mine.release(1, {"run.toml": run_file("new")})
            before.offer(release, "c0")
            before.state(lambda state: state["release"] == 1 and state["client"] == "running", "the client on trial")
            time.sleep(1.0)
            assert before.ask("c0")["stage"] == "trial"
            with (
                secured(fleet, tmp_path / "new/broker", port=ports["new"]),
                Operator(identity=tmp_path / "operator", port=ports["new"]) as after,
            ):
                assert before.stage(1, "healthy")["release"] == 1
                assert after.stage(1, "healthy")["release"] == 1
                assert after.ask("c0", token=8)["stage"] == "healthy"
        finally:
            agent.stop()
            thread.join(30)
    assert not thread.is_alive()
