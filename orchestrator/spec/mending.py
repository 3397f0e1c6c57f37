"""Corrects the mistakes in a part of a study file by guesses, so that the rest of the part can be checked as well.

A person who misspelt a key and the name of a plug-in gets both mistakes at once.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.spec.problems import Problem, model_at
from plugins.registry import nearest_name
from trainers.yaml_source import KeyPath

Model = TypeVar("Model", bound=BaseModel)
_ROUNDS = 4
"""A corrected key can have mistakes in its value, which the next round removes."""
_NUMBER = 1
"""Stands for a number that is missing."""


class Mended(NamedTuple, Generic[Model]):
    """A part of a study file whose mistakes were corrected by guesses."""

    data: dict[str, Any]
    model: Model
    renamed: dict[KeyPath, KeyPath]
    """Path of each key in the file, by the path with the key that was meant."""
    guessed: frozenset[KeyPath]
    """Paths of values that were invalid or missing. Nothing that is found about them is a mistake of the file."""

    def in_file(self, problems: Iterable[Problem], at: KeyPath) -> Iterator[Problem]:
        """Problems of this part, which is at `at`, with the paths of the file."""
        for problem in problems:
            meant = problem.path[len(at) :]
            if not any(meant[: len(guess)] == guess for guess in self.guessed):
                path = self.path_in_file(meant)
                yield Problem((*at, *path), problem.message, path != meant)

    def path_in_file(self, path: KeyPath) -> KeyPath:
        """The path in the file of one in the model."""
        for size in range(len(path), 0, -1):
            if path[:size] in self.renamed:
                return (*self.renamed[path[:size]], *path[size:])
        return path


def mend(model: type[Model], raw: Mapping[str, Any]) -> Mended[Model] | None:
    """Correct the mistakes in a part of a study file; `None` if that needs more than guesses.

    A misspelt key gets the name of the most similar one, other unknown keys and invalid values are left out, and a
    missing number becomes 1.
    """
    data = copy.deepcopy(dict(raw))
    renamed: dict[KeyPath, KeyPath] = {}
    guessed: set[KeyPath] = set()
    for _ in range(_ROUNDS):
        try:
            return Mended(data, model.model_validate(data), renamed, frozenset(guessed))
        except ValidationError as error:
            for mistake in error.errors(include_url=False):
                if not _correct(mistake, model, data, renamed, guessed):
                    return None
    return None


def corrected_keys(raw: Mapping[str, Any], known: Iterable[str]) -> dict[str, str]:
    """The known key that each misspelt one of a mapping means, if it is not there itself."""
    absent = [name for name in known if name not in raw]
    found: dict[str, str] = {}
    for key in raw:
        nearest = None if key in known else nearest_name(key, [name for name in absent if name not in found.values()])
        if nearest is not None:
            found[key] = nearest
    return found


def _correct(
    mistake: ErrorDetails,
    model: type[BaseModel],
    data: dict[str, Any],
    renamed: dict[KeyPath, KeyPath],
    guessed: set[KeyPath],
) -> bool:
    """Correct one mistake in `data`; returns whether that was possible."""
    loc = mistake["loc"]
    if not loc:
        return False
    parent = _at(data, loc[:-1])
    owner = model_at(model, loc[:-1])
    key = str(loc[-1])
    if mistake["type"] == "extra_forbidden" and parent is not None and owner is not None:
        value = parent.pop(key)
        meant = nearest_name(key, [name for name in owner.model_fields if name not in parent])
        if meant is not None:
            parent[meant] = value
            renamed[(*loc[:-1], meant)] = loc
        return True
    if mistake["type"] == "missing" and parent is not None and owner is not None:
        parent[key] = _NUMBER
        guessed.add(loc)
        return owner.model_fields[key].annotation is int
    first = str(loc[0])
    guessed.add((first,))
    return data.pop(first, None) is not None


def _at(data: Any, path: KeyPath) -> dict[str, Any] | None:
    """The mapping at a path of the data; `None` if there is none."""
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data if isinstance(data, dict) else None
