"""The whole of `make test-arm`, beyond test_smoke.py: every segment on two kinds of processor, a split training, and 32-bit refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from server.broker import start_broker
from tests.arm.boards import ArmField, prepared
from tests.arm.cases import CASES, write_case
from tests.arm.container import CPUS, Container, give_away
from tests.arm.test_golden import apart
from tests.e2e.field import Field
from tests.vectors.make_training import BOUND, SEGMENTS, after, export_start
from tools.arm_image import SUITE, ArmImage, register
from wire.errors import UsageError

pytestmark = [pytest.mark.arm_whole, pytest.mark.timeout(1500)]
Say = Callable[[str], None]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    for name in CASES:
        write_case(name, folder)
    return folder


@pytest.mark.parametrize("cpu", CPUS)
def test_every_segment_trains_as_in_torch(cpu: str, cases: Path, container: Container, say: Say) -> None:
    """An illegal instruction ends the process; a wrong one ends the comparison."""
    _, *found = container.replay(cases, "parity", *(f"/data/{name}" for name in CASES), cpu=cpu)
    for each in found:
        say(f"{cpu} {each['case']}: {each['compared']} tensors, worst error {each['worst']:.3f} of what is allowed ({each['where']})")
    assert [each["case"] for each in found] == list(CASES)
    assert [each for each in found if not each["worst"] <= 1] == []


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("name", SEGMENTS)
def test_twenty_steps_come_to_the_golden_weights(name: str, cpu: str, container: Container, tmp_path: Path, say: Say) -> None:
    export_start(name, tmp_path)
    container.replay(tmp_path, "train", f"/data/{name}", "/data/after.safetensors", cpu=cpu)
    found = apart(load_file(tmp_path / "after.safetensors"), after(name))
    say(f"{cpu} {name}: after 20 SGD steps at most {found:.1e} from x86-64's (allowed {BOUND:.0e})")
    assert found <= BOUND


# ------------------------------------------------------------ a split training


def _trained(parties: Field) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """The server's test metrics at the end, and every party's result."""
    try:
        parties.start()
        parties.finish(timeout_s=900)
    finally:
        parties.close()
    results = {name: json.loads((parties.run.state_of(name) / "result.json").read_text()) for name in parties.names}
    metrics: dict[str, float] = results[parties.run.server.name]["metrics"]["test"]
    return metrics, results


def test_a_split_training_reaches_the_accuracy_of_one_without_arm(container: Container, tmp_path: Path, say: Say) -> None:
    path = prepared(tmp_path / "arm")
    shutil.copytree(path.parent, tmp_path / "x86")
    give_away(path.parent)
    with start_broker(engine="mosquitto") as broker:
        wanted, _ = _trained(Field(tmp_path / "x86" / "run.toml", broker.url))
        parties = ArmField(path, broker.url)
        found, results = _trained(parties)
    said = {event["party"] for event in parties.seen}
    assert said == set(parties.names)
    steps = len(parties.ledger(parties.run.server.name))
    say(f"split training on digits through mosquitto, 12 epochs, {steps} steps, server on x86-64: accuracy {found['accuracy']:.4f} "
        f"with two aarch64 clients ({' and '.join(CPUS)}), {wanted['accuracy']:.4f} with two x86-64 clients")  # fmt: skip
    assert wanted["accuracy"] > 0.93, "the run is no test"
    assert found["accuracy"] == pytest.approx(wanted["accuracy"], abs=0.01)
    assert [results[client.name]["modules_forbidden"] for client in parties.run.clients] == [[], []]
    parties.check_ledgers(len(parties.ledger("board-1")))


# ------------------------------------------------------------ 32-bit


def test_a_32_bit_base_is_refused_by_name(tmp_path: Path, say: Say) -> None:
    """Debian's armhf with a Python, unpacked and not set up: enough to be asked what it is."""
    register()
    command = ["debootstrap", "--foreign", "--arch=armhf", "--variant=minbase", "--include=python3-minimal", SUITE, str(tmp_path / "root")]
    subprocess.run(command, check=True, capture_output=True)
    for archive in (tmp_path / "root/var/cache/apt/archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", archive, tmp_path / "root"], check=True)
    image = ArmImage(cache=tmp_path / "cache", arch="arm")
    image.import_root("localhost/armhf", tmp_path / "root")
    with pytest.raises(
        UsageError, match="this base image is 32-bit, and there is no onnxruntime for 32-bit ARM; use a 64-bit system"
    ) as found:
        image.build(base="localhost/armhf")
    say(f"32-bit base (armhf): {found.value}")
