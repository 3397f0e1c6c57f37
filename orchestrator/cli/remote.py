"""Which studies a command is about: those of the home folder, or those of a service."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.cli.console import fail
from orchestrator.cli.exit_status import BAD_INPUT
from orchestrator.service_address import checked_address
from orchestrator.settings import load_settings

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.store.records import StageRecord, StudyRecord, TrialRecord


def client_of(server: str | None) -> "Client | None":
    """The client of the service that `--server` or VITSEARCH_SERVER names; `None` for the home folder."""
    if server:
        try:
            checked_address(server)
        except ValueError as error:
            fail(f"--server: {error}, but got {server!r}. Correct it.", status=BAD_INPUT)
    given = {"server": server} if server else {}
    settings = load_settings(**given)
    if settings.server is None:
        return None
    from orchestrator.client import Client

    return Client(settings.server, settings.token.get_secret_value() if settings.token else None)


def summary_there(client: "Client", name: str) -> dict[str, Any]:
    """The summary of a study of a service. For people on other machines, a command replaces the champion's folder."""
    summary = client.study(name)
    champion = summary["champion"]
    if champion is None or not client.has_token:
        return summary
    rest = {key: value for key, value in champion.items() if key != "folder"}
    return {**summary, "champion": {**rest, "copied_by": f"vitsearch download {summary['study']}"}}


def record_of(trial: Mapping[str, Any]) -> "TrialRecord":
    """A trial that a service sent, without what it keeps to itself."""
    from orchestrator.store.records import TrialRecord

    return TrialRecord(
        id=0,
        stage_id=0,
        number=trial["trial"],
        state=trial["state"],
        point=trial["point"],
        sampler_state={},
        seed=trial["seed"],
        metrics={name: value for name, value in trial["metrics"].items() if value is not None},
        details={"topology": trial["topology"]},
        reason=trial["reason"],
        error=None,
        started_at=trial["started_at"],
        ended_at=trial["ended_at"],
    )


def records_of(summary: Mapping[str, Any], stage: str) -> "tuple[StudyRecord, StageRecord]":
    """A study that a service sent and one of its stages, without what the service keeps to itself."""
    from orchestrator.store.records import StageRecord, StudyRecord

    found = next(one for one in summary["stages"] if one["name"] == stage)
    study = StudyRecord(
        id=0,
        uid=summary["uid"],
        name=summary["study"],
        spec={},
        spec_digest=summary["spec_digest"],
        data_digest="",
        state=summary["state"],
        reason=summary["reason"],
        owner=summary["owner"],
        created_at=summary["created_at"],
        updated_at=summary["updated_at"],
    )
    record = StageRecord(
        id=0,
        study_id=0,
        position=summary["stages"].index(found),
        name=stage,
        kind=found["kind"],
        state=found["state"],
        reason=found["reason"],
        result=found["result"] or {},
        started_at=None,
        ended_at=None,
    )
    return study, record
