"""Submitted studies: their drivers, the commands that follow them, and the process that runs the queue."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from orchestrator import abrupt_end
from orchestrator.cli import following
from orchestrator.cli.background import DriverControl, drive, work_off_queue
from orchestrator.engines.interfaces import RayLostError
from orchestrator.service import supervisor
from orchestrator.service.devices import DevicePool
from orchestrator.service.submitting import find_submission, log_file, submit_study
from orchestrator.service.supervisor import Supervisor, queue_lock, start_queue
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Placement, SubmissionRecord
from orchestrator.store.submission_leases import MAX_DEATHS, LeaseLostError
from orchestrator.study import driver as study_driver
from orchestrator.study.access import list_studies
from orchestrator.study.lock import hold_study
from tests.tiny import CommandLine

QUICK = """\
study: quick
pool: inline
data: {source: digits, image_size: 32, max_images: 60, max_test_images: 20}
stages:
  - stage: screen
    space: {name: as-vit, width: 8, depths: [1, 1, 1, 1]}
    num_trials: 2
    batch_size: 4
    proxies: [params]
    rank_by: [params]
"""
"""A study that takes less than a second."""
BOX = DevicePool("box", num_gpus=0, max_studies=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = load_settings(home=tmp_path / "home", tracking=False)
    found.home.mkdir()
    return found


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    yield store
    store.close()


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Instead of processes, their arguments are noted."""
    started: list[list[str]] = []

    def start(arguments: list[str], *_: object) -> subprocess.Popen[bytes]:
        started.append(list(arguments))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(supervisor, "_start_process", start)
    return started


def write(folder: Path, text: str = QUICK) -> Path:
    file = folder / "quick.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def submit(store: Store, folder: Path, text: str = QUICK, **given: object) -> SubmissionRecord:
    file = write(folder, text)
    return submit_study(store, load_spec(file), text, **given)  # type: ignore[arg-type]


def claim(store: Store, lease_s: float = 60.0) -> SubmissionRecord:
    found = store.queue().claim("r", "box", lambda *_: Placement({}), lease_s=lease_s)
    assert found is not None
    return found


def test_a_driver_runs_a_study_of_another_owner_to_its_end(store: Store, settings: Settings, tmp_path: Path) -> None:
    submit(store, tmp_path, owner="alice")
    claimed = claim(store)
    drive(claimed.uid, claimed.lease, settings, DriverControl())
    ended = find_submission(store, "alice~quick")
    assert (ended.state, ended.reason, ended.pid) == ("complete", None, os.getpid())
    study = store.find_study("alice~quick")
    assert study is not None
    assert (study.state, study.owner) == ("complete", "alice")
    assert store.find_study("quick") is None
    assert (settings.artifact_root / "studies" / f"alice~quick-{study.uid}" / "screen").is_dir()


def test_a_study_that_cannot_run_fails_with_the_reason(store: Store, settings: Settings, tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (32, 32)).save(tmp_path / "images" / name / f"{number}.png")
    submit(store, tmp_path, QUICK.replace("source: digits", f"source: {tmp_path}/images"))
    shutil.rmtree(tmp_path / "images")
    claimed = claim(store)
    drive(claimed.uid, claimed.lease, settings, DriverControl())
    failed = find_submission(store, "quick")
    assert failed.state == "failed"
    assert "images" in (failed.reason or "")
    (line,) = list_studies(settings)
    assert (line["study"], line["state"], line["stages"]) == ("quick", "failed", 1)


