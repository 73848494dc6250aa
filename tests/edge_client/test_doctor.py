"""`cutlayer doctor --device`: a board that is fit, and each way of not being fit, with real bundles, processes and brokers."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edge_client.bundle import read_bundle
from edge_client.doctor.child import run_probe
from edge_client.doctor.device import DeviceDoctor, Surroundings
from edge_client.doctor.finding import Finding, lines_of
from edge_client.doctor.probe import MATMUL
from edge_client.memory import needed_bytes, rooms
from export import SGD, Adam, export_segment
from tests.brokers import mosquitto, mosquitto_password, mosquitto_tls
from tests.links import mqtt_link
from wire.manifest import TensorSpec

ROOT = Path(__file__).parents[2]
ORDER = ["machine", "python", "packages", "run file", "bundle", "memory", "clock", "certificate", "broker", "access", "disk", "step"]
RUN = """
name = "fit"
epochs = 1
batch_size = 8
schedule = "independent"
state_dir = "{state}"
model = {{ build = "net.py:build", cut = ["0"], input_shape = [6] }}
optimizer = {{ kind = "sgd", lr = 0.1 }}
clients = [{{ name = "clinic-a", threads = 1 }}, {{ name = "clinic-b" }}]
data = {{ kind = "csv", path = "data.csv", labels = "label" }}
broker = {{ {broker} }}
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that RUN asks for."""
    folder = tmp_path_factory.mktemp("bundle") / "bottom"
    export_segment(nn.Linear(6, 4), (torch.randn(3, 6),), folder, optimizer=SGD(lr=0.1), name="bottom")
    return folder


@pytest.fixture
def bundle(good: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    shutil.copytree(good, tmp_path / "bottom")
    return tmp_path / "bottom"


def _run_file(folder: Path, *, broker: str = "url = 'mqtt://127.0.0.1:1'", state: str = "state") -> Path:
    (folder / "run.toml").write_text(RUN.format(broker=broker, state=state))
    return folder / "run.toml"


def _found(doctor: DeviceDoctor) -> dict[str, Finding]:
    """All findings; of a segment's, the last."""
    return {finding.check: finding for finding in doctor.findings()}


