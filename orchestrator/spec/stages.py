"""The stages of a study file: one frozen model each, with what it searches already read into dimensions."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from orchestrator.spec.proxy_choices import expand_all
from plugins import registry
from search_spaces.base import SearchSpace
from search_spaces.dimensions import Dimension, Scalar
from search_spaces.recipes import PluginChoice, RecipeSpace, decode_plugin, parse_plugin_dimensions, parse_recipe_space

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

Count = Annotated[int, Field(ge=1, strict=True)]
Fraction = Annotated[float, Field(gt=0, lt=1, strict=True)]
StageName = Annotated[str, Field(pattern=NAME_PATTERN)]

_COST_PROXIES = frozenset({"params", "flops", "depth", "latency"})
"""Proxies that measure size only: they are compared with, not ranked by."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Plain):
    """Bounds of a topology's closed-form costs; what is left out is not bounded."""

    min_params: Count | None = Field(default=None, description="fewest parameters")
    max_params: Count | None = Field(default=None, description="most parameters")
    min_macs: Count | None = Field(
        default=None, description="fewest multiply-accumulates of one forward pass of one image"
    )
    max_macs: Count | None = Field(
        default=None, description="most multiply-accumulates of one forward pass of one image"
    )

    def bounds(self) -> tuple[tuple[Literal["parameters", "macs"], int | None, int | None], ...]:
        """The attribute of `search_spaces.base.Costs` with its lower and upper bound."""
        return ("parameters", self.min_params, self.max_params), ("macs", self.min_macs, self.max_macs)


class Candidates(_Plain):
    """Which screened topologies are trained."""

    best: Count = Field(default=3, description="this many of the best ranks")
    spread: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=3, description="and this many evenly over the other ranks, so that a correlation can be measured"
    )

    @property
    def total(self) -> int:
        """How many topologies that is."""
        return self.best + self.spread


class ScreenStage(_Plain):
    """Scores topologies with training-free proxies."""

    stage: Literal["screen"]
    name: StageName = Field(default="screen", description="what the stage is called in reports; unique in the study")
    space: PluginChoice = Field(default=PluginChoice(name="as-vit"), description="search space of the topologies")
    sampler: PluginChoice = Field(default=PluginChoice(name="random"), description="chooses the next topology")
    num_trials: Count = Field(description="topologies to score")
    batch_size: Count = Field(default=16, description="real images that a proxy sees")
    proxies: tuple[PluginChoice, ...] = Field(
        default=tuple(PluginChoice(name=name) for name in ("length-distortion", "ntk-condition", "params", "flops")),
        min_length=1,
        description="training-free scores, each computed for every topology",
    )
    rank_by: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="proxies whose ranks are added up to order the topologies; "
        "by default the first two that measure more than size",
    )
    limits: Limits = Field(default=Limits(), description="bounds of parameters and multiply-accumulates")

    @property
    def proxy_names(self) -> tuple[str, ...]:
        """Names of `proxies`."""
        return tuple(proxy.name for proxy in self.proxies)

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names of the proxies whose ranks are added up."""
        if self.rank_by is not None:
            return self.rank_by
        return tuple(name for name in self.proxy_names if name not in _COST_PROXIES)[:2] or self.proxy_names[:1]

    @cached_property
    def search_space(self) -> SearchSpace:
        """The space of topologies.

        Raises:
            ValueError: No such space is installed, or it does not take the settings.
        """
        return registry.create_space(self.space.name, self.space.settings)


class GrowStage(_Plain):
    """Grows one topology to a size, by As-ViT's scaling rule."""

    stage: Literal["grow"]
    name: StageName = Field(default="grow", description="what the stage is called in reports; unique in the study")
    topology: str | None = Field(
        default=None, description="topology to start from, as space:text; by default the best of the screen before"
    )
    start: Literal["best", "final-choice"] = Field(
        default="best",
        description="which topology of the screen before: the best rank, or the sampler's own final choice (reinforce)",
    )
    target_params: Count | None = Field(
        default=None,
        description="stop at the first topology with at least this many parameters; this or `target_macs` is needed",
    )
    target_macs: Count | None = Field(
        default=None,
        description="stop at the first topology with at least this many multiply-accumulates of one forward pass of "
        "one image; with both targets, at the one that is reached first",
    )
    max_steps: Count = Field(default=20, description="stop after this many steps")
    width_ratios: tuple[Fraction, ...] = Field(
        default=(0.05, 0.10, 0.15, 0.20), min_length=1, description="relative increases of the width that a step tries"
    )
    repeats: Count = Field(default=2, description="fresh initialisations that a score is averaged over")
    reduction: Count = Field(
        default=4,
        description="score networks of 1/reduction of the width; the width then grows in steps of `reduction`",
    )
    proxies: tuple[PluginChoice, ...] = Field(
        default=(PluginChoice(name="ntk-condition"), PluginChoice(name="length-distortion")),
        min_length=1,
        description="training-free scores whose ranks are added up to choose a step",
    )
    batch_size: Count = Field(default=16, description="real images that a proxy sees")

    def targets(self) -> dict[Literal["parameters", "macs"], int]:
        """What is given of both targets, by the attribute of `search_spaces.base.Costs`."""
        given: dict[Literal["parameters", "macs"], int | None] = {
            "parameters": self.target_params,
            "macs": self.target_macs,
        }
        return {cost: target for cost, target in given.items() if target is not None}


