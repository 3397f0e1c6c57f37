"""Which scores `all` stands for where scores are judged."""

from orchestrator.stages.correlate import CorrelateStage


def test_measured_times_are_judged_only_if_they_are_asked_for_by_name() -> None:
    def judged(*names: str) -> set[str]:
        stage = CorrelateStage.model_validate({"stage": "correlate", "proxies": names})
        return {choice.name for choice in stage.proxies or ()}

    assert "latency" not in judged("all")
    assert "params" in judged("all")
    assert judged("all", "latency") == judged("all") | {"latency"}
