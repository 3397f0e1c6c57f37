"""When the accuracies of a ground truth allow no verdict."""

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.repeated_truths import accuracies_digest
from orchestrator.stages.judged_truth import JudgedTruth, verdict_row
from orchestrator.stages.truth_scores import ScoredTruth
from orchestrator.stages.verdict_results import VerdictSettings
from plugins.proxies.flops import Flops
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from trainers.config import DataConfig

CHOICES = (PluginChoice(name="params"), PluginChoice(name="flops"))


def judged(accuracies, params, *, seeds=(), num_images=None, flops=None):
    count = len(accuracies)
    truth = GroundTruth(
        kind="trials",
        name="study",
        source="study",
        target="val_accuracy",
        unit="fraction",
        topologies=tuple(f"as-vit:{place}" for place in range(count)),
        accuracies=tuple(accuracies),
        data=DataConfig(source="noise"),
        task=ImageTask(image_size=32, in_channels=3, num_classes=10),
        digest="",
        seeds=seeds,
        num_images=num_images,
    )
    flops = np.random.default_rng(9).normal(size=count) if flops is None else flops
    scores = {"params": [list(params)], "flops": [list(flops)]}
    scored = ScoredTruth(truth=truth, choices=CHOICES, scores=scores, reasons={}, wall_time_s={}, training_macs={})
    settings = VerdictSettings(baselines=("params",), resamples=200, confidence=0.95, combine=False)
    return JudgedTruth(scored, CHOICES, settings, seed=0)


def close(rng, spread=0.005):
    return 0.6 + spread * rng.normal(size=40)


def test_few_images_and_no_score_with_a_tau_give_no_verdict() -> None:
    rng = np.random.default_rng(0)
    found = judged(close(rng), rng.normal(size=40), num_images=1000)
    assert found.has_no_verdict
    assert not any(row.above_zero or row.beaten for row in found.verdicts)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_whose_tau_is_shown_refutes_the_noise_of_the_images(sign) -> None:
    """All topologies are measured on the same images, so that their common noise changes no ranking."""
    rng = np.random.default_rng(1)
    accuracies = close(rng)
    found = judged(accuracies, sign * accuracies + 0.002 * rng.normal(size=40), num_images=1000)
    assert found.ceiling.may_be_chance
    assert not found.has_no_verdict
    (params,) = [row for row in found.verdicts if row.proxy == "params"]
    assert (params.above_zero, params.below_zero) == (sign == 1, sign == -1)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_noise_of_several_trainings_is_not_refuted_by_a_score(sign) -> None:
    rng = np.random.default_rng(2)
    seeds = 0.6 + 0.01 * rng.normal(size=(40, 2))
    accuracies = seeds.mean(1)
    found = judged(accuracies, sign * accuracies, seeds=tuple(map(tuple, seeds.tolist())))
    assert found.has_no_verdict
    assert not any(row.above_zero or row.below_zero for row in found.verdicts)


def test_a_stored_row_gives_its_verdict_back_also_without_the_marks_of_older_versions() -> None:
    rng = np.random.default_rng(3)
    accuracies = 0.6 + 0.1 * rng.normal(size=40)
    (flops,) = [row for row in judged(rng.permutation(accuracies), accuracies).verdicts if row.proxy == "flops"]
    flops = flops.model_copy(update={"above_zero": True, "beaten": ("params",)})
    row = verdict_row(flops)
    assert row.verdict == flops
    older = row.model_copy(update={"above_zero": None, "below_zero": None}).verdict
    assert older == flops.model_copy(update={"above_zero": False, "below_zero": False})
    assert older.beats("params")


