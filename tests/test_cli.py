"""The `cutlayer` command as a person meets it: a process, its exit code and its one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cutlayer
from wire import errors

ROOT = Path(__file__).parent.parent


def _cutlayer(*words: str | Path, cwd: Path | None = None, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a fresh interpreter; ``before`` is code that prepares that interpreter."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {before or 'pass'}\nimport cutlayer; sys.exit(cutlayer.main())"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=cwd or ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def _one_line(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """The command ended with this code, and with one line on stderr that says all of this."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("cutlayer: ")
    for text in said:
        assert text in lines[0]


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "VERB"),
        ("dmo", "invalid choice: 'dmo'"),
        ("demo --epoch 3", "--epoch"),  # no abbreviations: they would change meaning as options are added
        ("demo --epochs 0", "0 is below 1"),
        ("demo --epochs many", "'many' is not a whole number"),
        ("demo --clients -1", "--clients"),
        ("demo --codec mp3", "there is no codec 'mp3'; it must be one of fp32, fp16"),
        ("demo --dataset imagenet", "invalid choice: 'imagenet'"),
        ("demo --broker http://x", "'http://x' is not embedded, mosquitto or an address"),
        ("run", "RUN.toml"),
        ("client run.toml", "--party"),
        ("predict run.toml", "--party"),
        ("assemble run.toml", "--out"),
        ("graph run.toml --svg", "--svg"),
        ("broker --port 70000", "70000 is not a port"),
        ("broker --engine rabbit", "invalid choice: 'rabbit'"),
        ("doctor", "--device"),
        ("doctor --device --batch 0", "0 is below 1"),
        ("doctor --device --timeout-s 0", "'0' is not a number of seconds above 0"),
        ("export --out x", "needs a run file, or --model"),
        ("export --out x --model m.py:build", "with --cut NAME"),
        ("export run.toml --out x --cut layer2", "--cut"),
        ("export --out x --model m.py:build --cut a --input-shape 28x28", "'28x28' is not a shape"),
        ("export --out x --model m.py:build --cut a --optimizer lion,lr=1", "'lion' is not an optimizer"),
        ("export --out x --model m.py:build --cut a --optimizer sgd", "missing key `lr`"),
        ("export --out x --model m.py:build --cut a --optimizer sgd,lr", "is not written like"),
        ("export --out x --model m.py:build --cut a --optimizer sgd,lr=-1", "must be above 0"),
        ("export --out x --model m.py:build --cut a --optimizer adam,lr=1,beta=2", "unknown key `beta`"),
        ("export run.toml --out x --engines ort-training", "'ort-training' is not stock or stock,ort-training"),
        ("export run.toml --out x --engines stock,ort-training", "--engines stock,ort-training and --ort-training-python PATH go together"),
        ("export run.toml --out x --ort-training-python python3", "give both or neither"),
        ("client run.toml --party a --engine warp", "invalid choice: 'warp'"),
    ],
)
def test_a_bad_command_line_gets_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main(words.split()) == 2
    line = capsys.readouterr().err
    assert line.startswith("cutlayer: error: ")
    assert line.count("\n") == 1
    assert said in line


def test_version_and_help() -> None:
    version = _cutlayer("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("cutlayer 0.")
    shown = _cutlayer("--help")
    assert shown.returncode == 0
    for text in (
        "demo",
        "run",
        "serve",
        "client",
        "predict",
        "slice",
        "key",
        "export",
        "assemble",
        "graph",
        "doctor",
        "broker",
        "pause",
        "drain",
        "exit codes:",
        "130",
    ):
        assert text in shown.stdout


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ("demo", "run", "serve", "client", "predict", "slice", "key", "export", "assemble", "graph", "doctor", "broker")
    for verb in (*verbs, "plan", "pause", "resume", "drain"):
        with pytest.raises(SystemExit) as left:
            cutlayer.main([verb, "--help"])
        assert left.value.code == 0
        assert f"usage: cutlayer {verb}" in capsys.readouterr().out


def test_the_installed_command_is_this_one() -> None:
    done = subprocess.run([Path(sys.executable).parent / "cutlayer", "nonsense"], cwd="/", capture_output=True, text=True, timeout=60)
    _one_line(done, 2, "invalid choice: 'nonsense'")


# ------------------------------------------------------------------ what the verbs are given


@pytest.mark.parametrize(
    "verb", ["run", "serve", "client", "predict", "slice", "key", "export", "assemble", "graph", "pause", "resume", "drain"]
)
def test_a_run_file_that_is_not_there(verb: str, tmp_path: Path) -> None:
    more = {verb: ["--party", "a"] for verb in ("client", "predict", "key")} | {verb: ["--out", "o"] for verb in ("export", "assemble")}
    more["slice"] = ["--party", "a", "--out", "o"]
    done = _cutlayer(verb, "nowhere.toml", *more.get(verb, []), cwd=tmp_path)
    _one_line(done, 2, "nowhere.toml")


def test_a_run_file_with_a_fault(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("name = \n")
    _one_line(_cutlayer("run", "run.toml", cwd=tmp_path), 2, "run.toml", "TOML")
    (tmp_path / "run.toml").write_text('name = "x"\nepoch = 3\n')
    _one_line(_cutlayer("run", "run.toml", cwd=tmp_path), 2, "run.toml", "unknown key `epoch`", "did you mean `epochs`?")


# What a device has: the base install. An entry of None is what the import system finds where a module is not installed.
BASE_INSTALL = "sys.modules.update(dict.fromkeys(['torch', 'torchmetrics', 'onnx', 'iotcore', 'rich', 'sklearn', 'PIL']))"


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("demo", "simulation"),
        ("run r.toml", "simulation"),
        ("serve r.toml", "server"),
        ("export r.toml --out o", "export"),
        ("graph r.toml", "simulation"),
        ("plan r.toml --link gprs --device pi-4", "simulation"),
    ],
)
def test_a_missing_extra_is_named(words: str, extra: str, tmp_path: Path) -> None:
    done = _cutlayer(*words.split(), cwd=tmp_path, before=BASE_INSTALL)
    _one_line(done, 2, f"`cutlayer {words.split()[0]}` needs the {extra} extra", "torch", f"pip install 'cutlayer[{extra}]'")


