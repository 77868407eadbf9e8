"""The connection to MLflow: one client from the settings, and one run a night with parameters, metrics, timings."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evensong.data import storage
from evensong.errors import BusyError, RegistryError, UnknownVersionError
from evensong.settings import Settings, without_password
from evensong.types import EvaluationReport, Night

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "nightly_retraining"
#: The tag of a failed night's run that says why.
FAILURE = "evensong.failure"
MAX_TAG = 2000
#: In a run's folder: the moment at which the night began, which is before anything of it is known to MLflow.
BEGUN = "begun.json"
#: Without it MLflow shows an experiment as one of chats and traces.
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "One run a night: its recipe, what it measured, the seconds of each step. The versions that "
    "came of them are in the model registry.",
}

#: Set before MLflow is imported: no telemetry, no progress bars, no names of environment variables on a model,
#: and a server that is away is reported after seconds, not minutes.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "PGCONNECT_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
_initialized: set[str] = set()


def client(settings: Settings) -> MlflowClient:
    """A client of the tracking and registry store that the settings name; a new SQLite database is made on the way.

    Raises:
        RegistryError: the store cannot be reached.
    """
    _quiet()
    import mlflow
    from mlflow import MlflowClient

    uri = settings.tracking
    # Some of MLflow's own look-ups (a `models:/` source) ask the process's store instead of the client's.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if uri in _initialized:
        return MlflowClient(uri, uri)
    with registry_errors(settings, "opening the store"):
        if not uri.startswith(("sqlite:///", "http")):
            _knock(uri)
        # Two processes that migrate a new database at once would trip over each other.
        with locked(settings, "mlflow-init", wait_seconds=120):
            if uri.startswith("sqlite:///"):
                _make_database(Path(uri.removeprefix("sqlite:///")))
            made = MlflowClient(uri, uri)
            made.search_experiments(max_results=1)
    _initialized.add(uri)
    return made


def _make_database(path: Path) -> None:
    """Make MLflow's SQLite database beside its place and move it there: half of its tables would be there for good."""
    if path.exists():
        return
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{draft}")
    _initialize_tables(engine)
    engine.dispose()
    draft.replace(path)


def experiment_id(settings: Settings) -> str:
    """The experiment that holds the nights; made with the artifact location of the settings if it is not there."""
    from mlflow.exceptions import MlflowException

    with registry_errors(settings, f"experiment {EXPERIMENT}"):
        mlflow_client = client(settings)
        found = mlflow_client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            location = settings.model_artifacts
            if "://" not in location:
                Path(location).mkdir(parents=True, exist_ok=True)
            try:
                return mlflow_client.create_experiment(EXPERIMENT, artifact_location=location, tags=_EXPERIMENT_TAGS)
            except MlflowException:
                # Another process made it since we looked; any other cause shows in the second look.
                found = mlflow_client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            mlflow_client.restore_experiment(found.experiment_id)
        for name in _EXPERIMENT_TAGS.keys() - found.tags.keys():
            mlflow_client.set_experiment_tag(found.experiment_id, name, _EXPERIMENT_TAGS[name])
        return found.experiment_id


def night_run(settings: Settings, night: Night) -> str:
    """The MLflow run id of the night: one run a night, however often the night is started."""
    with registry_errors(settings, f"run of {night.run_id}"):
        experiment = experiment_id(settings)
        mlflow_client = client(settings)
        with locked(settings, "night-run", wait_seconds=60):
            found = [
                run
                for run in mlflow_client.search_runs(
                    [experiment], f"tags.`evensong.run_id` = '{night.run_id}'", order_by=["start_time ASC"]
                )
                if "evensong.superseded" not in run.data.tags
            ]
            if found:
                return found[-1].info.run_id
            return _new_run(settings, mlflow_client, experiment, night, night.run_id)


def log_params(settings: Settings, night: Night, params: Mapping[str, Any]) -> None:
    """Log the night's parameters.

    MLflow never changes a parameter, so a rerun with other values gets a new run; the old one is tagged
    `evensong.superseded` and stays for the versions that point at it.
    """
    values = {name: _text(value) for name, value in sorted(params.items())}
    run_id = night_run(settings, night)
    with registry_errors(settings, f"run of {night.run_id}"):
        from mlflow.entities import Param

        mlflow_client = client(settings)
        known = mlflow_client.get_run(run_id).data.params
        if any(known.get(name, value) != value for name, value in values.items()):
            mlflow_client.set_tag(run_id, "evensong.superseded", "parameters changed in a rerun of this night")
            if mlflow_client.get_run(run_id).info.status == "RUNNING":
                mlflow_client.set_terminated(run_id, "KILLED")
            run_id = _new_run(settings, mlflow_client, experiment_id(settings), night, f"{night.run_id} again")
            known = {}
        new = [Param(name, value) for name, value in values.items() if name not in known]
        for start in range(0, len(new), 100):
            mlflow_client.log_batch(run_id, params=new[start : start + 100])


