"""The queue of submitted studies: order, leases, cancelling, and what is refused."""

import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
from sqlalchemy import event

from benchmarks._sleeping import report_of
from orchestrator.service.owner_weights import WeightError, set_weight
from orchestrator.service.submitting import (
    SubmissionError,
    UnknownSubmissionError,
    cancel_study,
    find_submission,
    resume_study,
    submit_study,
)
from orchestrator.spec.study_file import StudySpec, make_spec
from orchestrator.store import submission_leases, submission_rows
from orchestrator.store.records import EndedTrial
from orchestrator.store.repository import Store
from orchestrator.store.service_records import (
    Actor,
    Placement,
    PoolFull,
    SubmissionRecord,
    WebhookTarget,
    state_words,
)
from orchestrator.store.study_names import NameTakenError, full_name, home_owner, owner_of
from orchestrator.store.submission_leases import MAX_DEATHS, LeaseLostError
from orchestrator.store.submission_rows import IdempotencyError, StudyActiveError, TooManyStudiesError
from orchestrator.store.tables import submissions
from orchestrator.study.growth import SpecChangedError
from orchestrator.study.states import why_waiting
from trainers.config import TaskOutcome

MAX_ACTIVE = 2000
LAPSED_S = -1.0
"""A lease that has ended when it begins."""


@pytest.fixture
def store(empty_store: Store) -> Store:
    return empty_store


def spec(name: str = "digits", *, num_trials: int = 2) -> StudySpec:
    stage = {"stage": "screen", "space": "as-vit", "num_trials": num_trials, "proxies": ["params"]}
    return make_spec({"study": name, "data": {"source": "noise"}, "stages": [stage]})


def submit(store: Store, name: str = "digits", **given: object) -> SubmissionRecord:
    return submit_study(store, spec(name), f"study: {name}\n", **given)  # type: ignore[arg-type]


def anywhere(*_: object) -> Placement:
    return Placement({})


def claim(store: Store, replica: str = "a", lease_s: float = 60.0) -> SubmissionRecord | None:
    return store.queue().claim(replica, "box", anywhere, lease_s=lease_s)


def claimed(store: Store, **given: object) -> SubmissionRecord:
    found = claim(store, **given)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_submission_waits_until_it_is_claimed_and_keeps_its_file(store: Store) -> None:
    submitted = submit(store, owner=None)
    assert (submitted.state, submitted.owner, submitted.name) == ("waiting", home_owner(), "digits")
    assert why_waiting(store, submitted) == "waits for its turn"
    running = claimed(store)
    assert (running.uid, running.state, running.lease, running.pool) == (submitted.uid, "running", 1, "box")
    assert claim(store) is None
    content, text = store.queue().spec_of(submitted.uid)
    assert StudySpec.model_validate(content) == spec()
    assert text == "study: digits\n"


def test_the_queue_needs_no_returning_which_sqlite_has_since_3_35(store: Store) -> None:
    if store._engine.dialect.name != "sqlite":
        pytest.skip("the statements of SQLite")
    statements: list[str] = []
    event.listen(store._engine, "checkout", lambda connection, *_: connection.set_trace_callback(statements.append))
    submitted = submit(store, by=Actor("ann", "submit"))
    assert submitted == store.queue().find(submitted.uid)
    with pytest.raises(StudyActiveError):
        submit(store)
    running = claimed(store)
    store.queue().heartbeat(running.uid, running.lease)
    store.queue().end(running.uid, running.lease, "complete")
    assert any("INSERT INTO submissions" in one for one in statements)
    assert [one for one in statements if "RETURNING" in one] == []


def test_a_repeated_request_makes_one_submission_and_another_request_with_its_key_is_refused(store: Store) -> None:
    first = submit(store, idempotency_key="k")
    assert submit(store, idempotency_key="k").uid == first.uid
    claimed(store)
    assert submit(store, idempotency_key="k").uid == first.uid
    with pytest.raises(IdempotencyError, match="'k' must repeat the same request"):
        submit(store, idempotency_key="k", priority=1)
    assert submit(store, "other", owner="alice", idempotency_key="k").uid != first.uid


