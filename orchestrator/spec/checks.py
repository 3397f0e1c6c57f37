"""Checks of a study beyond the types of its fields: installed plug-ins, data, stages that fit together."""

from collections.abc import Iterator, Sequence

from orchestrator.spec.averaging_checks import averaging_problems
from orchestrator.spec.loss_checks import loss_problems
from orchestrator.spec.method_checks import method_fit_problem, method_problem, role_problem
from orchestrator.spec.plugin_checks import choice_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.stage_model import StageModel
from orchestrator.spec.topology_checks import topology_text_problems
from plugins import registry
from plugins.protocols import LearnsFromStage
from search_spaces.recipes import PLUGIN_FIELDS, PluginChoice, Recipe
from trainers.config import Configuration, DataConfig
from trainers.data.sources import check_source
from trainers.training.methods import excluded_optimizer
from trainers.yaml_source import KeyPath


def study_problems(data: DataConfig, stages: Sequence[StageModel]) -> Iterator[Problem]:
    """Yield every mistake in a study whose fields have the right types; cheap checks run first.

    A check that relies on an earlier one runs only if that one finds nothing.
    """
    wrong = [*_name_problems(stages), *_stage_problems(stages)]
    yield from wrong
    unusable = list(source_problems(data))
    yield from unusable
    if wrong or unusable:
        return
    for index, stage in enumerate(stages):
        unfit = list(stage.data_problems(stages[:index], data, ("stages", index)))
        yield from unfit
        if unfit:
            return  # later stages may build on this one


def source_problems(data: DataConfig) -> Iterator[Problem]:
    """Yield a problem if there are no images at the source."""
    problem = check_source(data)
    if problem:
        yield Problem(("data", "source"), problem.removeprefix("data.source "))


def _stage_problems(stages: Sequence[StageModel]) -> Iterator[Problem]:
    are_sound = True
    for index, stage in enumerate(stages):
        at = ("stages", index)
        wrong = list(stage.own_problems(at))
        yield from wrong
        are_sound = are_sound and not wrong
        if are_sound:
            yield from stage.order_problems(stages[:index], at)
        yield from _missing_stages(stage, stages[:index], at)


def configuration_problems(configuration: Configuration) -> Iterator[Problem]:
    """Yield every mistake in one configuration whose fields have the right types."""
    recipe = configuration.recipe
    wrong = list(_recipe_plugin_problems(recipe))
    yield from wrong
    if not wrong:
        yield from _stage_problems_of_schedule(recipe.schedule)
        yield from loss_problems(configuration)
    yield from choice_problems("averaging", configuration.averaging, ("averaging",))
    yield from averaging_problems(configuration)
    yield from choice_problems("metrics", configuration.metric, ("metric",))
    if configuration.stopping is not None:
        yield from choice_problems("stopping", configuration.stopping, ("stopping",))
    yield from source_problems(configuration.data)
    unfit = list(topology_text_problems(configuration.topology, configuration.data, ("topology",)))
    yield from unfit
    if wrong or unfit:
        return
    topology = registry.parse_topology(configuration.topology)
    problem = method_problem(recipe.curriculum, [topology.id.partition(":")[0]]) or method_fit_problem(
        recipe.curriculum,
        recipe.model_dump(mode="json")["image_size"],
        configuration.data,
        [topology],
        epochs=configuration.epochs,
    )
    if problem:
        yield Problem(("recipe", "curriculum"), problem)
    problem = None if wrong else excluded_optimizer(recipe.rates, recipe.optimizer.name)
    if problem:
        yield Problem(("recipe", "rates"), problem)


def _stage_problems_of_schedule(choice: PluginChoice) -> Iterator[Problem]:
    schedule = registry.create("schedules", choice.name, choice.settings)
    if isinstance(schedule, LearnsFromStage) and schedule.stage is not None:
        yield Problem(
            ("recipe", "schedule"),
            f"must not depend on a stage of a study, but {choice.name} names the stage {schedule.stage!r}. Give its "
            "`norms` instead, as `vitsearch best` prints them.",
        )


def _recipe_plugin_problems(recipe: Recipe) -> Iterator[Problem]:
    for field, kind in PLUGIN_FIELDS.items():
        value = getattr(recipe, field)
        choices: tuple[PluginChoice, ...] = value if isinstance(value, tuple) else (value,)
        for choice in choices:
            problems = list(choice_problems(kind, choice, ("recipe", field)))
            yield from problems
            role = None if problems else role_problem(field, choice)
            if role:
                yield Problem(("recipe", field), role)


def _name_problems(stages: Sequence[StageModel]) -> Iterator[Problem]:
    first_with: dict[str, int] = {}
    for index, stage in enumerate(stages):
        if stage.name in first_with:
            message = (
                f"stage names must differ, but {stage.name!r} is also the name of stages[{first_with[stage.name]}]. "
                "Give this one another `name`."
            )
            yield Problem(("stages", index, "name"), message)
        first_with.setdefault(stage.name, index)


def _missing_stages(stage: StageModel, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
    """Yield the kinds of stages that a stage requires but that do not come before it."""
    for kind in stage.requires:
        if kind not in [other.stage for other in before]:
            yield Problem(
                at, f"stage {stage.stage!r} needs a {kind} stage before it, but there is none. Add one above it."
            )
