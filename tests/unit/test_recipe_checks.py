"""Recipes that cannot be trained are refused with the file and the line, before anything runs."""

from pathlib import Path

import pytest

from orchestrator.spec.study_file import SpecError, load_spec

STUDY = """\
study: recipes
data: {source: digits, image_size: 32}
stages:
  - stage: train
    topologies: ["autoformer:2,2|2,2|16,8"]
    num_trials: 2
    epochs: 4
    recipe:
      %s
  - stage: averaging
    num_trials: 2
    methods: [%s]
"""


def check(tmp_path: Path, recipe: str, methods: str = "last") -> str | None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY % (recipe, methods), encoding="utf-8")
    try:
        load_spec(file)
    except SpecError as error:
        return str(error).removeprefix(f"{tmp_path}/")
    return None


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("mixing: [none, shift]", "study.yaml:9: stages[0].recipe.mixing[1]: must be a plug-in that mixes images"),
        ("augmentation: mixup", "recipe.augmentation: must be a plug-in that changes single images, but 'mixup' does"),
        ("augmentation: affin", "Did you mean 'affine'?"),
        ("optimizer: {name: sgd, momentum: 2}", "recipe.optimizer.momentum"),
        ("loss: mse", "must be an installed plug-in of the kind losses"),
        ("image_size: 64", "recipe.image_size: must be at most the 32 pixels of data.image_size, but got 64"),
        ("image_size: {from: 20, to: 32}", "recipe.image_size: images of 20 pixels must fit autoformer:2,2|2,2|16,8"),
        ("curriculum: [[paced, cyclical]]", "recipe.curriculum[0]: at most one method of a recipe may order"),
        ("curriculum: [none, [paced, paced]]", "the methods of a list must differ"),
        ("batch_size: [32, 64, 32]", "the options of a choice must differ"),
        ("label_smoothing: [0, 0.0]", "the options of a choice must differ"),
        ("optimizer: [adamw, {name: adamw}]", "'adamw' is listed 2 times"),
        ("curriculum: [{name: paced, start: 0.1}, none, {name: paced, start: 0.2}]", "'paced' is listed 2 times"),
        ("curriculum: [[paced, pacd]]", "stages[0].recipe.curriculum[0][1]"),
        ("dropout: {from: 0.1, to: 1.5}", "recipe.dropout: `to` must be below 1, but got 1.5"),
        ("dropout: {from: 0.1, to: 0.2, untl: 0.5}", "recipe.dropout.untl: must be one of the keys from, to, until"),
        (
            "batch_size: -1",
            "must be an integer of at least 1 and of at most 1000000, or a function of progress {from: ..., to: ...}",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_at_its_place(tmp_path: Path, recipe: str, message: str) -> None:
    found = check(tmp_path, recipe)
    assert found is not None
    assert message in found


@pytest.mark.parametrize(
    "recipe",
    [
        "image_size: {from: 16, to: 32, until: 0.5, step: 8}",
        "curriculum: [none, [paced]]",
        "augmentation: [none, affine]",
        "optimizer: [adamw, {name: sam, rho: {low: 0.02, high: 0.2, log: true}}]",
        "dropout: {from: [0.1, 0.2], to: 0.0, until: {low: 0.2, high: 0.6}}",
    ],
)
def test_a_right_recipe_is_taken(tmp_path: Path, recipe: str) -> None:
    assert check(tmp_path, recipe) is None


def test_an_average_that_training_does_not_maintain_cannot_be_read(tmp_path: Path) -> None:
    found = check(tmp_path, "swa: 0.5", methods="last, trained-swa, trained-ema")
    assert found is not None
    assert found.startswith("study.yaml:12: stages[1].methods[2]: trained-ema reads an average")
    assert check(tmp_path, "ema: [0.9, 0.99]", methods="trained-ema") is None
