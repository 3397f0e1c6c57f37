"""Bodies of requests and responses under `/v1`. Fields may be added; existing ones keep their meaning."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from orchestrator.spec.stage_registry import STAGES
from orchestrator.stages.kind import stage_kind
from orchestrator.store.records import RunState, StudyState, TrialState
from orchestrator.store.service_records import Outcome, SubmissionState, WebhookState
from search_spaces.base import MAX_CLASSES, MAX_IMAGE_SIZE
from trainers.config import Configuration, DataConfig, EpochReport
from trainers.data.report import DataReport, PartReport

_MAX_IMAGES = 10**12


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StudyLine(_Body):
    """One study in a list."""

    study: str = Field(examples=["photos"])
    state: StudyState
    reason: str | None = Field(description="why the study waits, failed or was interrupted")
    owner: str
    stages: int = Field(description="number of stages")
    stages_done: int
    progress: float = Field(description="fraction of the work that is done")
    stage: str | None = Field(description="the first stage that is not complete")
    metric: str = Field(description="key of the metric by which the study decides", examples=["val_accuracy"])
    best: float | None = Field(description="best value of that metric so far")
    best_text: str | None = Field(examples=["94.2 %"])
    test_accuracy: float | None = Field(description="test accuracy of the champion, a fraction")
    created_at: float = Field(description="seconds since 1970, UTC")
    updated_at: float


class StudyList(_Body):
    """A page of studies, newest first."""

    studies: list[StudyLine]
    next: str | None = Field(description="value of `after` for the next page; null on the last page")


class _Stage(_Body):
    name: str
    state: RunState
    reason: str | None
    wall_time_s: float | None
    trials: dict[str, int] = Field(description="number of trials in each state")


def _stage_model(kind: str) -> type[BaseModel]:
    result = stage_kind(kind).result
    about = f"A stage of the kind `{kind}`, with its result once it has one."
    fields: dict[str, Any] = {"kind": (Literal[kind], ...), "result": (result | None, None)}
    return create_model(f"{kind.title()}View", __base__=_Stage, __doc__=about, **fields)


if TYPE_CHECKING:
    StageView = Any
else:
    StageView = Annotated[Union[tuple(_stage_model(kind) for kind in STAGES)], Field(discriminator="kind")]  # noqa: UP007


class StudyView(_Body):
    """One study with its stages and their results. Fields that end in a stage's result have that stage's type."""

    study: str
    uid: str
    state: StudyState
    reason: str | None
    owner: str
    seed: int
    spec_digest: str
    created_at: float
    updated_at: float
    num_executions: int
    data: dict[str, Any] | None = Field(description="what was understood of the images")
    stages: list[StageView]
    metric: dict[str, Any] = Field(description="the metric by which the study decides")
    baseline: dict[str, float] = Field(description="metrics of always predicting the largest class")
    cost: dict[str, Any] | None
    front: list[dict[str, Any]]
    ranked_by: str
    certainty: dict[str, Any] | None
    time_error: dict[str, Any] | None
    leaderboard: list[dict[str, Any]]
    correlation: dict[str, Any] | None
    champion: dict[str, Any] | None
    tracking: dict[str, Any] = Field(description="events that MLflow has not received yet, or rejected")


class TrialView(_Body):
    """One trial."""

    stage: str
    trial: int = Field(description="number of the trial in its stage")
    state: TrialState
    reason: str | None
    topology: str | None
    point: dict[str, Any] = Field(description="what was sampled")
    metrics: dict[str, float | None]
    seed: int
    started_at: float
    ended_at: float | None
    wall_time_s: float | None = Field(description="seconds that it ran, without pauses, once it has ended")
    curve: list[EpochReport] | None = Field(description="the report of every epoch; null if `curves` is false")


class TrialList(_Body):
    """A page of trials in the order in which they began."""

    trials: list[TrialView]
    next: str | None = Field(description="value of `after` for the next page; null on the last page")


class ChampionFile(_Body):
    """A file of a champion's folder."""

    path: str = Field(examples=["weights.safetensors"])
    num_bytes: int
    url: str = Field(description="path of the file under this service")


class ChampionView(_Body):
    """The champion of a study: the result of its promote stage, and its files."""

    result: dict[str, Any]
    files: list[ChampionFile]


class ValidStudy(_Body):
    """What a valid study file asks for."""

    study: str
    stages: list[str] = Field(examples=[["screen", "train", "promote"]])
    remarks: list[str] = Field(
        description="settings that will be left out or have no effect, although the study is valid"
    )
    spec: dict[str, Any] = Field(description="the complete study, with the defaults of this service")


class WantedData(DataReport):
    """What is known of the data that a model is wanted for, as `vitsearch data --format json` prints it."""

    classes: list[Annotated[str, Field(max_length=500)]] = Field(min_length=1, max_length=MAX_CLASSES)
    image_size: int = Field(ge=8, le=MAX_IMAGE_SIZE)
    channels: Literal[1, 3]
    mean: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, max_length=3)
    std: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, max_length=3)

    @field_validator("parts")
    @classmethod
    def _counted(cls, parts: dict[str, PartReport]) -> dict[str, PartReport]:
        counts = [count for part in parts.values() for count in (part.num_images, *part.per_class.values())]
        if "train" not in parts or not all(0 <= count <= _MAX_IMAGES for count in counts):
            raise ValueError(f"a training part, and numbers of images from 0 to {_MAX_IMAGES:,}")
        return parts