def log_metrics(settings: Settings, night: Night, metrics: Mapping[str, float], *, prefix: str = "") -> None:
    """Log figures of the night; a figure that the run already has with this value is not logged again."""
    run_id = night_run(settings, night)
    with registry_errors(settings, f"run of {night.run_id}"):
        from mlflow.entities import Metric

        mlflow_client = client(settings)
        run = mlflow_client.get_run(run_id)
        known, now = run.data.metrics, int(time.time() * 1000)
        new = [
            Metric(name, value, now if name in known else run.info.start_time, 0)
            for name, value in ((_metric_name(prefix + key), float(value)) for key, value in sorted(metrics.items()))
            if known.get(name) != value
        ]
        for start in range(0, len(new), 500):
            mlflow_client.log_batch(run_id, metrics=new[start : start + 500])


def log_report(settings: Settings, night: Night, report: EvaluationReport) -> None:
    """Log an evaluation: `challenger.recall_at_20`, `champion.…`, `popularity.…`, guardrails by their own name."""
    log_metrics(settings, night, report_metrics(report))


def report_metrics(report: EvaluationReport) -> dict[str, float]:
    """Every figure of a report under one flat name."""
    models = {"challenger": report.challenger, "champion": report.champion, **report.baselines}
    figures = {
        f"{model}.{metric}": value
        for model, result in sorted(models.items())
        if result is not None
        for metric, value in sorted(result.metrics.items())
    }
    return figures | dict(sorted(report.guardrails.items())) | {"num_users": float(report.num_users)}


def log_timings(settings: Settings, night: Night, seconds: Mapping[str, float]) -> None:
    """Log the wall time of steps as `seconds.<step>`."""
    log_metrics(settings, night, seconds, prefix="seconds.")


def log_text(settings: Settings, night: Night, text: str, name: str) -> None:
    """Log a text as an artifact of the night's run, in place of one of the same name."""
    run_id = night_run(settings, night)
    with registry_errors(settings, f"run of {night.run_id}"):
        client(settings).log_text(run_id, text, name)


def log_file(settings: Settings, night: Night, path: Path, folder: str | None = None) -> None:
    """Log a file as an artifact of the night's run."""
    run_id = night_run(settings, night)
    with registry_errors(settings, f"run of {night.run_id}"):
        client(settings).log_artifact(run_id, str(path), folder)


def log_folder(settings: Settings, night: Night, folder: Path, place: str) -> None:
    """Log the files of a folder as artifacts of the night's run, below `place`."""
    run_id = night_run(settings, night)
    with registry_errors(settings, f"run of {night.run_id}"):
        client(settings).log_artifacts(run_id, str(folder), place)


def finish(settings: Settings, night: Night, *, failure: str = "", note: str = "") -> None:
    """Mark the night's run as finished, or as failed with the reason in the tag `evensong.failure`.

    `note` is Markdown, for whoever opens the run.
    """
    run_id = night_run(settings, night)
    with registry_errors(settings, f"run of {night.run_id}"):
        mlflow_client = client(settings)
        if failure:
            mlflow_client.set_tag(run_id, FAILURE, failure[:MAX_TAG])
        elif FAILURE in mlflow_client.get_run(run_id).data.tags:
            mlflow_client.delete_tag(run_id, FAILURE)
        if said := note or (f"**Failed.** {failure}" if failure else ""):
            mlflow_client.set_tag(run_id, "mlflow.note.content", said[:MAX_TAG])
        mlflow_client.set_terminated(run_id, "FAILED" if failure else "FINISHED")


def unfinished(settings: Settings) -> list[str]:
    """The nights whose runs are neither finished nor failed, newest first."""
    with registry_errors(settings, "runs of nights"):
        found = client(settings).search_runs(
            [experiment_id(settings)], "attributes.status = 'RUNNING'", order_by=["start_time DESC"]
        )
    return [str(run.info.run_name) for run in found]


def params_of(settings: Settings, run_id: str) -> dict[str, str]:
    """The parameters of an MLflow run."""
    with registry_errors(settings, f"run {run_id}"):
        return dict(client(settings).get_run(run_id).data.params)