def test_the_first_submission_of_a_study_is_one_statement_on_postgresql(store: Store) -> None:
    if store._engine.dialect.name != "postgresql":
        pytest.skip("SQLite makes no round trips")
    submit(store, "before", owner="ann", priority=1)  # compiles the statement
    submit(store, "later", owner="ann", priority=-1)
    submit(store, "of-another", owner="bea")
    statements: list[str] = []
    event.listen(store._engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    target = WebhookTarget(url="http://localhost:1/", secret="whsec_")
    submitted = submit(
        store,
        owner="ann",
        by=Actor("boss", "submit", "t1"),
        max_active=MAX_ACTIVE,
        idempotency_key="k",
        shared=True,
        webhook=target,
    )
    assert (len(statements), submitted.num_ahead) == (1, 1)
    assert submitted.model_copy(update={"num_ahead": None}) == store.queue().find(submitted.uid)
    assert store.queue().webhook_of(submitted.uid) == target
    (noted,) = store.audit_log().page()
    assert (noted.actor, noted.action, noted.token, noted.subject, noted.outcome, noted.details) == (
        *("boss", "submit", "t1", "ann~digits", "done"),
        {"submission": submitted.uid},
    )
    assert noted.at == pytest.approx(submitted.created_at, abs=60)


def test_what_the_first_statement_does_not_add_is_decided_by_the_second(store: Store) -> None:
    by = Actor("boss", "submit")
    first = submit(store, owner="ann", by=by, max_active=1000, idempotency_key="k", shared=True)
    assert submit(store, owner="ann", by=by, max_active=1000, idempotency_key="k", shared=True).uid == first.uid
    with pytest.raises(StudyActiveError):
        submit(store, owner="ann", by=by, max_active=1000)
    with pytest.raises(TooManyStudiesError):
        submit(store, "other", owner="ann", by=by, max_active=1)
    assert len(store.audit_log().page()) == 1, "only the first one was added"
    store.queue().request_cancel(first.uid)
    again = submit(store, owner="ann", by=by, max_active=1000)
    assert (again.shared, store.queue().find_latest("ann~digits").shared) == (True, True)  # type: ignore[union-attr]
    store.queue().request_cancel(again.uid)
    stage = [("screen", "screen")]
    store.create_study("ann~digits", spec={}, digest="d", data_digest="e", stage_names=stage)
    with pytest.raises(SpecChangedError):
        submit(store, owner="ann", by=by)
    assert len(store.audit_log().page()) == 2


def test_a_study_is_not_submitted_twice_at_a_time(store: Store) -> None:
    first = submit(store)
    with pytest.raises(StudyActiveError, match=r"'digits'.*waiting already") as refused:
        submit(store)
    assert refused.value.uid == first.uid
    cancel_study(store, "digits")
    assert submit(store).uid != first.uid
    with pytest.raises(StudyActiveError):
        resume_study(store, first.uid)


def test_invalid_requests_are_refused(store: Store) -> None:
    for wrong in ({"priority": 11}, {"idempotency_key": ""}, {"idempotency_key": "a\nb"}):
        with pytest.raises(SubmissionError, match="must be"):
            submit(store, **wrong)
    with pytest.raises(UnknownSubmissionError, match="'nowhere'"):
        find_submission(store, "nowhere")
    assert store.queue().page() == []


def test_names_belong_to_their_owner(store: Store) -> None:
    mine, hers = submit(store), submit(store, owner="alice")
    assert (mine.name, hers.name) == ("digits", "alice~digits")
    assert (owner_of(mine.name), owner_of(hers.name)) == (home_owner(), "alice")
    assert full_name("alice~digits", "alice") == "alice~digits"
    for name, owner in (("alice~digits", "bob"), ("alice~digits", home_owner()), ("a" * 63, "alice")):
        with pytest.raises(NameTakenError, match="the name must"):
            full_name(name, owner)


def test_an_owners_studies_run_by_priority_and_owners_take_turns(store: Store) -> None:
    for name, priority in (("first", 0), ("urgent", 5), ("second", 0)):
        submit(store, name, owner="alice", priority=priority)
    for name in ("x", "y"):
        submit(store, name, owner="bob")
    order = [claimed(store).name for _ in range(5)]
    assert order == ["alice~urgent", "bob~x", "alice~first", "bob~y", "alice~second"]


def test_an_owner_who_used_more_device_time_comes_later(store: Store) -> None:
    submit(store, "long", owner="alice")
    running = claimed(store)
    with patch("orchestrator.store.submission_rows.read_time", lambda _: time.time() + 40):
        store.queue().heartbeat(running.uid, running.lease)
    ended = store.queue().end(running.uid, running.lease, "complete")
    assert 35 < ended.device_time_s < 120
    submit(store, "next", owner="alice")
    submit(store, "one", owner="bob")
    assert claimed(store).name == "bob~one"


def test_an_owner_with_twice_the_weight_runs_twice_as_much(store: Store) -> None:
    set_weight(store, "alice", 2)
    for number in range(6):
        submit(store, f"a{number}", owner="alice")
        submit(store, f"b{number}", owner="bob")
    order = "".join(claimed(store).owner[0] for _ in range(6))
    assert order.count("a") == 4, order
    assert [(one.name, one.weight) for one in store.owners().all()] == [("alice", 2.0)]
    set_weight(store, "alice", 0.5)
    assert [one.weight for one in store.owners().all()] == [0.5]
    assert store.audit_log().page(limit=1)[0].action == "owner.weight"
    for owner, weight in (("Not An Owner", 1), ("alice", 0), ("alice", float("nan")), ("alice", 1e9)):
        with pytest.raises(WeightError, match="must be"):
            set_weight(store, owner, weight)


def test_a_lapsed_lease_goes_to_another_driver_and_the_old_one_changes_nothing(store: Store) -> None:
    submit(store)
    old = claimed(store, lease_s=LAPSED_S)
    new = claimed(store, replica="b")
    assert (new.uid, new.lease, new.num_deaths) == (old.uid, old.lease + 1, 1)
    queue = store.queue()
    for late in (
        lambda: queue.begin(old.uid, old.lease, host="h", pid=1),
        lambda: queue.heartbeat(old.uid, old.lease),
        lambda: queue.end(old.uid, old.lease, "failed", "late"),
    ):
        with pytest.raises(LeaseLostError, match="lease 2"):
            late()
    assert queue.give_up(old.uid, old.lease, "late") is None
    assert queue.find(old.uid) == new


def test_a_wrong_clock_of_a_machine_does_not_matter(store: Store) -> None:
    submit(store)
    for wrong in (-3600, 3600):
        with patch("time.time", lambda shift=wrong: 1.8e9 + shift):
            running = claim(store)
            assert running is None or running.lease == 1
            assert store.queue().heartbeat(find_submission(store, "digits").uid, 1) is False
    found = find_submission(store, "digits")
    assert found.lease == 1
    assert abs((found.heartbeat_at or 0) - found.created_at) < 600


def test_a_study_whose_drivers_keep_dying_fails_with_the_reason(store: Store) -> None:
    submit(store)
    for _ in range(MAX_DEATHS):
        running = claimed(store)
        found = store.queue().give_up(running.uid, running.lease, "its driver was killed by signal 9")
        assert found is not None
    assert found.state == "failed"
    assert "signal 9; 5 drivers died one after another without any progress" in (found.reason or "")
    assert claim(store) is None
    assert resume_study(store, "digits").num_deaths == 0


@pytest.mark.parametrize(("how", "num_deaths"), [("a report", 4), ("an end", 3)])
def test_a_driver_that_progressed_before_it_died_is_the_first_in_a_new_row_of_deaths(
    store: Store, how: str, num_deaths: int
) -> None:
    submit(store)
    study = store.create_study("digits", spec={}, digest="a", data_digest="d", stage_names=[("train", "train")])
    (stage,) = store.stages(study.id)
    trial, deaths = None, []
    for number in range(num_deaths):
        running = claimed(store)
        execution = store.begin_execution(study.id)
        if trial is None:
            trial, attempt = store.begin_trial(stage, execution, number=0, point={}, sampler_state={}, seed=0)
        else:
            attempt = store.resume_trial(trial, execution)
            assert attempt is not None
        if number == 2 and how == "a report":
            store.add_report(attempt, report_of(1), study_id=study.id)
        elif number == 2:
            store.end_trial(EndedTrial.of(trial, attempt, TaskOutcome(state="complete", metrics={})), study_id=study.id)
        found = store.queue().give_up(running.uid, running.lease, "its driver died")
        assert found is not None
        deaths.append(found.num_deaths)
    assert deaths == [1, 2, 1, 2][:num_deaths]


def test_all_waiting_studies_get_the_reason_of_a_full_pool_which_reads_few_of_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission_leases, "_MAX_EXAMINED", 2)
    for number in range(5):
        submit(store, f"s{number}", owner=f"o{number % 2}")
    asked = []

    def place(waiting: SubmissionRecord, _: object) -> PoolFull:
        asked.append(waiting.name)
        return PoolFull("box", 1)

    assert store.queue().claim("a", "box", place) is None
    assert len(asked) == 1
    reasons = [one.reason for one in store.queue().page()]
    assert reasons == ["waits for its turn: box runs at most one study at a time"] * 5


