"""Checks of averaging methods that depend on the training whose checkpoints they average."""

from collections.abc import Iterator

from orchestrator.spec.problems import Problem
from plugins import registry
from plugins.protocols import EvaluatingAverager
from search_spaces.recipes import PluginChoice, describe_plugin
from trainers.config import Configuration


def needs_validation(averaging: PluginChoice) -> bool:
    """Whether a method chooses weights by validation images."""
    averager = registry.create("averaging", averaging.name, averaging.settings)
    return isinstance(averager, EvaluatingAverager) or getattr(averager, "reads", None) == "best"


def refit_problems(configuration: Configuration) -> Iterator[Problem]:
    """Yield an averaging method that needs validation images although the training uses them all."""
    averaging = configuration.averaging
    if configuration.train_on == "train" or averaging.name not in registry.available("averaging"):
        return
    if needs_validation(averaging):
        yield Problem(
            ("averaging",),
            f"must not choose by validation images with `train_on: {configuration.train_on}`, which leaves none, but "
            f"{describe_plugin(averaging)} does. Use another method, such as last.",
        )
