"""`cutlayer deploy` and `cutlayer devices` with the agent of a real device, whose client trains meanwhile: both ends are ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.field import REPOSITORY
from tests.fleet.boards import World, code_wheel, world
from tests.fleet.fleets import until

EPOCHS = 40


def cutlayer(found: World, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cutlayer", *words, "--fleet", str(found.fleet.folder)]
    return subprocess.run(
        command, cwd=found.folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=timeout_s
    )


def deploy(found: World, wheel: Path) -> tuple[int, dict[str, Any], str]:
    """The exit code, what it found of ``c0``, and its error."""
    done = cutlayer(
        found,
        *("deploy", str(found.field.run.bundles), "--run", str(found.field.path), "--to", "c0", "--code", str(wheel)),
        *("--home", str(found.board.home), "--keys", str(found.folder / "c0"), "--json"),
    )
    assert done.stdout, done.stderr
    (device,) = json.loads(done.stdout.splitlines()[-1])["devices"]
    return done.returncode, device, done.stderr


def shown(found: World) -> dict[str, Any]:
    done = cutlayer(found, "devices", "c0", "--json")
    assert done.returncode == 0, done.stderr
    (device,) = json.loads(done.stdout)["devices"]
    return dict(device)


def test_new_code_is_taken_and_code_that_fails_is_given_back(tmp_path: Path) -> None:
    good = code_wheel(tmp_path / "cutlayer-9.8.7-py3-none-any.whl", version="9.8.7")
    broken = code_wheel(
        tmp_path / "cutlayer-9.9.9-py3-none-any.whl",
        version="9.9.9",
        members={"edge_client/__main__.py": b"import sys\nif '--check' not in sys.argv:\n    sys.exit('no such luck')\n"},
    )
    with world(tmp_path, epochs=EPOCHS) as found:
        with found.fleet.registry() as registry:
            registry.add("c0", token_digest=b"used", expires_s=0.0)
        assert cutlayer(found, "devices", "c0", "--broker", found.field.url).returncode == 0, "which makes the key for releases"
        (found.board.home / "deploy.pub").write_bytes(found.fleet.deploy_pub.read_bytes())
        found.board.start()
        found.field.start("server", "c1")
        found.field.await_step(8)

        code, device, _ = deploy(found, good)
        assert (code, device["phase"], device["have_bytes"]) == (0, "healthy", device["of_bytes"])
        facts = shown(found)
        assert (facts["online"], facts["release"], facts["code"], facts["stage"]) == (True, 1, "9.8.7", "healthy")
        until(lambda: True if shown(found)["step"] >= 0 else None, "a step, which the client says every few seconds")

        code, device, said = deploy(found, broken)
        assert code != 0
        assert device["phase"] == "returned"
        assert "no such luck" in device["reason"]
        assert "Traceback" not in said
        until(lambda: "the client of release 1 is started" in found.board.log.rpartition("release 2")[2] or None, "the old client again")

        code, device, _ = deploy(found, good)
        assert (code, device["phase"]) == (0, "healthy"), "the contents of release 1 in a new release"
        found.field.finish()
        assert found.board.stop() == 0
