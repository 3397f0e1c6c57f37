"""Checks that a train stage's recipe is readable and that its plug-ins accept their settings."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.method_checks import method_lists, role_problem
from orchestrator.spec.plugin_checks import search_problems
from orchestrator.spec.problems import Problem, first_problem, range_problem
from search_spaces.recipes import METHOD_LISTS, PLUGIN_FIELDS, PluginChoice, Recipe, parse_recipe_space
from trainers.training.methods import excluded_optimizer
from trainers.yaml_source import KeyPath


def recipe_problems(recipe: Mapping[str, Any], at: KeyPath) -> Iterator[Problem]:
    found = list(_field_problems(recipe, at))
    yield from found
    if not found:
        yield from _exclusions(recipe, at)


def _field_problems(recipe: Mapping[str, Any], at: KeyPath) -> Iterator[Problem]:
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


def _exclusions(recipe: Mapping[str, Any], at: KeyPath) -> Iterator[Problem]:
    """Yield rules of learning rates that exclude an optimizer of the recipe."""
    optimizers = [choice.name for _, choices in method_lists(recipe.get("optimizer", "adamw")) for choice in choices]
    for place, rules in method_lists(recipe.get("rates", [])):
        for optimizer in optimizers:
            problem = excluded_optimizer(rules, optimizer)
            if problem:
                yield Problem((*at, "rates", *place), problem)
                break


def _recipe_plugin_problems(name: str, value: Any, at: KeyPath) -> Iterator[Problem]:
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        entry = (*at, index) if isinstance(value, list) else at
        methods = item if name in METHOD_LISTS and isinstance(item, list) else [item]
        for place, method in enumerate(methods):
            path = (*entry, place) if isinstance(item, list) else entry
            try:
                choice = PluginChoice.model_validate(method)
            except ValidationError as error:
                problem = first_problem(error, PluginChoice, {})
                yield Problem((*path, *problem.path), problem.message)
                return
            problems = list(search_problems(PLUGIN_FIELDS[name], f"recipe.{name}", [choice], path, listed=False))
            yield from problems
            role = None if problems else role_problem(name, choice)
            if role:
                yield Problem(path, role)
    try:
        parse_recipe_space({name: value})
    except ValueError as error:
        yield Problem(at, str(error))