def test_a_study_whose_cluster_dies_waits_and_continues_when_it_answers_again(
    store: Store, settings: Settings, tmp_path: Path, no_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOOK_S", 0.0)
    submitted = submit(store, tmp_path, QUICK.replace("pool: inline", "pool: ray"))
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{port.getsockname()[1]}"
    replica = Supervisor(store, settings, DevicePool(address, None, 1, is_cluster=True))
    running = claim(store)
    lose_ray(monkeypatch, "its Ray cluster does not answer")
    drive(running.uid, running.lease, settings, DriverControl())
    found = find_submission(store, "quick")
    assert (found.state, found.reason) == ("waiting", "its Ray cluster does not answer; it will be resumed")
    replica.step()
    assert "which does not answer: Connection refused" in (find_submission(store, "quick").reason or "")
    assert no_process == []
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        replica.step()
    assert no_process == [[submitted.uid, "2"]]
    for driver in replica._drivers.values():
        driver.wait()


def test_a_study_that_ends_ray_each_time_fails_at_last(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, tmp_path)
    lose_ray(monkeypatch, "its Ray has died")
    for _ in range(MAX_DEATHS - 1):
        running = claim(store)
        drive(running.uid, running.lease, settings, DriverControl())
        assert find_submission(store, "quick").state == "waiting"
    running = claim(store)
    drive(running.uid, running.lease, settings, DriverControl())
    failed = find_submission(store, "quick")
    assert failed.state == "failed"
    assert failed.reason == (
        f"the head must be alive. Restart it; {MAX_DEATHS} drivers ended so one after another without any progress. "
        "See: vitsearch logs quick"
    )


def test_a_cancelled_study_whose_cluster_dies_is_cancelled(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, tmp_path)
    running = claim(store)
    lose_ray(monkeypatch, "its Ray has died")
    store.queue().request_cancel(running.uid)
    drive(running.uid, running.lease, settings, DriverControl())
    assert find_submission(store, "quick").state == "cancelled"


def lose_ray(monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    """Let studies end as if Ray died."""

    def run(*_: object, **__: object) -> None:
        raise RayLostError("the head must be alive. Restart it.", loss=loss)

    monkeypatch.setattr(study_driver, "run_study", run)


def test_a_stopped_driver_lets_the_study_wait_and_the_next_one_resumes_it(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    submit(store, tmp_path)
    claimed, control = claim(store), DriverControl()
    control.on_signal(signal.SIGTERM, None)
    drive(claimed.uid, claimed.lease, settings, control)
    waiting = find_submission(store, "quick")
    assert (waiting.state, waiting.reason) == ("waiting", "its driver was stopped by SIGTERM; it will be resumed")
    (line,) = list_studies(settings)
    assert line["state"] == "waiting"
    again = claim(store)
    drive(again.uid, again.lease, settings, DriverControl())
    assert find_submission(store, "quick").state == "complete"


def test_a_driver_that_a_second_signal_stopped_ends_cleanly(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, tmp_path)
    claimed, control, killed = claim(store), DriverControl(), list[int]()

    def interrupted(*_: object, **__: object) -> None:
        control.on_signal(signal.SIGTERM, None)
        control.on_signal(signal.SIGTERM, None)

    monkeypatch.setattr(study_driver, "run_study", interrupted)
    monkeypatch.setattr(abrupt_end, "end_at_once", lambda status, **_: killed.append(status))
    drive(claimed.uid, claimed.lease, settings, control)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(60)
    assert killed == []
    waiting = find_submission(store, "quick")
    assert (waiting.state, waiting.reason) == ("waiting", "its driver was stopped by SIGTERM; it will be resumed")


def test_a_heartbeat_cancels_a_study_that_another_process_is_running(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    submit(store, tmp_path)
    claimed = claim(store)
    store.queue().request_cancel(claimed.uid)
    with hold_study("quick", settings):
        drive(claimed.uid, claimed.lease, settings, DriverControl(), heartbeat_s=0.05)
    assert find_submission(store, "quick").state == "cancelled"


def test_a_driver_that_lost_its_lease_stops_and_changes_nothing(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    submit(store, tmp_path)
    old = claim(store)
    taken: list[SubmissionRecord] = []

    class Losing(DriverControl):
        def wait(self, seconds: float) -> bool:
            if not taken:
                store.queue().give_up(old.uid, old.lease, "it looked dead")
                taken.append(claim(store))
            return super().wait(seconds)

    with hold_study("quick", settings), pytest.raises(LeaseLostError):
        drive(old.uid, old.lease, settings, Losing(), heartbeat_s=0.05)
    assert find_submission(store, "quick") == taken[0]


def test_a_replica_starts_one_driver_per_claim_and_gives_up_dead_ones(
    store: Store, settings: Settings, tmp_path: Path, no_process: list[list[str]]
) -> None:
    submitted = submit(store, tmp_path)
    submit(store, tmp_path, QUICK.replace("study: quick", "study: second"))
    replica = Supervisor(store, settings, BOX)
    replica.step()
    assert no_process == [[submitted.uid, "1"]]
    assert find_submission(store, "second").reason == "waits for its turn: box runs at most one study at a time"
    for driver in replica._drivers.values():
        driver.wait()
    replica.step()
    assert no_process == [[submitted.uid, "1"], [submitted.uid, "2"]]
    assert find_submission(store, "quick").num_deaths == 1
    assert not replica.is_idle()


def test_a_study_waits_until_its_cluster_answers(
    store: Store, settings: Settings, tmp_path: Path, no_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOOK_S", 0.0)
    submitted = submit(store, tmp_path, QUICK.replace("pool: inline", "pool: ray"))
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        replica = Supervisor(store, settings, DevicePool(address, None, 1, is_cluster=True))
        replica.step()
        found = find_submission(store, "quick")
        assert (found.state, no_process) == ("waiting", [])
        assert found.reason == f"waits for the Ray cluster {address}, which does not answer: Connection refused"
        head.listen()
        replica.step()
    assert no_process == [[submitted.uid, "1"]]
    for driver in replica._drivers.values():
        driver.wait()


def test_a_driver_yields_the_cores_to_the_service(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_start_process", lambda *_: subprocess.Popen(["sleep", "600"]))
    submit(store, tmp_path)
    replica = Supervisor(store, settings.model_copy(update={"driver_nice": 3}), BOX)
    replica.step()
    (driver,) = replica._drivers.values()
    try:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, driver.pid) == min(own + 3, 19)
    finally:
        driver.kill()
        driver.wait()


def test_a_claim_repeated_after_an_outage_starts_no_second_driver(
    store: Store, settings: Settings, tmp_path: Path, no_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = submit(store, tmp_path)
    claimed = claim(store)
    answers = [claimed, claimed, None]
    replica = Supervisor(store, settings, BOX)
    monkeypatch.setattr(type(store.queue()), "claim", lambda *_: answers.pop(0))
    replica.step()
    assert no_process == [[submitted.uid, "1"]]
    for driver in replica._drivers.values():
        driver.wait()


def test_a_driver_that_takes_long_to_begin_keeps_its_lease(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping = subprocess.Popen(["sleep", "600"])  # a driver that still imports
    monkeypatch.setattr(supervisor, "_start_process", lambda *_: sleeping)
    monkeypatch.setattr(supervisor, "RENEW_S", 0.0)
    submit(store, tmp_path)
    replica = Supervisor(store, settings, BOX)
    try:
        replica.step()
        until = [find_submission(store, "quick").lease_until]
        replica.step()
        until.append(find_submission(store, "quick").lease_until)
        assert until[0] < until[1], "renewed for it"
        found = find_submission(store, "quick")
        store.queue().begin(found.uid, found.lease, host="here", pid=sleeping.pid)
        until = [find_submission(store, "quick").lease_until]
        replica.step()
        until.append(find_submission(store, "quick").lease_until)
        assert until[0] == until[1], "it renews its lease itself"
    finally:
        sleeping.kill()
        sleeping.wait()
    replica.step()
    assert find_submission(store, "quick").num_deaths == 1


def test_a_driver_that_starts_or_ends_in_an_outage_is_seen_afterwards(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(supervisor, "_start_process", lambda *_: driver)
    monkeypatch.setattr(supervisor, "RENEW_S", 0.0)
    submit(store, tmp_path)
    replica = Supervisor(store, settings, BOX)

    def fail_once(method: str) -> None:
        with monkeypatch.context() as outage:
            outage.setattr(type(store.queue()), method, _unavailable)
            with pytest.raises(DatabaseUnavailableError):
                replica.step()

    try:
        replica.step()
        for method in ("find", "heartbeat"):
            before = find_submission(store, "quick").lease_until
            fail_once(method)
            assert find_submission(store, "quick").lease_until == before
            replica.step()
            assert find_submission(store, "quick").lease_until > before
    finally:
        driver.kill()
        driver.wait()
    fail_once("give_up")
    assert find_submission(store, "quick").num_deaths == 0
    replica.step()
    assert find_submission(store, "quick").num_deaths == 1


def _unavailable(*_: object) -> None:
    raise DatabaseUnavailableError("no answer")


def test_a_study_waits_with_the_reason_while_no_driver_can_start(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(supervisor, "_start_process", refuse)
    submit(store, tmp_path)
    Supervisor(store, settings, BOX).step()
    waiting = find_submission(store, "quick")
    assert (waiting.state, waiting.num_deaths) == ("waiting", 0)
    assert waiting.reason == "its driver could not be started: Cannot allocate memory"


def test_the_commands_follow_a_study_from_submit_to_its_results(
    command_line: CommandLine,
    tmp_path: Path,
    no_process: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write(tmp_path)
    done = command_line("submit", file)
    assert (done.status, done.out) == (0, "study 'quick' waits for its turn\n")
    assert "vitsearch watch quick" in done.err
    assert no_process == [[]]
    assert command_line("submit", file).status == 1
    before = command_line("status", "quick")
    assert (before.status, before.out.splitlines()[0]) == (0, "quick: waiting (waits for its turn)")
    assert "is waiting. Follow it with: vitsearch watch quick" in command_line("trials", "quick").err
    assert "nothing yet: it is waiting" in command_line("logs", "quick").err

    settings = load_settings(home=command_line.home, tracking=False)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)

    def run_it(_: float) -> None:
        claimed = claim(store)
        log = log_file(settings, claimed)
        log.parent.mkdir(parents=True)
        log.write_text("screen: started\nscr")
        drive(claimed.uid, claimed.lease, settings, DriverControl())
        log.write_text("screen: started\nscreen: complete\nquick: complete\n")

    monkeypatch.setattr(following.time, "sleep", run_it)
    watched = command_line("watch", "quick")
    assert watched.status == 0, watched.err
    assert "quick: waits for its turn" in watched.err
    assert "screen: started\nscreen: complete\nquick: complete\n" in watched.err
    assert "vitsearch status quick" in watched.out
    assert command_line("logs", "quick", "--follow").out == "screen: started\nscreen: complete\nquick: complete\n"
    assert "complete already" in command_line("cancel", "quick").out
    assert command_line("resume", "quick").out == "study 'quick' is complete\n"
    assert '"state": "complete"' in command_line("cancel", "quick", "--format", "json").out
    store.close()


def test_watching_tells_how_a_study_ended_and_how_to_resume_it(
    command_line: CommandLine, tmp_path: Path, no_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command_line("submit", write(tmp_path))
    assert "is cancelled. Resume it with: vitsearch resume quick" in command_line("cancel", "quick").out
    watched = command_line("watch", "quick")
    assert watched.status == 1
    assert watched.err.endswith("study 'quick' was cancelled. Resume with: vitsearch resume quick\n")
    assert "waits for its turn" in command_line("resume", "quick").out

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupt)
    watched = command_line("watch", "quick")
    assert watched.status == 130
    assert "continues in the background. End it with: vitsearch cancel quick" in watched.err
    assert "nothing yet" not in watched.err
    store = Store.open(load_settings(home=command_line.home).database_url)
    claim(store)
    store.close()
    watched = command_line("watch", "quick")
    assert watched.err.startswith("quick: is running, and has written nothing yet\n")
    assert command_line("watch", "nowhere").status == 2


def test_deleting_takes_waiting_submissions_and_logs_along(
    command_line: CommandLine, tmp_path: Path, no_process: list[list[str]]
) -> None:
    command_line("submit", write(tmp_path))
    deleted = command_line("delete", "quick", "--yes")
    assert (deleted.status, deleted.out) == (0, "deleted study 'quick', which had not begun\n")
    assert command_line("list", "--format", "json").out.strip() == "[]"
    command_line("submit", write(tmp_path))
    settings = load_settings(home=command_line.home, tracking=False)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    claimed = claim(store)
    assert command_line("delete", "quick", "--yes").status == 1
    log = log_file(settings, claimed)
    log.parent.mkdir(parents=True)
    log.touch()
    drive(claimed.uid, claimed.lease, settings, DriverControl())
    assert command_line("delete", "quick", "--yes").out == "deleted study 'quick'\n"
    assert not log.exists()
    assert store.queue().page() == []
    store.close()


def test_a_log_is_read_in_whole_lines_from_its_last_ones(tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = following.LogReader(file, num_lines=2)
    assert log.new_lines() == []
    file.write_bytes(b"1\n2\n3\n4")
    assert log.new_lines() == ["2", "3"]
    with file.open("ab") as more:
        more.write(b"4\n\xff\n\n5\n6")
    assert log.new_lines() == ["44", "\ufffd", "", "5"]
    assert log.new_lines() == []


def test_only_one_process_runs_the_queue_of_a_home(
    store: Store, settings: Settings, tmp_path: Path, no_process: list[list[str]]
) -> None:
    with FileLock(queue_lock(settings), timeout=0):
        assert not start_queue(settings)
        submit(store, tmp_path)
        work_off_queue(settings)
        assert find_submission(store, "quick").state == "waiting"
    assert start_queue(settings)
    assert no_process == [[]]


@pytest.mark.parametrize(("lease_s", "is_started"), [(-1.0, True), (60.0, False)])
def test_watching_starts_the_queue_for_a_study_whose_processes_all_died(
    lease_s: float,
    is_started: bool,
    store: Store,
    settings: Settings,
    tmp_path: Path,
    no_process: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit(store, tmp_path)
    claimed = claim(store, lease_s=lease_s)
    monkeypatch.setenv("VITSEARCH_HOME", str(settings.home))

    def end(_seconds: float) -> None:
        store.queue().end(claimed.uid, claimed.lease, "failed", "enough was seen")

    monkeypatch.setattr(following.time, "sleep", end)
    with pytest.raises(SystemExit):
        following.watch_command("quick", None, as_json=False)
    assert no_process == [[]] * is_started


def test_watching_shows_the_line_that_a_driver_writes_after_its_end(
    store: Store,
    settings: Settings,
    tmp_path: Path,
    no_process: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    submit(store, tmp_path)
    claimed = claim(store)
    log = log_file(settings, claimed)
    log.parent.mkdir(parents=True)
    log.write_text("screen: started\n")
    monkeypatch.setenv("VITSEARCH_HOME", str(settings.home))
    steps = iter(
        [
            lambda: store.queue().end(claimed.uid, claimed.lease, "failed", "no disk"),
            lambda: None,
            lambda: log.write_text("screen: started\nquick: failed: no disk\n"),
        ]
    )
    monkeypatch.setattr(following.time, "sleep", lambda _: next(steps)())
    with pytest.raises(SystemExit):
        following.watch_command("quick", None, as_json=False)
    assert "screen: started\nquick: failed: no disk\n" in capsys.readouterr().err
    assert no_process == []


def test_tokens_are_shown_once_and_their_changes_are_logged(command_line: CommandLine) -> None:
    assert "vitsearch token create OWNER" in command_line("token", "list").out
    elsewhere = command_line("token", "list", VITSEARCH_SERVER="http://127.0.0.1:1")
    assert "does not ask http://127.0.0.1:1, whose tokens are managed on its machine" in elsewhere.err
    created = command_line("token", "create", "alice", "--role", "viewer", "--label", "laptop")
    secret = created.out.strip()
    uid = secret.split("_")[1]
    assert f"vitsearch token revoke {uid}" in created.err
    listed = command_line("token", "list").out
    assert "laptop" in listed
    assert "valid" in listed
    assert secret not in listed
    assert command_line("token", "revoke", uid).out == f"token {uid} is revoked\n"
    assert "revoked" in command_line("token", "list").out
    assert command_line("token", "revoke", "nix").status == 2
    assert command_line("token", "create", "Not A Name").status == 2
    settings = load_settings(home=command_line.home)
    store = Store.open(settings.database_url)
    assert [(event.action, event.subject) for event in store.audit_log().page()] == [
        ("token.revoke", uid),
        ("token.create", uid),
    ]
    store.close()


@pytest.mark.slow
def test_a_submitted_study_outlives_the_command_and_its_queue_ends(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", tracking=False)
    command = [str(Path(sys.executable).with_name("vitsearch"))]
    environment = {**os.environ, **settings.environment()}
    submitted = subprocess.run([*command, "submit", str(write(tmp_path))], env=environment, check=True)
    assert submitted.returncode == 0
    watched = subprocess.run(
        [*command, "watch", "quick"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert watched.returncode == 0, watched.stderr
    assert "quick: complete" in watched.stderr
    with FileLock(queue_lock(settings), timeout=30):  # its process has ended
        assert list_studies(settings)[0]["state"] == "complete"
