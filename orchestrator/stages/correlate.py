"""Stage `correlate`: measures how well training-free scores predict accuracy, compared with parameter counts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from orchestrator.engines.seeds import seed_for
from orchestrator.evaluation.repeated_truths import NamedAccuracies, repetition
from orchestrator.spec.plugin_checks import choice_problems, proxy_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.proxy_choices import expand_all, is_pool_proxy, with_repeats
from orchestrator.spec.stage_model import Count, Fraction, StageModel, StageName, latest
from orchestrator.spec.truth_error import TruthError
from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.truth_table import read_truth_table
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import StageKind, StageOutcome
from orchestrator.stages.screen import ScreenStage
from orchestrator.stages.train import TRAIN
from orchestrator.stages.verdict_results import CorrelateResult, VerdictSettings
from search_spaces.recipes import PluginChoice
from trainers.yaml_source import KeyPath, absolute_path

if TYPE_CHECKING:
    from orchestrator.evaluation.ground_truth import GroundTruth

DEFAULT_BATCH_SIZE = 16


class CorrelateStage(StageModel):
    """Measures how well each proxy predicts accuracy, by Kendall's tau-b, and whether it beats counting parameters."""

    stage: Literal["correlate"]
    name: StageName = Field(default="correlate", description="name of the stage in reports; unique in the study")
    truth: TruthSource | None = Field(
        default=None,
        description="the accuracies to predict; by default those that this study's train stage reached with the base "
        "recipe",
    )
    further: tuple[TruthSource, ...] = Field(
        default=(),
        description="further accuracies (other spaces, targets or data sets), by which the same scores are judged as "
        "well: each by itself, and all together",
    )
    proxies: tuple[PluginChoice, ...] | None = Field(
        default=None,
        min_length=1,
        description="proxies to compare; `all` means all installed ones that need no settings, except `latency`, "
        "which depends on other load on the machine and must be named; by default those of the "
        "preceding screen",
    )
    baselines: tuple[str, ...] = Field(
        default=("params", "flops", "depth"),
        min_length=1,
        description="proxies that a useful proxy must beat; they are scored as well",
    )
    seeds: Count = Field(default=1, description="number of seeds for scores that depend on random numbers")
    repeats: Count | None = Field(
        default=None, description="fresh initialisations per score; by default the proxy's own setting"
    )
    batch_size: Count | None = Field(
        default=None, description="number of images per proxy; by default that of the preceding screen, otherwise 16"
    )
    resamples: Annotated[int, Field(ge=100, le=1_000_000, strict=True)] = Field(
        default=1000, description="number of bootstrap resamples for the intervals"
    )
    confidence: Fraction = Field(default=0.95, description="confidence level of the intervals")
    combine: Annotated[bool, Field(strict=True)] = Field(
        default=True, description="also judge combinations of the scores: by rank, and learned (judged out of fold)"
    )
    transfer: tuple[TruthSource, ...] = Field(
        default=(), description="further accuracies, on which the combination learned on `truth` is tested"
    )

    @field_validator("proxies", mode="before")
    @classmethod
    def _from_a_single_name(cls, raw: Any) -> Any:
        return [raw] if isinstance(raw, str) else raw

    @field_validator("proxies", mode="after")
    @classmethod
    def _all_by_name(cls, proxies: tuple[PluginChoice, ...] | None) -> tuple[PluginChoice, ...] | None:
        return None if proxies is None else expand_all(proxies)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("train",) if self.truth is None else ()

    @property
    def truths(self) -> tuple[TruthSource, ...]:
        """The accuracies to compare with, then those on which the learned combination is tested."""
        return (*(() if self.truth is None else (self.truth,)), *self.further, *self.transfer)

    @classmethod
    def with_absolute_paths(cls, raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        found = {key: _absolute_tables(raw[key], folder) for key in ("truth", "further", "transfer") if key in raw}
        return {**raw, **found}

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        yield from proxy_problems(self.proxies or (), (*at, "proxies"))
        yield from _baseline_problems(self.baselines, (*at, "baselines"))
        yield from _table_problems(self, at)
        yield from _repeated_truths(self, at)

    def order_problems(self, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
        if self.proxies is None and latest(before, ScreenStage) is None:
            yield Problem(
                at,
                "a correlate stage needs a screen stage before it or `proxies` (such as `all`), but has neither. "
                "Add one.",
            )
        if self.transfer and not self.combine:
            yield Problem(
                (*at, "transfer"),
                "must be empty without a learned combination, but `combine` is false. Remove one of the two.",
            )


def run_correlate(context: StageContext, spec: CorrelateStage) -> StageOutcome:
    """Score the topologies of the ground truth with every proxy, then judge the proxies and their combinations.

    Raises:
        StageFailedError: A ground truth cannot be used, or nothing could be scored.
    """
    from orchestrator.stages.proxy_verdicts import ProxyVerdicts
    from orchestrator.stages.truth_scores import score_truths

    try:
        truths = _load_truths(context, spec)
    except TruthError as error:
        raise StageFailedError(str(error)) from error
    _refuse_repetitions(truths, num_judged=1 + len(spec.further))
    screen, screen_seed = _screen(context, spec)
    choices = chosen_proxies(spec, screen)
    scored = score_truths(
        context,
        truths,
        choices,
        base_seed=screen_seed,
        num_seeds=spec.seeds,
        batch_size=spec.batch_size or (screen.batch_size if screen else DEFAULT_BATCH_SIZE),
    )
    context.progress.note(f"judging {len(choices)} proxies over {len(truths[0].topologies)} topologies")
    settings = VerdictSettings(
        baselines=spec.baselines, resamples=spec.resamples, confidence=spec.confidence, combine=spec.combine
    )
    num_judged = 1 + len(spec.further)
    return ProxyVerdicts(context, settings, choices, scored[:num_judged], scored[num_judged:]).outcome()


def chosen_proxies(spec: CorrelateStage, screen: ScreenStage | None) -> tuple[PluginChoice, ...]:
    """The proxies of a stage, including the baselines, with the stage's number of repeats."""
    named = {choice.name: choice for choice in (spec.proxies or (screen.proxies if screen else ()))}
    for baseline in spec.baselines:
        named.setdefault(baseline, PluginChoice(name=baseline))
    return with_repeats(named.values(), spec.repeats)


def _load_truths(context: StageContext, spec: CorrelateStage) -> "list[GroundTruth]":
    """Load the accuracies to compare with, then those on which the learned combination is tested."""
    from orchestrator.stages.truths import load_truth, trained_truth

    others = [
        load_truth(source, data=context.spec.data, store=context.store) for source in (*spec.further, *spec.transfer)
    ]
    if spec.truth is not None:
        return [load_truth(spec.truth, data=context.spec.data, store=context.store), *others]
    from trainers.data.images import load_images

    images = load_images(context.spec.data)
    return [trained_truth(context.store, context.study, context.required(TRAIN), images=images), *others]


def _screen(context: StageContext, spec: CorrelateStage) -> tuple[ScreenStage | None, int]:
    """The screen that provides default proxies and batch size, and a seed with which its stored scores are reused."""
    from orchestrator.stages.truths import find_truth_study, last_screen, read_spec

    screen = last_screen(context.spec, context.stage.position)
    if screen is None and spec.truth is not None and spec.truth.study is not None:
        screen = last_screen(read_spec(find_truth_study(spec.truth.study, context.store)[1]))
    return screen, seed_for(context.spec.seed, screen.name) if screen else context.seed


def _line(result: CorrelateResult) -> str:
    if result.joint:
        known = {*result.baselines, *(row.proxy for row in result.proxies if row.training_macs is not None)}
        best_joint = next((row for row in result.joint if row.proxy not in known), result.joint[0])
        gap = best_joint.mean_difference
        ends = "" if gap.low is None else f" [{gap.low:.2f}, {gap.high:.2f}]"
        shown = "-" if gap.value is None else f"{gap.value:.3f}{ends}"
        return f"{1 + len(result.further)} tables; best mean difference {shown} ({best_joint.proxy})"
    best = next((row for row in result.proxies if row.training_macs is None), result.proxies[0])
    if result.has_no_verdict:
        return "no verdict: these trainings differ by no more than chance"
    if best.tau.value is None:
        return f"best tau - ({best.proxy})"
    bounds = "" if best.tau.low is None else f" [{best.tau.low:.2f}, {best.tau.high:.2f}]"
    return f"best tau {best.tau.value:.3f}{bounds} ({best.proxy})"


def _baseline_problems(baselines: Sequence[str], at: KeyPath) -> Iterator[Problem]:
    for index, name in enumerate(baselines):
        path = (*at, index)
        problems = list(choice_problems("proxies", PluginChoice(name=name), path))
        yield from problems
        if not problems and is_pool_proxy(name):
            yield Problem(path, f"a baseline must be a single score, but {name!r} combines others. Remove it.")
        if name in baselines[:index]:
            yield Problem(path, f"each baseline must be named once, but got {name!r} again. Remove one.")


def _repeated_truths(stage: CorrelateStage, at: KeyPath) -> Iterator[Problem]:
    """Yield studies that are judged twice, which would count twice in the joint verdict."""
    judged = [] if stage.truth is None else [stage.truth]
    for index, truth in enumerate(stage.further):
        if truth.study is not None and truth in judged:
            yield Problem((*at, "further", index), "each study must be named once, but it repeats. Remove it.")
        judged.append(truth)


def _table_problems(stage: CorrelateStage, at: KeyPath) -> Iterator[Problem]:
    """Yield mistakes in tables that do not depend on the images; a study is looked up only when the stage runs."""
    read: dict[KeyPath, NamedAccuracies] = {}
    for path, truth in _places(stage, at):
        if truth.table is None or truth.space is None or truth.target is None:
            continue
        try:
            table = read_truth_table(
                Path(truth.table), space=truth.space, target=truth.target, recipe=truth.recipe, epoch=truth.epoch
            )
        except TruthError as error:
            yield Problem((*path, error.key), str(error))
            continue
        given = NamedAccuracies(f"{table.target} of {table.name}", {row.topology.id: row.value for row in table.rows})
        is_transfer = len(path) > len(at) and path[len(at)] == "transfer"
        compared = [one for other, one in read.items() if not is_transfer or other == (*at, "truth")]
        mistake = repetition(given, compared)
        if mistake is not None:
            yield Problem((*path, "table"), f"{table.target} of {truth.table} {mistake}")
        read[path] = given


def _refuse_repetitions(truths: "Sequence[GroundTruth]", *, num_judged: int) -> None:
    """Check that no accuracies are judged twice, and none are those on which the combination is learned.

    Raises:
        StageFailedError: Some are.
    """
    named = [NamedAccuracies(truth.title, truth.by_topology) for truth in truths]
    for place, one in enumerate(named[1:], start=1):
        mistake = repetition(one, named[:place] if place < num_judged else named[:1])
        if mistake is not None:
            raise StageFailedError(f"{one.title} {mistake}")


def _places(stage: CorrelateStage, at: KeyPath) -> Iterator[tuple[KeyPath, TruthSource]]:
    """The stage's truths with their paths in the study file."""
    if stage.truth is not None:
        yield (*at, "truth"), stage.truth
    for key, truths in (("further", stage.further), ("transfer", stage.transfer)):
        for index, truth in enumerate(truths):
            yield (*at, key, index), truth


def _absolute_tables(value: Any, folder: Path) -> Any:
    """Make the paths of an unchecked truth or list of truths absolute."""
    if isinstance(value, list):
        return [_absolute_tables(inner, folder) for inner in value]
    if isinstance(value, dict) and isinstance(value.get("table"), str) and value["table"]:
        return {**value, "table": absolute_path(value["table"], folder)}
    return value


CORRELATE = StageKind(model=CorrelateStage, result=CorrelateResult, run=run_correlate, line=_line)