def _command(*words: str | Path, before: Path | None = None, cwd: Path = ROOT) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """`cutlayer doctor --device … --json` as a process: findings by check, and how it ended. ``before``: a folder that hides packages."""
    path = os.pathsep.join(str(folder) for folder in (before, ROOT) if folder is not None)
    done = subprocess.run(
        [sys.executable, "-m", "cutlayer", "doctor", "--device", "--json", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr
    return {finding["check"]: finding for finding in json.loads(last)["findings"]}, done


# ------------------------------------------------------------------ the whole


def test_a_board_that_is_fit(bundle: Path, tmp_path: Path) -> None:
    with mosquitto() as broker:
        run_file = _run_file(tmp_path, broker=f"url = '{broker.config().url}'")
        found, done = _command(run_file, "--party", "clinic-a", "--bundle", bundle, cwd=tmp_path)
    assert list(found) == ORDER
    assert {name for name, each in found.items() if each["status"] == "skipped"} == {"certificate", "access"}, "there is no certificate"
    assert {each["status"] for name, each in found.items() if name not in ("clock", "certificate", "access")} == {"ok"}
    assert found["clock"]["status"] in ("ok", "warning"), "not every computer that tests is in step with a time server"
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True
    step = found["step"]["values"]
    assert (step["batch"], step["segment"]) == (8, "bottom")
    assert 0 < step["step_s"] < 60
    assert step["steps"] >= 3
    assert 10 << 20 < step["peak_rss_bytes"] < found["memory"]["values"]["needed_bytes"]
    assert not (tmp_path / "state").exists(), "it looks, and leaves nothing"


def test_people_get_aligned_lines(bundle: Path) -> None:
    _, done = _command("--bundle", bundle, "--broker", "mqtt://127.0.0.1:1")
    rows = done.stdout.splitlines()[:-1]
    facts = [row for row in rows if not row.startswith(" ")]
    assert [row[:11].strip() for row in facts] == [name for name in ORDER if name != "run file"]
    assert {row[13:20].strip() for row in facts} <= {"ok", "warning", "failed", "skipped"}
    at = next(at for at, row in enumerate(rows) if row.startswith("broker"))
    assert "failed" in rows[at]
    assert "connection refused" in rows[at]
    assert rows[at + 1].lstrip().startswith("-> start the broker")


def test_what_failed_is_told_by_the_exit_code_and_one_line(bundle: Path) -> None:
    found, done = _command("--bundle", bundle, "--broker", "mqtt://127.0.0.1:1")
    assert found["broker"]["status"] == "failed"
    assert done.returncode == 1
    assert done.stderr == "cutlayer: error: 1 of 11 checks failed: broker; what to do stands below each\n"
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is False


def test_what_is_not_asked_for_is_skipped() -> None:
    found = _found(DeviceDoctor())
    assert {name for name, each in found.items() if each.status == "skipped"} == {
        "bundle",
        "memory",
        "certificate",
        "broker",
        "access",
        "disk",
        "step",
    }


def test_a_quoted_text_cannot_write_to_the_terminal() -> None:
    (line,) = lines_of(Finding(check="broker", status="failed", fact="a\x1b[2Jb\nc\u202e"))
    assert line == "broker       failed   a [2Jb c "


def test_the_doctor_itself_loads_no_package() -> None:
    """It must live to tell that one of them kills whoever imports it."""
    code = "import sys, edge_client.doctor; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [name for name in ("numpy", "onnxruntime", "paho", "safetensors", "cryptography") if f"'{name}'" in done.stdout]


def test_the_engine_is_there_for_whom_asks_for_it() -> None:
    """Although importing its room does not load it."""
    import edge_client
    from edge_client.engine import StockEngine, load_engine

    assert (edge_client.load_engine, edge_client.StockEngine) == (load_engine, StockEngine)
    with pytest.raises(AttributeError, match="no attribute 'load_motor'"):
        _ = edge_client.load_motor


# ------------------------------------------------------------------ machine and Python


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({}, "ok", "Linux aarch64, 64-bit, glibc 2.36"),
        ({"machine": "x86_64", "glibc": (2, 28)}, "ok", "x86_64"),
        ({"machine": "armv7l", "pointer_bits": 32}, "failed", "no onnxruntime wheel for 32-bit ARM"),
        ({"machine": "armv6l", "pointer_bits": 32}, "failed", "ARMv6"),
        ({"pointer_bits": 32}, "failed", "install the 64-bit edition"),  # of a 32-bit system on a 64-bit kernel
        ({"machine": "x86_64", "pointer_bits": 32}, "failed", "no onnxruntime wheel"),
        ({"machine": "riscv64"}, "failed", "no onnxruntime wheel"),
        ({"glibc": (2, 27)}, "failed", "glibc 2.28 or newer"),
        ({"glibc": None}, "failed", "musl"),
        ({"system": "Darwin", "machine": "arm64", "glibc": None}, "warning", "not tested"),
    ],
)
def test_machines(changes: Mapping[str, Any], status: str, said: str) -> None:
    from edge_client.doctor.machine import Machine, check_machine

    board = {"system": "Linux", "machine": "aarch64", "pointer_bits": 64, "glibc": (2, 36), "python": (3, 11, 2)}
    finding = check_machine(Machine(**{**board, **changes}))
    assert finding.status == status
    assert said in f"{finding.fact}; {finding.advice}"


def test_an_old_python_is_refused() -> None:
    from edge_client.doctor.machine import Machine, check_python

    board = {"system": "Linux", "machine": "aarch64", "pointer_bits": 64, "glibc": (2, 36)}
    assert check_python(Machine(**board, python=(3, 9, 2))).status == "failed"
    assert check_python(Machine(**board, python=(3, 11, 0))).status == "ok"
    assert Machine.this().python == sys.version_info[:3]


# ------------------------------------------------------------------ packages that do not run here

FAKES = {
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "import onnxruntime: died of SIGILL (illegal instruction)"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "import onnxruntime: died of SIGSEGV (segmentation fault)"),
    "gives up": (
        "import os; os.write(2, b'no cpuinfo here\\n'); os.abort()",
        "import onnxruntime: died of SIGABRT (aborted): no cpuinfo here",
    ),
    "lacks a library": ("raise ImportError('libgomp.so.1: cannot open')", "failed: ImportError: libgomp.so.1: cannot open"),
    "hangs": ("import time; time.sleep(600)", "import onnxruntime: did not end within 5 s"),
    "miscalculates": (
        "import numpy\nclass InferenceSession:\n    def __init__(self, *_, **__): pass\n"
        "    def run(self, *_): return [numpy.zeros((64, 64))]",
        "its matrix product differs from numpy's",
    ),
}


