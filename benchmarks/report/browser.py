"""A headless Chromium, to look at pages: the DevTools protocol over a pipe, no further package.

https://chromedevtools.github.io/devtools-protocol/ ; messages are JSON, each ended by a zero byte,
read by the browser from file descriptor 3 and written to 4 (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE = 60  # seconds for any answer
_WATCHED = ("Page", "Runtime", "Log", "Network")


def find_chromium() -> str | None:
    """The path of a Chromium; None if there is none, or no way to talk to it (Windows)."""
    if os.name != "posix":
        return None
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page. `events` is all that the browser has told of it."""

    def __init__(self, ask: int, answers: int) -> None:
        """Args: file descriptors of the pipe, to the browser and from it."""
        self._ask, self._answers = ask, answers
        self._rest = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        opened = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = opened["sessionId"]
        for domain in _WATCHED:
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer.

        Raises:
            RuntimeError: the browser refused, or is gone.
        """
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._ask, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") != self._count:
                self.events.append(found)
            elif "error" in found:
                raise RuntimeError(f"{method}: {found['error']['message']}")
            else:
                result: dict[str, Any] = found["result"]
                return result

    def open(self, page: Path) -> None:
        """Load a file and wait until it is drawn."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + _PATIENCE
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            if time.monotonic() > end:
                raise RuntimeError(f"{page} was not loaded within {_PATIENCE} s")
            self.call("Runtime.evaluate", expression="0")

    def resize(self, width: int, height: int = 800, *, scale: float = 1.0) -> None:
        """Make it so many CSS pixels wide; below 600 a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def media(self, kind: str = "screen", scheme: str = "light") -> None:
        """Show it as on a screen or in print, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; the page's own policy doesn't hold for it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['text']}")
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """The URLs of all that the page has asked for, itself first."""
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def complaints(self) -> list[str]:
        """What a console would show."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in kinds]

    def picture(self, path: Path, width: int, height: int, top: int = 0) -> None:
        """Write a part of the page as PNG."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def paper(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], _PATIENCE)[0]:
                raise RuntimeError(f"the browser has said nothing for {_PATIENCE} s")
            more = os.read(self._answers, 1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextlib.contextmanager
def browser(chromium: str) -> Iterator[Tab]:
    """Start a Chromium of its own, without the user's settings, and end it at the end."""
    here_in, there_out = os.pipe()
    there_in, here_out = os.pipe()

    def third_and_fourth() -> None:  # in the child
        spare = os.dup(there_out)  # may be 3 itself
        os.dup2(there_in, 3)
        os.dup2(spare, 4)

    with tempfile.TemporaryDirectory(prefix="rankc-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
                f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank",
            ],
            pass_fds=(3, 4),
            preexec_fn=third_and_fourth,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            os.close(there_in)
            os.close(there_out)
            yield Tab(here_out, here_in)
        finally:
            os.close(here_out)
            os.close(here_in)
            process.terminate()
            process.wait(_PATIENCE)
