"""Scoring one topology."""

import math
from dataclasses import dataclass

import pytest
import torch

from plugins.protocols import Candidate, ProxyScore
from plugins.proxies.length_distortion import LengthDistortion
from plugins.proxies.passes import RecordedPass, score_passes
from plugins.registry import UnknownPluginError, create
from search_spaces.base import ImageTask
from trainers.config import DataConfig, ScoreTask
from trainers.tasks.scoring import make_candidate, parse_topology, score_topology

TEXT = "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"
IMAGES = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
IMAGE_TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)


def _task(*proxies: object, topology: str = TEXT, seed: int = 0) -> ScoreTask:
    return ScoreTask.model_validate(
        {"data": DataConfig(source="digits"), "topology": topology, "proxies": proxies, "seed": seed}
    )


def test_metrics_are_every_score_its_spread_and_the_costs() -> None:
    outcome = score_topology(_task("length-distortion", "params"), IMAGES, IMAGE_TASK)
    assert outcome.state == "complete"
    assert set(outcome.metrics) == {
        "length-distortion",
        "length-distortion.spread",
        "params",
        "params.spread",
        "parameters",
        "macs",
        "wall_time_s",
    }
    assert outcome.metrics["params"] == outcome.metrics["parameters"] > 0
    assert outcome.metrics["length-distortion.spread"] > 0
    assert outcome.details["topology"] == TEXT
    assert outcome.details["seconds"].keys() == {"length-distortion", "params"}
    assert "failures" not in outcome.details


def test_scores_depend_on_seed_and_settings_alone() -> None:
    def score(seed: int, proxy: object = "ntk-condition") -> float:
        return score_topology(_task(proxy, seed=seed), IMAGES, IMAGE_TASK).metrics["ntk-condition"]

    assert score(1) == score(1)
    assert score(1) != score(2)
    assert score(1) != score(1, {"name": "ntk-condition", "repeats": 1})


def test_a_score_that_is_not_finite_fails_the_trial_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad_score(self: LengthDistortion, candidate: Candidate) -> ProxyScore:
        return ProxyScore(math.nan)

    monkeypatch.setattr(LengthDistortion, "score", bad_score)
    outcome = score_topology(_task("length-distortion", "params"), IMAGES, IMAGE_TASK)
    assert (outcome.state, outcome.error) == ("failed", "not-finite")
    assert "length-distortion" in str(outcome.reason)
    assert "length-distortion" not in outcome.metrics
    assert outcome.metrics["params"] > 0


def test_a_proxy_that_raises_does_not_keep_the_others_from_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LengthDistortion, candidate: Candidate) -> ProxyScore:
        raise OSError("no more file handles")

    monkeypatch.setattr(LengthDistortion, "score", broken)
    task = _task("params", "length-distortion", "flops")
    strict, lenient = (
        score_topology(task.model_copy(update={"need_all": need_all}), IMAGES, IMAGE_TASK) for need_all in (True, False)
    )
    assert (strict.state, strict.error) == ("failed", "exception")
    assert "length-distortion: OSError: no more file handles" in str(strict.reason)
    assert any("OSError" in line for line in strict.details["traceback"])
    assert lenient.state == "complete"
    for outcome in (strict, lenient):
        assert {"params", "flops"} < outcome.metrics.keys()
        assert "length-distortion" not in outcome.metrics
        assert set(outcome.details["failures"]) == {"length-distortion"}


def test_scores_have_all_digits_of_float32_whatever_trainings_may_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(self: LengthDistortion, candidate: Candidate) -> ProxyScore:
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        raise OSError("looked at")

    monkeypatch.setattr(LengthDistortion, "score", settings)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        outcome = score_topology(_task("length-distortion"), IMAGES, IMAGE_TASK)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert "looked at" in str(outcome.reason)


def test_where_every_proxy_fails_the_task_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LengthDistortion, candidate: Candidate) -> ProxyScore:
        raise MemoryError

    monkeypatch.setattr(LengthDistortion, "score", broken)
    task = _task("length-distortion").model_copy(update={"need_all": False})
    outcome = score_topology(task, IMAGES, IMAGE_TASK)
    assert (outcome.state, outcome.error) == ("failed", "out-of-memory")


@dataclass(frozen=True)
class FailingMeasure:
    """Reads the recorded pass, and cannot."""

    repeats: int = 1

    def measure(self, recorded: RecordedPass) -> float:
        raise OSError(f"no more file handles after {len(recorded.parts)} parts")


def test_a_companion_that_fails_in_a_shared_pass_does_not_fail_the_others() -> None:
    healthy, failing = create("proxies", "snip", {"repeats": 1}), FailingMeasure()
    topology = parse_topology(TEXT)
    alone = make_candidate(topology, IMAGES, IMAGE_TASK, seed=0, companions=(healthy,))
    together = make_candidate(topology, IMAGES, IMAGE_TASK, seed=0, companions=(failing, healthy))
    assert healthy.score(together) == healthy.score(alone)
    with pytest.raises(OSError, match="no more file handles"):
        score_passes(failing, together)


def test_images_that_are_not_finite_are_a_failed_trial() -> None:
    outcome = score_topology(_task("ntk-condition"), torch.full_like(IMAGES, math.nan), IMAGE_TASK)
    assert (outcome.state, outcome.error) == ("failed", "not-finite")


def test_a_topology_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be scored: each head needs a channel"):
        score_topology(_task("params", topology=TEXT.removesuffix("8") + "2"), IMAGES, IMAGE_TASK)


def test_an_unknown_proxy_is_refused() -> None:
    with pytest.raises(UnknownPluginError, match="ntk-condition"):
        score_topology(_task("ntk-conditions"), IMAGES, IMAGE_TASK)


def test_a_candidate_builds_fresh_models_that_depend_on_the_seed() -> None:
    candidate = make_candidate(parse_topology(TEXT), IMAGES.double(), IMAGE_TASK, seed=0)
    first, again, other = candidate.build(seed=1), candidate.build(seed=1), candidate.build(seed=2)
    assert first is not again
    assert not first.training
    weight = first.get_parameter("head.0.weight")
    assert weight.dtype == torch.float64
    assert torch.equal(weight, again.get_parameter("head.0.weight"))
    assert not torch.equal(weight, other.get_parameter("head.0.weight"))


def test_the_work_of_a_score_that_trains_is_a_metric() -> None:
    outcome = score_topology(_task("few-step-loss", "params"), IMAGES, IMAGE_TASK)
    assert outcome.metrics["few-step-loss.training_macs"] == outcome.metrics["macs"] * (3 * 10 * 3 + 6)
    assert "params.training_macs" not in outcome.metrics