@pytest.mark.parametrize("what", FAKES)
def test_an_onnxruntime_that_does_not_run(what: str, bundle: Path, tmp_path: Path) -> None:
    code, said = FAKES[what]
    (tmp_path / "fake" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "fake" / "onnxruntime" / "__init__.py").write_text(code)
    found, done = _command("--bundle", bundle, "--timeout-s", "5" if what == "hangs" else "60", before=tmp_path / "fake")
    assert found["packages"]["status"] == "failed"
    assert said in found["packages"]["fact"]
    assert found["packages"]["advice"]
    assert found["bundle"]["status"] == "ok", "what does not need onnxruntime is looked at all the same"
    assert found["step"]["status"] == "skipped"
    assert done.returncode == 1
    if what == "killed":
        assert "instructions that the processor lacks" in found["packages"]["advice"]
        assert "pip install -U onnxruntime" in found["packages"]["advice"]


def test_a_numpy_that_kills_leaves_the_doctor_alive(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "fake" / "numpy").mkdir(parents=True)
    (tmp_path / "fake" / "numpy" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    found, done = _command(_run_file(tmp_path), "--bundle", bundle, before=tmp_path / "fake")
    assert list(found) == ORDER
    assert "import numpy: died of SIGILL" in found["packages"]["fact"]
    assert [name for name in ORDER if found[name]["status"] == "skipped"] == [
        "run file",
        "bundle",
        "memory",
        "certificate",
        "broker",
        "access",
        "disk",
        "step",
    ]
    assert done.returncode == 1


def test_a_kernel_that_the_processor_lacks_is_found_by_the_step(bundle: Path, tmp_path: Path) -> None:
    """This onnxruntime is the real one, and loads and runs a small model; but it dies where a step runs its forward."""
    (tmp_path / "fake" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "fake" / "onnxruntime" / "__init__.py").write_text(
        "import os, signal, sys\n"
        "sys.path.remove(next(path for path in sys.path if __file__.startswith(path + os.sep) and path.endswith('fake')))\n"
        "del sys.modules['onnxruntime']\n"
        "import onnxruntime\n"
        "run = onnxruntime.InferenceSession.run\n"
        "def dying(self, names, *rest):\n"
        "    return os.kill(os.getpid(), signal.SIGILL) if 'out.y' in (names or ()) else run(self, names, *rest)\n"
        "onnxruntime.InferenceSession.run = dying\n"
    )
    found, done = _command("--bundle", bundle, before=tmp_path / "fake")
    assert found["packages"]["status"] == "ok"
    assert found["step"]["status"] == "failed"
    assert "segment bottom, forward: died of SIGILL" in found["step"]["fact"]
    assert "onnxruntime" in found["step"]["advice"]
    assert done.returncode == 1


def test_the_probes_model_is_what_its_comment_says() -> None:
    square = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g", square[:1], square[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert model.SerializeToString(deterministic=True) == MATMUL
    onnx.checker.check_model(onnx.load_from_string(MATMUL))


# ------------------------------------------------------------------ bundle and run file


def test_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    data = bytearray((bundle / "backward.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "backward.onnx").write_bytes(data)
    found, done = _command("--bundle", bundle)
    assert found["bundle"]["status"] == "failed"
    assert "backward.onnx has a wrong checksum" in found["bundle"]["fact"]
    assert "copy the bundle again" in found["bundle"]["advice"]
    assert found["step"]["status"] == "skipped"
    assert done.returncode == 1


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    assert "manifest.json is not there" in _found(DeviceDoctor(bundle=tmp_path / "none"))["bundle"].fact
    of_the_run = _found(DeviceDoctor(run_file=_run_file(tmp_path)))["bundle"]
    assert of_the_run.status == "failed"
    assert str(tmp_path / "state" / "fit" / "bundles") in of_the_run.fact


def test_a_bundle_of_another_optimizer(tmp_path: Path) -> None:
    export_segment(nn.Linear(6, 4), (torch.randn(3, 6),), tmp_path / "bottom", optimizer=Adam(lr=0.1), name="bottom")
    finding = _found(DeviceDoctor(run_file=_run_file(tmp_path), bundle=tmp_path))["bundle"]
    assert finding.status == "failed"
    assert "was exported for Adam" in finding.fact


def test_a_folder_of_bundles_is_looked_at_whole(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "bottom")
    export_segment(
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)),
        (torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)),
        tmp_path / "head",
        optimizer=SGD(lr=0.1),
        loss="cross_entropy",
        name="head",
        input_gradients=[True, False],
    )
    findings = list(DeviceDoctor(bundle=tmp_path, batch=1).findings())
    steps = {finding.values["segment"]: finding.values["batch"] for finding in findings if finding.check == "step"}
    assert steps == {"bottom": 1, "head": 2}, "BatchNorm trains on two samples or more"
    assert all(finding.status == "ok" for finding in findings if finding.check == "step")


