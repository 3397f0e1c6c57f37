"""The state of a study in the words that all commands, pages and the API use.

Its row has how its newest execution ended, and its newest submission whether it waits, or why its driver could not
begin. A row stays `running` if its process was killed.
"""

from orchestrator.settings import Settings
from orchestrator.store.records import StudyRecord, StudyState
from orchestrator.store.repository import Store
from orchestrator.store.service_records import SubmissionRecord
from orchestrator.study.lock import is_held

STARTS = "waits for its process to start"
_DIED = "its process died; run the file again to resume"


def why_waiting(store: Store, submission: SubmissionRecord) -> str | None:
    """Why a submission waits, in words; `None` if it does not wait."""
    if submission.state != "waiting":
        return None
    if submission.reason is not None:
        return submission.reason
    known = submission.num_ahead
    ahead = store.queue().position(submission) if known is None else known
    return "waits for its turn" + (f" behind {ahead} of {submission.owner}'s studies" if ahead else "")


def state_before_begin(store: Store, submission: SubmissionRecord) -> tuple[StudyState, str | None]:
    """The state of a study that was submitted and has not begun, and the reason.

    Args:
        store: The store.
        submission: Its newest submission.
    """
    if submission.is_active:  # one that was claimed waits until its driver begins the study
        return "waiting", why_waiting(store, submission) or STARTS
    return submission.state, submission.reason


def with_actual_state(
    study: StudyRecord, settings: Settings, store: Store, submission: SubmissionRecord | None
) -> StudyRecord:
    """The record of a study that has begun with its actual state and reason.

    Args:
        study: The record, as its row is.
        settings: Settings of this installation.
        store: The store.
        submission: The newest submission of the study; `None` if it was never submitted.
    """
    is_active = submission is not None and submission.is_active
    holds = (study.state == "running" or is_active) and is_held(study.name, settings)
    if study.state == "running" and holds:
        return study
    if submission is not None and is_active:
        is_its_end = submission.state == "running" and (holds or study.state == "complete")
        if is_its_end and _has_begun(study, store, submission):  # the driver is about to write its end
            return study
        state, reason = state_before_begin(store, submission)
    elif submission is not None and submission.state != "complete" and (submission.ended_at or 0) >= study.updated_at:
        state, reason = submission.state, submission.reason
    elif study.state == "running":
        state, reason = "interrupted", _DIED
    else:
        return study
    return study.model_copy(update={"state": state, "reason": reason})


def _has_begun(study: StudyRecord, store: Store, submission: SubmissionRecord) -> bool:
    """Whether the driver that has a submission has begun an execution of the study."""
    return any(one.id > submission.progress for one in store.executions(study.id))
