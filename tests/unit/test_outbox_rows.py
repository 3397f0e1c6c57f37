"""The rows of events that wait for MLflow, and of the run ids of its keys."""

from pathlib import Path

import pytest

from orchestrator.store.outbox_rows import StudyOutbox
from orchestrator.store.repository import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/vitsearch.db")


def outbox_of(store: Store, name: str) -> tuple[StudyOutbox, str]:
    """The outbox of a new study with three events, and the study's uid."""
    study = store.create_study(name, spec={}, digest="d", data_digest="d", stage_names=[])
    store.owe(study.id, [f"{name} {number}" for number in range(3)])
    return store.outbox(study.id), study.uid


def test_starting_over_lets_all_events_of_a_study_wait_again_in_their_order(store: Store) -> None:
    (ours, uid), (others, other_uid) = outbox_of(store, "ours"), outbox_of(store, "others")
    ids = [number for number, _ in ours.owed(9)]
    ours.settle(ids[:2])
    ours.reject(ids[2], "refused")
    others.settle([number for number, _ in others.owed(9)])
    ours.put(f"{uid}/execution/0", "a")
    others.put(f"{other_uid}/execution/0", "b")
    assert ours.expects_runs()
    assert ours.start_over() == 3
    assert [event for _, event in ours.owed(9)] == ["ours 0", "ours 1", "ours 2"]
    assert not ours.expects_runs()
    assert (ours.count_rejected(), ours.rejection()) == (0, None)
    assert others.count_owed() == 0
    assert others.expects_runs()


def test_the_first_rejection_says_why(store: Store) -> None:
    outbox, _ = outbox_of(store, "digits")
    assert outbox.rejection() is None
    first, second, _ = (number for number, _ in outbox.owed(9))
    outbox.reject(second, "later")
    outbox.reject(first, "earlier")
    assert outbox.rejection() == "earlier"
    assert outbox.count_rejected() == 2
