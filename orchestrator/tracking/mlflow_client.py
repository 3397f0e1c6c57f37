"""Delivers events to MLflow. The only module that imports mlflow, and only at the first delivery.

All calls use `MlflowClient` with explicit run ids, and do not depend on MLflow's global state. Delivering an event
again changes nothing: runs and model versions have our key as tag `vitsearch.key`, by which they are looked up before
they are made; metrics keep their time stamps; parameters, tags, inputs and files are overwritten with the same values.
"""

import importlib
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from filelock import Timeout as FileLockTimeout

from orchestrator.safe_text import masked_address, without_secrets
from orchestrator.tracking.events import (
    DeleteExperiment,
    DescribeExperiment,
    EndRun,
    EnsureExperiment,
    Event,
    LogArtifact,
    LogInputs,
    LogMetrics,
    LogText,
    MetricPoint,
    MoveRun,
    ParamValue,
    RegisterModel,
    ResumeRun,
    SetTags,
    ShareView,
    StartRun,
)
from orchestrator.tracking.local_files import link_tree, local_path
from orchestrator.tracking.model_flavor import MODEL_CARD, write_flavor
from orchestrator.tracking.names import clean_name, clean_tags, is_http, param_text, same_text, slug
from orchestrator.tracking.pages import VIEW_TAG, compare_path, runs_path, saved_view, with_links
from orchestrator.tracking.relocation import relocate, sqlite_path
from orchestrator.tracking.server import ServerCommand as ServerCommand
from orchestrator.tracking.server import server_command as server_command
from trainers.data.cache_settings import cache_settings
from trainers.storage.addresses import address_of, moved_to
from trainers.storage.artifacts import fetched

KEY_TAG = "vitsearch.key"
"""Tag with our key, of runs and model versions."""

QUIET_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox tries again; MLflow's default blocks for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # the outbox logs errors, once and without a traceback
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set before mlflow is imported, unless the user has set them."""

_MAX_METRICS = 1000  # of one log_batch request
_MAX_PARAMS_AND_TAGS = 100
_MIGRATION_TIMEOUT_S = 180.0
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "NOT_IMPLEMENTED"}

_logger = logging.getLogger(__name__)
_MODEL_TEXT = (
    "Champions of the study `{name}`. The alias `champion` names the newest one, which "
    '`mlflow.pyfunc.load_model("models:/{name}@champion")` loads.'
)
"""The description of a registered model, Markdown."""


_ERRNO = re.compile(r"\[Errno -?[0-9]+\] ([^'\")(]+)")
_OTHER_CAUSE = re.compile(r"((?:Read )?timed out|too many [0-9]+ error responses|certificate verify failed)")


class TrackingUnavailable(ConnectionError):  # noqa: N818
    """MLflow could not be reached, or could not accept an event at the moment; try again later.

    Attributes:
        num_delivered: Number of events, from the first on, that were delivered.
        answered: Whether MLflow answered, with an internal error, which the next event may have caused.
    """

    def __init__(self, message: str, *, num_delivered: int = 0, answered: bool = False) -> None:
        super().__init__(message)
        self.num_delivered, self.answered = num_delivered, answered


class TrackingRejected(ValueError):  # noqa: N818
    """MLflow will never accept this event.

    Attributes:
        num_delivered: Number of events that were delivered before it, which is its index.
    """

    def __init__(self, message: str, *, num_delivered: int = 0) -> None:
        super().__init__(message)
        self.num_delivered = num_delivered


class ExperimentGone(RuntimeError):  # noqa: N818
    """MLflow no longer has the experiment whose runs were delivered; all its events must be delivered again.

    Attributes:
        experiment: Name of the experiment.
    """

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment
        super().__init__(f"MLflow no longer has the experiment {experiment!r}")


class RunIds(Protocol):
    """Remembers MLflow's run id of each of our keys, so that runs need not be searched for."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, run_id: str) -> None: ...

    def forget(self, key: str) -> None:
        """Forget a run that no longer exists. Forgetting an unknown key is not an error."""
        ...

    def expects_runs(self) -> bool:
        """Whether runs were delivered, and their events can be delivered again if they are gone."""
        ...