def artifacts_page(settings: Settings, model_id: str) -> str:
    """Where the MLflow UI shows the artifacts of a version's logged model."""
    return f"{ui(settings)}/#/experiments/{experiment_id(settings)}/models/{model_id}/artifacts"


def ui(settings: Settings) -> str:
    """The address of the MLflow UI as people open it, without a password."""
    return without_password(settings.mlflow_address)


def artifact_location(settings: Settings, model_id: str) -> str:
    """Where a logged model's artifacts lie: a local path or `s3://…`.

    Raises:
        RegistryError: only MLflow's server can reach them.
    """
    with registry_errors(settings, f"model {model_id}"):
        location: str = client(settings).get_logged_model(model_id).artifact_location
    location = location.removeprefix("file://")
    if ("://" in location and not location.startswith("s3://")) or location.startswith("mlflow-artifacts:"):
        raise RegistryError(f"{location}: expected a folder or s3://; set mlflow_artifacts_uri to where they lie")
    return location


def download(settings: Settings, artifact_uri: str, target: Path) -> Path:
    """Download one artifact, a file or a folder, into `target` and return where it lies."""
    with registry_errors(settings, artifact_uri):
        uri = client(settings).tracking_uri
        from mlflow.artifacts import download_artifacts

        place = Path(
            download_artifacts(artifact_uri=artifact_uri, dst_path=str(target), tracking_uri=uri, registry_uri=uri)
        )
    if not place.exists():
        raise RegistryError(
            f"{artifact_uri}: expected an artifact, found none; was it collected by the retention rule?"
        )
    return place


@contextlib.contextmanager
def locked(settings: Settings, name: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock of this home by name; a killed holder lets go by dying.

    Raises:
        BusyError: another process still holds it after `wait_seconds`.
    """
    path = Path(settings.place("mlflow", "locks", f"{name}.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BusyError(f"{name}: another process holds it; wait until it ends and try again") from None
                time.sleep(0.02)
        yield


@contextlib.contextmanager
def registry_errors(settings: Settings, what: str) -> Iterator[None]:
    """Turn what MLflow raises into a RegistryError that says what was asked, where, and what to do."""
    _quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        message = without_password(str(error)).splitlines()[0]
        advice = _advice(settings, error)
        is_unknown = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        kind = UnknownVersionError if is_unknown else RegistryError
        raise kind(f"{what}: MLflow at {place_of(settings)} answered: {message}; {advice}") from error


def how_to_start(settings: Settings) -> str:
    """What to do about a registry that does not answer, by the kind of its store."""
    if settings.tracking.startswith("http"):
        return f"start the MLflow server at {place_of(settings)}, or correct EVENSONG_MLFLOW_TRACKING_URI"
    if settings.tracking.startswith("sqlite"):
        return "it is a file of this home: `evensong doctor` says what is wrong with it"
    return f"start the database at {place_of(settings)}, or correct EVENSONG_MLFLOW_TRACKING_URI"


def place_of(settings: Settings) -> str:
    """The tracking URI without a password."""
    return without_password(settings.tracking)


def _advice(settings: Settings, error: BaseException) -> str:
    if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
        return "see `evensong registry list` for what there is"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error):
        return f"the disk is full: make room where {settings.home} and {place_of(settings)} lie, then run this again"
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "correct the rights of that place, or run this as the user who owns it"
    return how_to_start(settings)


def _knock(uri: str) -> None:
    """Connect once: MLflow itself would try for minutes before it says that a database is away."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    engine.connect().close()


def _quiet() -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _new_run(settings: Settings, mlflow_client: MlflowClient, experiment: str, night: Night, name: str) -> str:
    from evensong.registry import bundle

    airflow = os.environ.get("AIRFLOW_CTX_DAG_RUN_ID")
    tags = {
        "evensong.run_id": night.run_id,
        "as_of": night.as_of.isoformat(),
        "mlflow.source.type": "JOB" if airflow else "LOCAL",
        "mlflow.source.name": f"Airflow run {airflow}" if airflow else "evensong nightly",
        "mlflow.source.git.commit": bundle.code_commit(settings),
    }
    begun = settings.run_uri(night.run_id, BEGUN)
    start = datetime.fromisoformat(storage.read_json(begun)) if storage.exists(begun) else datetime.now(UTC)
    made = mlflow_client.create_run(experiment, int(start.timestamp() * 1000), tags, run_name=name)
    return str(made.info.run_id)


def _metric_name(name: str) -> str:
    # MLflow takes letters, digits, `_-. :/` only.
    return re.sub(r"[^\w\-. :/]", "_", name)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value[:6000]
    return json.dumps(value, sort_keys=True, default=str)[:6000]
