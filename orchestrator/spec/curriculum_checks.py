"""Whether the models of a study have the options that its curricula give their forward pass."""

from collections.abc import Iterator, Sequence

from orchestrator.spec.problems import Problem
from orchestrator.spec.recipe_checks import method_lists, method_problem
from orchestrator.spec.stages import GrowStage, ScreenStage, StageSpec, TrainStage
from orchestrator.spec.yaml_source import KeyPath


def curriculum_problems(stage: StageSpec, before: Sequence[StageSpec], at: KeyPath) -> Iterator[Problem]:
    """Curricula of a train stage that its models cannot follow."""
    if not isinstance(stage, TrainStage) or "curriculum" not in stage.recipe:
        return
    path = (*at, "recipe", "curriculum")
    spaces = _trained_spaces(stage, before)
    for place, methods in method_lists(stage.recipe["curriculum"]):
        problem = method_problem(methods, spaces)
        if problem:
            yield Problem((*path, *place), problem)


def _trained_spaces(stage: TrainStage, before: Sequence[StageSpec]) -> list[str]:
    """Names of the spaces whose topologies the stage trains."""
    texts = list(stage.topologies)
    if not texts:
        screens = [other for other in before if isinstance(other, ScreenStage)]
        grown = [other for other in before if isinstance(other, GrowStage)]
        texts = [screen.space.name for screen in screens[-1:]]
        texts += [stage.topology for stage in grown[-1:] if stage.topology is not None]
    return list(dict.fromkeys(text.partition(":")[0] for text in texts))
