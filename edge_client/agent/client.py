"""The client as a process: how it is started, how it is heard of, and how it is ended.

What the agent of any card and the code of any release agree on, and what may therefore never change:

    python -m edge_client RUN.toml --party NAME --bundle DIR            trains; ends with 0 where the run is over, or after SIGTERM
    python -m edge_client RUN.toml --party NAME --bundle DIR --check    only says whether it could, by 0 or by a line on stderr
    CUTLAYER_HEARTBEAT=FILE in its environment                          the file in which it says how it is (edge_client/heartbeat.py)
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

from edge_client.agent.shelf import Launch
from edge_client.external import check_file
from edge_client.heartbeat import ENVIRONMENT, Beat, read_beat
from wire.errors import BundleError, StorageError
from wire.files import storage_errors
from wire.fleet.release import BUNDLE, RUN_FILE
from wire.limits import LIMITS

__all__ = ["Client", "check_release"]

_CHECK_S = 600.0  # a slow board, whose client goes on training meanwhile
_LINE_CHARS = 300
_CHECK_OOM_SCORE = "800"  # and before it who only looks at a release beside it
_OOM_SCORE = "500"  # of -1000 to 1000: where memory runs out it is the client that goes, not who starts it again


def check_release(launch: Launch, *, name: str) -> Iterator[float]:
    """Whether the client could begin with it, as the release's own code sees it; and, as we see it, no graph names another file and no
    state would be lost with the release. Each step says after how many seconds the next one is of use. Raises BundleError with the reason,
    StorageError."""
    _check_base(launch)
    for path in sorted((launch.folder / BUNDLE).rglob("*.onnx")):
        if path.stat().st_size > LIMITS.graph_bytes:
            raise BundleError(f"{path.relative_to(launch.folder)} is larger than the limit of {LIMITS.graph_bytes} bytes")
        try:
            check_file(path, what=str(path.relative_to(launch.folder)))
        except OSError as exc:
            raise StorageError(f"cannot read {path}: {exc.strerror or exc}") from exc
        yield 0.0
    with storage_errors(launch.folder):
        process = subprocess.Popen(
            [*_command(launch, name), "--check"],
            env=_environment(launch),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    _goes_first(process, _CHECK_OOM_SCORE)
    said = _listened(process, tell=False)
    until_s = time.monotonic() + _CHECK_S
    try:
        while process.poll() is None:
            if time.monotonic() > until_s:
                raise StorageError(
                    f"looking at the release took longer than {_CHECK_S:.0f} s; deploy it again when the device has less to do"
                )
            yield 0.1
    finally:
        _kill(process)
        said.join()
    if process.returncode:
        reason = said.last.removeprefix("cutlayer: error: ").replace(f"{launch.folder}/", "")
        raise BundleError(reason or f"its client ends with {process.returncode}")


def _check_base(launch: Launch) -> None:
    """The run's own folder outlives releases: what is trained must not go with the first release after this one. Raises BundleError."""
    try:
        base = tomllib.loads((launch.folder / RUN_FILE).read_text(encoding="utf-8")).get("slice", {}).get("base")
    except (OSError, ValueError, AttributeError):
        return  # the client says it better
    if not isinstance(base, str) or not Path(base).is_absolute() or Path(base).is_relative_to(launch.folder.parent):
        raise BundleError(f"{RUN_FILE} keeps state in the release's own folder; set `base` in [slice] to the device's, as `deploy` does")


def _command(launch: Launch, name: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "edge_client",
        str(launch.folder / RUN_FILE),
        "--party",
        name,
        "--bundle",
        str(launch.folder / BUNDLE.rstrip("/")),
    ]


def _environment(launch: Launch, heartbeat: Path | None = None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", ENVIRONMENT)}
    paths = [str(launch.site)] if launch.site is not None else []
    if kept.get("PYTHONPATH"):
        paths.append(kept["PYTHONPATH"])
    return (
        kept
        | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
        | ({ENVIRONMENT: str(heartbeat)} if heartbeat is not None else {})
    )


def _goes_first(process: subprocess.Popen[bytes], score: str) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(score)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With its session: until it is waited for, no other has its number."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.wait()


def _listened(process: subprocess.Popen[bytes], *, tell: bool) -> _Said:
    """Raises StorageError where there is no room for one more thread; nobody would know of the process then, so it is ended."""
    try:
        return _Said(process, tell=tell)
    except RuntimeError as exc:
        _kill(process)
        raise StorageError(f"cannot listen to a client: {exc}; it is tried again") from exc


class Client:
    """One start of the client. ``heartbeat``: the file that it is to write."""

    def __init__(self, launch: Launch, *, name: str, heartbeat: Path) -> None:
        """Raises StorageError where it cannot be started."""
        self.launch, self._heartbeat = launch, heartbeat
        self.began_s = time.monotonic()
        with storage_errors(heartbeat):
            heartbeat.unlink(missing_ok=True)
            self._process = subprocess.Popen(
                _command(launch, name),
                env=_environment(launch, heartbeat),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _goes_first(self._process, _OOM_SCORE)
        self._said = _listened(self._process, tell=True)

    @property
    def exit_code(self) -> int | None:
        """None: it lives. Below 0: the signal that ended it."""
        return self._process.poll()

    @property
    def last_line(self) -> str:
        """The last line that it said, complete once it has ended."""
        if self.exit_code is not None:
            self._said.join()
        return self._said.last

    def beat(self) -> Beat | None:
        """Its newest heartbeat; None: none yet."""
        found = read_beat(self._heartbeat)
        return found if found is not None and found.pid == self._process.pid else None

    def cpu_s(self) -> float:
        """Processor time that it has used until now; 0 where the system does not say."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def end(self) -> None:
        """Ask it to leave; what it does not have on disk by then it gets from the others again."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it has started; gone when this returns."""
        _kill(self._process)
        self._said.join()


class _Said:
    """Hands on what a process says, a line at a time, and keeps the last one."""

    def __init__(self, process: subprocess.Popen[bytes], *, tell: bool) -> None:
        stream = process.stdout if process.stdout is not None else process.stderr
        assert stream is not None
        self._stream, self._tell = stream, tell
        self._lines: collections.deque[str] = collections.deque(maxlen=1)
        self._thread = threading.Thread(target=self._listen, name="client-says", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with self._stream as stream:
            while line := stream.readline(1 << 16):
                if self._tell:
                    with contextlib.suppress(OSError, ValueError):
                        sys.stdout.buffer.write(line if line.endswith(b"\n") else line + b"\n")
                        sys.stdout.buffer.flush()
                text = line.decode(errors="replace").strip()
                if text:
                    self._lines.append(text[:_LINE_CHARS])

    def join(self) -> None:
        """Until it has said its last; a second, for it may have left the pipe to others."""
        self._thread.join(1.0)

    @property
    def last(self) -> str:
        return self._lines[-1] if self._lines else ""