@pytest.mark.parametrize(
    ("text", "party", "said"),
    [("name =", None, "is not valid TOML"), ("nmae = 1", None, "unknown key `nmae`"), (None, "clinic-x", "no client of")],
)
def test_a_run_file_with_a_fault(text: str | None, party: str | None, said: str, tmp_path: Path) -> None:
    run_file = _run_file(tmp_path)
    if text is not None:
        run_file.write_text(text)
    finding = _found(DeviceDoctor(run_file=run_file, party=party))["run file"]
    assert finding.status == "failed"
    assert said in finding.fact
    assert finding.advice


# ------------------------------------------------------------------ memory


def _computer(root: Path, files: Mapping[str, str | int], *, free_mb: int = 4000) -> Path:
    """A folder with /proc and /sys as a kernel shows them."""
    meminfo = f"MemTotal:  8000000 kB\nMemFree:  100 kB\nMemAvailable: {free_mb << 10} kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


V1, V2 = "5:cpu:/a\n4:memory:/docker/abc\n0::/", "0::/system.slice/client.service"
MB = 1 << 20
LIMITS: dict[str, tuple[dict[str, str | int], int, str]] = {
    "none": ({}, 4000, "MemAvailable"),
    "v2": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 64 * MB, "sys/fs/cgroup/memory.current": 14 * MB}, 50, "memory.max"),
    "v2, without a limit": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, 4000, "MemAvailable"),
    "v2, above us": (
        {
            "proc/self/cgroup": V2,
            "sys/fs/cgroup/system.slice/client.service/memory.max": "max",
            "sys/fs/cgroup/system.slice/memory.max": 100 * MB,
            "sys/fs/cgroup/system.slice/memory.current": 90 * MB,
            "sys/fs/cgroup/system.slice/memory.stat": f"anon 5\ninactive_file {30 * MB}\nactive_file 7",
        },
        40,
        "system.slice/memory.max",
    ),
    "v1": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": 80 * MB,
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": 30 * MB,
            "sys/fs/cgroup/memory/docker/abc/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MB}",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        },
        70,
        "memory.limit_in_bytes",
    ),
    "v1, seen from inside": (
        {"proc/self/cgroup": V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": 60 * MB, "sys/fs/cgroup/memory/memory.usage_in_bytes": 0},
        60,
        "memory.limit_in_bytes",
    ),
    "used up": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 5, "sys/fs/cgroup/memory.current": 9}, 0, "memory.max"),
    "seen from outside": ({"proc/self/cgroup": "0::/../../etc", "sys/fs/cgroup/memory.max": 64 * MB}, 64, "memory.max"),
}


@pytest.mark.parametrize("what", LIMITS)
def test_memory_is_what_the_tightest_limit_leaves(what: str, tmp_path: Path) -> None:

    files, free_mb, where = LIMITS[what]
    tightest = min(rooms(_computer(tmp_path, files)), key=lambda room: room.free_bytes)
    assert tightest.free_bytes >> 20 == free_mb
    assert where in tightest.where


def _memory(bundle: Path, root: Path) -> dict[str, Finding]:
    return _found(DeviceDoctor(bundle=bundle, surroundings=Surroundings(root=root)))


def test_too_little_memory_is_told_before_the_step_is_tried(bundle: Path, tmp_path: Path) -> None:
    found = _memory(bundle, _computer(tmp_path, LIMITS["v2"][0]))
    assert found["memory"].status == "failed"
    assert "50 MB free (limit in /sys/fs/cgroup/memory.max)" in found["memory"].fact
    assert "raise the limit" in found["memory"].advice
    assert found["step"].status == "skipped"