class MemoryRunIds:
    """Run ids in memory; unknown ones are searched for by tag."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self._ids.get(key)

    def put(self, key: str, run_id: str) -> None:
        self._ids[key] = run_id

    def forget(self, key: str) -> None:
        self._ids.pop(key, None)

    def expects_runs(self) -> bool:
        return False  # the events are not kept here


class Tracker:
    """Writes events to an MLflow store.

    Args:
        tracking_uri: `sqlite:////absolute/path/mlflow.db`, another database, or `http(s)://...` of a tracking server.
        artifact_root: Folder of the runs' files. A tracking server uses its configured folder instead.
        run_ids: Where run ids are remembered; by default in memory.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path, run_ids: RunIds | None = None) -> None:
        self._uri, self._artifact_root = tracking_uri, artifact_root.absolute()
        self._shown_uri = masked_address(tracking_uri)
        self._run_ids = run_ids if run_ids is not None else MemoryRunIds()
        self._experiment_ids: dict[str, str] = {}
        self._opened: Any = None

    def deliver(self, events: Sequence[Event]) -> None:
        """Write events in order. Consecutive metrics are sent together.

        Raises:
            TrackingUnavailable: MLflow is unreachable or busy. The events from `num_delivered` on were not delivered.
            TrackingRejected: The event at `num_delivered` can never be delivered. Later ones were not tried.
            ExperimentGone: The experiment was deleted in MLflow, or `tracking_uri` is that of another store.
        """
        num_delivered = 0
        try:
            for group in _groups(events):
                try:
                    self._deliver_group(group)
                    num_delivered += len(group)
                except TrackingRejected:
                    for event in group:  # one by one, to find the rejected one, and without stale ids
                        self._deliver_group([event])
                        num_delivered += 1
        except (TrackingUnavailable, TrackingRejected) as error:
            error.num_delivered = num_delivered
            raise

    def experiment_url(self, experiment: str, *, server_url: str | None = None, view: str | None = None) -> str | None:
        """Address of the page with an experiment's runs; `None` if there is no such experiment.

        Args:
            experiment: Name of the experiment.
            server_url: Address of the server that shows the store; required for a database.
            view: Name of a `ShareView` to open.

        Raises:
            TrackingUnavailable: MLflow could not be reached.
            ValueError: The store is a database, and there is no `server_url`.
        """
        base = server_url or (self._uri if is_http(self._uri) else None)
        if base is None:
            raise ValueError(
                f"`server_url` must be given for a store without a server, but is missing for {self._shown_uri}."
            )
        try:
            found = self._client().get_experiment_by_name(experiment)
        except self._errors() as error:
            raise self._translated(error) from error
        if found is None or found.lifecycle_stage == "deleted":
            return None
        return f"{base.rstrip('/')}/{runs_path(found.experiment_id, view=view)}"

    def compare_url(self, experiment: str, keys: Sequence[str], *, server_url: str | None = None) -> str | None:
        """Address of the page that compares runs; `None` if MLflow lacks the experiment or one of the runs.

        Args:
            experiment: Name of the experiment.
            keys: Our keys of the runs, in the order of the page's columns.
            server_url: As for `experiment_url`.

        Raises:
            TrackingUnavailable: MLflow could not be reached.
        """
        page = self.experiment_url(experiment, server_url=server_url)
        if page is None:
            return None
        try:
            experiment_id = self._client().get_experiment_by_name(experiment).experiment_id
            run_ids = [self._run_ids.get(key) or self._find_run(key, [experiment_id]) for key in keys]
        except self._errors() as error:
            raise self._translated(error) from error
        known = [run_id for run_id in run_ids if run_id is not None]
        if len(known) < len(keys):
            return None
        return f"{page.partition('#')[0]}{compare_path(experiment_id, known)}"

    # --- events ---------------------------------------------------------------------------------------------------

    def _deliver_group(self, group: Sequence[Event]) -> None:
        try:
            if isinstance(group[0], LogMetrics):
                self._log_metrics([event for event in group if isinstance(event, LogMetrics)])
            else:
                self._deliver_one(group[0])
        except (TrackingUnavailable, TrackingRejected):
            raise
        except self._errors() as error:
            raise self._translated(error, group) from error

    def _deliver_one(self, event: Event) -> None:
        match event:
            case EnsureExperiment():
                self._ensure_experiment(event)
            case DescribeExperiment():
                self._describe_experiment(event)
            case DeleteExperiment():
                self._delete_files(event.name)
                self._delete_experiment(event.name)
            case ShareView():
                self._share_view(event)
            case StartRun():
                self._start_run(event)
            case ResumeRun():
                self._client().update_run(self._run_id(event.key), status="RUNNING")
            case MoveRun():
                self._move_run(event)
            case LogInputs():
                self._log_inputs(event)
            case LogArtifact():
                self._log_artifact(event)
            case LogText():
                self._client().log_text(self._run_id(event.key), event.text, event.artifact_file)
            case SetTags():
                self._set_tags(event)
            case EndRun():
                self._client().set_terminated(self._run_id(event.key), event.status, event.end_time_ms)
            case RegisterModel():
                self._register_model(event)
            case LogMetrics():
                self._log_metrics([event])

    def _ensure_experiment(self, event: EnsureExperiment) -> str:
        client = self._client()
        # With this tag, MLflow does not ask viewers whether the experiment is about language models.
        wanted = {"mlflow.experimentKind": "custom_model_development", **event.tags}
        if event.description:
            wanted["mlflow.note.content"] = event.description
        found = client.get_experiment_by_name(event.name)
        if found is not None and found.lifecycle_stage == "deleted":
            # It was deleted in MLflow, but still has the name: rename it, and leave it deleted.
            client.restore_experiment(found.experiment_id)
            self._delete_experiment(event.name)
            found = None
        if found is None and self._run_ids.expects_runs():
            raise ExperimentGone(event.name)
        if found is None:
            location = None if is_http(self._uri) else (self._artifact_root / slug(event.name)).as_uri()
            experiment_id = client.create_experiment(event.name, artifact_location=location, tags=wanted)
        else:
            experiment_id = found.experiment_id
            for name, value in wanted.items():
                if found.tags.get(name) != value:
                    client.set_experiment_tag(experiment_id, name, value)
        self._experiment_ids[event.name] = experiment_id
        return str(experiment_id)

    def _delete_experiment(self, name: str) -> None:
        client = self._client()
        self._experiment_ids.pop(name, None)
        found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage == "deleted":
            return
        # MLflow reserves the name of a deleted experiment; renaming it lets the same study run again.
        client.rename_experiment(found.experiment_id, f"{name[:450]} (deleted, {found.experiment_id})")
        client.delete_experiment(found.experiment_id)

    def _delete_files(self, experiment: str) -> None:
        """Delete the files of all runs that we made in an experiment, and the model versions registered from them."""
        client = self._client()
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return
        registry = importlib.import_module("mlflow.store.artifact.artifact_repository_registry")
        runs = self._all_runs(found.experiment_id)
        self._delete_versions(experiment, {run.info.run_id for run in runs})
        for run in runs:
            registry.get_artifact_repository(run.info.artifact_uri, tracking_uri=self._uri).delete_artifacts()

    def _all_runs(self, experiment_id: str) -> list[Any]:
        """All runs with our key in an experiment, including those in MLflow's trash."""
        client, view = self._client(), self._entities().ViewType.ALL
        runs, token = [], None
        while True:
            page = client.search_runs([experiment_id], run_view_type=view, max_results=1000, page_token=token)
            runs += [run for run in page if KEY_TAG in run.data.tags]
            token = page.token
            if not token:
                return runs

    def _delete_versions(self, model: str, run_ids: Collection[str]) -> None:
        """Delete the versions of a registered model that come from some runs, and the model if none is left."""
        client = self._client()
        versions = list(client.search_model_versions(f"name = '{model}'"))
        ours = [version for version in versions if version.run_id in run_ids]
        if not ours:
            return
        if len(ours) == len(versions):
            client.delete_registered_model(model)
            return
        for version in ours:
            client.delete_model_version(model, version.version)

    def _experiment_id(self, name: str) -> str:
        known = self._experiment_ids.get(name)
        return known if known is not None else self._ensure_experiment(EnsureExperiment(name=name))

    def _share_view(self, event: ShareView) -> None:
        """Save the state of MLflow's page as a tag of the experiment, as its button "Save view" does."""
        tag, value = f"{VIEW_TAG}{event.name}", saved_view(event)
        self._client().set_experiment_tag(self._experiment_id(event.experiment), tag, value)

    def _describe_experiment(self, event: DescribeExperiment) -> None:
        client, experiment_id = self._client(), self._experiment_id(event.experiment)

        def run_id_of(key: str) -> str | None:
            return self._run_ids.get(key) or self._find_run(key, [experiment_id])

        tags = client.get_experiment(experiment_id).tags
        text = with_links(event.text, experiment_id, run_id_of, tags)
        client.set_experiment_tag(experiment_id, "mlflow.note.content", text)

    def _start_run(self, event: StartRun) -> None:
        run_id = self._run_ids.get(event.key)
        if run_id is None:
            experiment_id = self._experiment_id(event.experiment)
            run_id = self._find_run(event.key, [experiment_id])
        if run_id is None:
            run_id = self._create_run(event, experiment_id)
            known: dict[str, str] = {}
        else:
            known = self._client().get_run(run_id).data.params if event.params else {}
        self._run_ids.put(event.key, run_id)
        self._log_batch(run_id, params=_changed(event.params, known))

    def _move_run(self, event: MoveRun) -> None:
        run_id, parent_id = self._started(event.key), self._started(event.parent_key)
        if run_id is not None and parent_id is not None:
            self._log_batch(run_id, tags={"mlflow.parentRunId": parent_id})

    def _set_tags(self, event: SetTags) -> None:
        run_id = self._started(event.key) if event.if_started else self._run_id(event.key)
        if run_id is None:
            return
        self._log_batch(run_id, tags=event.tags)
        if event.removed:
            present = self._client().get_run(run_id).data.tags
            for name in map(clean_name, event.removed):
                if name in present:
                    self._client().delete_tag(run_id, name)

    def _create_run(self, event: StartRun, experiment_id: str) -> str:
        tags = {KEY_TAG: event.key, "mlflow.source.name": "vitsearch", "mlflow.source.type": "JOB", **event.tags}
        if event.description:
            tags["mlflow.note.content"] = event.description
        if event.parent_key is not None:
            parent_id = self._run_ids.get(event.parent_key) or self._find_run(event.parent_key, [experiment_id])
            # A run without its rejected parent is better than no run.
            name, value = ("mlflow.parentRunId", parent_id) if parent_id else ("vitsearch.parent", event.parent_key)
            tags[name] = value
        run = self._client().create_run(experiment_id, event.start_time_ms, clean_tags(tags), run_name=event.name)
        return str(run.info.run_id)

    def _log_metrics(self, events: Sequence[LogMetrics]) -> None:
        points: dict[str, list[MetricPoint]] = {}
        for event in events:
            points.setdefault(event.key, []).extend(event.points)
        needed = {event.key for event in events if not event.if_started}
        for key, values in points.items():
            run_id = self._run_id(key) if key in needed else self._started(key)
            if run_id is not None:
                self._log_batch(run_id, points=values)

    def _log_batch(
        self,
        run_id: str,
        *,
        points: Iterable[MetricPoint] = (),
        params: Mapping[str, ParamValue] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send metrics, parameters and tags in as few requests as possible."""
        entities = self._entities()
        metrics, cleaned = [], clean_tags(tags or {})
        for point in points:
            if math.isfinite(point.value):
                metrics.append(entities.Metric(clean_name(point.name), point.value, point.time_ms, point.step))
            else:
                cleaned[clean_name(f"not_finite.{point.name}")] = f"{point.value} at step {point.step}"
        written = {clean_name(name): param_text(value) for name, value in (params or {}).items()}
        labels: list[Any] = [entities.Param(name, value) for name, value in written.items()]
        labels += [entities.RunTag(name, value) for name, value in cleaned.items()]
        client = self._client()
        for some in _chunks(labels, _MAX_PARAMS_AND_TAGS):
            some_params = [label for label in some if isinstance(label, entities.Param)]
            client.log_batch(run_id, params=some_params, tags=[t for t in some if isinstance(t, entities.RunTag)])
        for some in _chunks(metrics, _MAX_METRICS):
            client.log_batch(run_id, metrics=some)

    def _log_inputs(self, event: LogInputs) -> None:
        entities = self._entities()
        schema = profile = None
        if event.image_shape is not None:
            image = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *event.image_shape]}}
            label = {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
            schema = json.dumps(
                {"mlflow_tensorspec": {"features": json.dumps([image]), "targets": json.dumps([label])}}
            )
        known = {"num_rows": event.num_rows, "num_classes": event.num_classes}
        if counts := {name: value for name, value in known.items() if value is not None}:
            profile = json.dumps(counts)
        dataset = entities.Dataset(
            event.name, event.digest, "local", json.dumps({"uri": event.source}), schema=schema, profile=profile
        )
        context = entities.InputTag("mlflow.data.context", event.context)
        self._client().log_inputs(self._run_id(event.key), [entities.DatasetInput(dataset, [context])])

    def _log_artifact(self, event: LogArtifact) -> None:
        path, run_id = fetched(self._found(Path(event.path))), self._run_id(event.key)
        if not path.exists():
            raise TrackingRejected(
                f"an artifact must stay in its place until it is delivered, but there is no file or folder {path}. "
                "Put it back and deliver the event again."
            )
        if (path / MODEL_CARD).is_file():
            with tempfile.TemporaryDirectory(prefix="vitsearch-") as folder:
                flavor = Path(folder) / "model"
                try:
                    write_flavor(self._mlflow(), flavor, key=event.key, card=path / MODEL_CARD)
                except ValueError as error:
                    raise TrackingRejected(str(error)) from error
                self._put(flavor, run_id, event.artifact_path)
        self._put(path, run_id, event.artifact_path)

    def _put(self, path: Path, run_id: str, artifact_path: str | None) -> None:
        """Add a file, or the files of a folder, to a run. Weights on this machine are linked instead of copied."""
        client = self._client()
        place = None if is_http(self._uri) else local_path(client.get_run(run_id).info.artifact_uri)
        if place is not None:
            link_tree(path, place / (artifact_path or ""))
        elif path.is_dir():
            client.log_artifacts(run_id, str(path), artifact_path)
        else:
            client.log_artifact(run_id, str(path), artifact_path)

    def _found(self, path: Path) -> Path:
        """A file of a study where it is now: its home may have been moved since the event was written."""
        if address_of(path) is not None:
            return moved_to(path, cache_settings().folder)
        for index, part in enumerate(path.parts):
            here = self._artifact_root.parent.joinpath(*path.parts[index:])
            if part == "studies" and here.exists():
                return here
        return path

    def _register_model(self, event: RegisterModel) -> None:
        client, run_id = self._client(), self._run_id(event.key)
        version_key = f"{event.key}/{event.artifact_path}"
        try:
            client.create_registered_model(
                event.name, tags={"vitsearch": "true"}, description=_MODEL_TEXT.format(name=event.name)
            )
        except self._mlflow().exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{event.name}'")
        ours = (found for found in versions if found.tags.get(KEY_TAG) == version_key and found.run_id == run_id)
        version = next(ours, None)
        if version is None:
            source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{event.artifact_path}"
            tags = clean_tags({**event.tags, KEY_TAG: version_key})
            description = event.description or None
            version = client.create_model_version(
                event.name, source, run_id, tags=tags, description=description, await_creation_for=0
            )
        if event.alias is not None:
            client.set_registered_model_alias(event.name, event.alias, version.version)

    # --- finding runs ---------------------------------------------------------------------------------------------

    def _run_id(self, key: str) -> str:
        run_id = self._started(key)
        if run_id is None:
            raise TrackingRejected(
                f"a run must be started before it is written to, but MLflow at {self._shown_uri} has no run with "
                f"the tag {KEY_TAG} = {key}. It was deleted there, its start was refused, or the address changed."
            )
        return run_id

    def _started(self, key: str) -> str | None:
        """MLflow's id of the run with a key; `None` if there is no such run."""
        run_id = self._run_ids.get(key)
        if run_id is None:
            experiments = self._client().search_experiments()
            run_id = self._find_run(key, [found.experiment_id for found in experiments])
            if run_id is not None:
                self._run_ids.put(key, run_id)
        return run_id

    def _find_run(self, key: str, experiment_ids: list[str]) -> str | None:
        runs = self._client().search_runs(experiment_ids, f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    # --- the connection -------------------------------------------------------------------------------------------

    def _mlflow(self) -> Any:
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        return importlib.import_module("mlflow")

    def _entities(self) -> Any:
        return self._mlflow().entities

    def _client(self) -> Any:
        if self._opened is None:
            path = sqlite_path(self._uri)
            if path is None:
                self._opened = self._connect(self._uri)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                relocate(path, self._artifact_root)
                # Two processes that migrate a new database at once would both fail.
                with FileLock(f"{path}.lock", timeout=_MIGRATION_TIMEOUT_S):
                    if not path.exists():
                        self._create_database(path)
                    connection = sqlite3.connect(path)
                    try:
                        connection.execute("PRAGMA journal_mode=WAL")
                    finally:
                        connection.close()
                    self._opened = self._connect(self._uri)
        return self._opened

    def _create_database(self, path: Path) -> None:
        """Make a new SQLite store under a temporary name, and rename it once it is complete.

        This takes seconds, and MLflow would never accept the remains of a process that was killed meanwhile.
        """
        for left in path.parent.glob(f"{path.name}.part-*"):
            left.unlink()
        part = path.with_name(
            f"{path.name}.part-{uuid.uuid4().hex[:8]}"
        )  # a new one each time: MLflow caches an engine per address
        self._connect(f"sqlite:///{part}")
        part.replace(path)

    def _connect(self, uri: str) -> Any:
        client = self._mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client

    def _errors(self) -> tuple[type[Exception], ...]:
        """Errors of MLflow, its transport and the file system; errors of `requests` are OSErrors."""
        return (self._mlflow().exceptions.MlflowException, OSError, sqlite3.Error, FileLockTimeout)

    def _translated(self, error: Exception, group: Sequence[Event] = ()) -> TrackingUnavailable | TrackingRejected:
        """Turn an error into one of ours: try again later, or never."""
        code = str(getattr(error, "error_code", ""))
        first_line = short_cause(next(iter(str(error).strip().splitlines()), repr(error)))
        message = without_secrets(f"MLflow at {self._shown_uri}: {first_line.replace(self._uri, self._shown_uri)}")
        if self._opened is not None and (code in _REFUSALS or code == "RESOURCE_DOES_NOT_EXIST"):
            for event in group:
                self._experiment_ids.pop(getattr(event, "experiment", ""), None)
                if code == "RESOURCE_DOES_NOT_EXIST":
                    self._run_ids.forget(getattr(event, "key", ""))
            return TrackingRejected(message)
        return TrackingUnavailable(message, answered=self._opened is not None and self._is_internal(error, code))

    def _is_internal(self, error: Exception, code: str) -> bool:
        """Whether MLflow was reached and failed: an internal error, or a file that cannot be copied."""
        if isinstance(error, OSError):
            return getattr(error, "response", error) is not None  # errors of `requests` without a response: not reached
        of_server = isinstance(error, self._mlflow().exceptions.RestException)
        return code == "INTERNAL_ERROR" and (of_server or not is_http(self._uri))


def short_cause(line: str) -> str:
    """The cause in an error of a request that did not reach the server, which otherwise fills three lines."""
    if "Max retries exceeded" not in line:
        return line
    cause = _ERRNO.search(line) or _OTHER_CAUSE.search(line)
    return "no answer" if cause is None else f"no answer ({cause.group(1).strip()})"


def _groups(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Events one by one, with consecutive metrics together."""
    stretch: list[Event] = []
    for event in events:
        if isinstance(event, LogMetrics):
            stretch.append(event)
            continue
        if stretch:
            yield stretch
            stretch = []
        yield [event]
    if stretch:
        yield stretch


def _changed(params: Mapping[str, ParamValue], known: Mapping[str, str]) -> dict[str, ParamValue]:
    """Parameters that a run does not have yet, or has with another value, which MLflow will refuse."""
    return {
        name: value
        for name, value in params.items()
        if not same_text(known.get(clean_name(name), ""), param_text(value)) or clean_name(name) not in known
    }


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
