"""A headless Chromium, driven over its debugging pipe: nothing to install beside the browser itself."""

import base64
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


class Tab:
    """One page; `requests` and `complaints` collect what it fetched and what its console said."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (reply := self._next()).get("id") != self._number:
            self._note(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, page: Path, width: int, height: int = 800, dark: bool = False, language: str = "en") -> None:
        """Shows a file in a window of `width` x `height` CSS pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=page.absolute().as_uri())
        while self._note(self._next()) != "Page.loadEventFired":
            pass
        self.run(f"document.getElementById('{language}').click()")

    def run(self, script: str) -> Any:
        """Returns the value of a script's last expression, which must be JSON."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, path: Path, whole: bool = True) -> None:
        """Writes a PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def end(self) -> None:
        """Asks the browser to leave, with all its processes."""
        self._session = None
        self.call("Browser.close")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._from, 1 << 20)
            assert read, "the browser has gone"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> str | None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if event.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters))
        return event.get("method")


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Starts Chromium with an empty profile, and ends it."""
    assert CHROMIUM
    (its_in, to_browser), (from_browser, its_out) = os.pipe(), os.pipe()
    # the pipe's protocol reads descriptor 3 and writes descriptor 4; copies above 10 stand in neither's way
    copies = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (its_in, its_out)]
    actions = [(os.POSIX_SPAWN_OPEN, one, os.devnull, os.O_RDWR, 0) for one in (0, 1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, one, place) for one, place in zip(copies, (3, 4), strict=True)]
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    process = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=actions)
    for one in (its_in, its_out, *copies):
        os.close(one)
    try:
        tab = Tab(to_browser, from_browser)
        yield tab
        tab.end()
    finally:
        os.close(to_browser)  # ends it too, if an error came before
        os.close(from_browser)
        os.waitpid(process, 0)
