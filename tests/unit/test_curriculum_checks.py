"""A curriculum that a study's models cannot follow is refused before anything runs."""

from pathlib import Path

import pytest

from orchestrator.spec.method_checks import method_problem
from orchestrator.spec.study_file import SpecError, load_configuration, load_spec
from plugins.registry import available
from search_spaces.recipes import PluginChoice

STUDY = """\
study: curricula
data: {source: digits}
stages:
  - {stage: screen, num_trials: 4, space: {name: %s}}
  - stage: train
    num_trials: 6
    epochs: 3
    %s
    recipe: {curriculum: %s}
"""
ANOTHER = "topologies: ['autoformer:2,2|16,8']"
AS_VIT = "topologies: ['as-vit:6,4,2,1|4,2,6,1|4,1,3,1|2,1,6,1|16,8']"
BOTH = "candidates: {best: 2, spread: 2}"


def check(tmp_path: Path, space: str, trained: str, curriculum: str) -> str | None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY % (space, trained, curriculum), encoding="utf-8")
    try:
        load_spec(file)
    except SpecError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("space", "trained", "curriculum", "place"),
    [
        ("pit", BOTH, "progressive-tokenization", "curriculum"),
        ("pit", BOTH, "[none, progressive-tokenization]", r"curriculum\[1\]"),
        ("pit", BOTH, "{name: progressive-tokenization, middle: {low: 0.0, high: 0.5}}", "curriculum"),
        ("as-vit", ANOTHER, "progressive-tokenization", "curriculum"),
        ("as-vit", BOTH, "progressive-tokenization", None),
        ("pit", AS_VIT, "progressive-tokenization", None),
        ("pit", BOTH, "[none, cyclical, paced]", None),
        ("pit", BOTH, "{name: progressive-tokenization, middle: 0.0}", None),
    ],
)
def test_progressive_tokenization_needs_models_that_have_it(
    tmp_path: Path, space: str, trained: str, curriculum: str, place: str | None
) -> None:
    found = check(tmp_path, space, trained, curriculum)
    if place is None:
        assert found is None
        return
    assert found is not None
    assert "needs models whose forward pass has the option stride_factor, but models of the space" in found
    assert found.split(": ")[1].startswith(f"stages[1].recipe.{place}".replace("\\", ""))


def test_a_single_configuration_is_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "configuration.yaml"
    file.write_text(
        "data: {source: digits}\nepochs: 1\nseed: 0\ntopology: 'pit:1,1|1,1|1,1|1,4,8'\n"
        "recipe: {curriculum: progressive-tokenization}\n",
        encoding="utf-8",
    )
    with pytest.raises(SpecError, match=r"recipe\.curriculum: progressive-tokenization needs models whose"):
        load_configuration(file)


DEEP = "topologies: ['pit:2,1|1,2|1,2|4,4,8', 'pit:1,1|1,2|1,2|4,4,8']"


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        (
            "masked-growth",
            "stages[1].recipe.curriculum: the curriculum 'masked-growth' needs a topology with a smaller",
        ),
        ("[none, {name: v-cycle, reduction: [both, depth]}]", "but pit:1,1|1,2|1,2|4,4,8 has 1, 1, 1 per stage"),
        ("v-cycle", None),
        ("{name: v-cycle, until: 0.9}", "end with the whole one, but cannot in 3 epochs"),
        ("[[v-cycle, masked-growth]]", "must not set the same field, but 'v-cycle' and 'masked-growth' both set level"),
        ("v-cycle, loss: [focal, mutual]", "must not be combined with a loss that trains two models"),
    ],
)
def test_a_curriculum_with_a_smaller_network_needs_topologies_that_have_one(
    tmp_path: Path, curriculum: str, message: str | None
) -> None:
    found = check(tmp_path, "pit", DEEP, curriculum)
    assert found is None if message is None else message in str(found)


@pytest.mark.parametrize("name", sorted(available("curricula")))
def test_as_vit_follows_every_curriculum(name: str) -> None:
    assert method_problem([PluginChoice(name=name)], ["as-vit"]) is None


@pytest.mark.parametrize(
    ("trained", "curriculum", "message"),
    [
        (BOTH, "progressive-resolution", "images of 16 pixels must fit as-vit:"),
        (
            ANOTHER,
            "{name: progressive-resolution, start: 0.5, multiple: 12}",
            "images of 12 pixels must fit autoformer:",
        ),
        (ANOTHER, "progressive-resolution", None),
        (BOTH, "{name: progressive-resolution, start: 1}", None),
        (
            BOTH,
            "{name: pruning, difficulty_topology: 'autoformer:2,2|16,24'}",
            "`difficulty_topology` must fit the images",
        ),
        (BOTH, "[none, {name: pruning, difficulty_topology: 'autoformer:2,2|16,8'}]", None),
        (BOTH, "[[pruning, difficulty-weights, noise-batches]]", None),
        (BOTH, "[[pruning, pacing]]", "'pruning' and 'pacing' both do"),
    ],
)
def test_methods_must_fit_the_images_and_each_other(
    tmp_path: Path, trained: str, curriculum: str, message: str | None
) -> None:
    found = check(tmp_path, "as-vit", trained, curriculum)
    if message is None:
        assert found is None
    else:
        assert found is not None
        assert message in found
