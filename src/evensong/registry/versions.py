"""Model versions: a bundle registered as exactly one MLflow model version, and versions read back as values."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evensong.errors import RegistryError, UnknownVersionError
from evensong.registry import bundle, tracking
from evensong.settings import Settings
from evensong.types import Frame, Night, Value

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
#: Tags of a version that holds no bundle: the retention rule took it, or somebody registered the version by hand.
COLLECTED, FOREIGN = "collected", "foreign"
#: The hash of what the run was made of: two versions of a night with the same one are of the same run.
RECIPE = "recipe"


class ModelVersion(Value):
    """One registered version as it stands now."""

    version: str
    as_of: datetime
    """The cutoff of the night that made it."""
    digest: str
    """The bundle's; what the version is."""
    run_id: str
    """MLflow's id of the night's run."""
    model_id: str | None = None
    created_at: datetime
    description: str = ""
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = Field(default={})
    metrics: dict[str, float] = Field(default={})
    """Filled by `get` and `champion`, empty in lists."""

    @property
    def has_bundle(self) -> bool:
        """Whether there is a bundle to fetch, as far as the tags say."""
        return COLLECTED not in self.tags and FOREIGN not in self.tags

    @property
    def number(self) -> int:
        """The version as a number, to sort by."""
        return int(self.version)


def register(
    settings: Settings,
    night: Night,
    directory: Path,
    *,
    loader_module: str,
    input_example: Frame,
    output_example: Frame,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    description: str,
    judged: Path | None = None,
) -> ModelVersion:
    """Register the bundle as one version of the model; the same bundle again is the same version.

    `loader_module` names the module whose `_load_pyfunc` opens the bundle, so no pickle is written. The signature comes
    from the two examples. Killed anywhere and called again, it ends with one visible version: what a killed call
    uploaded is finished if it was complete, and removed if it was not. `judged` is the folder of the models as they
    were judged, where the bundle was refit after that: it is kept beside the bundle, and no server fetches it.

    Raises:
        BundleError: the bundle, or the judged folder, is incomplete or damaged.
        RegistryError: the registry cannot be reached.
    """
    manifest = bundle.verify(directory)
    digest = bundle.digest(directory)
    if judged is not None:
        bundle.verify(judged, manifest.get(bundle.JUDGED_DIGEST))
    name = settings.registry.model_name
    with (
        tracking.registry_errors(settings, f"registering the bundle of {night.run_id}"),
        tracking.locked(settings, f"register-{digest}", wait_seconds=600),
    ):
        client = tracking.client(settings)
        _ensure_model(client, name)
        found = find(settings, digest)
        if found is None:
            run_id = tracking.night_run(settings, night)
            model_id = _uploaded(settings, client, run_id, digest) or _upload(
                settings, client, run_id, digest, directory, judged, loader_module, input_example, output_example
            )
            _log_model_metrics(client, run_id, model_id, metrics)
            made = client.create_model_version(
                name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags={
                    "as_of": night.as_of.isoformat(),
                    "run_id": night.run_id,
                    "seed": str(night.seed),
                    **dict(sorted(tags.items())),
                    "bundle_digest": digest,
                },
                description=description,
            )
            return get(settings, made.version)
        for key, value in sorted(tags.items()):
            if found.tags.get(key) != value:
                client.set_model_version_tag(name, found.version, key, value)
        if found.description != description:
            client.update_model_version(name, found.version, description)
    return get(settings, found.version)


def get(settings: Settings, version: str | int) -> ModelVersion:
    """One version by its number, or the `champion`, with its metrics.

    Raises:
        UnknownVersionError: there is no such version.
    """
    if version == CHAMPION:
        found_champion = champion(settings)
        if found_champion is None:
            raise RegistryError("expected a champion, found none; promote a version first")
        return found_champion
    if not str(version).isdecimal():
        raise UnknownVersionError(
            f"expected a version's number or {CHAMPION}, got {version!r}; `evensong registry list`"
        )
    with tracking.registry_errors(settings, f"model version {version}"):
        client = tracking.client(settings)
        found = client.get_model_version(settings.registry.model_name, str(version))
        metrics: dict[str, float] = {}
        if model_id := _model_id(found):
            metrics = _figures(client.get_logged_model(model_id))
    return _as_value(found, metrics)


