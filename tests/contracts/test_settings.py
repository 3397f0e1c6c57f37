"""Rules for the settings of every training plug-in: what makes no sense is refused, with the name of the setting."""

import math
from typing import Any, get_args

import pytest

from plugins.registry import PluginSettingsError, available, create, setting_types

KINDS = (
    "augmentations",
    "averaging",
    "curricula",
    "losses",
    "metrics",
    "optimizers",
    "rates",
    "samplers",
    "schedules",
    "stopping",
)
REQUIRED: dict[str, dict[str, Any]] = {"mup": {"base_width": 4}, "refined-linear": {"norms": "1, 1"}}
"""Settings without a default."""
PLUGINS = [(kind, name) for kind in KINDS for name in sorted(available(kind))]
WRONG = ({"a": 1}, [0.5], math.nan, math.inf, -math.inf, 10**400, 1e308, -1e308)
"""Values that no setting takes."""


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_values_that_make_no_sense_are_refused_by_name(kind: str, name: str) -> None:
    for setting, annotation in setting_types(kind, name).items():
        is_switch = bool in (annotation, *get_args(annotation))
        for value in (*WRONG, "maybe" if is_switch else True):
            with pytest.raises(PluginSettingsError, match=rf"\b{setting}\b") as caught:
                create(kind, name, {**REQUIRED.get(name, {}), setting: value})
            assert caught.value.setting == setting


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_an_unknown_setting_is_refused_with_the_known_ones(kind: str, name: str) -> None:
    with pytest.raises(PluginSettingsError, match="no_such_setting") as caught:
        create(kind, name, {**REQUIRED.get(name, {}), "no_such_setting": 1})
    assert all(setting in str(caught.value) for setting in setting_types(kind, name))


def test_a_number_that_is_not_finite_is_refused_with_what_to_do() -> None:
    with pytest.raises(PluginSettingsError, match=r"setting 'alpha' of 'mixup': must be a finite number, but got inf"):
        create("augmentations", "mixup", {"alpha": math.inf})


def test_a_setting_that_is_missing_is_to_be_added() -> None:
    with pytest.raises(PluginSettingsError, match=r"'base_width' of 'mup': must be given, but is missing. Add it.$"):
        create("rates", "mup")


def test_all_options_are_listed_with_the_nearest_one() -> None:
    with pytest.raises(
        PluginSettingsError, match=r"must be 'linear', 'quadratic', .* or 'logarithmic', .* 'linear'\?$"
    ):
        create("curricula", "pacing", {"form": "linaer"})
    with pytest.raises(PluginSettingsError, match=r"but got 'best'\. Choose one of these\.$"):
        create("curricula", "pacing", {"form": "best"})
