"""A real Chromium for the tests, spoken to over its debugging pipe: no driver, no package.

with Browser() as browser:
    browser.open(url)
    browser.wait_for("document.querySelector('h1') !== null")
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time

import pytest

from .support import DEADLINE

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on this machine")
START = 60.0  # seconds that a browser may take to start on a busy machine


class Browser:
    """One headless browser with one page; ``errors`` are what its console complained about."""

    def __init__(self, width: int = 1400, height: int = 1000, dark: bool = False) -> None:
        self.home = tempfile.mkdtemp()
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
            " --disable-dev-shm-usage --disable-background-networking --hide-scrollbars"
        )
        # The pipe is on descriptors 3 and 4, whatever ours are.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *flags.split(), f"--user-data-dir={self.home}"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self.numbers = itertools.count(1)
        self.messages: queue.Queue[dict[str, object]] = queue.Queue()
        self.errors: list[str] = []
        self.session = ""
        threading.Thread(target=self.read, daemon=True).start()
        try:
            target = self.call("Target.createTarget", url="about:blank", deadline=START)["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.resize(width, height, dark)
        except BaseException:
            self.close()
            raise

    def read(self) -> None:
        """Take the browser's messages apart: the life of a thread."""
        rest = b""
        while True:
            try:
                data = os.read(self.answers, 1 << 20)
            except OSError:
                data = b""
            if not data:
                self.messages.put({"error": "the browser is gone"})
                return
            *whole, rest = (rest + data).split(b"\0")
            for text in whole:
                self.messages.put(json.loads(text))

    def call(self, method: str, deadline: float = DEADLINE, **parameters: object) -> dict:
        """Call a method of the DevTools protocol and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + deadline
        while True:
            try:
                answer = self.messages.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the browser does not answer {method}") from None
            self.note(answer)
            if answer.get("id") == number or "method" not in answer:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def note(self, message: dict) -> None:
        """Keep what the page's console complains about."""
        details = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(details["exceptionDetails"])[:600])
        elif message.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url, deadline=START)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, script: str) -> object:
        """Return the value of a JavaScript expression."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, script: str, deadline: float = DEADLINE * 2) -> object:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + deadline
        while True:
            value = self.evaluate(script)
            if value:
                return value
            assert time.monotonic() < end, f"still not true: {script}"
            self.evaluate("new Promise(done => setTimeout(done, 50))")

    def press(self, key: str, code: str = "", text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code or key, text=text)

    def resize(self, width: int, height: int, dark: bool = False, scale: float = 1.0) -> None:
        """Be another screen: of a projector, or of a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: str, whole: bool = False) -> None:
        """Save a picture of what is seen, or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole, deadline=START)
        with open(path, "wb") as stream:
            stream.write(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the browser and all that it started."""
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            pass
        self.process.wait(DEADLINE)
        os.close(self.commands)
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
