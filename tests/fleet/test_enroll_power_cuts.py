"""Power is cut before each deed of an enrolment: the device comes back, with the key that it had made and a certificate for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.enroll.identity import Identity
from tests.fleet.fleets import Served, served

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cut_enroll.py")
DEEDS = 36  # at least what there are; the last ones are not reached, and enrol without a cut


def enrolment(authority: Served, folder: Path, *, at: int) -> subprocess.CompletedProcess[str]:
    words = [str(at), "pi-1", authority.url, str(authority.fleet.ca_pem), str(folder / "token"), str(folder / "identity")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run([sys.executable, str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=120)


def test_a_device_that_loses_power_at_any_moment_enrols_at_the_next_start(tmp_path: Path) -> None:
    cut = 0
    with served(tmp_path / "fleet") as authority:
        for at in range(1, DEEDS + 1):
            folder = tmp_path / str(at)
            folder.mkdir()
            authority.token("pi-1", folder / "token")
            done = enrolment(authority, folder, at=at)
            if done.returncode == 0:
                break
            assert done.returncode == 9, done.stderr
            cut += 1
            check_again(authority, folder)
        else:
            pytest.fail("the enrolment has more deeds than are cut")
    assert cut >= 8


def check_again(authority: Served, folder: Path) -> None:
    """The next start."""
    identity = Identity(folder / "identity")
    key = identity.key_pem.read_bytes() if identity.key_pem.exists() else None
    certificate = identity.certificate()
    assert certificate is None or identity.agent_pem.exists()
    authority.enroll("pi-1", identity.folder, token=folder / "token")
    assert not (folder / "token").exists()
    assert key in (None, identity.key_pem.read_bytes())
    assert identity.key_pem.stat().st_mode & 0o777 == 0o600
    found = identity.certificate()
    assert found is not None
    assert found.public_key() == identity.key().public_key()
    assert certificate in (None, found)
    with authority.fleet.registry() as registry:
        assert found.serial_number not in {serial for serial, _ in registry.revoked_serials()}
