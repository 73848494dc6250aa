"""A real browser looks at a page: its DOM after its script ran, what one sees, what went wrong, and what it asked the network for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Seen", "Shown", "driven", "look", "texts"]

_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """``pixels``: (height, width, 3). ``complaints``: of the console. ``requests``: addresses that the page asked for, beside files."""

    dom: str
    pixels: NDArray[np.uint8]
    complaints: list[str]
    requests: list[str]

    def noted(self) -> Any:
        """What a script of ``driven`` has left for the test."""
        found = re.search(r'<pre id="noted" hidden="">(.*?)</pre>', self.dom, re.DOTALL)
        assert found is not None, self.complaints
        return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    def part(self, box: dict[str, float]) -> NDArray[np.uint8]:
        """The pixels of an element, by its getBoundingClientRect."""
        x, y = round(box["x"]), round(box["y"])
        return self.pixels[y : y + round(box["height"]), x : x + round(box["width"])]


def look(page: Path, *, width: int = 1280, height: int = 1600, dark: bool = False, part: str = "") -> Seen:
    """``part``: of the address, from # on."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium; `apt install chromium`")
    with tempfile.TemporaryDirectory(prefix="browser-") as text:
        folder = Path(text)
        options = [
            *_QUIET, f"--user-data-dir={folder}/profile", f"--log-net-log={folder}/net.json", f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", f"--screenshot={folder}/seen.png",
        ]  # fmt: skip
        done = subprocess.run([browser, *options, page.as_uri() + part], capture_output=True, text=True, timeout=120, cwd=folder)
        assert done.returncode == 0, done.stderr
        return Seen(
            dom=done.stdout,
            pixels=np.asarray(Image.open(folder / "seen.png").convert("RGB")),
            complaints=re.findall(r":CONSOLE[:(].*", done.stderr),
            requests=_requests(json.loads((folder / "net.json").read_text())),
        )


def _requests(log: dict[str, Any]) -> list[str]:
    """Those that a page began; the browser's own have no origin."""
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    begun = [event["params"] for event in log["events"] if event["type"] == start and "url" in event.get("params", {})]
    return [each["url"] for each in begun if each.get("initiator") != "not an origin" and not each["url"].startswith("file:")]


def driven(page: Path, script: str) -> Path:
    """A copy in which ``script`` runs after the page's own, as a person's hand: what it returns can be read by ``Seen.noted``."""
    code = (
        "(() => { const note = document.createElement('pre'); note.id = 'noted'; note.hidden = true; "
        f"note.textContent = JSON.stringify((() => {{ {script} }})()); document.body.append(note); }})()"
    )
    source = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    html = page.read_text(encoding="utf-8")
    assert html.count("script-src '") == 1
    copy = page.with_name("driven.html")
    allowed = html.replace("script-src '", f"script-src 'sha256-{source}' '")
    copy.write_text(allowed.replace("</body>", f"<script>{code}</script></body>"), encoding="utf-8")
    return copy


class Shown(HTMLParser):
    """What a page's source has: its elements, with attributes, and the text that is not code."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._code = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._code = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._code = False

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.text += data


def texts(html: str) -> str:
    """All that a reader reads, one space between words."""
    return " ".join(Shown(html).text.split())
