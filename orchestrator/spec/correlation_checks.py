"""What a correlate stage must hold beyond its fields' types: tables that can be read, and something to compare."""

from collections.abc import Iterator
from pathlib import Path

from orchestrator.spec.problems import Problem
from orchestrator.spec.stages import CorrelateStage, ScreenStage, Truth
from orchestrator.spec.truth_table import TruthError, read_truth_table
from orchestrator.spec.yaml_source import KeyPath


def table_problems(stage: CorrelateStage, at: KeyPath) -> Iterator[Problem]:
    """What is wrong with the tables whatever the images are; a study is looked up only when the stage runs."""
    for path, truth in _truths(stage, at):
        if truth.table is None or truth.space is None or truth.target is None:
            continue
        try:
            read_truth_table(Path(truth.table), space=truth.space, target=truth.target)
        except TruthError as error:
            yield Problem((*path, error.key), str(error))


def correlation_problems(stage: CorrelateStage, screen: ScreenStage | None, at: KeyPath) -> Iterator[Problem]:
    """What a correlate stage needs of the stages before it, the accuracies aside."""
    if stage.proxies is None and screen is None:
        yield Problem(
            at,
            "a correlate stage needs a screen stage before it or `proxies` (such as `all`), but has neither. Add one.",
        )
    if stage.transfer and not stage.combine:
        yield Problem(
            (*at, "transfer"), "what is carried over is the learned combination, but `combine` is false. Remove one."
        )


def _truths(stage: CorrelateStage, at: KeyPath) -> Iterator[tuple[KeyPath, Truth]]:
    if stage.truth is not None:
        yield (*at, "truth"), stage.truth
    for index, truth in enumerate(stage.transfer):
        yield (*at, "transfer", index), truth
