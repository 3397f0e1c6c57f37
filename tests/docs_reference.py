"""The generated parts of docs/: tables of fields and settings, plug-in cards, and measured methods.

`WRITE_DOCS=1 pytest tests/test_docs.py` writes them. Without the variable, the test compares them with the pages.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from benchmarks._claims import claims_table
from benchmarks._effects import measured_effects
from benchmarks._methods_page import BLOCKS
from orchestrator.settings import Settings
from orchestrator.spec.budget import Budget
from orchestrator.spec.engine import SCHEDULERS, EngineSpec, ResourceSpec
from orchestrator.spec.stage_registry import stage_models
from orchestrator.spec.study_file import StudySpec
from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.warm_start import WarmStart
from orchestrator.stages.screen import Limits
from orchestrator.stages.train_spec import Candidates
from plugins import registry
from plugins.protocols import SIGNAL_COSTS, ExampleOrder, ExampleWeights, Mixing, Signal, StepMethod
from search_spaces.ema_rates import EmaRates, OneOrSeveral
from search_spaces.options import OptionSearch
from search_spaces.ramps import Bounds, Ramp
from search_spaces.recipes import PluginChoice, Recipe
from search_spaces.shape_rules import ShapeRules
from trainers.config import Configuration, DataConfig

MODELS: dict[str, type[BaseModel]] = {
    "study": StudySpec,
    "engine": EngineSpec,
    **{f"scheduler:{name}": model for name, model in SCHEDULERS.items()},
    "resources": ResourceSpec,
    "budget": Budget,
    "data": DataConfig,
    **stage_models(),
    "candidates": Candidates,
    "warm-start": WarmStart,
    "limits": Limits,
    "options": OptionSearch,
    "multiples": ShapeRules,
    "truth": TruthSource,
    "recipe": Recipe,
    "configuration": Configuration,
}
"""Models whose fields a page can show as a table, by name."""

MEASURED: dict[str, Callable[[str], str]] = {**BLOCKS, "claims": claims_table}
"""Tables of measured results, by the first word of the block."""
_IN_HOME = {
    "database_url": "vitsearch.db",
    "tracking_uri": "mlflow.db",
    "cache_folder": "cache",
    "artifact_root": "artifacts",
}
"""Names in the home folder that settings have by default."""
_BLOCK = re.compile(r"(<!-- made from code: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BOUNDS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


def with_current_blocks(page: str) -> str:
    """A page of docs/ in which each block from `<!-- made from code: NAME -->` to `<!-- end -->` is up to date."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{_block(found[2])}\n\n{found[3]}", page)


def block_names(page: str) -> list[str]:
    """Names of the generated blocks of a page."""
    return [found[2] for found in _BLOCK.finditer(page)]


def undocumented() -> Iterator[str]:
    """Fields of the tables and settings of our plug-ins that have no description."""
    for name, model in MODELS.items():
        yield from (f"{name}.{key}" for key, field in _shown_fields(model) if not field.description)
    for kind in registry.KINDS:
        for plugin in _ours(kind):
            for setting, _, _, about in _plugin_settings(registry.load(kind, plugin)):
                if not about:
                    yield f"{kind} {plugin}.{setting}"


def _block(name: str) -> str:
    if name == "settings":
        return _settings_table()
    if name == "signals":
        return _signals_table()
    kind, _, rest = name.partition(":")
    if kind in MEASURED:
        return MEASURED[kind](rest)
    if kind == "plugins":
        return "\n\n".join(_card(rest, plugin) for plugin in _ours(rest))
    return _fields_table(MODELS[name])


def _ours(kind: str) -> list[str]:
    """Names of our plug-ins of a kind, without those of other installed packages."""
    return [name for name in registry.available(kind) if registry.provider(kind, name).startswith("vitsearch ")]


def _fields_table(model: type[BaseModel]) -> str:
    rows = [
        (f"`{name}`", takes(field.annotation, field.metadata), _default(field), field.description or "")
        for name, field in _shown_fields(model)
    ]
    return _table(("field", "takes", "default", "meaning"), rows)


def _shown_fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [(name, field) for name, field in model.model_fields.items() if name != "stage"]


def _settings_table() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        variable, _, meaning = (field.description or "").partition(": ")
        rows.append((f"`{variable}`", _default_setting(name, field), meaning))
    return _table(("variable", "default", "meaning"), rows)


def _default_setting(name: str, field: FieldInfo) -> str:
    """The default as the text of an environment variable."""
    if field.default_factory is not None:
        return f"`{_IN_HOME[name]}` in the home"
    if field.default in (None, ()):
        return "unset"
    if isinstance(field.default, bool):
        return "`on`" if field.default else "`off`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _signals_table() -> str:
    about = _attribute_docstrings(Signal)
    rows = [(f"`{one}`", about[one.name].rstrip("."), SIGNAL_COSTS[one]) for one in Signal]
    return _table(("signal", "meaning", "cost"), rows)