class RecommendationRequest(_Body):
    """The data that a model is wanted for, and what it must satisfy."""

    data: WantedData
    config: DataConfig = Field(description="the `data` block for the configurations")
    max_params: int | None = Field(default=None, ge=1, le=10**15)
    space: str | None = Field(default=None, max_length=200, examples=["as-vit"])
    budget_s: float | None = Field(default=None, gt=0, description="longest time of the earlier study")


class DifferenceView(_Body):
    """One respect in which data differ."""

    amount: float = Field(description="1 is notable")
    text: str


class RecommendationView(_Body):
    """A configuration from an earlier study, with the data of the request."""

    study: str
    distance: float = Field(description="how much its data differ; 0 for equal descriptions")
    is_near: bool = Field(description="whether what worked there is a good start")
    differences: list[DifferenceView]
    configuration: Configuration
    trial: int
    is_champion: bool
    result: str = Field(examples=["test accuracy 94.2 %"])
    parameters: int
    time_s: float


class LeftOutView(_Body):
    """A study that recommends nothing."""

    study: str | None = Field(description="null for older studies, which were not compared")
    reason: str


class RecommendationList(_Body):
    """Recommendations, the nearest data first."""

    recommendations: list[RecommendationView]
    left_out: list[LeftOutView]


class PluginLine(_Body):
    """One installed plug-in."""

    kind: str = Field(examples=["proxies"])
    name: str = Field(examples=["ntk-condition"])
    package: str
    target: str = Field(description="module and name of its class")


class PluginView(_Body):
    """The card of a plug-in, and its settings."""

    kind: str
    name: str
    package: str
    about: str
    source: str | None = Field(description="the paper, and how our version differs")
    cost: str | None
    needs: list[str]
    measured: str | None = Field(description="what it gave in our benchmarks; null if it was not measured")
    settings: dict[str, str] = Field(description="types of the settings by name")
    settings_schema: dict[str, Any] | None = Field(
        description="JSON schema of the settings; null if they have types without one"
    )


class CompareView(_Body):
    """Trials side by side."""

    study: str
    stage: str
    champion: int | None = Field(description="number of the trial from which the champion was made")
    differing: list[str] = Field(description="names of the sampled values that differ")
    trials: list[TrialView]
    page: str | None = Field(description="MLflow's page that compares them; null if MLflow lacks them or is not served")


class StudyDifferenceView(_Body):
    """A fact in which two studies differ."""

    name: str = Field(examples=["train.epochs"])
    first: str = Field(examples=["20"])
    second: str = Field(examples=["30"])


class DiffView(_Body):
    """What differs between two studies. Results are listed also if they are equal."""

    first: str
    second: str
    file: list[StudyDifferenceView]
    data: list[StudyDifferenceView] = Field(description="differences of the images")
    champion: list[StudyDifferenceView] = Field(
        description="differences of the champions' configurations; none unless both have a champion"
    )
    results: list[StudyDifferenceView]
    without_champion: list[str] = Field(description="studies that have no champion")
    verdict: str | None = Field(description="whether one champion is better; null unless both were tested")


class Health(_Body):
    """Whether the service works."""

    status: Literal["ok"]
    version: str


class WebhookView(_Body):
    """Where the end of a study is announced, and whether the request arrived."""

    address: str = Field(description="without what may be secret", examples=["https://hooks.example/vitsearch"])
    state: WebhookState | None = Field(description="null until the study has ended")
    num_tries: int
    error: str | None = Field(description="why the newest try failed")
    ended_at: float | None = Field(description="when it arrived or was given up")


class SubmissionView(_Body):
    """A study file in the queue, and what became of it."""

    uid: str
    study: str = Field(
        description="name of the study; that of another owner begins with the owner", examples=["ann~photos"]
    )
    owner: str
    state: SubmissionState
    reason: str | None = Field(description="why it waits, failed or was interrupted")
    priority: int
    shared: bool = Field(description="whether other owners may see the study")
    cancel_requested: bool
    device_time_s: float
    created_at: float = Field(description="seconds since 1970, UTC")
    started_at: float | None
    ended_at: float | None
    webhook: WebhookView | None


class DeletedStudy(_Body):
    """A study that was deleted."""

    study: str
    keeps_runs: bool = Field(description="whether MLflow keeps its runs, because tracking is off")


class AuditLine(_Body):
    """Something that someone did, or tried to do."""

    at: float = Field(description="seconds since 1970, UTC")
    actor: str = Field(description="the owner who acted; `anonymous` without a valid token")
    token: str | None = Field(description="identifier of the token that was used")
    action: str = Field(examples=["submit"])
    subject: str = Field(description="on what, such as the name of a study")
    outcome: Outcome
    details: dict[str, Any]


class AuditList(_Body):
    """A page of the audit log, newest first."""

    events: list[AuditLine]
    next: int | None = Field(description="value of `after` for the next page; null on the last page")