def listed(settings: Settings) -> list[ModelVersion]:
    """Every version, newest first, without metrics; none when nothing was registered yet."""
    name = settings.registry.model_name
    versions: list[ModelVersion] = []
    with tracking.registry_errors(settings, f"versions of {name}"):
        client = tracking.client(settings)
        aliases = _aliases(client, name)
        token = None
        while True:
            page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            for found in page:
                versions.append(_as_value(found, {}, aliases.get(str(found.version), ())))
            token = page.token
            if not token:
                break
    return sorted(versions, key=lambda version: version.number, reverse=True)


def with_metrics(settings: Settings, listed: Sequence[ModelVersion]) -> list[ModelVersion]:
    """The versions with their metrics, all asked for at once."""
    wanted = {version.model_id for version in listed if version.model_id}
    metrics: dict[str, dict[str, float]] = {}
    with tracking.registry_errors(settings, "metrics of model versions"):
        client = tracking.client(settings)
        token = None
        while wanted - metrics.keys():
            order = [{"field_name": "creation_timestamp", "ascending": False}]
            place = [tracking.experiment_id(settings)]
            page = client.search_logged_models(place, max_results=50, order_by=order, page_token=token)
            metrics |= {model.model_id: _figures(model) for model in page}
            token = page.token
            if not token:
                break
    return [version.model_copy(update={"metrics": metrics.get(version.model_id or "", {})}) for version in listed]


def find(settings: Settings, digest: str) -> ModelVersion | None:
    """The version that holds the bundle of this digest; the oldest, should there be two."""
    same = [version for version in listed(settings) if version.digest == digest]
    return same[-1] if same else None


def champion(settings: Settings) -> ModelVersion | None:
    """The version that the alias `champion` points at now."""
    from mlflow.exceptions import MlflowException

    with tracking.registry_errors(settings, "the champion"):
        client = tracking.client(settings)
        try:
            found = client.get_model_version_by_alias(settings.registry.model_name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return get(settings, found.version)


def set_tags(settings: Settings, version: str, tags: Mapping[str, str]) -> None:
    """Set tags on a version."""
    with tracking.registry_errors(settings, f"model version {version}"):
        client = tracking.client(settings)
        for key, value in sorted(tags.items()):
            client.set_model_version_tag(settings.registry.model_name, version, key, value)


def delete_tag(settings: Settings, version: str, key: str) -> None:
    """Remove a tag of a version if it is there."""
    with tracking.registry_errors(settings, f"model version {version}"):
        client = tracking.client(settings)
        if key in client.get_model_version(settings.registry.model_name, version).tags:
            client.delete_model_version_tag(settings.registry.model_name, version, key)


def describe(settings: Settings, version: str, description: str) -> None:
    """Replace the description that a reviewer reads."""
    with tracking.registry_errors(settings, f"model version {version}"):
        client = tracking.client(settings)
        client.update_model_version(settings.registry.model_name, version, description)


def attach(settings: Settings, version: ModelVersion, path: Path, folder: str | None = None) -> None:
    """Put a file beside the bundle in the version's artifacts, in place of one of the same name."""
    if version.model_id is None:
        raise RegistryError(f"version {version.version}: expected a logged model behind it; register the bundle again")
    with tracking.registry_errors(settings, f"model version {version.version}"):
        tracking.client(settings).log_model_artifact(version.model_id, str(path), folder)


def read_attached(settings: Settings, version: ModelVersion, name: str) -> bytes:
    """The content of an attached file.

    Raises:
        RegistryError: there is none of this name.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = tracking.download(
            settings, f"models:/{settings.registry.model_name}/{version.version}/{name}", Path(folder)
        )
        return place.read_bytes()


def lake_versions(version: ModelVersion) -> dict[str, int]:
    """The versions of the lake's tables that the bundle saw."""
    return dict(json.loads(version.tags.get("lake_versions", "{}")))


def _uploaded(settings: Settings, client: MlflowClient, run_id: str, digest: str) -> str | None:
    """What an earlier, killed call left: the complete upload to go on with, if there is one; the rest is removed."""
    complete = None
    models = client.search_logged_models([tracking.experiment_id(settings)], f"tags.`bundle_digest` = '{digest}'")
    for model in models:
        if str(model.status) == "READY" and model.source_run_id == run_id and complete is None:
            complete = model.model_id
        else:
            client.delete_logged_model(model.model_id)
    return complete


def _upload(
    settings: Settings,
    client: MlflowClient,
    run_id: str,
    digest: str,
    directory: Path,
    judged: Path | None,
    loader_module: str,
    input_example: Frame,
    output_example: Frame,
) -> str:
    import mlflow.pyfunc
    from mlflow.models import Model, infer_signature

    logged = client.create_logged_model(
        tracking.experiment_id(settings),
        name=settings.registry.model_name,
        source_run_id=run_id,
        tags={"bundle_digest": digest},
        model_type="bundle",
    )
    with tempfile.TemporaryDirectory() as folder:
        # MLflow names the data folder after the source; a link gives every bundle the name `fetch` looks for.
        source = Path(folder, Path(bundle.ARTIFACT_PATH).name)
        source.symlink_to(directory.resolve())
        model = Path(folder, "model")
        inputs = input_example.to_pandas()
        with warnings.catch_warnings():
            # MLflow warns that integers cannot be missing; ours never are.
            warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer column")
            signature = infer_signature(inputs, output_example.to_pandas())
        mlflow.pyfunc.save_model(
            str(model),
            loader_module=loader_module,
            data_path=str(source),
            mlflow_model=Model(run_id=run_id, model_id=logged.model_id),
            signature=signature,
            input_example=inputs,
            pip_requirements=[f"{name}=={number}" for name, number in bundle.library_versions().items()],
        )
        bundle.verify(model / bundle.ARTIFACT_PATH, digest)
        if judged is not None:
            shutil.copytree(judged, model / bundle.JUDGED_PATH)
        client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, "READY")
    return logged.model_id


