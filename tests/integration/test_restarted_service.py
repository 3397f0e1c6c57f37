"""A service that is killed and started again: whoever follows a study learns everything once."""

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.client import Client, ServerEvent
from orchestrator.settings import Settings, load_settings
from orchestrator.store.service_records import NewSubmission, Placement, WantedDevices
from orchestrator.store.study_files import log_of_submission
from orchestrator.store.study_names import home_owner
from orchestrator.study.lock import hold_study
from tests.browser import CHROMIUM, BrowserPage
from tests.tiny import start
from tests.unit.test_live_events import Driver
from tests.waiting import TIMEOUT_S, until


class KilledService:
    """A service on one port that is killed and started again."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url, self._home = f"http://127.0.0.1:{self.port}", home
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = start("serve", "--no-run", "--port", str(self.port), home=self._home, cwd=self._home)
        until(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=60)
        self._process = None

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; returns the exit status and what is said."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        _, told = self._process.communicate(timeout=TIMEOUT_S)
        status, self._process = self._process.returncode, None
        return status, told

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class LiveStudy:
    """A study whose driver is this test: it writes rows and lines of the log, and ends when it is told to."""

    def __init__(self, settings: Settings) -> None:
        self.driver = Driver(settings)
        queue = self.driver.store.queue()
        queue.add(NewSubmission("u1", home_owner(), "live", {}, "", WantedDevices(), "d"))
        claimed = queue.claim("r", "box", lambda *_: Placement({}), lease_s=10 * TIMEOUT_S)
        assert claimed is not None
        self._claimed = claimed
        self.log = log_of_submission(settings.local_root, "u1")
        self.log.parent.mkdir(parents=True)
        self.log.touch()

    def report(self, number: int, epoch: int) -> None:
        self.driver.report(number, epoch)
        self.write(f"trial {number}, epoch {epoch}")

    def write(self, line: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def finish(self) -> None:
        self.write("the last line")
        self.driver.finish()
        self.driver.store.queue().end(self._claimed.uid, self._claimed.lease, "complete")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", tracking=False)


@pytest.fixture
def study(settings: Settings) -> Iterator[LiveStudy]:
    study = LiveStudy(settings)
    with hold_study("live", settings):
        yield study
    study.driver.store.close()


@pytest.fixture
def service(settings: Settings, study: LiveStudy) -> Iterator[KilledService]:
    service = KilledService(settings.home)
    service.start()
    yield service
    service.kill()


def test_a_service_that_is_stopped_ends_its_streams_without_errors(study: LiveStudy, service: KilledService) -> None:
    begun = threading.Event()

    def follow() -> None:
        with Client(service.url) as client:
            for _ in client.events("live"):
                begun.set()

    threading.Thread(target=follow, daemon=True).start()
    assert begun.wait(TIMEOUT_S)
    status, told = service.interrupt()
    assert status == 130
    assert told.splitlines()[1:] == ["vitsearch: interrupted"]


@pytest.mark.slow
def test_streams_and_watch_miss_and_repeat_nothing(study: LiveStudy, service: KilledService, tmp_path: Path) -> None:
    events: list[ServerEvent] = []

    def follow() -> None:
        with Client(service.url) as client:
            for one in client.events("live"):
                events.append(one)

    def epochs() -> list[tuple[int, int]]:
        return [(one.data["trial"], one.data["epoch"]) for one in events if one.kind == "report"]

    stream = threading.Thread(target=follow, daemon=True)
    stream.start()
    watch = start("watch", "live", "--server", service.url, home=tmp_path / "other", cwd=tmp_path)
    told: list[str] = []
    assert watch.stderr is not None
    reader = threading.Thread(target=lambda: told.extend(iter(watch.stderr.readline, "")), daemon=True)
    reader.start()
    with ExitStack() as stack:
        stack.callback(watch.kill)
        study.driver.begin(0)
        study.report(0, 1)
        until(lambda: epochs() == [(0, 1)] and "trial 0, epoch 1\n" in told)
        for restart in (1, 2):
            study.report(0, 3 * restart - 1)
            service.kill()
            study.report(0, 3 * restart)
            study.driver.begin(restart)
            study.report(restart, 1)
            until(lambda: sum("does not answer" in line for line in told) == restart)  # noqa: B023 - called at once
            service.start()
            study.report(0, 3 * restart + 1)
            until(lambda: (0, 3 * restart + 1) in epochs())  # noqa: B023
            until(lambda: f"trial 0, epoch {3 * restart + 1}\n" in told)  # noqa: B023
        for number in range(3):
            study.driver.end(number)
        study.finish()
        stream.join(TIMEOUT_S)
        assert watch.wait(TIMEOUT_S) == 0
        reader.join(TIMEOUT_S)
    assert [epoch for trial, epoch in epochs() if trial == 0] == list(range(1, 8))
    assert sorted(epochs()) == sorted({*epochs()})
    assert {(1, 1), (2, 1)} <= {*epochs()}
    assert events[-1].data == {"state": "complete"}
    written = study.log.read_text(encoding="utf-8").splitlines(keepends=True)
    assert [line for line in told if "service" not in line] == written
    assert sum("the service answers again" in line for line in told) == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or shutil.which("bash") is None, reason="Chromium is not installed")
def test_an_open_page_shows_what_happened_meanwhile(study: LiveStudy, service: KilledService, tmp_path: Path) -> None:
    study.driver.begin(0)
    with BrowserPage(f"{service.url}/studies/live", tmp_path / "profile") as page:
        until(lambda: "1 running" in page.text("#stages"))
        study.driver.begin(1)
        until(lambda: "2 running" in page.text("#stages"))
        service.kill()
        study.driver.end(0)
        service.start()
        until(lambda: "1 complete" in page.text("#stages"))
        study.driver.end(1)
        until(lambda: "2 complete" in page.text("#stages"))
        study.finish()
        until(lambda: "complete" in page.text("h1"))