class TrainStage(_Plain):
    """Trains candidate topologies, each trial with a sampled recipe."""

    stage: Literal["train"]
    name: StageName = Field(default="train", description="what the stage is called in reports; unique in the study")
    candidates: Candidates | None = Field(
        default=None,
        description="topologies of the screen before that are trained; a topology grown in between joins them",
    )
    topologies: tuple[str, ...] = Field(
        default=(), description="train these instead of `candidates`, each written as space:text"
    )
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses candidate and recipe")
    num_trials: Count = Field(
        description="models to train: first each candidate once with the base recipe, then sampled ones"
    )
    epochs: Count = Field(description="budget of one trial in visits of the whole training set")
    keep_checkpoints: Count = Field(default=8, description="weights of this many newest epochs are kept, for averaging")
    stopping: PluginChoice | None = Field(default=None, description="early-stopping criterion; null trains to the end")
    recipe: dict[str, Any] = Field(
        default_factory=dict, description="recipe fields: a value fixes one, a list or {low, high} searches it"
    )

    @property
    def chosen_candidates(self) -> Candidates | None:
        """Which screened topologies are trained; `None` where the file names `topologies`."""
        return None if self.topologies else self.candidates or Candidates()

    @cached_property
    def recipe_space(self) -> RecipeSpace:
        """The recipe's fixed values and dimensions."""
        return parse_recipe_space(self.recipe)


class _PluginSearch(_Plain):
    """A search over plug-ins of one kind and their settings."""

    plugin_key: ClassVar[str]
    """Name of the dimension that chooses the plug-in."""
    plugin_field: ClassVar[str]

    @cached_property
    def _parsed(self) -> tuple[PluginChoice, tuple[Dimension, ...]]:
        return parse_plugin_dimensions(self.plugin_key, list(getattr(self, self.plugin_field)))

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What a sampler draws; empty where the file fixes everything."""
        return self._parsed[1]

    def decode(self, point: Mapping[str, Scalar]) -> PluginChoice:
        """The plug-in at a point of `dimensions`."""
        return decode_plugin(self.plugin_key, point) or self._parsed[0]


class StoppingStage(_PluginSearch):
    """Replays the recorded learning curves under early-stopping criteria."""

    plugin_key: ClassVar[str] = "stopping.criterion"
    plugin_field: ClassVar[str] = "criteria"
    stage: Literal["stopping"]
    name: StageName = Field(default="stopping", description="what the stage is called in reports; unique in the study")
    num_trials: Count = Field(description="criteria to replay")
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses the next criterion")
    criteria: tuple[PluginChoice, ...] = Field(
        min_length=1, description="early-stopping criteria; a setting that is a list or {low, high} is searched"
    )
    max_accuracy_lost: Annotated[float, Field(ge=0, lt=1, strict=True)] = Field(
        default=0.005, description="largest mean validation accuracy that stopping early may cost, as a fraction"
    )


class AveragingStage(_PluginSearch):
    """Averages the best trial's checkpoints in several ways and keeps the best on the validation part."""

    plugin_key: ClassVar[str] = "averaging.method"
    plugin_field: ClassVar[str] = "methods"
    stage: Literal["averaging"]
    name: StageName = Field(default="averaging", description="what the stage is called in reports; unique in the study")
    num_trials: Count = Field(description="averages to evaluate")
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses the next average")
    methods: tuple[PluginChoice, ...] = Field(
        min_length=1, description="averaging methods; a setting that is a list or {low, high} is searched"
    )


