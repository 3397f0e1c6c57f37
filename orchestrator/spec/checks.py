"""What a study must hold beyond its fields' types: installed plug-ins, data, stages that fit together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.correlation_checks import correlation_problems, table_problems
from orchestrator.spec.curriculum_checks import curriculum_problems
from orchestrator.spec.plugin_corners import plugin_corners
from orchestrator.spec.problems import Problem, first_problem, found, range_problem
from orchestrator.spec.proxy_choices import is_pool_proxy, parts_of
from orchestrator.spec.recipe_checks import method_problem, role_problem
from orchestrator.spec.stages import (
    AveragingStage,
    CorrelateStage,
    GrowStage,
    PromoteStage,
    ScreenStage,
    StageSpec,
    StoppingStage,
    TrainStage,
)
from orchestrator.spec.topology_checks import topology_problems, topology_text_problems
from orchestrator.spec.yaml_source import KeyPath
from plugins import registry
from plugins.protocols import FinalChoice
from search_spaces.dimensions import parse_dimension
from search_spaces.recipes import (
    PLUGIN_FIELDS,
    PluginChoice,
    Recipe,
    parse_plugin_dimensions,
    parse_recipe_space,
)
from trainers.config import Configuration, DataConfig
from trainers.data.sources import check_source


def study_problems(data: DataConfig, stages: Sequence[StageSpec]) -> Iterator[Problem]:
    """Every mistake of a study whose fields have the right types; the cheap checks first."""
    yield from _name_problems(stages)
    for index, stage in enumerate(stages):
        yield from _plugin_problems(stage, ("stages", index))
        yield from _order_problems(stage, stages[:index], ("stages", index))
    problem = check_source(data)
    if problem:
        yield Problem(("data", "source"), problem.removeprefix("data.source "))
    for index, stage in enumerate(stages):
        yield from topology_problems(stage, stages[:index], data, ("stages", index))
        yield from curriculum_problems(stage, stages[:index], ("stages", index))


def configuration_problems(configuration: Configuration) -> Iterator[Problem]:
    """Every mistake of one configuration whose fields have the right types."""
    recipe = configuration.recipe
    unknown = [
        problem
        for field, kind in PLUGIN_FIELDS.items()
        for choice in _listed(getattr(recipe, field))
        for problem in list(_choice_problems(kind, choice, ("recipe", field))) or _role_problems(field, choice)
    ]
    yield from unknown
    yield from _choice_problems("averaging", configuration.averaging, ("averaging",))
    if configuration.stopping is not None:
        yield from _choice_problems("stopping", configuration.stopping, ("stopping",))
    problem = check_source(configuration.data)
    if problem:
        yield Problem(("data", "source"), problem.removeprefix("data.source "))
    yield from topology_text_problems(configuration.topology, configuration.data, ("topology",))
    problem = None if unknown else method_problem(recipe.curriculum, [configuration.topology.partition(":")[0]])
    if problem:
        yield Problem(("recipe", "curriculum"), problem)


def _listed(value: PluginChoice | tuple[PluginChoice, ...]) -> tuple[PluginChoice, ...]:
    return value if isinstance(value, tuple) else (value,)


def _role_problems(field: str, choice: PluginChoice) -> Iterator[Problem]:
    problem = role_problem(field, choice) if field in ("augmentation", "mixing") else None
    if problem:
        yield Problem(("recipe", field), problem)


# --- one stage on its own ---


def _plugin_problems(stage: StageSpec, at: KeyPath) -> Iterator[Problem]:
    """Plug-ins that are not installed or do not take their settings."""
    if isinstance(stage, ScreenStage | TrainStage | StoppingStage | AveragingStage):
        yield from _sampler_problems(stage, (*at, "sampler"))
    if isinstance(stage, ScreenStage):
        yield from _choice_problems("spaces", stage.space, (*at, "space"))
    if isinstance(stage, ScreenStage):
        yield from _proxy_problems(stage.proxies, (*at, "proxies"))
    if isinstance(stage, GrowStage):
        if not stage.targets():
            yield Problem((*at, "target_params"), "growth needs `target_params` or `target_macs`, but has neither.")
        yield from _proxy_problems(stage.proxies, (*at, "proxies"))
        for index, proxy in enumerate(stage.proxies):
            if "repeats" not in registry.setting_types("proxies", proxy.name):
                message = (
                    f"growth averages scores over fresh initialisations, but {proxy.name!r} has no setting `repeats`."
                )
                yield Problem((*at, "proxies", index), f"{message} Choose another proxy.")
    if isinstance(stage, ScreenStage):
        for index, name in enumerate(stage.rank_by or ()):
            if name not in stage.proxy_names:
                yield Problem((*at, "rank_by", index), _one_of("the stage's proxies", name, stage.proxy_names))
    if isinstance(stage, TrainStage):
        if stage.stopping is not None:
            yield from _choice_problems("stopping", stage.stopping, (*at, "stopping"))
        yield from _recipe_problems(stage.recipe, (*at, "recipe"))
    if isinstance(stage, StoppingStage):
        yield from _search_problems("stopping", stage.plugin_key, stage.criteria, (*at, "criteria"))
    if isinstance(stage, CorrelateStage):
        yield from _proxy_problems(stage.proxies or (), (*at, "proxies"))
        yield from _baseline_problems(stage.baselines, (*at, "baselines"))
        yield from table_problems(stage, at)
    if isinstance(stage, AveragingStage):
        yield from _search_problems("averaging", stage.plugin_key, stage.methods, (*at, "methods"))


def _choice_problems(kind: str, choice: PluginChoice, at: KeyPath) -> Iterator[Problem]:
    try:
        registry.create(kind, choice.name, choice.settings)
    except registry.UnknownPluginError as error:
        yield Problem(at, str(error))
    except ImportError as error:
        package = registry.provider(kind, choice.name)
        yield Problem(at, f"plug-in {choice.name!r} must be importable, but: {error}. Reinstall {package}.")
    except registry.PluginSettingsError as error:
        yield Problem(at if error.setting is None else (*at, error.setting), str(error))


def _sampler_problems(
    stage: ScreenStage | TrainStage | StoppingStage | AveragingStage, at: KeyPath
) -> Iterator[Problem]:
    problems = list(_choice_problems("samplers", stage.sampler, at))
    yield from problems
    if problems:
        return
    try:
        if isinstance(stage, ScreenStage):
            dimensions = stage.search_space.dimensions()
        else:
            dimensions = stage.recipe_space.dimensions if isinstance(stage, TrainStage) else stage.dimensions
    except ValueError:
        return  # told where the space, the recipe or the plug-ins are
    problem = registry.create("samplers", stage.sampler.name, stage.sampler.settings).problem(dimensions)
    if problem is not None:
        yield Problem(at, problem)


def _proxy_problems(proxies: Sequence[PluginChoice], at: KeyPath) -> Iterator[Problem]:
    for index, proxy in enumerate(proxies):
        problems = list(_choice_problems("proxies", proxy, (*at, index)))
        yield from problems
        if proxy.name in [other.name for other in proxies[:index]]:
            yield Problem((*at, index), f"each proxy must be named once, but got {proxy.name!r} again. Remove one.")
        for part in () if problems else parts_of(proxy.name):
            yield from _choice_problems("proxies", PluginChoice(name=part), (*at, index))


def _baseline_problems(baselines: Sequence[str], at: KeyPath) -> Iterator[Problem]:
    for index, name in enumerate(baselines):
        path = (*at, index)
        problems = list(_choice_problems("proxies", PluginChoice(name=name), path))
        yield from problems
        if not problems and is_pool_proxy(name):
            yield Problem(path, f"a baseline must be a score of its own, but {name!r} is made of others. Remove it.")
        if name in baselines[:index]:
            yield Problem(path, f"each baseline must be named once, but got {name!r} again. Remove one.")


def _recipe_problems(recipe: Mapping[str, Any], at: KeyPath) -> Iterator[Problem]:
    for name, value in recipe.items():
        path = (*at, name)
        if name in PLUGIN_FIELDS:
            yield from _recipe_plugin_problems(name, value, path)
            continue
        try:
            parse_recipe_space({name: value})
        except ValidationError as error:
            if error.title == "Recipe":
                problem = first_problem(error, Recipe, {})
                yield Problem((*at, *problem.path), problem.message)
            else:
                problem = range_problem(error)
                yield Problem((*path, *problem.path), problem.message)
        except ValueError as error:
            yield Problem(path, str(error))


def _recipe_plugin_problems(name: str, value: Any, at: KeyPath) -> Iterator[Problem]:
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        entry = (*at, index) if isinstance(value, list) else at
        methods = item if name == "curriculum" and isinstance(item, list) else [item]
        for place, method in enumerate(methods):
            path = (*entry, place) if isinstance(item, list) else entry
            try:
                choice = PluginChoice.model_validate(method)
            except ValidationError as error:
                problem = first_problem(error, PluginChoice, {})
                yield Problem((*path, *problem.path), problem.message)
                return
            problems = list(_search_problems(PLUGIN_FIELDS[name], f"recipe.{name}", [choice], path, listed=False))
            yield from problems
            role = role_problem(name, choice) if name in ("augmentation", "mixing") and not problems else None
            if role:
                yield Problem(path, role)
    try:
        parse_recipe_space({name: value})
    except ValueError as error:
        yield Problem(at, str(error))


def _search_problems(
    kind: str, key: str, choices: Sequence[PluginChoice], at: KeyPath, *, listed: bool = True
) -> Iterator[Problem]:
    """Plug-ins whose settings may be searched: every extreme of their ranges and every option must be taken."""
    for index, choice in enumerate(choices):
        path = (*at, index) if listed else at
        if choice.name not in registry.available(kind):
            yield Problem(path, str(registry.UnknownPluginError(kind, choice.name)))
            continue
        in_ranges = list(_range_problems(choice, path))
        yield from in_ranges
        for corner in [] if in_ranges else plugin_corners(key, choice):
            yield from _choice_problems(kind, corner, path)
    try:
        parse_plugin_dimensions(key, list(choices))
    except ValidationError as error:
        yield Problem(at, range_problem(error).message)
    except ValueError as error:
        yield Problem(at, str(error))


def _range_problems(choice: PluginChoice, at: KeyPath) -> Iterator[Problem]:
    for setting, value in choice.settings.items():
        try:
            is_fixed = parse_dimension(setting, value) is None
        except ValidationError as error:
            problem = range_problem(error)
            yield Problem((*at, setting, *problem.path), problem.message)
        except ValueError as error:
            yield Problem((*at, setting), str(error))
        else:
            if is_fixed and isinstance(value, Mapping):
                message = f"must be a value, a list of options or a range {{low, high}}, but got {found(value)}."
                yield Problem((*at, setting), message)


# --- stages together ---


def _name_problems(stages: Sequence[StageSpec]) -> Iterator[Problem]:
    first_with: dict[str, int] = {}
    for index, stage in enumerate(stages):
        if stage.name in first_with:
            message = (
                f"names of stages must differ, but {stage.name!r} is also stages[{first_with[stage.name]}]. "
                "Give this one another `name`."
            )
            yield Problem(("stages", index, "name"), message)
        first_with.setdefault(stage.name, index)


def _order_problems(stage: StageSpec, before: Sequence[StageSpec], at: KeyPath) -> Iterator[Problem]:
    """What a stage needs of the stages before it."""
    screen = next((other for other in reversed(before) if isinstance(other, ScreenStage)), None)
    train = next((other for other in reversed(before) if isinstance(other, TrainStage)), None)
    if isinstance(stage, GrowStage) and screen is None and stage.topology is None:
        yield Problem(at, "a grow stage needs a screen stage before it or a `topology` to start from, but has neither.")
    if isinstance(stage, GrowStage) and stage.start == "final-choice":
        yield from _final_choice_problems(stage, screen, (*at, "start"))
    if isinstance(stage, TrainStage):
        has_grown = any(isinstance(other, GrowStage) for other in before)
        yield from _candidate_problems(stage, screen, has_grown, at)
    needs_training = isinstance(stage, StoppingStage | AveragingStage | PromoteStage)
    if isinstance(stage, CorrelateStage):
        needs_training = stage.truth is None
        yield from correlation_problems(stage, screen, at)
    if needs_training and train is None:
        yield Problem(at, f"a {stage.stage} stage needs a train stage before it, but there is none. Add one above it.")
    if isinstance(stage, AveragingStage) and train is not None:
        yield from _checkpoint_problems(stage, train, at)


def _final_choice_problems(stage: GrowStage, screen: ScreenStage | None, at: KeyPath) -> Iterator[Problem]:
    if stage.topology is not None:
        yield Problem(at, "give `topology` or `start`, but got both. Remove one of them.")
    elif screen is not None and screen.sampler.name in registry.available("samplers"):
        sampler = registry.load("samplers", screen.sampler.name)
        if not isinstance(sampler, FinalChoice):  # the class has the method too
            yield Problem(
                at,
                "final-choice needs a sampler with a choice of its own, such as reinforce, but stage "
                f"{screen.name!r} has {screen.sampler.name!r}. Change one of them.",
            )


def _candidate_problems(
    stage: TrainStage, screen: ScreenStage | None, has_grown: bool, at: KeyPath
) -> Iterator[Problem]:
    if stage.topologies and stage.candidates is not None:
        yield Problem((*at, "topologies"), "give `candidates` or `topologies`, but got both. Remove one of them.")
    if len(set(stage.topologies)) < len(stage.topologies):
        yield Problem((*at, "topologies"), "topologies must differ, but one is there twice. Remove it.")
    candidates = stage.chosen_candidates
    if candidates is not None and screen is None and not has_grown:
        yield Problem(
            at, "a train stage needs a screen or grow stage before it, or `topologies`, but has none of them. Add one."
        )
    total = len(stage.topologies) if candidates is None else candidates.total + has_grown
    where = (*at, "num_trials")
    if candidates is not None and screen is not None and candidates.total > screen.num_trials:
        yield Problem(
            (*at, "candidates"),
            f"best + spread must be at most the {screen.num_trials} topologies that stage {screen.name!r} scores, "
            f"but got {candidates.best} + {candidates.spread}. Lower them or raise its `num_trials`.",
        )
    if stage.num_trials < total:
        yield Problem(
            where,
            f"must be at least {total}, the number of candidate topologies, each trained once with the base "
            f"recipe, but got {stage.num_trials}. Raise it or name fewer candidates.",
        )


def _checkpoint_problems(stage: AveragingStage, train: TrainStage, at: KeyPath) -> Iterator[Problem]:
    kept = min(train.keep_checkpoints, train.epochs)
    for index, method in enumerate(stage.methods):
        if method.name not in registry.available("averaging"):
            continue  # told already
        for corner in plugin_corners(stage.plugin_key, method):
            needed = registry.create("averaging", corner.name, corner.settings).num_needed
            if needed > kept:
                settings = ", ".join(f"{key}={value}" for key, value in corner.settings.items())
                yield Problem(
                    (*at, "methods", index),
                    f"must need at most the {kept} checkpoints that stage {train.name!r} keeps (keep_checkpoints: "
                    f"{train.keep_checkpoints}, epochs: {train.epochs}), but {corner.name}"
                    f"{f' with {settings}' if settings else ''} needs {needed}. Lower these or raise keep_checkpoints.",
                )


def _one_of(what: str, name: str, names: Sequence[str]) -> str:
    nearest = registry.nearest_name(name, names)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return f"must be one of {what} ({', '.join(names)}), but got {found(name)}.{hint}"