def test_two_full_pools_keep_each_others_reasons_and_better_ones(store: Store) -> None:
    submit(store, "resumed")
    store.queue().end(*_lease(claimed(store)), "waiting", "its machine was restarted")
    submit(store, "new")

    def reasons_in(pool: str, max_studies: int) -> list[str | None]:
        assert store.queue().claim("a", pool, lambda *_: PoolFull(pool, max_studies)) is None
        return [one.reason for one in store.queue().page()]

    full = "waits for its turn: b_x runs at most one study at a time"
    assert reasons_in("b_x", 1) == [full, "its machine was restarted"]
    for pool, limit in (("box", 1), ("b_x", 1), ("b_x runs", 4)):
        assert reasons_in(pool, limit) == [full, "its machine was restarted"]
    assert reasons_in("b_x", 4)[0] == "waits for its turn: b_x runs at most 4 studies at a time"


def test_a_running_study_is_cancelled_by_its_driver_and_a_waiting_one_at_once(store: Store) -> None:
    queue = store.queue()
    submit(store, "running")
    running = claimed(store)
    submit(store, "waiting")
    assert cancel_study(store, "waiting").state == "cancelled"
    assert queue.heartbeat(running.uid, running.lease) is False
    assert cancel_study(store, "running").state == "running"
    assert queue.heartbeat(running.uid, running.lease) is True
    assert queue.end(running.uid, running.lease, "interrupted", "why").state == "cancelled"
    assert cancel_study(store, "running").state == "cancelled"
    assert resume_study(store, "running").state == "waiting"
    again = claimed(store)
    cancel_study(store, "running")
    assert queue.end(again.uid, again.lease, "complete").state == "complete"