def test_the_client_needs_no_extra(tmp_path: Path) -> None:
    done = _cutlayer("client", "nowhere.toml", "--party", "a", cwd=tmp_path, before=BASE_INSTALL)
    _one_line(done, 2, "cannot read the run file nowhere.toml")


# ------------------------------------------------------------------ the error boundary


def _broker_that(tmp_path: Path, does: str) -> subprocess.CompletedProcess[str]:
    """`cutlayer broker` where the room `server` is another one, whose broker does this."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").touch()
    (tmp_path / "server" / "broker.py").write_text(
        f"import errno, os, signal\nfrom wire.errors import *\ndef run_broker(*, host, port, engine):\n    {does}\n"
    )
    return _cutlayer("broker", before=f"sys.path.insert(0, {str(tmp_path)!r})")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "exit_code"])
def test_every_error_of_ours_is_one_line(name: str, tmp_path: Path) -> None:
    error = getattr(errors, name)
    code = 2 if issubclass(error, (errors.UsageError, errors.BrokerRefused, errors.PeerMismatch)) else 1
    _one_line(_broker_that(tmp_path, f"raise {name}('what, where, remedy')"), code, "cutlayer: error: what, where, remedy")


def test_an_error_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    done = _broker_that(tmp_path, r"raise FrameError('from \x1b[2Ja hostile\r\npeer\u202e')")
    _one_line(done, 1, r"from \x1b[2Ja hostile  peer\u202e")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("OSError(errno.ENOSPC, '', 'state/ledger')", "state/ledger: the disk is full"),
        ("OSError(errno.EDQUOT, '', 'state')", "state: the disk quota"),
        ("OSError(errno.EROFS, '', 'state')", "state: the file system is read-only"),
        ("PermissionError(errno.EACCES, '', 'key.pem')", "key.pem: permission denied"),
        ("FileNotFoundError(errno.ENOENT, '', 'x.csv')", "x.csv: no such file or folder"),
        ("IsADirectoryError(errno.EISDIR, '', 'data')", "data: this is a folder"),
        ("OSError(errno.EADDRINUSE, 'Address already in use')", "the port is in use"),
    ],
)
def test_what_the_system_refuses_is_one_line(raised: str, said: str, tmp_path: Path) -> None:
    _one_line(_broker_that(tmp_path, f"raise {raised}"), 2, said)


@pytest.mark.parametrize(
    "raised", ["KeyError('k')", "OSError('no number')", "ModuleNotFoundError('gone', name='gone')", "BrokenPipeError(32, 'a socket')"]
)
def test_a_bug_keeps_its_traceback(raised: str, tmp_path: Path) -> None:
    done = _broker_that(tmp_path, f"raise {raised}")
    assert done.returncode == 70
    assert done.stderr.startswith("Traceback")
    assert raised.partition("(")[0] in done.stderr
    assert done.stderr.splitlines()[-1].startswith("cutlayer: this is a bug; please report it")


def test_an_interrupt_is_quiet(tmp_path: Path) -> None:
    # A shell without job control starts what it puts in the background with SIGINT ignored, and so everything that is started from there.
    interrupt = "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT)"
    _one_line(_broker_that(tmp_path, interrupt), 130, "cutlayer: interrupted")


def test_success_is_silent(tmp_path: Path) -> None:
    done = _broker_that(tmp_path, "pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = _help_to(write, unbuffered)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_to_a_full_disk_is_one_line(unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = _help_to(full.fileno(), unbuffered)
    assert done.returncode == 2
    assert done.stderr == "cutlayer: error: the disk is full; free some space\n"


def _help_to(stdout: int, unbuffered: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cutlayer", "--help"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)