def test_memory_that_is_just_enough_is_a_warning(bundle: Path, tmp_path: Path) -> None:
    assert _memory(bundle, _computer(tmp_path, {}, free_mb=110))["memory"].status == "warning"


def test_what_a_bundle_needs_is_near_what_a_step_takes(tmp_path: Path) -> None:
    """A bundle whose weights and activations count beside the process itself."""
    net = nn.Sequential(nn.Linear(1000, 4000), nn.ReLU(), nn.Linear(4000, 1500), nn.ReLU())
    export_segment(net, (torch.randn(3, 1000),), tmp_path / "wide", optimizer=Adam(lr=0.1))
    need_bytes = needed_bytes([read_bundle(tmp_path / "wide").manifest], batch=512)
    taken_bytes = run_probe("step", str(tmp_path / "wide"), "512", "1", "1", timeout_s=100).told["peak_rss_bytes"]
    assert taken_bytes > 250 * MB
    assert 0.9 * taken_bytes < need_bytes < 1.5 * taken_bytes


def test_sizes_at_a_batch(tmp_path: Path) -> None:
    """Against what the graph really gives."""
    assert TensorSpec(name="r", dtype="int64", shape=("4*batch+-1", 3, "batch+2", "batch")).shape_at(5) == (19, 3, 7, 5)
    export_segment(nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)), (torch.randn(3, 2, 8, 8),), tmp_path / "b", optimizer=SGD(lr=0.1))
    bundle = read_bundle(tmp_path / "b")
    feeds = {f"p.{name}": value for name, value in bundle.tensors.items()} | {
        f"in.{bundle.manifest.inputs[0].name}": np.zeros((7, 2, 8, 8), np.float32)
    }
    names = bundle.manifest.graphs["forward"].outputs
    given = dict(zip(names, ort.InferenceSession(bundle.graph("forward")).run(None, feeds), strict=True))
    specs = {spec.name: spec for spec in bundle.manifest.residuals} | {f"out.{spec.name}": spec for spec in bundle.manifest.outputs}
    made = set(specs) & set(given)  # an input that backward reads again is a residual too
    assert len(made) > 1
    for name in made:
        assert (specs[name].shape_at(7), specs[name].bytes_at(7)) == (given[name].shape, given[name].nbytes)


# ------------------------------------------------------------------ clock


def _clock(bundle: Path, now: datetime.datetime, synchronised: bool | None = True) -> Finding:
    here = Surroundings(now_s=now.timestamp, synchronised=lambda: synchronised)
    return _found(DeviceDoctor(bundle=bundle, surroundings=here))["clock"]


def test_a_clock_in_the_past(bundle: Path) -> None:
    made = datetime.datetime(2031, 5, 1, tzinfo=datetime.UTC)
    os.utime(bundle / "manifest.json", (made.timestamp(), made.timestamp()))
    for now in (datetime.datetime(1970, 1, 1, 0, 3, tzinfo=datetime.UTC), made - datetime.timedelta(days=2)):
        finding = _clock(bundle, now)
        assert finding.status == "failed"
        assert f"{now:%Y-%m-%d %H:%M} UTC: before 2031-05-01 00:00 UTC" in finding.fact
        assert "timedatectl set-ntp true" in finding.advice
    assert _clock(bundle, made + datetime.timedelta(minutes=1)).status == "ok"
    assert _clock(bundle, made - datetime.timedelta(hours=3)).status == "ok", "the bundle's date may be local time, or of a fast clock"


