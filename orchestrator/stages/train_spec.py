"""What a study file says of a `train` stage, and what is checked before it runs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.spec.budget import Budget
from orchestrator.spec.loss_checks import searched_loss_problems
from orchestrator.spec.method_checks import (
    image_size_problems,
    method_fit_problem,
    method_lists,
    method_problem,
)
from orchestrator.spec.model_names import trial_named, with_absolute_teacher, with_absolute_weights
from orchestrator.spec.plugin_checks import choice_problems, one_of, sampler_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.recipe_checks import recipe_problems
from orchestrator.spec.stage_model import Count, SpecModel, StageModel, StageName, latest
from orchestrator.spec.stopping_checks import idle_criteria
from orchestrator.spec.topology_checks import topology_text_problems
from orchestrator.spec.warm_start import WarmStart, with_absolute_warm_start
from orchestrator.stages.grow import GrowStage
from orchestrator.stages.learned_schedules import stage_problems, stages_read
from orchestrator.stages.screen import ScreenStage
from plugins import registry
from plugins.protocols import Signal
from search_spaces.base import Topology
from search_spaces.dimensions import Dimension
from search_spaces.recipes import PluginChoice, RecipeSpace, base_point, parse_recipe_space
from trainers.config import DataConfig
from trainers.yaml_source import KeyPath


class Candidates(SpecModel):
    """Selects the screened topologies to train."""

    best: Count = Field(default=3, description="number of topologies with the best ranks")
    spread: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=3,
        description="number of topologies spread evenly over the other ranks, so that a correlation can be measured",
    )

    @property
    def total(self) -> int:
        """Total number of topologies."""
        return self.best + self.spread


class TrainStage(StageModel):
    """Trains candidate topologies; each trial has a sampled recipe."""

    stage: Literal["train"]
    name: StageName = Field(default="train", description="name of the stage in reports; unique in the study")
    candidates: Candidates | None = Field(
        default=None,
        description="topologies of the preceding screen to train; a topology grown in between is added",
    )
    topologies: tuple[str, ...] = Field(
        default=(), description="topologies to train instead of `candidates`, each written as space:text"
    )
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses candidate and recipe")
    repeats: Count = Field(
        default=1,
        description="trainings of each candidate with the base recipe, each with another seed; `correlate` compares "
        "scores with their mean, and measures how much of the differences is chance",
    )
    num_trials: Count = Field(
        description="number of models to train: first each candidate `repeats` times with the base recipe, then "
        "sampled recipes"
    )
    epochs: Count = Field(description="budget of one trial in passes over the training set")
    budget: Budget | None = Field(
        default=None, description="what the stage may spend, such as `30m`; it ends early with the trials that it has"
    )
    no_improvement: Count | None = Field(
        default=None, description="end the search if this many trials in a row have not improved it"
    )
    keep_checkpoints: Count = Field(
        default=8,
        description="number of newest epochs whose weights are kept for averaging; an `averaging` stage with `stop_at` "
        "keeps as many as it needs",
    )
    rank_by: Literal["last", "best"] = Field(
        default="last",
        description="epoch whose metric ranks a trial: the `last` one, or the `best` one, whose weights are then "
        "promoted unless an averaging stage chooses others",
    )
    stopping: PluginChoice | None = Field(default=None, description="early-stopping criterion; null trains to the end")
    recipe: dict[str, Any] = Field(
        default_factory=dict, description="recipe fields: a value fixes one, a list or {low, high} searches it"
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="weights that the trials start from: `STUDY@champion`, a model folder, a .safetensors or a .pth "
        "file; null starts from random weights",
    )
    teacher: str | None = Field(
        default=None,
        min_length=1,
        description="trained model whose predictions losses such as `soft-distillation` learn from: `STUDY@champion`, "
        "a model folder, or a trial of an earlier stage (`STAGE@best`, `STAGE@trial-7`)",
    )
    warm_start: WarmStart | None = Field(
        default=None, description="where the first points after the base recipe come from; null samples all points"
    )
    signals: tuple[Signal, ...] = Field(
        default=(),
        description="signals to record every epoch, in addition to those that plug-ins and later stopping stages read",
    )

    @property
    def chosen_candidates(self) -> Candidates | None:
        """The selection of screened topologies; `None` if the file names `topologies`."""
        return None if self.topologies else self.candidates or Candidates()

    @classmethod
    def with_absolute_paths(cls, raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Resolve the paths of weights, teacher and warm start."""
        given = dict(raw)
        if "weights" in given:
            given["weights"] = with_absolute_weights(given["weights"], folder)
        if "teacher" in given:
            given["teacher"] = with_absolute_teacher(given["teacher"], folder)
        if "warm_start" in given:
            given["warm_start"] = with_absolute_warm_start(given["warm_start"], folder)
        return given

    @cached_property
    def recipe_space(self) -> RecipeSpace:
        """The recipe's fixed values and dimensions."""
        return parse_recipe_space(self.recipe)

    @property
    def signals_read(self) -> frozenset[Signal]:
        return frozenset({Signal.GRADIENT_NORM}) if stages_read(self.recipe) else frozenset()

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        yield from sampler_problems(self.sampler, self._dimensions(), (*at, "sampler"))
        if self.stopping is not None:
            yield from choice_problems("stopping", self.stopping, (*at, "stopping"))
        wrong = list(recipe_problems(self.recipe, (*at, "recipe")))
        yield from wrong or searched_loss_problems(self.recipe, self.teacher, at)

    def order_problems(self, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
        yield from stage_problems(self.recipe, before, (*at, "recipe", "schedule"))
        has_grown = latest(before, GrowStage) is not None
        yield from _candidate_problems(self, latest(before, ScreenStage), has_grown, at)
        named = None if self.teacher is None else trial_named(self.teacher)
        earlier = [stage.name for stage in before if isinstance(stage, TrainStage)]
        if named is not None and named.study is not None:
            yield Problem(
                (*at, "teacher"),
                "must be a trial of an earlier stage of this study (STAGE@best, STAGE@trial-7), a model folder or "
                f"STUDY@champion, but got {self.teacher!r}. Name one of these.",
            )
        elif named is not None and named.stage not in earlier:
            yield Problem((*at, "teacher"), one_of("the train stages before this one", named.stage, earlier))

    def remarks(self, before: Sequence[StageModel]) -> Iterator[str]:  # noqa: ARG002
        if self.stopping is not None:
            yield from idle_criteria(self.name, [self.stopping], epochs=self.epochs)

    def data_problems(self, before: Sequence[StageModel], data: DataConfig, at: KeyPath) -> Iterator[Problem]:
        """Yield topologies and image sizes that do not fit the images, and curricula that the models do not support."""
        if Signal.MEMORIZED_LABELS in self.signals and data.label_noise == 0:
            yield Problem(
                (*at, "signals"),
                f"the signal {Signal.MEMORIZED_LABELS.value} needs wrong labels, but data.label_noise is 0. Set it, or "
                "remove the signal.",
            )
        unfit = [
            problem
            for index, text in enumerate(self.topologies)
            for problem in topology_text_problems(text, data, (*at, "topologies", index))
        ]
        yield from unfit
        if unfit:
            return
        yield from _curriculum_problems(self, before, data, at)
        yield from _image_size_problems(self, before, data, at)

    def _dimensions(self) -> tuple[Dimension, ...] | None:
        """The recipe dimensions to search; `None` if the recipe is invalid, which is reported separately."""
        try:
            return self.recipe_space.dimensions
        except ValueError:
            return None


def _candidate_problems(
    stage: TrainStage, screen: ScreenStage | None, has_grown: bool, at: KeyPath
) -> Iterator[Problem]:
    if stage.topologies and stage.candidates is not None:
        yield Problem((*at, "topologies"), "give `candidates` or `topologies`, but got both. Remove one of them.")
    if len(set(stage.topologies)) < len(stage.topologies):
        yield Problem((*at, "topologies"), "topologies must differ, but one is repeated. Remove the duplicate.")
    candidates = stage.chosen_candidates
    if candidates is not None and screen is None and not has_grown:
        yield Problem(
            at, "a train stage needs a screen or grow stage before it, or `topologies`, but has none of them. Add one."
        )
    total = stage.repeats * (len(stage.topologies) if candidates is None else candidates.total + has_grown)
    where = (*at, "num_trials")
    if candidates is not None and screen is not None and candidates.total > screen.num_trials:
        yield Problem(
            (*at, "candidates"),
            f"best + spread must be at most the {screen.num_trials} topologies that stage {screen.name!r} scores, "
            f"but got {candidates.best} + {candidates.spread}. Lower them or raise its `num_trials`.",
        )
    often = "once" if stage.repeats == 1 else f"{stage.repeats} times"
    if stage.num_trials < total:
        yield Problem(
            where,
            f"must be at least {total}, the number of candidate topologies, each trained {often} with the base "
            f"recipe, but got {stage.num_trials}. Raise it or name fewer candidates.",
        )


def _curriculum_problems(
    stage: TrainStage, before: Sequence[StageModel], data: DataConfig, at: KeyPath
) -> Iterator[Problem]:
    """Yield curricula that the models of the stage do not support."""
    if "curriculum" not in stage.recipe:
        return
    path, spaces = (*at, "recipe", "curriculum"), _trained_spaces(stage, before)
    for place, methods in method_lists(stage.recipe["curriculum"]):
        problem = method_problem(methods, spaces) or method_fit_problem(
            methods, stage.recipe.get("image_size"), data, _some_topologies(stage, before), epochs=stage.epochs
        )
        if problem:
            yield Problem((*path, *place), problem)


def _image_size_problems(
    stage: TrainStage, before: Sequence[StageModel], data: DataConfig, at: KeyPath
) -> Iterator[Problem]:
    """Yield image sizes that exceed the image size of the data or do not fit the topologies."""
    raw = stage.recipe.get("image_size")
    if raw is None:
        return
    yield from image_size_problems(raw, data, _some_topologies(stage, before), (*at, "recipe", "image_size"))


def _some_topologies(stage: TrainStage, before: Sequence[StageModel]) -> list[Topology]:
    """The topologies that the stage names, or one of the space that an earlier stage searches."""
    texts = list(stage.topologies)
    screen = latest(before, ScreenStage)
    if not texts and screen is not None:
        space = screen.search_space
        texts = [space.decode(base_point(space.dimensions())).id]
    return [registry.parse_topology(text) for text in texts]


def _trained_spaces(stage: TrainStage, before: Sequence[StageModel]) -> list[str]:
    """Names of the search spaces of the stage's topologies."""
    texts = list(stage.topologies)
    if not texts:
        screen, grown = latest(before, ScreenStage), latest(before, GrowStage)
        texts = [screen.space.name] if screen is not None else []
        texts += [grown.topology] if grown is not None and grown.topology is not None else []
    return list(dict.fromkeys(text.partition(":")[0] for text in texts))