def test_combinations_use_training_free_scores_only() -> None:
    """A score that trains changes no combination, and has its cost."""
    rng = np.random.default_rng(3)
    accuracies = tuple(rng.normal(size=20))
    given = judged(accuracies, rng.normal(size=20)).scored
    trains = PluginChoice(name="few-step-loss")
    more = replace(
        given,
        choices=(*CHOICES, trains),
        scores={**given.scores, "few-step-loss": [[-value for value in accuracies]]},
        training_macs={"few-step-loss": 7.0},
    )
    settings = VerdictSettings(baselines=("params",), resamples=100, confidence=0.95, combine=True)
    without, found = (JudgedTruth(one, one.choices, settings, seed=0) for one in (given, more))
    assert {name for name in found.scores if name.startswith("combined.")} >= {"combined.learned", "combined.mean-rank"}
    assert all(found.scores[name] == without.scores[name] for name in without.scores)
    costs = {row.proxy: row.training_macs for row in found.rows()}
    assert costs.pop("few-step-loss") == 7.0
    assert set(costs.values()) == {None}


def test_a_score_that_ranks_better_than_a_perfect_score_would_is_suspected() -> None:
    """It knows the noise of the training seeds, which no score can that has not seen the accuracies."""
    rng = np.random.default_rng(4)
    true = 0.6 + 0.02 * rng.normal(size=40)
    seeds = true[:, None] + 0.015 * rng.normal(size=(40, 2))
    accuracies = seeds.mean(1)

    def flops(scores):
        found = judged(accuracies, rng.normal(size=40), seeds=tuple(map(tuple, seeds.tolist())), flops=scores)
        return next(row for row in found.verdicts if row.proxy == "flops")

    leak, honest = flops(accuracies + 0.0005 * rng.normal(size=40)), flops(true)
    assert leak.is_suspicious
    assert "it ranks better than a perfect score would: make sure that it has not seen these accuracies" in leak.note
    assert honest.tau.value > 0.6
    assert not honest.is_suspicious
    assert verdict_row(leak).is_suspicious


def test_without_a_ceiling_only_an_almost_perfect_score_that_counting_does_not_match_is_suspected() -> None:
    rng = np.random.default_rng(5)
    accuracies = rng.normal(size=40)

    def is_suspicious(noise, params):
        found = judged(accuracies, params, flops=accuracies + noise * rng.normal(size=40))
        assert not next(row for row in found.verdicts if row.proxy == "params").is_suspicious
        return next(row for row in found.verdicts if row.proxy == "flops").is_suspicious

    assert is_suspicious(0.0, rng.normal(size=40))
    assert is_suspicious(0.01, rng.normal(size=40))
    assert not is_suspicious(0.01, accuracies)
    assert not is_suspicious(0.5, rng.normal(size=40))


def test_a_score_that_was_fitted_to_the_accuracies_has_no_mark_and_no_part_in_other_verdicts(monkeypatch) -> None:
    rng = np.random.default_rng(6)
    accuracies = rng.normal(size=40)
    scores = accuracies + 0.5 * rng.normal(size=40)

    def found(combine):
        given = judged(accuracies, rng.normal(size=40), flops=scores).scored
        settings = VerdictSettings(baselines=("params",), resamples=200, confidence=0.95, combine=combine)
        monkeypatch.setattr("orchestrator.stages.judged_truth._parameters", lambda *_: 1.0)
        return JudgedTruth(given, CHOICES, settings, seed=0)

    def flops(judged_truth):
        return next(row for row in judged_truth.verdicts if row.proxy == "flops")

    honest = found(combine=False)
    assert flops(honest).beaten == ("params",)
    assert "flops" in honest.as_table().scores
    best = max(row.tau.value for row in found(combine=True).verdicts if row.proxy.startswith("combined."))
    assert best > 0.4

    monkeypatch.setattr(Flops, "fitted_to", (accuracies_digest(honest.truth.by_topology),), raising=False)
    fitted = found(combine=False)
    row = flops(fitted)
    assert row.tau == flops(honest).tau
    assert (row.above_zero, row.beaten, row.is_suspicious) == (False, (), True)
    assert row.note == "it was fitted to these accuracies, so its tau is too good, and it has no mark"
    assert "flops" not in fitted.as_table().scores
    combined = [one for one in found(combine=True).verdicts if one.proxy.startswith("combined.")]
    assert combined
    assert all(one.tau.value < 0.4 for one in combined)
