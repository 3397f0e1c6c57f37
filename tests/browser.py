"""A page in headless Chromium, which runs its scripts. It is driven over a pipe by the DevTools protocol."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMIUM_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


class BrowserPage:
    """A page that stays open.

    Args:
        url: Address of the page.
        profile: Folder for the browser's files.
    """

    def __init__(self, url: str, profile: Path) -> None:
        assert CHROMIUM is not None, "Chromium must be installed"
        commands, to_browser = os.pipe()
        from_browser, answers = os.pipe()
        options = [*CHROMIUM_OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        # The browser reads commands from file 3 and writes to file 4.
        with_files = ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}', CHROMIUM, *options]
        self._process = subprocess.Popen(
            with_files, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._commands, self._answers = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._num_sent, self._session = 0, {}
        target = self._call("Target.createTarget", url=url)["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session: dict[str, str] = {"sessionId": session}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(60)
        self._commands.close()
        self._answers.close()

    def text(self, selector: str) -> str:
        """The visible text of an element; empty while the page is being loaded."""
        expression = f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''"
        found = self._call("Runtime.evaluate", expression=expression)
        return str(found["result"]["value"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": parameters, **self._session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        for answer in self._messages():
            if answer.get("id") == self._num_sent:
                assert "result" in answer, answer
                return dict(answer["result"])
        raise AssertionError("the browser has ended")

    def _messages(self) -> Iterator[dict[str, Any]]:
        content = bytearray()
        while byte := self._answers.read(1):
            if byte != b"\0":
                content += byte
                continue
            yield json.loads(content)
            content.clear()