def test_a_driver_that_an_earlier_version_started_counts_as_progressed(store: Store) -> None:
    submit(store)
    for num_deaths in (1, 2):
        store.queue().give_up(*_lease(claimed(store)), "its driver died")
        assert find_submission(store, "digits").num_deaths == num_deaths
    running = claimed(store)
    with store._engine.begin() as connection:  # a number of reports
        connection.execute(submissions.update().values(progress=500))
    store.queue().give_up(*_lease(running), "its driver died")
    assert find_submission(store, "digits").num_deaths == 1


@pytest.mark.parametrize("max_concurrent", [500, 3])
def test_concurrent_submissions_keep_the_limit_of_their_owner(
    store: Store, monkeypatch: pytest.MonkeyPatch, max_concurrent: int
) -> None:
    monkeypatch.setattr(submission_rows, "_MAX_CONCURRENT", max_concurrent)
    submit(store, "resumed", owner="ann")
    cancel_study(store, "ann~resumed")
    submit(store, owner="bob")

    def add(number: int) -> bool:
        try:
            if number == 3:
                resume_study(store, "ann~resumed", max_active=5)
            else:
                submit(store, f"s{number}", owner="ann", idempotency_key=f"k{number}", max_active=5)
        except TooManyStudiesError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        added = list(threads.map(add, range(12)))
    active = store.queue().page(owner="ann", states=["waiting"])
    assert added.count(True) == len(active) == 5
    repeated = active[0].idempotency_key or active[1].idempotency_key
    assert submit(store, f"s{repeated[1:]}", owner="ann", idempotency_key=repeated, max_active=5) in active  # type: ignore[index]


