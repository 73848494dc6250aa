"""A virtual machine of a small board's size, by qemu-system-aarch64: started, listened to, and its power cut."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

from wire.errors import UsageError

__all__ = ["CPU", "HOST", "MEMORY_MB", "Machine"]

CPU, MEMORY_MB = "cortex-a53", 512  # a Raspberry Pi Zero 2 W's
HOST = "10.0.2.2"  # this computer, as qemu's own network calls it
_TAIL = 30


class Machine:
    """``disk``: the raw image that it writes. ``log``: takes what its serial console says, with the seconds since the first start.
    ``cache``: qemu's; with ``writethrough`` whatever the machine was told to have been written is in the image when the power goes."""

    def __init__(self, disk: Path, *, log: Path, cache: str = "writethrough") -> None:
        self.disk, self.log, self.cache = disk, log, cache
        self.lines: list[tuple[float, str]] = []
        self._begun_s = time.monotonic()
        self._heard = threading.Condition()
        self._seen = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None

    def now_s(self) -> float:
        return time.monotonic() - self._begun_s

    def start(self, *, kernel: Path, initrd: Path, cmdline: str) -> None:
        """Switch it on. It ends, instead of starting anew, where its system restarts: whoever starts it reads its command line again."""
        self.close()
        command = [
            "qemu-system-aarch64", "-M", "virt", "-cpu", CPU, "-smp", "2", "-m", str(MEMORY_MB), "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd), "-append", cmdline,
            "-drive", f"file={self.disk},format=raw,if=none,id=card,cache={self.cache}", "-device", "virtio-blk-device,drive=card",
            "-netdev", "user,id=cable", "-device", "virtio-net-device,netdev=cable", "-device", "virtio-rng-device",
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except FileNotFoundError as exc:
            raise UsageError("qemu-system-aarch64 is missing: apt-get install qemu-system-arm") from exc
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as console, open(self.log, "a", encoding="utf-8") as log:
            for raw in console:
                at_s, line = self.now_s(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode(errors="replace")).strip()
                log.write(f"{at_s:7.1f} {line}\n")
                log.flush()
                with self._heard:
                    self.lines.append((at_s, line))
                    self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    def wait_for(self, pattern: str, timeout_s: float) -> tuple[float, str]:
        """The next line in which ``pattern`` is found, and when it came; lines before it count as read. Raises AssertionError with the
        console's end."""
        deadline_s = self.now_s() + timeout_s
        with self._heard:
            while True:
                for at in range(self._seen, len(self.lines)):
                    if re.search(pattern, self.lines[at][1]):
                        self._seen = at + 1
                        return self.lines[at]
                left_s = deadline_s - self.now_s()
                if left_s <= 0 or not self._running():
                    raise AssertionError(f"the machine did not say {pattern!r}; its last words:\n{self.tail()}")
                self._heard.wait(min(left_s, 1.0))

    def wait_end(self, timeout_s: float) -> float:
        """Until its system has switched it off or restarts it; when that was."""
        assert self._process is not None
        assert self._listener is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"the machine did not end; its last words:\n{self.tail()}") from exc
        self._listener.join()
        self._seen = len(self.lines)
        return self.now_s()

    def cut_power(self) -> float:
        """kill -9; when that was."""
        assert self._process is not None
        self._process.kill()
        return self.wait_end(30.0)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self.wait_end(30.0)
            self._process = None

    def tail(self) -> str:
        return "\n".join(f"{at_s:7.1f} {line}" for at_s, line in self.lines[-_TAIL:])

    def _running(self) -> bool:
        return self._process is not None and (self._process.poll() is None or (self._listener is not None and self._listener.is_alive()))
