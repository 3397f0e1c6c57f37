"""The study file: its fields, reading it, and comparing two of them."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from orchestrator.spec.budget import Budget
from orchestrator.spec.checks import configuration_problems, source_problems, study_problems
from orchestrator.spec.cost import Cost, CostName
from orchestrator.spec.data_roots import root_problems
from orchestrator.spec.engine import EngineSpec, PoolName, ResourceSpec, engine_problems
from orchestrator.spec.mending import corrected_keys, mend
from orchestrator.spec.metric_checks import limit_problem, metric_problems
from orchestrator.spec.model_names import with_absolute_teacher, with_absolute_weights
from orchestrator.spec.problems import STUDY_PATTERN, Problem, all_problems, distinct
from orchestrator.spec.stage_model import StageModel
from orchestrator.spec.stage_registry import stage_models
from plugins.metrics.deciding import ACCURACY_CHOICE
from plugins.registry import nearest_name
from search_spaces.numbers import MAX_SEED, NumericModel
from search_spaces.recipes import MethodList
from trainers.config import Configuration, DataConfig
from trainers.data.sources import BUILT_IN
from trainers.yaml_source import KeyPath, SpecError, YamlSource, absolute_path, format_path, parse_yaml, read_yaml

Model = TypeVar("Model", bound=BaseModel)

HOW = ("engine", "pool", "resources")
"""Fields that affect execution only. They may change between executions of a study."""

if TYPE_CHECKING:
    AnyStage = StageModel
else:
    AnyStage = Annotated[Union[tuple(stage_models().values())], Field(discriminator="stage")]  # noqa: UP007


class StudySpec(NumericModel):
    """A study: data, engine, pool, and the stages in the order in which they run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    study: str = Field(
        pattern=STUDY_PATTERN, description="name of the study: lower-case letters, digits, dots, dashes and underscores"
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, strict=True, description="seed of all random numbers of the study")
    data: DataConfig = Field(description="the images and how they are split")
    metric: MethodList = Field(
        default=(ACCURACY_CHOICE,),
        description="validation metric by which the study decides: `accuracy`, `balanced-accuracy`, `macro-f1`, `loss` "
        "or another installed one; all of ours are recorded, whichever decides. A list adds a cost to weigh it "
        "against: `[accuracy, latency]`, `macs` or `parameters`",
    )
    budget: Budget | None = Field(
        default=None,
        description="what the study may spend in all its executions, such as `2h`; stages end early to leave time for "
        "later ones",
    )
    engine: EngineSpec = Field(
        default=EngineSpec(),
        description="engine of the searches: `auto`, `optuna` or `ray`, or a block with a scheduler",
    )
    pool: PoolName = Field(default="auto", description="where trials run; `inline` means in this process")
    resources: ResourceSpec = Field(
        default=ResourceSpec(), description="resource limits of trials; unset values are detected"
    )
    stages: tuple[AnyStage, ...] = Field(min_length=1, description="the stages, in the order in which they run")

    @property
    def remarks(self) -> list[str]:
        """Names settings that will be left out or have no effect, although the study is valid."""
        return [text for index, stage in enumerate(self.stages) for text in stage.remarks(self.stages[:index])]

    @property
    def cost(self) -> Cost | None:
        """The second objective; `None` if the study has one."""
        return Cost(name=cast("CostName", self.metric[1].name)) if len(self.metric) > 1 else None

    @property
    def digest(self) -> str:
        """SHA-256 in hex of all fields as canonical JSON, except those that affect execution only."""
        what = self.model_dump(mode="json", exclude=set(HOW))
        text = json.dumps(what, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_spec(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """Read and check a study file; nothing is written or started.

    Args:
        path: The YAML file. A relative `data.source` in it is relative to its folder.
        overrides: Values that replace those in the file, by dotted key, such as `{"data.source": "photos"}`. A relative
            `data.source` in the overrides is relative to the working directory.

    Raises:
        SpecError: All mistakes, each with file and line, the rule, the value found and the nearest valid name.
    """
    return _checked_study(read_yaml(path), overrides or {})


def parse_spec(raw: bytes, file: str, *, folder: Path, roots: Sequence[Path] | None = None) -> StudySpec:
    """Check the content of a study file that somebody sent; nothing is written or started.

    Args:
        raw: The content.
        file: Name of the file for messages.
        folder: Folder that relative paths in it refer to.
        roots: Folders that may contain files named in it; `None` for all. No file elsewhere is looked at.

    Raises:
        SpecError: All mistakes, as in `load_spec`.
    """
    return _checked_study(parse_yaml(raw, file, folder=folder), {}, roots=roots)


def make_spec(data: Mapping[str, Any], *, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """Check a study that was not read from a file; nothing is written or started.

    Args:
        data: The content of a study file as plain data. Relative paths in it are relative to the working directory.
        overrides: Values that replace those of `data`, by dotted key, as in `load_spec`.

    Raises:
        SpecError: All mistakes, without lines.
    """
    return _checked(YamlSource(file="the study", data=dict(data), marks={}), overrides or {})


def _checked_study(
    source: YamlSource, overrides: Mapping[str, Any], *, roots: Sequence[Path] | None = None
) -> StudySpec:
    if "stages" not in source.data and {"topology", "recipe"} <= source.data.keys():
        raise SpecError(
            source.file,
            "must be a study file, but is the configuration of one model, as `vitsearch best` prints it. Train it "
            f"with: vitsearch train {source.file}",
        )
    return _checked(source, overrides, roots=roots)


def _checked(yaml: YamlSource, overrides: Mapping[str, Any], *, roots: Sequence[Path] | None = None) -> StudySpec:
    source, given = _with_overrides(yaml, overrides)
    outside = [] if roots is None else list(root_problems(source.data, roots))
    try:
        spec = StudySpec.model_validate(source.data)
    except ValidationError as error:
        wrong = all_problems(error, StudySpec, stage_models())
        _raise_all([*wrong, *outside, *_further_problems(source, roots)], source, given)
    if outside:  # before anything looks at the files
        _raise_all([*outside, *_further_problems(source, roots)], source, given)
    execution = engine_problems(spec.engine, spec.pool, spec.resources)
    metric = itertools.chain(metric_problems(spec.metric, spec.engine.scheduler, ("metric",)), _limit_problems(spec))
    _raise_all(itertools.chain(execution, metric, study_problems(spec.data, spec.stages)), source, given)
    return spec


def _limit_problems(spec: StudySpec) -> Iterator[Problem]:
    for index, stage in enumerate(spec.stages):
        problem = limit_problem(getattr(stage, "limit", None), spec.metric)
        if problem is not None:
            yield Problem(("stages", index, "limit"), problem)
        finalists = getattr(stage, "finalists", 1)
        if finalists > 1 and spec.cost is not None:
            yield Problem(
                ("stages", index, "finalists"),
                f"must be 1 in a study with a cost ({spec.cost.name}), which chooses one trial from the front, but is "
                f"{finalists}. Remove it; `seeds` still trains the chosen trial again.",
            )


def _further_problems(source: YamlSource, roots: Sequence[Path] | None) -> Iterator[Problem]:
    """Yield the mistakes that those already found would hide: in all parts of a study that can be read, or be guessed.

    Files outside `roots` are not looked at.
    """
    meant = corrected_keys(source.data, StudySpec.model_fields)
    data = {meant.get(key, key): value for key, value in source.data.items()}
    in_file = {name: key for key, name in meant.items()}
    if meant:
        yield from _in_file(_type_problems(StudySpec, data), in_file)
    stages = data.get("stages")
    for index, raw in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(raw, dict):
            yield from _in_file(_problems_of_stage(raw, ("stages", index), source.base, roots), in_file)
    images = mend(DataConfig, block) if isinstance(block := data.get("data"), dict) else None
    is_allowed = images is not None and (roots is None or not any(root_problems(images.data, roots)))
    if images is not None and not images.renamed and is_allowed:
        yield from _in_file(images.in_file(source_problems(images.model), ("data",)), in_file)
    with contextlib.suppress(ValidationError):  # it is reported already
        named = TypeAdapter(MethodList).validate_python(data.get("metric", ACCURACY_CHOICE.name))
        yield from _in_file(metric_problems(named, None, ("metric",)), in_file)
    with contextlib.suppress(ValidationError):
        engine = EngineSpec.model_validate(data.get("engine", EngineSpec()))
        pool = TypeAdapter(PoolName).validate_python(data.get("pool", "auto"))
        resources = ResourceSpec.model_validate(data.get("resources", ResourceSpec()))
        yield from _in_file(engine_problems(engine, pool, resources), in_file)


def _problems_of_stage(
    raw: Mapping[str, Any], at: KeyPath, folder: Path, roots: Sequence[Path] | None
) -> Iterator[Problem]:
    """Yield the mistakes in a stage. One whose kind is misspelt is checked as the kind that was meant."""
    models, kind = stage_models(), str(raw.get("stage"))
    if kind not in models:
        meant = nearest_name(kind, list(models))
        if meant is None:
            return
        raw = {**raw, "stage": meant}
        yield from (Problem((*at, *one.path), one.message) for one in _type_problems(models[meant], raw) if one.path)
        kind = meant
    mended = mend(models[kind], raw)
    if mended is None:
        return
    whole = models[kind].with_absolute_paths(mended.data, folder)
    if roots is not None and any(root_problems(whole, roots)):
        return
    with contextlib.suppress(ValidationError):
        yield from mended.in_file(models[kind].model_validate(whole).own_problems(at), at)


def _type_problems(model: type[BaseModel], data: Mapping[str, Any]) -> list[Problem]:
    try:
        model.model_validate(data)
    except ValidationError as error:
        return all_problems(error, model, stage_models())
    return []


def _in_file(problems: Iterable[Problem], keys: Mapping[str, str]) -> Iterator[Problem]:
    """Problems with the keys of the file instead of those that were meant."""
    for problem in problems:
        first, *inner = problem.path
        key = keys.get(str(first), first)
        yield Problem((key, *inner), problem.message, problem.is_of_meant_key or key != first)


def load_configuration(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Configuration:
    """Read and check one configuration, as printed by `vitsearch best`. See `load_spec`.

    Raises:
        SpecError: All mistakes.
    """
    content = read_yaml(path)
    if "stages" in content.data:
        raise SpecError(
            path,
            "must be the configuration of one model, as `vitsearch best` prints it, but is a study file. Run it with: "
            f"vitsearch run {path}",
        )
    source, given = _with_overrides(content, overrides or {})
    configuration = _validate(Configuration, source, given)
    _raise_all(configuration_problems(configuration), source, given)
    return configuration


def make_data_config(settings: Mapping[str, Any]) -> DataConfig:
    """Check a `data` block that was not read from a file.

    Raises:
        SpecError: All mistakes, without lines.
    """
    source = YamlSource(file="the data", data=dict(settings), marks={})
    return _validate(DataConfig, source, frozenset())


def differences(old: StudySpec, new: StudySpec) -> list[str]:
    """Differences between two studies, except in execution: lines such as `stages[1].epochs: 20 -> 30`."""
    before, after = (dict(_leaves(spec.model_dump(mode="json", exclude=set(HOW)), ())) for spec in (old, new))
    paths = [*before, *(path for path in after if path not in before)]
    return [
        f"{format_path(path)}: {_shown(before, path)} -> {_shown(after, path)}"
        for path in paths
        if before.get(path, ...) != after.get(path, ...)
    ]


def _with_overrides(source: YamlSource, overrides: Mapping[str, Any]) -> tuple[YamlSource, frozenset[KeyPath]]:
    """Apply overrides and make paths absolute; returns the source and the keys of the overrides."""
    data = dict(source.data)
    given: set[KeyPath] = set()
    for dotted, value in overrides.items():
        *outer, last = dotted.split(".")
        target = data
        for key in outer:
            inner = target.get(key)
            target[key] = dict(inner) if isinstance(inner, dict) else {}
            target = target[key]
        target[last] = value
        given.add((*outer, last))
    block = data.get("data")
    if isinstance(block, dict) and isinstance(block.get("source"), str):
        folder = Path.cwd() if ("data", "source") in given else source.base
        data["data"] = {**block, "source": _absolute(block["source"], folder)}
    for key, with_absolute in (("weights", with_absolute_weights), ("teacher", with_absolute_teacher)):
        if key in data:
            folder = Path.cwd() if (key,) in given else source.base
            data[key] = with_absolute(data[key], folder)
    if isinstance(data.get("stages"), list):
        data["stages"] = [_with_absolute_paths(stage, source.base) for stage in data["stages"]]
    return replace(source, data=data), frozenset(given)


def _with_absolute_paths(stage: Any, folder: Path) -> Any:
    """A stage with absolute paths. A value that is not a stage is kept; validation reports it later."""
    model = stage_models().get(str(stage.get("stage"))) if isinstance(stage, dict) else None
    return stage if model is None else model.with_absolute_paths(stage, folder)


def _absolute(text: str, folder: Path) -> str:
    return text if not text or text in BUILT_IN else absolute_path(text, folder)


def _validate(model: type[Model], source: YamlSource, given: frozenset[KeyPath]) -> Model:
    try:
        return model.model_validate(source.data)
    except ValidationError as error:
        problems = all_problems(error, model, stage_models())
    _raise_all(problems, source, given)
    raise AssertionError("an error has at least one problem")


def _raise_all(problems: Iterable[Problem], source: YamlSource, given: frozenset[KeyPath]) -> None:
    errors = [_error(source, given, problem) for problem in distinct(problems)]
    errors.sort(key=lambda error: error.line or 0)
    if errors:
        errors[0].others = tuple(errors[1:])
        raise errors[0]


def _error(source: YamlSource, given: frozenset[KeyPath], problem: Problem) -> SpecError:
    at = problem.path
    if any(at[: len(path)] == path[: len(at)] for path in given if at):
        return SpecError(source.file, f"(an override of the file) {problem.message}", path=problem.path)
    return source.error(problem.path, problem.message)


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    items: Sequence[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    if not items:
        yield path, value
    for key, inner in items:
        yield from _leaves(inner, (*path, key))


def _shown(leaves: Mapping[KeyPath, Any], path: KeyPath) -> str:
    return json.dumps(leaves[path], ensure_ascii=False) if path in leaves else "(not there)"