class Truth(_Plain):
    """Accuracies that scores are compared with, from elsewhere: a table of published ones, or another study."""

    table: str | None = Field(
        default=None,
        min_length=1,
        description="a JSON file: a list of rows, each with `arch` and its targets; a relative path is relative to the "
        "study file's folder",
    )
    space: str | None = Field(default=None, description="search space of the table's topologies")
    target: str | None = Field(default=None, description="which of the table's targets")
    num_classes: Annotated[int, Field(ge=2, strict=True)] | None = Field(
        default=None, description="classes of the table's networks; by default those of the data"
    )
    study: str | None = Field(
        default=None, description="instead of a table: a study whose trained topologies are compared, on its own images"
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "Truth":
        if (self.table is None) == (self.study is None):
            given = "neither" if self.table is None else "both"
            raise ValueError(f"must have a `table` or a `study`, but has {given}. Give one.")
        if self.table is not None and (self.space is None or self.target is None):
            missing = "space" if self.space is None else "target"
            raise ValueError(f"a table needs the `space` of its topologies and a `target`, but `{missing}` is missing.")
        if self.study is not None:
            extra = next((key for key in ("space", "target", "num_classes") if getattr(self, key) is not None), None)
            if extra is not None:
                raise ValueError(f"`{extra}` goes with a `table`; a `study` says it itself. Remove it.")
        return self


class CorrelateStage(_Plain):
    """Measures how well each proxy predicts accuracy, by Kendall's tau-b, and whether it beats counting parameters."""

    stage: Literal["correlate"]
    name: StageName = Field(default="correlate", description="what the stage is called in reports; unique in the study")
    truth: Truth | None = Field(
        default=None, description="the accuracies; by default those of this study's train stage with the base recipe"
    )
    proxies: tuple[PluginChoice, ...] | None = Field(
        default=None,
        min_length=1,
        description="scores to compare; `all` is every installed one that needs no settings; by default those of the "
        "screen before",
    )
    baselines: tuple[str, ...] = Field(
        default=("params", "flops", "depth"),
        min_length=1,
        description="proxies that a good one must beat; they are scored as well",
    )
    seeds: Count = Field(default=1, description="how often scores that depend on chance are computed anew")
    repeats: Count | None = Field(
        default=None, description="fresh initialisations per score; by default each proxy's own number"
    )
    batch_size: Count | None = Field(
        default=None, description="images that a proxy sees; by default as in the screen before, else 16"
    )
    resamples: Annotated[int, Field(ge=100, le=1_000_000, strict=True)] = Field(
        default=1000, description="bootstrap resamples of the intervals"
    )
    confidence: Fraction = Field(default=0.95, description="of the intervals")
    combine: Annotated[bool, Field(strict=True)] = Field(
        default=True, description="also judge combinations of the scores: by ranks alone, and learned (out of fold)"
    )
    transfer: tuple[Truth, ...] = Field(
        default=(), description="further accuracies, to which the combination learned on `truth` is carried over"
    )

    @field_validator("proxies", mode="before")
    @classmethod
    def _from_a_single_name(cls, raw: Any) -> Any:
        return [raw] if isinstance(raw, str) else raw

    @field_validator("proxies", mode="after")
    @classmethod
    def _all_by_name(cls, proxies: tuple[PluginChoice, ...] | None) -> tuple[PluginChoice, ...] | None:
        return None if proxies is None else expand_all(proxies)


class PromoteStage(_Plain):
    """Tests the best model once on the test part and registers it as champion."""

    stage: Literal["promote"]
    name: StageName = Field(default="promote", description="what the stage is called in reports; unique in the study")


StageSpec = Annotated[
    ScreenStage | GrowStage | TrainStage | StoppingStage | AveragingStage | CorrelateStage | PromoteStage,
    Field(discriminator="stage"),
]
STAGE_TYPES: dict[str, type[BaseModel]] = {
    "screen": ScreenStage,
    "grow": GrowStage,
    "train": TrainStage,
    "stopping": StoppingStage,
    "averaging": AveragingStage,
    "correlate": CorrelateStage,
    "promote": PromoteStage,
}
"""Stages by the word that a study file uses."""
