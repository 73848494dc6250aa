"""What a person gets for each mistake: one line that names the thing and the remedy, exit code 2, no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from server.broker import start_broker
from tests.brokers import mosquitto_password
from tests.e2e.field import REPOSITORY, field, small_run
from wire.runfile import load_run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("good"))


def changed(good: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    table = tomllib.loads(good.read_text())
    change(table)
    table["state_dir"] = str(folder / "state")
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def refused(command: list[str | Path], *said: str, code: int = 2) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], capture_output=True, text=True, timeout=120, cwd=REPOSITORY, check=False
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in lines[0], lines[0]


def client(path: Path, *more: str | Path) -> list[str | Path]:
    return ["edge_client", path, "--party", "c0", "--broker", "mqtt://127.0.0.1:9", *more]


def serve(path: Path) -> list[str | Path]:
    return ["cutlayer", "serve", path, "--broker", "mqtt://127.0.0.1:9"]


@pytest.mark.parametrize("command", [client, serve])
def test_an_unknown_key(command: Callable[[Path], list[str | Path]], good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: table["optimizer"].update(momentun=0.9))
    refused(command(path), "unknown key `optimizer.momentun`", "did you mean `momentum`?")


def test_a_cut_that_does_not_exist(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: table["model"].update(cut=["pool9"]))
    refused(serve(path), "no submodule `pool9`", "conv1", "pool1", "fc")


def test_weights_shared_across_the_cut(good: Path, tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "import torch\n"
        "class Tied(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first = torch.nn.Linear(8, 8)\n"
        "        self.act = torch.nn.ReLU()\n"
        "        self.second = torch.nn.Linear(8, 8)\n"
        "        self.second.weight = self.first.weight\n"
        "    def forward(self, x):\n"
        "        return self.second(self.act(self.first(x)))\n"
        "build = Tied\n"
    )
    path = changed(good, tmp_path, lambda table: table["model"].update(build="tied.py:build", cut=["act"], input_shape=[8]))
    refused(serve(path), "`first.weight` and `second.weight`", "shared across a cut")


def test_a_bundle_with_a_wrong_checksum(good: Path, tmp_path: Path) -> None:
    bundle = copied(good, tmp_path)
    data = bytearray((bundle / "backward.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "backward.onnx").write_bytes(data)
    refused(client(good, "--bundle", bundle), "backward.onnx", "wrong checksum", "export it again")


def test_a_bundle_of_a_newer_format(good: Path, tmp_path: Path) -> None:
    bundle = copied(good, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"format": 99, "surprise": True}))
    refused(client(good, "--bundle", bundle), "format 99", "update the client")


def test_a_bundle_for_another_optimizer(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: table["optimizer"].update(lr=0.5))
    refused(client(path, "--bundle", copied(good, tmp_path)), "was exported for", "lr=0.02", "lr=0.5", "export the bundle again")


def test_no_bundle(good: Path, tmp_path: Path) -> None:
    refused(client(good, "--bundle", tmp_path / "nowhere"), "is not there", "cutlayer export")


def test_shapes_that_do_not_match_the_data(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: table["data"].update(layout="NCL"))
    refused(client(path, "--bundle", copied(good, tmp_path)), "samples in", "[8, 8]", "[1, 8, 8]", "exported for")


def test_a_broker_that_refuses(good: Path, tmp_path: Path) -> None:
    with mosquitto_password() as broker:
        keys = {"username": "alice", "password_file": str(broker.folder / "wrong.txt"), "url": broker.config().url}
        path = changed(good, tmp_path, lambda table: table.update(broker=keys))
        bundle = copied(good, tmp_path)
        refused(["edge_client", path, "--party", "c0", "--bundle", bundle], "refused", "password")


def test_a_party_that_runs_already(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: None)
    first = subprocess.Popen(
        [sys.executable, "-m", *map(str, client(path, "--bundle", copied(good, tmp_path), "--log", "json"))],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    try:
        assert first.stdout is not None
        assert json.loads(first.stdout.readline())["event"] == "link"  # it is up and tries to connect
        refused(client(path, "--bundle", copied(good, tmp_path)), "another process uses", "stop that process")
    finally:
        first.kill()
        first.wait()
        if first.stdout is not None:
            first.stdout.close()


def test_a_run_of_other_settings_in_the_same_folder(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: None)
    folder = load_run(path).state_of("c0")
    folder.mkdir(parents=True)
    (folder / "party.json").write_text(json.dumps({"digest": "another", "epoch": 3, "boot": 1, "salt": 1, "finished": False}))
    refused(client(path, "--bundle", copied(good, tmp_path)), "holds the state of a run with other settings", "another `name`")


def test_a_full_disk(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: None)
    state = load_run(path).state_of("c0")
    state.mkdir(parents=True)
    words = " ".join(map(str, [sys.executable, "-m", *client(path, "--bundle", copied(good, tmp_path))]))
    script = f"mount -t tmpfs -o size=16k none {state} && exec {words}"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "disk is full" in done.stderr or "full" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_different_run_files_at_the_two_ends(good: Path, tmp_path: Path) -> None:
    other = changed(good, tmp_path, lambda table: table.update(seed=9))
    with start_broker() as broker, field(good, broker) as run:
        run.kill("c0")  # two of a name throw each other out
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "edge_client",
                str(other),
                "--party",
                "c0",
                "--broker",
                run.url,
                "--bundle",
                str(copied(good, tmp_path)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=REPOSITORY,
            check=False,
        )
        run.close()
    assert done.returncode == 2, done.stderr
    assert "digests differ" in done.stderr


@pytest.mark.parametrize("command", [client, serve])
def test_a_codec_or_a_cut_that_does_not_exist(command: Callable[[Path], list[str | Path]], good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: table["codec"].update(forward="zip:level=9"))
    refused(command(path), "codec: `forward`: there is no codec 'zip'", "int8")
    path = changed(good, tmp_path, lambda table: table["codec"].update(cuts={"bottom>head": {"forward": "int4"}}))
    refused(command(path), "`codec.cuts` names the cut 'bottom>head'; cuts are bottom>top")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            "from wire.codecs.affine import Int8; Int8.version = 2",
            "version 2 at the party on lane 0 and version 1 at `server`; update Cutlayer at",
        ),
        ("from wire.codecs import registry; registry._ALL = registry._ALL[:4]", "is unknown to the party on lane 0; update Cutlayer there"),
    ],
    ids=["newer", "unknown"],
)
def test_a_codec_on_which_the_ends_do_not_agree(other: str, said: str, good: Path, tmp_path: Path) -> None:
    """A client of another version of Cutlayer, with another run file: the codec is named, before the first step."""
    path = changed(good, tmp_path, lambda table: table.update(seed=9))
    with start_broker() as broker, field(good, broker) as run:
        run.kill("c0")
        words = [str(path), "--party", "c0", "--broker", run.url, "--bundle", str(copied(good, tmp_path))]
        code = f"import sys; {other}; from edge_client.__main__ import main; sys.exit(main({words!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
        run.close()
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "codec `int8`" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_server_of_another_version_of_the_protocol(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, lambda table: None)
    with start_broker() as broker:
        words = ["serve", str(path), "--broker", broker.url]
        code = f"import wire.frames; wire.frames.VERSION = 4; import cutlayer; cutlayer.main({words!r})"
        server = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            words = ["edge_client", path, "--party", "c0", "--broker", broker.url, "--bundle", copied(good, tmp_path)]
            refused(words, "a frame of protocol version 4; this party speaks 3; give both ends the same Cutlayer version")
        finally:
            server.kill()
            server.wait()


def copied(good: Path, folder: Path) -> Path:
    target = folder / "bundle"
    if not target.exists():
        shutil.copytree(load_run(good).bundles / "bottom", target)
    return target
