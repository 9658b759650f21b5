"""A headless Chromium, driven through its DevTools protocol over a pair of pipes.

No driver program and no port: Chromium reads commands from file descriptor 3 and answers on 4, each
message JSON with a NUL byte at its end (https://chromedevtools.github.io/devtools-protocol/,
``--remote-debugging-pipe``).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.harness.binaries import CHROMIUM
from tests.harness.waiting import wait_until

#: Seconds that one answer of the browser may take.
PATIENCE = 30.0
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--window-size=1280,900",
    "--remote-debugging-pipe",
)


class PageError(AssertionError):
    """The browser could not do what the test asked for, or a script of the page failed."""


class Chromium:
    """A browser with one page, a fresh profile, and a memory of what the page asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self._number = 0
        self._buffer = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._loads = 0
        self._start()
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._page(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def goto(self, url: str) -> None:
        """Load a page, with everything it needs."""
        before = self._loads
        answer = self._page("Page.navigate", url=url)
        if "errorText" in answer:
            raise PageError(f"{url}: {answer['errorText']}")
        self._wait_for_load(before)

    def js(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self._page("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise PageError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """Return the text that a person sees in an element."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def exists(self, selector: str) -> bool:
        """Tell whether the page has such an element."""
        return bool(self.js(f"document.querySelector({json.dumps(selector)}) !== null"))

    def click(self, selector: str, *, leads_on: bool = False) -> None:
        """Click with the mouse into the middle of an element.

        :param leads_on: wait for the page that it leads to.
        """
        before = self._loads
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self._page("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        if leads_on:
            self._wait_for_load(before)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.click(selector)
        self._page("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change'))")

    def colours(self, scheme: str) -> None:
        """Prefer ``"light"`` or ``"dark"``, as a person does in the settings of the system."""
        self._page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        # Django lets its colours fade over into each other.
        self.js("Promise.all(document.getAnimations().map((each) => each.finished)).then(() => true)")

    def width(self, pixels: int) -> None:
        """Make the window narrower or wider."""
        self._page(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=False
        )

    def screenshot(self, path: Path) -> None:
        """Save the page, down to its end."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self._page("Page.getLayoutMetrics")["cssContentSize"]
        whole = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self._page("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=whole)
        path.write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        """End the browser with all its processes, and remove the profile."""
        try:
            self._send("Browser.close")
            wait_until(self._has_ended, 10.0, "Chromium has ended")
        except Exception:
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise
        finally:
            os.close(self._commands)
            os.close(self._replies)
            shutil.rmtree(self._profile, ignore_errors=True)

    def _start(self) -> None:
        theirs_in, self._commands = os.pipe()
        self._replies, theirs_out = os.pipe()
        # Moved out of the way first: a pipe may have got the very numbers that Chromium expects.
        high = [os.dup2(fd, 100 + number) for number, fd in enumerate((theirs_in, theirs_out))]
        log = os.open(self._profile / "chromium.log", os.O_CREAT | os.O_WRONLY)
        actions = [
            (os.POSIX_SPAWN_DUP2, high[0], 3),
            (os.POSIX_SPAWN_DUP2, high[1], 4),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        program = str(CHROMIUM.require())
        arguments = [program, *_FLAGS, f"--user-data-dir={self._profile / 'profile'}"]
        self._pid = os.posix_spawn(program, arguments, os.environ, file_actions=actions, setsid=True)
        for fd in {theirs_in, theirs_out, log, *high}:
            os.close(fd)

    def _has_ended(self) -> bool:
        return os.waitpid(self._pid, os.WNOHANG)[0] == self._pid

    def _wait_for_load(self, before: int) -> None:
        wait_until(lambda: self._listen(0.05) or self._loads > before, PATIENCE, "the page is loaded")

    def _middle(self, selector: str) -> tuple[float, float]:
        place = self.js(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "if (!found) return null; found.scrollIntoView({block: 'center'});"
            "const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2, box.width * box.height]; })()"
        )
        if not place or not place[2]:
            raise PageError(f"nothing to click at {selector!r}; the page says: {self.text()[:500]}")
        return place[0], place[1]

    def _page(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._send(method, self._session, **parameters)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        command: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        self._write(json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while number not in self._answers:
            if time.monotonic() > deadline:
                raise PageError(f"Chromium did not answer {method} within {PATIENCE:.0f} s")
            self._listen(0.5)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._commands, data) :]

    def _listen(self, seconds: float) -> None:
        """Take in what the browser says within ``seconds``."""
        if not select.select([self._replies], [], [], seconds)[0]:
            return
        chunk = os.read(self._replies, 1 << 20)
        if not chunk:
            raise PageError(f"Chromium ended: {(self._profile / 'chromium.log').read_text()[-2000:]}")
        *messages, self._buffer = (self._buffer + chunk).split(b"\0")
        for message in messages:
            self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, parameters = message["method"], message.get("params", {})
        if method == "Page.loadEventFired":
            self._loads += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"].get("exception")))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
