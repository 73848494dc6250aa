"""The client's image for ARM, built from this work tree and really executed: what `make test` shows of it. The whole: test_whole.py."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.arm import lowbit
from tests.arm.boards import ArmField, prepared
from tests.arm.cases import SMOKE, write_case
from tests.arm.container import UID, Container, give_away
from tests.arm.test_golden import apart
from tests.vectors.make_training import BOUND, SEGMENTS, after, export_start
from tools.arm_image import ROOT

pytestmark = pytest.mark.timeout(1500)  # the first fixture bootstraps a Debian and builds the image
LIMIT_BYTES = 260_000_000
SHOW = """
import json, os, platform, sys, edge_client

def writes(path):
    try:
        open(path, "w").close()
    except OSError:
        return False
    return True

tops = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "onnx"})
folders = ["/", "/opt/cutlayer", "/tmp", "/usr", "/keys", "/data"]
print(json.dumps({"machine": platform.machine(), "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "heavy": tops,
                  "writable": [each for each in folders if writes(each + "/probe")], "key": open("/keys/key").read(),
                  "from": edge_client.__file__, "version": sys.version_info[:2], "data": sorted(os.listdir("/data"))}))
"""


def test_it_runs_as_somebody_in_a_root_that_is_read_only(container: Container, tmp_path: Path) -> None:
    data, keys = tmp_path / "data", tmp_path / "keys"
    data.mkdir()
    keys.mkdir()
    (keys / "key").write_text("secret")
    (data / "json.py").write_text("raise SystemExit('what lies in /data was run')")
    give_away(tmp_path)
    done = container.run("-c", SHOW, data=data, keys=keys, entrypoint=["python3"])
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["machine"], said["uid"], said["gid"]) == ("aarch64", UID, UID)
    assert set(said["groups"]) <= {UID}
    assert said["writable"] == ["/data"]
    assert said["key"] == "secret"
    assert said["heavy"] == []
    assert said["from"] == "/opt/cutlayer/edge_client/__init__.py"
    assert sorted(os.listdir(data)) == ["json.py", "probe"], "onnxruntime keeps a device id and events where nobody forbids it"


def test_the_image_says_what_an_engine_must_know(container: Container) -> None:
    config = container.image.config()
    assert config["User"] == "cutlayer"
    assert set(config["Volumes"]) == {"/data", "/keys"}
    assert config["Entrypoint"] == ["python3", "-m", "edge_client"]
    assert config["StopSignal"] == "SIGTERM"


def test_it_is_healthy_while_its_state_can_be_written(container: Container, tmp_path: Path) -> None:
    kind, *command = container.image.config()["Healthcheck"]["Test"]
    assert kind == "CMD"
    tmp_path.chmod(0o755)
    assert container.run(data=tmp_path, entrypoint=command).returncode == 1, "the folder is root's"
    give_away(tmp_path)
    assert container.run(data=tmp_path, entrypoint=command).returncode == 0


def test_the_client_answers_for_a_mistake_in_one_line(container: Container, tmp_path: Path) -> None:
    give_away(tmp_path)
    done = container.run("/data/run.toml", "--party", "c0", data=tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith("cutlayer:")]
    assert (done.returncode, len(said)) == (2, 1), done.stderr
    assert "/data/run.toml" in said[0]
    assert "Traceback" not in done.stderr


def test_the_client_starts_there_and_stops_when_it_is_told_to(container: Container, tmp_path: Path) -> None:
    """It has loaded its bundle and unpacked its data by the time that it looks for the broker."""
    path = prepared(tmp_path / "arm")
    give_away(path.parent)
    parties = ArmField(path, "mqtt://127.0.0.1:9")  # where nobody listens
    try:
        parties.start("board-1")
        assert parties.events.get(timeout=120)["event"] == "link"
        parties.processes["board-1"].terminate()
        parties.finish()
    finally:
        parties.close()
    assert parties.seen[-1]["event"] == "stopped"


def test_it_is_small_and_holds_neither_compiler_nor_torch(container: Container, say: Callable[[str], None]) -> None:
    root = container.image.root()
    programs = {path.name for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin") for path in (root / folder).glob("*")}
    assert "python3" in programs
    assert {name for name in programs if re.fullmatch(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|ld|as|make)(-[0-9.]+)?", name)} == set()
    packages = {path.name for path in (root / "opt/cutlayer").iterdir()}
    assert packages & {"torch", "onnx", "pip", "setuptools", "server", "export", "simulation", "tests"} == set()
    foreign = [path for path in (root / "opt/cutlayer").rglob("*.so*") if path.read_bytes()[:20][18:20] != b"\xb7\x00"]
    assert foreign == [], "not for aarch64"
    size_bytes = container.image.size_bytes()
    assert size_bytes <= LIMIT_BYTES
    own_bytes = sum(path.stat().st_size for path in (root / "opt/cutlayer").rglob("*") if path.is_file())
    say(f"image: {size_bytes / 1e6:.0f} MB unpacked (allowed {LIMIT_BYTES / 1e6:.0f}), {own_bytes / 1e6:.0f} of them not the base's")


def test_it_holds_the_locked_versions(container: Container) -> None:
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements-device.txt").read_text(), re.MULTILINE))
    found = importlib.metadata.distributions(path=[str(container.image.root() / "opt/cutlayer")])
    assert {each.name.lower().replace("_", "-"): each.version for each in found} == locked


def test_segments_train_there_as_in_torch(container: Container, tmp_path: Path, say: Callable[[str], None]) -> None:
    for name in SMOKE:
        write_case(name, tmp_path)
    _, *found = container.replay(tmp_path, "parity", *(f"/data/{name}" for name in SMOKE), cpu="cortex-a72")
    for each in found:
        say(f"cortex-a72 {each['case']}: {each['compared']} tensors, worst error {each['worst']:.3f} of what is allowed ({each['where']})")
    assert [each["case"] for each in found] == list(SMOKE)
    assert [each for each in found if not each["worst"] <= 1] == []


@pytest.mark.parametrize("name", SEGMENTS)
def test_twenty_steps_come_to_the_golden_weights(name: str, container: Container, tmp_path: Path, say: Callable[[str], None]) -> None:
    export_start(name, tmp_path)
    container.replay(tmp_path, "train", f"/data/{name}", "/data/after.safetensors")
    found = apart(load_file(tmp_path / "after.safetensors"), after(name))
    say(f"{name}: after 20 SGD steps the tensor that differs most from x86-64's is off by {found:.1e} of its norm (allowed {BOUND:.0e})")
    assert found <= BOUND


def test_low_bit_messages_mean_the_same_on_both_machines(container: Container, tmp_path: Path) -> None:
    """The entropy coder's contexts are arithmetic on floats: whoever encoded, both must decode the same symbols."""
    script = tmp_path / "lowbit.py"
    script.write_text((ROOT / "tests/arm/lowbit.py").read_text())
    lowbit.encode(tmp_path / "here")
    give_away(tmp_path)
    made = container.run("/data/lowbit.py", "encode", "/data/there", data=tmp_path, entrypoint=["python3"])
    assert made.returncode == 0, made.stderr
    for folder in ("here", "there"):
        done = container.run("/data/lowbit.py", "digest", f"/data/{folder}", data=tmp_path, entrypoint=["python3"])
        assert done.stdout.strip() == lowbit.digest(tmp_path / folder), done.stderr


def test_mistakes_are_answered_in_one_line(container: Container, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "tools.arm_image", "--cache", str(tmp_path), "run", "--data"]
    for command, path, said in [
        ([*run, str(tmp_path)], os.environ["PATH"], "the image is not built yet: python3 -m tools.arm_image build"),
        ([*run, "/nowhere"], os.environ["PATH"], "/nowhere is not a folder"),
        ([*run, str(tmp_path)], "/nowhere", "apt-get install debootstrap buildah"),
    ]:
        done = subprocess.run(command, env={"PATH": path}, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert said in done.stderr