def test_a_cancelled_study_whose_driver_dies_is_not_resumed(store: Store) -> None:
    submit(store)
    claimed(store, lease_s=LAPSED_S)
    cancel_study(store, "digits")
    assert claim(store) is None
    assert find_submission(store, "digits").state == "cancelled"


def test_concurrent_claims_never_give_a_study_twice(store: Store) -> None:
    for number in range(12):
        submit(store, f"s{number}")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: claim(store, replica=f"r{number}"), range(16)))
    names = [one.name for one in found if one is not None]
    assert len(names) == 12
    assert sorted(set(names)) == sorted(names)


def test_concurrent_submissions_of_one_study_make_one(store: Store) -> None:
    def add(number: int) -> str:
        try:
            return submit(store, idempotency_key=f"k{number % 2}").uid
        except StudyActiveError:
            return "refused"

    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(add, range(8)))
    assert len(found - {"refused"}) == 1
    assert len(store.queue().page()) == 1


def test_pages_show_own_and_shared_submissions_newest_first(store: Store) -> None:
    for number in range(3):
        submit(store, f"s{number}", owner="alice")
    submit(store, "open", owner="bob", shared=True)
    submit(store, "private", owner="bob")
    queue = store.queue()
    names = [one.name for one in queue.page(seen_by="alice", limit=3)]
    assert names == ["bob~open", "alice~s2", "alice~s1"]
    last = queue.page(seen_by="alice", limit=3)[-1]
    assert [one.name for one in queue.page(owner="alice", before=last.id)] == ["alice~s0"]
    queue.share("bob~open", shared=False)
    assert [one.name for one in queue.page(seen_by="alice")] == [f"alice~s{n}" for n in (2, 1, 0)]
    assert queue.page(states=["running"]) == []


def test_a_changed_file_that_makes_another_study_is_refused_at_once(store: Store) -> None:
    from orchestrator.study.growth import SpecChangedError

    begun = spec()
    store.create_study(
        "digits",
        spec=begun.model_dump(mode="json"),
        digest=begun.digest,
        data_digest="d",
        stage_names=[("screen", "screen")],
    )
    other = begun.model_copy(update={"seed": 1})
    with pytest.raises(SpecChangedError, match="seed"):
        submit_study(store, other, "")
    assert store.queue().page() == []


def test_a_repeated_request_is_known_although_its_study_has_grown_and_another_file_is_checked(store: Store) -> None:
    from orchestrator.study.growth import SpecChangedError

    first = submit(store, idempotency_key="k")
    cancel_study(store, "digits")
    begun = spec().model_copy(update={"seed": 1})
    store.create_study(
        "digits",
        spec=begun.model_dump(mode="json"),
        digest=begun.digest,
        data_digest="d",
        stage_names=[("screen", "screen")],
    )
    assert submit(store, idempotency_key="k").uid == first.uid
    with pytest.raises(SpecChangedError, match="seed"):
        submit(store, idempotency_key="another")


def test_a_study_that_others_see_stays_shared_when_it_is_submitted_again(store: Store) -> None:
    submit(store, owner="bob", shared=True)
    cancel_study(store, "bob~digits")
    assert submit(store, owner="bob").shared
    cancel_study(store, "bob~digits")
    store.queue().share("bob~digits", shared=False)
    assert not submit(store, owner="bob").shared