def _card(kind: str, name: str) -> str:
    plugin = registry.load(kind, name)
    about = re.sub(r"\s+", " ", (sys.modules[plugin.__module__].__doc__ or "").strip().partition("\n\n")[0])
    parts = [f"### {name}", about]
    facts: dict[str, str] = {}
    card = getattr(plugin, "card", None)
    if card is not None:
        facts = {"Source": card.source, "Cost": card.cost, "Needs": ", ".join(card.needs)}
    effect = _effects().get(kind, {}).get(name)
    if effect is not None:
        facts["Measured"] = effect
    direction = getattr(plugin, "direction", None)
    if direction is not None:
        facts["Better"] = "higher" if direction == "maximize" else "lower"
    facts |= _roles(kind, name)
    if facts:
        parts.append("\n".join(f"- {title}: {text}" for title, text in facts.items() if text))
    rows = [(f"`{setting}`", *rest) for setting, *rest in _plugin_settings(plugin)]
    if rows:
        parts.append(_table(("setting", "takes", "default", "meaning"), rows))
    return "\n\n".join(parts)


@cache
def _effects() -> dict[str, dict[str, str]]:
    return measured_effects()


def _roles(kind: str, name: str) -> dict[str, str]:
    """Facts about a plug-in that depend on which protocols of its kind it implements."""
    if kind == "curricula":
        method = registry.create(kind, name)
        changes = sorted(method.changes) if isinstance(method, StepMethod) else []
        order = "yes" if isinstance(method, ExampleOrder) else ""
        weights = "yes" if isinstance(method, ExampleWeights) else ""
        return {
            "Orders examples": order,
            "Weights examples": weights,
            "Changes": ", ".join(f"`{field}`" for field in changes),
        }
    if kind == "augmentations":
        plugin = registry.create(kind, name)
        offers = {"augmentation": hasattr(plugin, "augment"), "mixing": isinstance(plugin, Mixing)}
        return {"Used in": ", ".join(f"`recipe.{field}`" for field, does in offers.items() if does)}
    return {}


def _plugin_settings(plugin: Any) -> Iterator[tuple[str, str, str, str]]:
    """Name, accepted values, default and meaning of each setting."""
    if isinstance(plugin, type) and issubclass(plugin, BaseModel):
        for name, field in plugin.model_fields.items():
            yield name, takes(field.annotation, field.metadata), _default(field), field.description or ""
    elif dataclasses.is_dataclass(plugin) and isinstance(plugin, type):
        hints, about = get_type_hints(plugin, include_extras=True), {}
        for base in reversed(plugin.__mro__):
            about |= _attribute_docstrings(base) if dataclasses.is_dataclass(base) else {}
        for entry in sorted(dataclasses.fields(plugin), key=lambda entry: entry.name not in plugin.__annotations__):
            default = "required" if entry.default is dataclasses.MISSING else f"`{_as_yaml(entry.default)}`"
            yield entry.name, takes(hints[entry.name]), default, about.get(entry.name, "")


def _attribute_docstrings(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, node in zip(body.body, body.body[1:], strict=False):
        match before, node:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = re.sub(r"\s+", " ", text)
    return found


def takes(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Accepted values of a field in words, such as `whole number, at least 1`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return takes(arguments[0], [*metadata, *arguments[1:]])
    if origin in (Union, UnionType):
        inner = [argument for argument in arguments if argument is not NoneType]
        if len(inner) < len(arguments):
            return f"{takes(inner[0], metadata)}, or null"
        if Ramp in inner:
            return f"{takes(inner[0], metadata)}, or a function of progress"
        if EmaRates in inner:
            return f"{takes(inner[0], metadata)}, or several"
        return "stage"
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in arguments)
    if origin is tuple and arguments[0] is PluginChoice and _takes_one_alone(metadata):
        return "plug-in, or list of plug-ins"
    if origin is tuple and _takes_one_alone(metadata):
        return f"{takes(arguments[0])}, or a list of values"
    if origin is tuple:
        count = "" if arguments[-1] is ... else f"{len(arguments)} "
        items = re.sub("^(whole number|number|text|plug-in|stage|signal)", r"\1s", takes(arguments[0]))
        return f"list of {count}{items}"
    if annotation is PluginChoice:
        return "plug-in"
    if annotation is bool:
        return "`true`, `false`"
    if annotation in (int, float):
        return ", ".join(["whole number" if annotation is int else "number", *_bounds(metadata)])
    if annotation in (str, Path):
        return "text"
    if annotation is Signal:
        return "signal"
    return "block"


def _takes_one_alone(metadata: Sequence[Any]) -> bool:
    """Whether a list with one item may be written without brackets."""
    return any(isinstance(item, BeforeValidator) for item in metadata)


def _bounds(metadata: Sequence[Any]) -> list[str]:
    flat: list[Any] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            flat += item.metadata
        elif isinstance(item, Bounds):  # in the order in which annotated_types names them
            given = {Gt: item.gt, Ge: item.ge, Lt: item.lt, Le: item.le}
            flat += [bound(limit) for bound, limit in given.items() if limit is not None]
        elif isinstance(item, OneOrSeveral):
            flat += item.as_metadata()
        else:
            flat.append(item)
    return [
        f"{_BOUNDS[type(item)][0]} {getattr(item, _BOUNDS[type(item)][1]):,}" for item in flat if type(item) in _BOUNDS
    ]


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel) and not isinstance(default, PluginChoice):
        default = default.model_dump(exclude_defaults=True)
    if _takes_one_alone(field.metadata) and isinstance(default, list | tuple) and len(default) == 1:
        (default,) = default
    return f"`{_as_yaml(default)}`"


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
