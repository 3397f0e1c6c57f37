"""Events for MLflow as plain data. They can wait in a table, and be delivered late or twice without harm.

A run has a key of ours that never changes (`study/digits-quickstart/trial/17`), by which MLflow's run id is found. The
events of one key are delivered in the order in which they were written: `StartRun` first, `EndRun` last.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w./@+\-]*$", max_length=250)]
"""A stable name, without spaces or quotes."""

ParamValue = str | bool | int | float | None


class _Event(BaseModel):
    # Non-finite metric values must survive JSON, because the tracker turns them into tags.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class MetricPoint(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    step: int
    time_ms: int
    """Time of measurement in milliseconds since 1970. It must not change, or MLflow keeps both values."""


class EnsureExperiment(_Event):
    """Make an experiment of this name, if there is none, and set these tags."""

    kind: Literal["ensure-experiment"] = "ensure-experiment"
    name: str = Field(min_length=1, max_length=500)
    description: str = Field(default="", description="Markdown, shown above the runs")
    tags: dict[str, str] = Field(default_factory=dict)


class DescribeExperiment(_Event):
    """Replace the text above an experiment's runs.

    A link `[text](run:KEY)` leads to a run, `(plots:KEY)` to a run's plots, `(report:KEY)` to a run's report on its
    study, `(view:NAME)` to a `ShareView` and `(model:NAME)` to a registered model. A link to something that MLflow does
    not have becomes plain text.
    """

    kind: Literal["describe-experiment"] = "describe-experiment"
    experiment: str
    text: str = Field(description="Markdown")


class DeleteExperiment(_Event):
    """Delete an experiment, which makes its name available again."""

    kind: Literal["delete-experiment"] = "delete-experiment"
    name: str = Field(min_length=1, max_length=500)


class ShareView(_Event):
    """Save a view of the table of runs with the experiment; `Tracker.experiment_url(view=...)` opens it."""

    kind: Literal["share-view"] = "share-view"
    experiment: str
    name: str = Field(pattern=r"^[a-z][a-z0-9\-]*$", max_length=60)
    columns: tuple[str, ...] = Field(description="such as `metrics.val_accuracy`, `params.recipe.curriculum`, `tags.x`")
    order_by: str | None = Field(default=None, description="a column; the newest first if not given")
    descending: bool = True
    filter: str = Field(default="", description="in MLflow's search syntax: tags.`vitsearch.level` = 'trial'")
    title: str = Field(default="", description="name in MLflow's list of views; not listed if empty")
    created_ms: int = Field(default=0, description="time since 1970; the list shows the newest view first")


class StartRun(_Event):
    """Start a run with this key. Parameters never change afterwards."""

    kind: Literal["start-run"] = "start-run"
    key: Key
    parent_key: Key | None = None
    name: str = Field(min_length=1, description="a short name for the table of runs")
    experiment: str = Field(description="name of the experiment; made if there is none")
    tags: dict[str, str] = Field(default_factory=dict)
    params: dict[str, ParamValue] = Field(default_factory=dict)
    description: str = Field(default="", description="Markdown")
    start_time_ms: int


class ResumeRun(_Event):
    """Mark a run that has ended as running again."""

    kind: Literal["resume-run"] = "resume-run"
    key: Key


class MoveRun(_Event):
    """Hang a run below another parent. Nothing happens if one of the two was never started."""

    kind: Literal["move-run"] = "move-run"
    key: Key
    parent_key: Key


class LogMetrics(_Event):
    """Log values of metrics; steps make a curve."""

    kind: Literal["log-metrics"] = "log-metrics"
    key: Key
    points: tuple[MetricPoint, ...]
    if_started: bool = Field(default=False, description="whether a run that was never started is left out")


class LogInputs(_Event):
    """Note that the run used a dataset."""

    kind: Literal["log-inputs"] = "log-inputs"
    key: Key
    name: str = Field(min_length=1, max_length=500)
    digest: str = Field(min_length=1, max_length=36, description="of the content; MLflow takes 36 characters")
    source: str = Field(description="where it was read from")
    context: str = Field(default="training", description="`training`, `validation`, `test`, `ground truth`")
    num_rows: int | None = Field(default=None, ge=0)
    image_shape: tuple[int, int, int] | None = Field(default=None, description="channels, height, width")
    num_classes: int | None = Field(default=None, ge=1)


class LogArtifact(_Event):
    """Copy a file, or the files of a folder, into the run's folder `artifact_path` at the time of delivery.

    Weights on this machine are linked. A model's folder becomes an MLflow model.
    """

    kind: Literal["log-artifact"] = "log-artifact"
    key: Key
    path: str = Field(description="absolute; must stay as it is until delivered")
    artifact_path: str | None = None


class LogText(_Event):
    """Save a text, which is part of the event, as a file of the run."""

    kind: Literal["log-text"] = "log-text"
    key: Key
    text: str
    artifact_file: str = Field(min_length=1, description="such as `study.yaml` or `tables/screen.csv`")


class SetTags(_Event):
    """Set tags of a run, replacing earlier values, and remove others. The tag `mlflow.runName` renames the run."""

    kind: Literal["set-tags"] = "set-tags"
    key: Key
    tags: dict[str, str]
    removed: tuple[str, ...] = Field(default=(), description="names of tags that the run must no longer have")
    if_started: bool = Field(default=False, description="whether a run that was never started is left out")


class EndRun(_Event):
    """Mark a run as ended."""

    kind: Literal["end-run"] = "end-run"
    key: Key
    status: Literal["FINISHED", "FAILED", "KILLED"]
    end_time_ms: int


class RegisterModel(_Event):
    """Register the run's folder `artifact_path` as a version of model `name`, and point `alias` to it."""

    kind: Literal["register-model"] = "register-model"
    key: Key
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.\-~ ]*$", max_length=250, description="a study's full name")
    artifact_path: str
    alias: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z\d_\-]*$")
    tags: dict[str, str] = Field(default_factory=dict)
    description: str = Field(default="", description="of the version, Markdown")


Event = Annotated[
    EnsureExperiment
    | DescribeExperiment
    | DeleteExperiment
    | ShareView
    | StartRun
    | ResumeRun
    | MoveRun
    | LogMetrics
    | LogInputs
    | LogArtifact
    | LogText
    | SetTags
    | EndRun
    | RegisterModel,
    Field(discriminator="kind"),
]

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def event_to_json(event: Event) -> str:
    """The event as one line of JSON."""
    return event.model_dump_json()


def event_from_json(text: str) -> Event:
    """Read what `event_to_json` wrote.

    Raises:
        pydantic.ValidationError: The text is not an event.
    """
    return _EVENT.validate_json(text)
