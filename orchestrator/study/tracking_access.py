"""MLflow's pages of existing studies: their addresses, and experiments that MLflow has lost."""

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.settings import Settings
from orchestrator.store.past_growths import Growths
from orchestrator.store.records import StageRecord, StudyRecord
from orchestrator.study.access import open_existing, tracker_of
from orchestrator.study.lock import hold_study
from orchestrator.tracking.names import is_http
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.pages import ALL_VIEW, TRIALS_VIEW
from orchestrator.tracking.run_tree import RunTree

_FLUSH_S = 3600.0
"""Longest time for all events of a study. Waiting ends at once if MLflow does not answer."""


class SentAgain(NamedTuple):
    """Numbers of events of a study for MLflow."""

    all: int
    """All events of the study; 0 if it ran without tracking."""
    waiting: int
    """Those that could not be sent yet."""
    rejected: int
    """Those that MLflow rejected, such as those of files that were deleted since."""
    reason: str | None
    """Why the first one was rejected."""


def study_page(study: StudyRecord, settings: Settings, *, server_url: str | None) -> str | None:
    """Address of a study's page in MLflow, with its trials or, if it trains none, all runs; `None` if there is none.

    Our own server opens on that view (`orchestrator.tracking.web_pages`); for another, the address names it.

    Raises:
        orchestrator.tracking.mlflow_client.TrackingUnavailable: MLflow does not answer.
    """
    view = None
    if is_http(settings.tracking_uri):
        view = TRIALS_VIEW if any(stage["stage"] == "train" for stage in study.spec["stages"]) else ALL_VIEW
    with open_existing(settings) as store:
        if store is None:
            return None
        return tracker_of(study, settings, store).experiment_url(study.name, server_url=server_url, view=view)


def compare_page(
    study: StudyRecord, stage: StageRecord, numbers: Sequence[int], settings: Settings, *, server_url: str | None
) -> str | None:
    """Address of the page that compares trials, in this order; `None` if MLflow lacks one of them.

    Raises:
        orchestrator.tracking.mlflow_client.TrackingUnavailable: MLflow does not answer.
    """
    with open_existing(settings) as store:
        if store is None:
            return None
        tree = RunTree(study, "", growths=Growths.of(store.executions(study.id)))
        keys = [tree.trial_key(stage, number) for number in numbers]
        return tracker_of(study, settings, store).compare_url(study.name, keys, server_url=server_url)


def send_again(study: StudyRecord, settings: Settings) -> SentAgain:
    """Send MLflow all events of a study once more. Runs that it still has are completed, not added a second time.

    Raises:
        orchestrator.study.lock.StudyBusyError: The study is running, which sends them anyway.
    """
    with hold_study(study.name, settings), open_existing(settings) as store:
        if store is None:
            return SentAgain(0, 0, 0, None)
        owed = store.outbox(study.id)
        num_events = owed.start_over()
        with Outbox(owed, lambda: tracker_of(study, settings, store)) as outbox:
            waiting = outbox.flush(_FLUSH_S)
        return SentAgain(num_events, waiting, owed.count_rejected(), owed.rejection())