def test_studies_that_can_never_run_do_not_hold_up_other_owners(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission_leases, "_MAX_EXAMINED", 2)
    for number in range(3):
        submit(store, f"huge{number}", owner="ann")
    submit(store, "small", owner="bob")

    def place(waiting: SubmissionRecord, _: object) -> Placement | str:
        return "waits for 8 GPUs, but box has 1" if waiting.owner == "ann" else Placement({})

    found = store.queue().claim("a", "box", place)
    assert found is not None
    assert found.name == "bob~small"


def test_the_first_charges_of_an_owner_at_the_same_time_are_added(store: Store) -> None:
    for number in range(4):
        submit(store, f"s{number}", owner="ann")
    running = [claimed(store, replica=f"r{number}") for number in range(4)]
    queue = store.queue()
    later = time.time() + 30
    with (
        patch("orchestrator.store.submission_rows.read_time", lambda _: later),
        ThreadPoolExecutor(4) as threads,
    ):
        assert list(threads.map(lambda one: queue.heartbeat(one.uid, one.lease), running)) == [False] * 4
    assert [queue.find(one.uid).device_time_s > 20 for one in running] == [True] * 4  # type: ignore[union-attr]


def test_concurrent_resumptions_of_one_study_let_one_wait(store: Store) -> None:
    uids = []
    for _ in range(2):
        uids.append(submit(store).uid)
        cancel_study(store, "digits")

    def resume(uid: str) -> str:
        try:
            return resume_study(store, uid).state
        except StudyActiveError:
            return "refused"

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(resume, uids)) == ["refused", "waiting"]


def test_a_submission_that_a_driver_has_is_not_forgotten_until_its_lease_ends(store: Store) -> None:
    queue = store.queue()
    old = submit(store)
    cancel_study(store, "digits")
    submit(store)
    running = claimed(store)
    assert queue.has_driver("digits")
    assert queue.forget("digits") == []
    assert queue.find(old.uid) is not None
    queue.heartbeat(running.uid, running.lease, lease_s=LAPSED_S)
    assert not queue.has_driver("digits")
    assert sorted(queue.forget("digits")) == sorted([old.uid, running.uid])
    with pytest.raises(LeaseLostError, match="it is deleted"):
        queue.heartbeat(running.uid, running.lease)


def test_a_study_that_was_not_submitted_is_told_from_an_unknown_one(store: Store) -> None:
    submit(store, "digits")
    content = spec("terminal").model_dump(mode="json")
    store.create_study("terminal", spec=content, digest="s", data_digest="d", stage_names=[("screen", "screen")])
    with pytest.raises(UnknownSubmissionError, match="'terminal' was run in a terminal, not submitted"):
        cancel_study(store, "terminal")
    for wrong in ("digts", "folder/digits.yaml"):
        with pytest.raises(UnknownSubmissionError, match="Did you mean 'digits'"):
            find_submission(store, wrong)


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("running", None, "is running"),
        ("waiting", "waits for its turn", "waits for its turn"),
        ("waiting", "its machine was restarted", "is waiting: its machine was restarted"),
    ],
)
def test_a_state_is_a_verb_with_its_reason(state: str, reason: str | None, words: str) -> None:
    assert state_words(state, reason) == words


def test_deleting_a_study_takes_its_waiting_submission_along(store: Store) -> None:
    study = store.create_study("digits", spec={}, digest="a", data_digest="d", stage_names=[])
    submit(store, "other")
    store.queue().add(_copy(store, "digits"))
    store.delete_study(study.id)
    assert [one.name for one in store.queue().page()] == ["other"]


def _lease(running: SubmissionRecord) -> tuple[str, int]:
    return running.uid, running.lease


def _copy(store: Store, name: str):
    from orchestrator.store.service_records import NewSubmission, WantedDevices

    return NewSubmission("u1", home_owner(), name, {}, "", WantedDevices(), "d")
