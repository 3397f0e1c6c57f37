"""`vitsearch watch` on a service tells at once that a study runs, also before its first line."""

from typing import Any

import pytest

from orchestrator.cli import service_studies


class Service:
    """A service whose study runs at the first question and is cancelled at the second."""

    url = "http://127.0.0.1:8000"

    def __init__(self, log: str) -> None:
        self._log, self._states = log, iter(("running", "cancelled"))

    def submission(self, _name: str) -> dict[str, Any]:
        return {"study": "ann~photos", "state": next(self._states), "reason": None}

    def log(self, _name: str, *, offset: int) -> tuple[str, int]:
        return self._log[offset:], len(self._log)


@pytest.mark.parametrize(
    ("log", "shown"),
    [("", "ann~photos: is running, and has written nothing yet"), ("screen: started\n", "screen: started")],
)
def test_a_study_that_runs_is_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, log: str, shown: str
) -> None:
    monkeypatch.setattr(service_studies.time, "sleep", lambda _: None)
    with pytest.raises(SystemExit):
        service_studies.watch_there(Service(log), "photos", as_json=False)
    assert capsys.readouterr().err.splitlines()[0] == shown