def _log_model_metrics(client: MlflowClient, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    known = {metric.key for metric in client.get_logged_model(model_id).metrics or []}
    # The run's own first points carry its start, so MLflow sees these as the same points and not as second ones.
    start_time = client.get_run(run_id).info.start_time
    rows = [
        Metric(key, float(value), start_time, 0, model_id=model_id, run_id=run_id)
        for key, value in sorted(metrics.items())
        if key not in known
    ]
    for start in range(0, len(rows), 500):
        client.log_batch(run_id, metrics=rows[start : start + 500])


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Nightly bundles of Evensong; `champion` is what is served.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _aliases(client: MlflowClient, name: str) -> dict[str, tuple[str, ...]]:
    """Aliases of each version; MLflow's search leaves them out."""
    models = client.search_registered_models(f"name = '{name}'")
    found: dict[str, list[str]] = {}
    for model in models:
        for alias, version in sorted(model.aliases.items()):
            found.setdefault(str(version), []).append(alias)
    return {version: tuple(names) for version, names in found.items()}


def _as_value(found: Any, metrics: dict[str, float], aliases: tuple[str, ...] | None = None) -> ModelVersion:
    tags = dict(sorted(found.tags.items()))
    if "as_of" not in tags or "bundle_digest" not in tags:
        # Somebody registered it by hand: it shows in lists, and can neither be fetched nor promoted.
        tags = {
            "as_of": "1970-01-01T00:00:00+00:00",
            "bundle_digest": "",
            **tags,
            FOREIGN: "not registered by Evensong",
        }
    return ModelVersion(
        version=str(found.version),
        as_of=datetime.fromisoformat(tags["as_of"]),
        digest=tags["bundle_digest"],
        run_id=found.run_id or "",
        model_id=_model_id(found),
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        description=found.description or "",
        aliases=tuple(sorted(found.aliases or ())) if aliases is None else aliases,
        tags=tags,
        metrics=dict(sorted(metrics.items())),
    )


def _figures(logged: Any) -> dict[str, float]:
    found = {metric.key: metric.value for metric in sorted(logged.metrics or [], key=lambda metric: metric.timestamp)}
    return dict(sorted(found.items()))


def _model_id(found: Any) -> str | None:
    # MLflow's SQL store keeps the logged model of a version in its source only.
    source = str(found.source or "")
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None
