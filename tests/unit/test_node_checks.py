"""Nodes of a Ray cluster that answer late are named and waited for."""

import logging

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")

from orchestrator.engines.ray.node_checks import _wait  # noqa: E402


def test_a_node_that_answers_late_is_named_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []

    def wait(asked: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        waited.append(timeout)
        assert num_returns == len(asked)
        return asked[: len(waited)], asked[len(waited) :]

    monkeypatch.setattr(ray, "wait", wait)
    with caplog.at_level(logging.WARNING):
        assert _wait({"first": "quick", "second": "busy (10.0.0.2)"}) == ["first", "second"]
    assert caplog.messages == ["Waiting up to 5 minutes for nodes that have not answered yet: busy (10.0.0.2)"]
    assert sum(waited) == 300


def test_nothing_is_said_of_nodes_that_answer_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (asked, []))
    assert _wait({"first": "quick"}) == ["first"]
    assert caplog.messages == []