def test_a_clock_that_nothing_keeps_right(bundle: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert _clock(bundle, now, False).status == "warning"
    assert "not synchronised" in _clock(bundle, now, False).fact
    assert _clock(bundle, now, None).status == "ok"
    assert "cannot be seen" in _clock(bundle, now, None).fact


def test_the_kernel_is_asked_whether_the_clock_is_synchronised() -> None:
    assert Surroundings().synchronised() in (True, False, None)


# ------------------------------------------------------------------ broker


def _broker(run_file: Path, **options: Any) -> Finding:
    return _found(DeviceDoctor(run_file=run_file, **options))["broker"]


def test_a_broker_that_lets_us_in_with_the_runs_credentials(tmp_path: Path) -> None:
    with mosquitto_password() as broker:
        keys = f"url = '{broker.config().url}', username = 'alice', password_file = '{broker.folder}/password.txt'"
        assert _broker(_run_file(tmp_path, broker=keys)).status == "ok"
        finding = _broker(_run_file(tmp_path, broker=keys.replace("password.txt", "wrong.txt")))
        assert finding.status == "failed"
        assert "wrong user name or password" in finding.fact or "not authorized" in finding.fact
        assert "`username`, `password_file`" in finding.advice.replace("` and `", "`, `")
        missing = _broker(_run_file(tmp_path, broker=keys.replace("password.txt", "none.txt")))
        assert missing.status == "failed"
        assert "none.txt" in missing.fact


def test_a_broker_with_a_certificate_of_somebody_else(tmp_path: Path) -> None:
    with mosquitto_tls() as broker:
        url = broker.config().url
        assert _broker(_run_file(tmp_path, broker=f"url = '{url}', ca = '{broker.folder}/ca.pem'")).status == "ok"
        finding = _broker(_run_file(tmp_path, broker=f"url = '{url}', ca = '{broker.folder}/stranger.pem'"))
    assert finding.status == "failed"
    assert "certificate is not trusted" in finding.fact
    assert "`ca` in [broker]" in finding.advice


def test_a_party_that_is_at_work_is_not_thrown_out(tmp_path: Path) -> None:
    """A broker ends a connection when another client comes with its name."""
    with mosquitto() as broker, mqtt_link(broker.config(), client_id="fit-clinic-a") as link:
        run_file = _run_file(tmp_path, broker=f"url = '{broker.config().url}'")
        assert _broker(run_file, party="clinic-a").status == "ok"
        assert link.nothing_for(0.5)


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    finding = _broker(_run_file(tmp_path))
    assert finding.status == "failed"
    assert finding.fact == "mqtt://127.0.0.1:1: connection refused"
    assert "`url`" in finding.advice


def test_something_that_listens_and_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
        finding = _broker(_run_file(tmp_path), broker=url, timeout_s=5)
    assert finding.status == "failed"
    assert finding.fact.startswith(f"{url}: no answer")


def test_an_address_that_is_none() -> None:
    finding = _found(DeviceDoctor(broker="http://somewhere"))["broker"]
    assert finding.status == "failed"
    assert "'http://somewhere'" in finding.fact
    assert "must begin with mqtt:// or mqtts://" in finding.advice


# ------------------------------------------------------------------ disk


def _disk(run_file: Path, bundle: Path, free_bytes: int | None = None) -> Finding:
    here = Surroundings() if free_bytes is None else Surroundings(free_bytes=lambda folder: free_bytes)
    return _found(DeviceDoctor(run_file=run_file, party="clinic-a", bundle=bundle, surroundings=here))["disk"]


def test_too_little_disk(bundle: Path, tmp_path: Path) -> None:
    run_file = _run_file(tmp_path)
    full = _disk(run_file, bundle, 3 * MB)
    assert full.status == "failed"
    assert f"{tmp_path}/state/fit/clinic-a: 3 MB free" in full.fact
    assert "free some space" in full.advice
    assert _disk(run_file, bundle, 100 * MB).status == "warning"
    assert _disk(run_file, bundle, 4000 * MB).status == "ok"
    assert not (tmp_path / "state").exists()


def test_a_state_folder_that_takes_no_files(bundle: Path, tmp_path: Path) -> None:
    """Neither of them, even for root."""
    for state in ("/proc/cutlayer", str(tmp_path / "run.toml")):
        finding = _disk(_run_file(tmp_path, state=state), bundle)
        assert finding.status == "failed"
        assert f"cannot write in {state}/fit/clinic-a" in finding.fact
        assert "`state_dir`" in finding.advice


# ------------------------------------------------------------------ step


def test_a_step_that_takes_longer_than_peers_wait(bundle: Path, tmp_path: Path) -> None:
    run_file = _run_file(tmp_path)
    run_file.write_text("resend_after_s = 0.000001\n" + run_file.read_text())
    finding = _found(DeviceDoctor(run_file=run_file, bundle=bundle))["step"]
    assert finding.status == "warning"
    assert "`resend_after_s`" in finding.advice


def test_words_are_numbers_that_every_table_has(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    export_segment(net, (torch.zeros(3, 4, dtype=torch.int64),), tmp_path / "words", optimizer=SGD(lr=0.1), input_gradients=[False])
    finding = _found(DeviceDoctor(bundle=tmp_path / "words", batch=4))["step"]
    assert finding.status == "ok", finding.fact
