"""The table of changes covers every field of a study file, and judges each as it says."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel

from orchestrator.spec.growing import DATA, STAGES, STUDY, BegunStage, Growth, plan_growth, table_fields
from orchestrator.spec.stage_registry import stage_models
from orchestrator.spec.study_file import StudySpec, make_spec
from search_spaces.recipes import Recipe, parse_recipe_space
from search_spaces.widening import widen
from trainers.config import DataConfig
from trainers.training.continuing import DEPENDENCE

SCREEN: dict[str, Any] = {"stage": "screen", "num_trials": 4}
TRAIN: dict[str, Any] = {"stage": "train", "candidates": {"best": 1, "spread": 1}, "num_trials": 3, "epochs": 2}
AVERAGING: dict[str, Any] = {"stage": "averaging", "num_trials": 1, "methods": ["last"]}


def spec(*stages: dict[str, Any], **fields: Any) -> StudySpec:
    return make_spec({"study": "x", "data": {"source": "digits"}, "stages": list(stages), **fields})


def grow(old: StudySpec, new: StudySpec, **begun: int) -> Growth:
    """The growth if the given stages have begun that many trials."""
    return plan_growth(old, new, {name: BegunStage(count) for name, count in begun.items()})


def inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in inner_models(argument)]


def test_every_field_of_the_study_has_an_entry() -> None:
    assert {*STUDY, "data", "stages"} == set(StudySpec.model_fields)
    assert set(DATA) == set(DataConfig.model_fields)


@pytest.mark.parametrize("kind", stage_models())
def test_every_field_of_a_stage_has_an_entry(kind: str) -> None:
    fields = stage_models()[kind].model_fields
    assert set(table_fields(kind)) == set(fields) - {"stage", "name"}
    for name in {key.partition(".")[0] for key in STAGES[kind] if "." in key}:
        (inner,) = inner_models(fields[name].annotation)
        known = {key.partition(".")[2] for key in STAGES[kind] if key.startswith(f"{name}.")}
        assert known == set(inner.model_fields)


def test_every_field_of_a_recipe_says_whether_it_depends_on_the_number_of_epochs() -> None:
    assert set(DEPENDENCE) == set(Recipe.model_fields)


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_every_field_of_a_recipe_may_be_searched_further_but_not_replaced(name: str) -> None:
    values: dict[str, tuple[Any, Any]] = {
        "schedule": ("constant", "linear"),
        "augmentation": ("shift", "affine"),
        "curriculum": ("paced", "cyclical"),
        "optimizer": ("sgd", "muon"),
        "rates": ("blockwise", "layer-decay"),
        "learning_rate_scaling": ("linear", "sqrt"),
        "base_batch_size": (32, 16),
        "loss": ("focal", "poly-1"),
        "mixing": ("mixup", "cutmix"),
        "batch_size": (32, 16),
        "image_size": (16, 24),
        "class_weights": ("balanced", None),
    }
    one, other = values.get(name, (0.25, 0.5))
    old = parse_recipe_space({name: one})
    assert widen(old, parse_recipe_space({name: other})).problems
    found = widen(old, parse_recipe_space({name: [other, one]}))
    assert (found.problems, found.filled) == ((), {f"recipe.{name}": one})


def test_more_trials_extend_a_stage_and_repeat_those_after_it() -> None:
    old = spec(SCREEN, TRAIN, AVERAGING, {"stage": "promote"})
    grown = grow(old, spec(SCREEN, {**TRAIN, "num_trials": 5}, AVERAGING, {"stage": "promote"}), train=3, averaging=1)
    assert grown.changes == ("stages[1].num_trials: 3 -> 5",)
    assert (grown.extended, grown.repeated, grown.rerun) == ({"train"}, {"averaging"}, set())


def test_a_larger_screen_keeps_the_trainings() -> None:
    old = spec(SCREEN, TRAIN)
    grown = grow(old, spec({**SCREEN, "num_trials": 6}, TRAIN), screen=4, train=3)
    assert (grown.extended, grown.repeated, grown.refused) == ({"screen", "train"}, set(), ())


def test_more_repeats_add_trainings_and_fewer_are_refused_once_they_ran() -> None:
    old, new = (spec(SCREEN, {**TRAIN, "num_trials": 6, "repeats": repeats}) for repeats in (2, 3))
    assert grow(old, new, screen=4, train=6).extended == {"train"}
    assert "trainings have been repeated" in grow(new, old, screen=4, train=6).refused[0]
    assert grow(new, old, screen=4).refused == ()


def test_a_stage_that_has_not_begun_may_change_but_keeps_what_was_read_at_the_start() -> None:
    old = spec(SCREEN, {**TRAIN, "weights": "/a.pth"})
    new = spec(SCREEN, {**TRAIN, "weights": "/b.pth", "epochs": 1, "sampler": "random"})
    assert grow(old, new, screen=4).refused == ("stages[1].weights: /a.pth -> /b.pth",)
    assert grow(spec(SCREEN, TRAIN), spec(SCREEN, {**TRAIN, "sampler": "random"}), screen=4).refused == ()


def test_fewer_trials_are_refused_only_below_those_that_have_begun() -> None:
    old, new = spec(SCREEN, {**TRAIN, "num_trials": 9}), spec(SCREEN, {**TRAIN, "num_trials": 4})
    assert grow(old, new, screen=4, train=4).refused == ()
    assert grow(old, new, screen=4, train=5).refused == ("stages[1].num_trials: 9 -> 4 (5 trials have begun)",)


def test_epochs_may_grow_unless_trials_copied_each_other() -> None:
    old, new = spec(SCREEN, TRAIN), spec(SCREEN, {**TRAIN, "epochs": 3})
    grown = grow(old, new, screen=4, train=3)
    assert (grown.rerun, grown.longer) == ({"train"}, {"train": 2})
    (line,) = plan_growth(old, new, {"train": BegunStage(3, has_copies=True)}).refused
    assert "copied each other's weights" in line
    assert len(grow(new, old, train=3).refused) == 1


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ([{"max_params": 10**7}, {"max_params": 2 * 10**7}, {}], "max_params"),
        ([{"multiples": {"width": 32, "head_width": 4}}, {"multiples": {"width": 16}}, {}], "multiples"),
    ],
)
def test_limits_may_only_be_loosened(limits: list[dict[str, Any]], field: str) -> None:
    tight, loose, none = (spec({**SCREEN, "limits": one}) for one in limits)
    for old, new in ((tight, loose), (tight, none), (loose, none)):
        assert grow(old, new, screen=4).extended == {"screen"}
        (line,) = grow(new, old, screen=4).refused
        assert line.startswith(f"stages[0].limits.{field}")


def test_a_further_proxy_scores_the_topologies_again_unless_it_changes_the_ranking() -> None:
    first = {**SCREEN, "proxies": ["length-distortion", "params"]}
    more = {**SCREEN, "proxies": ["length-distortion", "params", "synflow"]}
    assert len(grow(spec(first), spec(more), screen=4).refused) == 1
    ranked = [{**one, "rank_by": ["length-distortion"]} for one in (first, more)]
    assert grow(spec(ranked[0]), spec(ranked[1]), screen=4).rerun == {"screen"}
    assert "must still contain synflow" in grow(spec(ranked[1]), spec(ranked[0]), screen=4).refused[0]


def test_engine_and_resources_may_change_freely() -> None:
    new = spec(SCREEN, engine="optuna", resources={"cpus_per_trial": 1})
    assert grow(spec(SCREEN), new, screen=4) == Growth()


def test_a_further_stage_must_not_read_a_signal_that_trainings_did_not_record() -> None:
    old = spec(SCREEN, TRAIN)
    criterion = {"stage": "stopping", "num_trials": 1, "criteria": [{"name": "plateau", "signal": "gradient_norm"}]}
    (line,) = grow(old, spec(SCREEN, TRAIN, criterion), screen=4, train=3).refused
    assert "gradient_norm, which the trainings have not recorded" in line
    assert grow(old, spec(SCREEN, TRAIN, criterion), screen=4).refused == ()


def test_stages_keep_their_order_and_may_leave_only_before_they_began() -> None:
    old = spec(SCREEN, TRAIN, AVERAGING)
    assert grow(old, spec(SCREEN, TRAIN), screen=4, train=3).refused == ()
    assert "'averaging' has begun" in grow(old, spec(SCREEN, TRAIN), averaging=1).refused[0]
    named = [{**SCREEN, "name": name} for name in ("a", "b")]
    assert "must keep their order" in grow(spec(*named), spec(*named[::-1]), a=4).refused[0]


def test_retried_trials_reopen_their_stage_and_repeat_later_ones() -> None:
    study = spec(SCREEN, TRAIN, AVERAGING)
    begun = {"train": BegunStage(3), "averaging": BegunStage(1)}
    grown = plan_growth(study, study, begun, retried=["train"])
    assert (grown.extended, grown.repeated, grown.changes) == ({"train"}, {"averaging"}, ())
