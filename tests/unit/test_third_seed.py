"""The benchmark that checks verdicts with another training seed."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.third_seed import NUM_SEEDS, Check, check_all, check_text, make_plan, score_all, train_missing
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from trainers.data.images import load_images

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
PLAN = make_plan("digits", num_topologies=24, num_training=60, epochs=1)
NAMES = ("params", "flops", "depth", "az-expressivity", "zico", "snip", "nwot", "meco")


def checks_of(monkeypatch: pytest.MonkeyPatch, *, differences: float) -> list[Check]:
    """Checks with made-up accuracies, whose true differences only `az-expressivity` knows, and noise of the seeds."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr("benchmarks.third_seed._choices", lambda: tuple(PluginChoice(name=name) for name in NAMES))
    scores = {name: rng.normal(size=len(PLAN.topologies)) for name in NAMES}
    accuracies = {
        topology: (0.5 + differences * value + 0.01 * rng.normal(size=NUM_SEEDS)).tolist()
        for topology, value in zip(PLAN.topologies, scores["az-expressivity"], strict=True)
    }
    known = {name: values.tolist() for name, values in scores.items()}
    return check_all(PLAN, accuracies, known, TASK, num_images=100_000)


def test_a_score_that_knows_the_differences_is_marked_and_holds_with_the_seed_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = checks_of(monkeypatch, differences=0.05)
    assert [check.judged_by for check in checks] == [
        *("seeds 1 and 2", "seeds 0 and 2", "seeds 0 and 1"),
        *("seed 0", "seed 1", "seed 2"),
    ]
    for check in checks:
        assert not check.has_no_verdict
        assert check.tau_of_seeds > 0.6
        assert check.marks["az-expressivity"] > 0.5
        assert check.num_refuted == 0
        assert "1 marks, of which 0 refuted" in check_text(check)


def test_two_seeds_that_agree_on_nothing_give_no_verdict_and_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in checks_of(monkeypatch, differences=0.0)[:NUM_SEEDS]:
        assert check.has_no_verdict
        assert not check.marks
        assert check_text(check).endswith("no verdict")


def test_a_mark_that_fails_with_the_seed_held_back_is_counted_as_refuted() -> None:
    check = Check("seeds 0 and 1", "0.90 [0.80, 0.95]", False, 0.1, {"zico": -0.2, "snip": 0.1})
    assert check.num_refuted == 1
    assert "2 marks, of which 1 refuted; minus params with the rest: zico -0.20, snip +0.10" in check_text(check)


def test_topologies_are_trained_with_each_seed_and_scored_and_an_interrupted_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.third_seed._choices", lambda: tuple(PluginChoice(name=name) for name in NAMES[:3]))
    plan = make_plan("digits", num_topologies=2, num_training=60, epochs=1)
    data = load_images(plan.data)
    found = train_missing(plan, data, tmp_path)
    assert [len(values) for values in found.values()] == [NUM_SEEDS, NUM_SEEDS]
    assert score_all(plan, data, tmp_path).keys() == set(NAMES[:3])
    capsys.readouterr()
    longer = plan._replace(topologies=(*plan.topologies, PLAN.topologies[2]))
    assert train_missing(plan, data, tmp_path) == found
    assert capsys.readouterr().out == ""
    assert train_missing(longer, data, tmp_path).keys() == {*longer.topologies}


def test_a_training_that_diverged_counts_as_a_guess_and_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan("digits", num_topologies=1, num_training=60, epochs=1)
    recipe = plan.recipe.model_copy(update={"learning_rate": 1e30, "schedule": PluginChoice(name="constant")})
    data = load_images(plan.data)
    found = train_missing(plan._replace(recipe=recipe), data, tmp_path)
    assert found == {plan.topologies[0]: [1 / data.task.num_classes] * NUM_SEEDS}
    assert f"{NUM_SEEDS} of {NUM_SEEDS} trainings diverged and count as a guess" in capsys.readouterr().out
