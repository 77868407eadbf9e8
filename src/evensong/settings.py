"""All configuration, typed, read once and handed down.

Values come from, in order of precedence: arguments, environment variables (`EVENSONG_SERVING__PORT=9000`), the file
that `EVENSONG_CONFIG` names or `evensong.yaml` in the working folder. An unknown key is refused wherever it stands.
Credentials never stand in a file: S3 reads boto3's own chain, databases and Redis take a URL from the environment.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from evensong.errors import ConfigurationError

ENV_PREFIX = "EVENSONG_"
#: Read by the launcher and by `load_settings` itself, not part of `Settings`.
OTHER_VARIABLES = {"EVENSONG_CONFIG"}


#: The schemes that a place may have where it is no path.
PLACES: dict[str, tuple[str, ...]] = {
    "lake_uri": ("s3",),
    "artifacts_uri": ("s3",),
    "mlflow_artifacts_uri": ("s3",),
    "online_store_uri": ("redis", "rediss"),
    "feast_registry_uri": ("postgresql", "mysql", "sqlite", "s3"),
}


class Section(BaseModel):
    """A part of the settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ValidationSettings(Section):
    """When bad data stops a night."""

    max_quarantined_share: float = Field(0.30, ge=0, le=1, description="Past this share of bad rows the night stops.")
    min_quarantined_rows: int = Field(
        10, ge=1, description="Fewer bad rows of a table than this stop no night, whatever their share."
    )
    max_staleness_days: float = Field(3.0, gt=0, description="The newest event may be this much older than as_of.")
    min_volume_ratio: float = Field(0.10, ge=0, description="The last day's rows against the smallest trailing day.")
    max_volume_ratio: float = Field(20.0, gt=0, description="The last day's rows against the largest trailing day.")
    trailing_days: int = Field(14, ge=1, description="Days that the volume is compared with.")
    event_types: tuple[str, ...] = Field(
        ("impression", "view", "click", "cart", "purchase", "rating", "return", "dwell"),
        description="Event types that may occur; the positive ones may in any case.",
    )
    max_clock_skew_seconds: float = Field(300.0, ge=0, description="An event may be dated this much after its arrival.")
    max_value: float = Field(100_000.0, gt=0, description="No event's value may exceed it.")
    max_price: float = Field(10_000.0, gt=0, description="No item's price may exceed it.")


class SplitSettings(Section):
    """What the model learns from, and what it is judged on."""

    holdout_days: float = Field(1.0, gt=0, description="The last days before as_of, kept for the evaluation.")
    min_holdout_users: int = Field(
        50, ge=0, description="With fewer held-out users the holdout reaches back by further holdout_days."
    )
    max_holdout_days: float = Field(7.0, gt=0, description="It never reaches back further for them than this.")
    ranker_days: float = Field(3.0, gt=0, description="The days before the holdout from which the ranker learns.")
    training_days: float | None = Field(None, gt=0, description="Learn from this many days at most; none: from all.")
    positive_event_types: tuple[str, ...] = Field(
        ("view", "click", "cart", "purchase", "rating"), description="Events that count as wanting the item."
    )
    min_value: dict[str, float] = Field(
        default={}, description="Per event type, the smallest value that counts as positive, such as rating: 4."
    )
    max_propensity: float = Field(
        0.5, gt=0, description="Held-out events shown with this probability or more judge no model."
    )
    max_examples: int = Field(1_000_000, ge=100, description="Labels in a training set; the newest are kept.")


FeatureGroup = Literal["profile", "crosses", "dynamics", "hours", "sequence", "text", "price", "conversion"]


class FeatureSettings(Section):
    """Windows and lengths of the features."""

    history_length: int = Field(50, ge=1, le=1000, description="Interactions of a user that the user tower reads.")
    num_top_categories: int = Field(5, ge=1, description="Categories in a user's taste.")
    seen_length: int = Field(5000, ge=1, description="Items that the seen filter remembers for a user.")
    groups: tuple[FeatureGroup, ...] = Field(
        ("profile", "crosses", "dynamics", "sequence", "text", "price", "conversion"),
        description="Built-in columns of the models, see docs/guides/models.md; an empty list: none.",
    )
    sequence_length: int = Field(16, ge=1, le=1000, description="Events in the group `sequence`.")
    columns_path: Path | None = Field(None, description="Your own columns: a YAML file, see docs/guides/columns.md.")
    text_encoder: str = Field("none", description="Sentence encoder of titles: none, minilm, a folder or a model id.")
    text_device: str = Field("cpu", description="Where the encoders run: cpu, cuda, cuda:1.")
    image_encoder: str = Field("none", description="Encoder of pictures: none, a folder or microsoft/resnet-50.")
    half_life_days: float = Field(7.0, gt=0, description="Half-life of the decayed counts, tastes and hours.")
    prior_strength: float = Field(
        0.0, ge=0, description="Views that the prior of a conversion rate is worth; 0: estimated from the data."
    )

    @field_validator("columns_path", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return value or None


class PrivacySettings(Section):
    """Differentially private release of aggregated statistics; off until an epsilon is set."""

    epsilon: float | None = Field(None, gt=0, description="Privacy loss of one release; none: nothing is released.")
    budget: float = Field(1.0, gt=0, description="Privacy loss that all releases together may add up to.")
    max_contributions: int = Field(20, ge=1, description="Rows of one user that a release reads at most.")
    max_value: float = Field(
        200.0, gt=0, lt=1e9, description="What one purchase adds to a released sum at most; decide it without the data."
    )


class QualitySettings(Section):
    """What each night checks of itself, and how much of it: the leak canary, the skew check, the feature report."""

    canary_users: int = Field(60, ge=2, description="Users whose real rows the leak canary plants its own among.")
    skew_requests: int = Field(200, ge=1, description="Last logged requests that the skew check replays.")
    skew_tolerance: float = Field(
        1e-4, ge=0, description="Largest relative difference of a served feature or score from the offline one."
    )
    report_rows: int = Field(20_000, ge=100, description="Rows of each side that the feature report reads.")
    report_users: int = Field(50, ge=0, description="Users that permutation importance asks the champion for; 0: off.")
    report_repeats: int = Field(2, ge=1, description="Times that permutation importance shuffles each feature.")


class RetrieverSettings(Section):
    """The two-tower model."""

    dimension: int = Field(64, ge=4, description="Width of the embeddings.")
    epochs: int = Field(5, ge=1, description="Passes over the labels.")
    batch_size: int = Field(1024, ge=8, description="Labels a step.")
    learning_rate: float = Field(3e-3, gt=0, description="Of the optimizer.")
    temperature: float = Field(0.07, gt=0, description="Divides the cosine of the two towers.")
    num_uniform_negatives: int = Field(512, ge=0, description="Uniform negatives mixed into the in-batch ones.")
    id_dropout: float = Field(0.1, ge=0, lt=1, description="Share of items trained by content alone, for new items.")
    num_candidates: int = Field(200, ge=1, description="Items that the retriever hands to the ranker.")
    num_popular_candidates: int = Field(100, ge=0, description="Popular items added to them.")


class RankerSettings(Section):
    """The model that orders the candidates."""

    hidden: tuple[int, ...] = Field((64, 32), description="Widths of the hidden layers.")
    epochs: int = Field(5, ge=1, description="Passes over the slates.")
    batch_size: int = Field(256, ge=1, description="Slates a step.")
    learning_rate: float = Field(2e-3, gt=0, description="Of the optimizer.")
    num_negatives: int = Field(30, ge=1, description="Candidates beside each positive.")
    max_slates: int = Field(20_000, ge=10, description="Slates at most; the newest are kept.")


class TrainingSettings(Section):
    """How PyTorch runs; part of what makes the same night give the same weights."""

    num_threads: int = Field(1, ge=1, description="Threads of PyTorch; more wait for each other on a busy machine.")


class IndexSettings(Section):
    """The item index."""

    kind: Literal["auto", "flat", "quantized", "ivf", "hnsw"] = Field(
        "auto", description="auto: exact for a small catalogue; quantized: a byte a number."
    )
    exact_up_to: int = Field(200_000, ge=1, description="With auto, the largest catalogue that is searched exactly.")
    approximate: Literal["quantized", "ivf", "hnsw"] = Field("hnsw", description="With auto, the kind beyond that.")
    ivf_probe_share: float = Field(0.1, gt=0, le=1, description="Share of the lists that a search looks into.")
    hnsw_links: int = Field(32, ge=4, description="Links of an item in the graph.")
    hnsw_search: int = Field(256, ge=16, description="Candidates that a search of the graph keeps.")


class EvaluationSettings(Section):
    """What is measured on the holdout."""

    recall_k: int = Field(20, ge=1, description="Length of the list for recall.")
    ndcg_k: int = Field(10, ge=1, description="Length of the list for NDCG.")
    max_users: int = Field(5000, ge=1, description="Users judged, drawn by seed when there are more.")
    popularity_days: float = Field(30.0, gt=0, description="Window of the popularity baseline and of the fallback.")
    slice_attributes: tuple[str, ...] = Field(
        (),
        description="Attributes of users, such as country, or of the wanted items, such as item.brand; no common value "
        "of one may be sacrificed.",
    )


class ServingSettings(Section):
    """The online service."""

    host: str = Field("127.0.0.1", description="The address that it listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Its port.")
    poll_seconds: float = Field(2.0, gt=0, description="How often the service looks whether the champion moved.")
    filter: Literal["seen", "purchased", "none"] = Field("seen", description="Which known items are not shown again.")
    default_k: int = Field(20, ge=1, description="Items in an answer that names no k.")
    max_k: int = Field(200, ge=1, description="The largest k that is answered.")
    workers: int = Field(1, ge=1, le=64, description="Processes that answer; each holds the model.")
    threads: int = Field(4, ge=1, le=64, description="Requests that one process works on at once.")
    online_store_seconds: float = Field(
        1.0, gt=0, description="An online store that has not answered a read by then counts as away."
    )
    max_waiting: int = Field(256, ge=1, description="Requests that wait for a thread; past it the answer is 503.")
    page: bool = Field(True, description="The page at / for people, and the lists of users that it needs.")
    request_log_uri: str | None = Field(
        None, description="Where requests are logged, for the service and the nights; a folder or s3://bucket/prefix."
    )
    request_log_sample: float = Field(
        1.0, gt=0, le=1, description="Share of requests logged with their features; one in ten minutes is in any case."
    )
    request_log_per_second: float = Field(20.0, gt=0, description="No more requests a second than this are logged.")
    request_log_megabytes: int = Field(256, ge=1, description="Size of the request log; its oldest files go first.")
    request_log_days: float = Field(30.0, gt=0, description="Age at which files of the request log go.")


class RegistrySettings(Section):
    """The model registry."""

    model_name: str = Field("recommender", description="The registered model.")
    policy_path: Path = Field(Path("mlflow/promotion_policy.yaml"), description="What a challenger must show.")
    keep_versions: int = Field(14, ge=1, description="Newest versions whose bundles the retention rule keeps.")
    keep_champions: int = Field(3, ge=2, description="Last champions whose bundles stay, ready for a rollback.")


class AirflowSettings(Section):
    """Where Airflow listens, for the launcher and the links."""

    host: str = Field("127.0.0.1", description="The address that it listens on.")
    port: int = Field(8080, ge=1, le=65535, description="Its port.")
    url: str | None = Field(None, description="Where people open it, behind a proxy for one; none: its own address.")
    schedule: str = Field("0 2 * * *", description="When a night starts; its as_of is the midnight before (UTC).")
    task_hours: float = Field(6.0, gt=0, description="A task that is not done by then is ended, and tried again.")
    database_url: str | None = Field(None, description="SQLAlchemy URL of the metadata database; none: SQLite in home.")
    auth: Literal["everyone", "password"] = Field(
        "everyone", description="everyone: no login, loopback only; password: admin, by home/airflow/passwords.json."
    )


class Settings(BaseSettings):
    """Every setting of Evensong."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(
        Path("var"), description="Everything that a run writes lives under it, unless a URI says otherwise."
    )
    lake_uri: str | None = Field(None, description="Delta tables; a folder or s3://bucket/prefix.")
    artifacts_uri: str | None = Field(None, description="What the steps of a run hand to each other; folder or s3://.")
    online_store_uri: str | None = Field(None, description="redis://host:port/db, or a SQLite file's path.")
    feast_registry_uri: str | None = Field(None, description="Feast's registry: a file, or postgresql://…")
    mlflow_tracking_uri: str | None = Field(None, description="sqlite:///…, postgresql://… or http://…")
    mlflow_artifacts_uri: str | None = Field(None, description="Model artifacts; folder or s3://.")
    mlflow_host: str = Field("127.0.0.1", description="Where the MLflow server listens.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Its port.")
    mlflow_url: str | None = Field(None, description="Where people open MLflow, for links; none: its own address.")
    code_commit: str | None = Field(None, description="The code's commit where there is no git, as in a container.")

    validation: ValidationSettings = ValidationSettings()
    split: SplitSettings = SplitSettings()
    features: FeatureSettings = FeatureSettings()
    privacy: PrivacySettings = PrivacySettings()
    quality: QualitySettings = QualitySettings()
    retriever: RetrieverSettings = RetrieverSettings()
    ranker: RankerSettings = RankerSettings()
    training: TrainingSettings = TrainingSettings()
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    serving: ServingSettings = ServingSettings()
    registry: RegistrySettings = RegistrySettings()
    airflow: AirflowSettings = AirflowSettings()

    @field_validator(*PLACES)
    @classmethod
    def _a_place(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _place(value, PLACES[str(info.field_name)]) if value else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file."""
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=_settings_file()))

    def place(self, *parts: str) -> str:
        """A path under `home`, absolute, so that it means the same in every process."""
        return str(self.home.resolve().joinpath(*parts))

    @property
    def lake(self) -> str:
        """Where the Delta tables are."""
        return self.lake_uri or self.place("lake")

    @property
    def artifacts(self) -> str:
        """Where the steps of a run leave what they made."""
        return self.artifacts_uri or self.place("artifacts")

    @property
    def online_store(self) -> str:
        """Feast's online store: `redis://…` or a file."""
        return self.online_store_uri or self.place("feast", "online.db")

    @property
    def feast_registry(self) -> str:
        """Feast's registry."""
        return self.feast_registry_uri or self.place("feast", "registry.db")

    @property
    def tracking(self) -> str:
        """MLflow's tracking and registry store."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.place('mlflow', 'mlflow.db')}"

    @property
    def model_artifacts(self) -> str:
        """Where MLflow keeps the artifacts of runs and versions."""
        return self.mlflow_artifacts_uri or self.place("mlflow", "artifacts")

    @property
    def mlflow_address(self) -> str:
        """What a link to the MLflow UI begins with; it may hold a password where the tracking URI does."""
        if self.mlflow_url:
            return self.mlflow_url.rstrip("/")
        if self.tracking.startswith("http"):
            return self.tracking.rstrip("/")
        return f"http://{reachable(self.mlflow_host)}:{self.mlflow_port}"

    @property
    def airflow_address(self) -> str:
        """What a link to the Airflow UI begins with."""
        airflow = self.airflow
        return (airflow.url or f"http://{reachable(airflow.host)}:{airflow.port}").rstrip("/")

    @property
    def airflow_database(self) -> str:
        """SQLAlchemy URL of Airflow's metadata database."""
        return self.airflow.database_url or f"sqlite:///{self.place('airflow', 'airflow.db')}"

    def run_uri(self, run_id: str, *parts: str) -> str:
        """The folder of one night's run, or a place in it."""
        return "/".join([self.artifacts.rstrip("/"), "runs", run_id, *parts])


def reachable(host: str) -> str:
    """The host of a URL that reaches, from this machine, a server that listens on `host`."""
    if host in {"0.0.0.0", "::", ""}:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _place(value: str, schemes: tuple[str, ...]) -> str:
    """A path, absolute, or a URI of one of these schemes; `file://` is taken off."""
    if value.startswith("file://"):
        value = unquote(urlsplit(value).path)
    scheme, there, rest = value.partition("://")
    if not there:
        return str(Path(value).expanduser().absolute())
    if scheme.partition("+")[0] not in schemes:
        supported = ", ".join(f"{name}://" for name in schemes)
        raise ValueError(f"{scheme}:// is not supported; expected a path or {supported}")
    if scheme == "s3" and not rest.strip("/"):
        raise ValueError("expected s3://bucket/prefix, found no bucket")
    return value


def load_settings(**values: Any) -> Settings:
    """Read the settings; `values` win over the environment, the environment over the file.

    Raises:
        ConfigurationError: an unknown key, a value of the wrong type, or a file that is not YAML.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**values)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {_said(e)}, got {e['input']!r}" for e in error.errors()]
        said = without_password("; ".join(lines))
        raise ConfigurationError(f"settings: {said}; see docs/guides/settings.md") from None
    except (yaml.YAMLError, SettingsError, ValueError) as error:
        raise ConfigurationError(f"settings: cannot be read: {error}; see docs/guides/settings.md") from error


def _said(problem: Any) -> str:
    """What is wrong, with the nearest name where there is no such setting."""
    if problem["type"] != "extra_forbidden":
        return str(problem["msg"]).removeprefix("Value error, ")
    *sections, name = (str(part) for part in problem["loc"])
    model: Any = Settings
    for section in sections:
        field = getattr(model, "model_fields", {}).get(section)
        model = field.annotation if field is not None else None
    near = difflib.get_close_matches(name, getattr(model, "model_fields", {}), 1, 0.5)
    return f"no such setting{f' (did you mean {near[0]}?)' if near else ''}"


def _settings_file() -> Path | None:
    named = os.environ.get("EVENSONG_CONFIG")
    path = Path(named or "evensong.yaml")
    if named and not path.is_file():
        raise ConfigurationError(f"EVENSONG_CONFIG names {named}, which is no file; correct it or unset it")
    return path if path.is_file() else None


def _refuse_unknown_variables() -> None:
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    for variable in os.environ:
        ours = variable.startswith(ENV_PREFIX) and variable not in OTHER_VARIABLES
        if ours and variable.split("__")[0].upper() not in known:
            raise ConfigurationError(f"{variable}: no such setting; see docs/guides/settings.md, or unset it")


class Described(BaseModel):
    """One setting, for people: how to write it, what it is now, what it was made with."""

    variable: str
    key: str
    value: str
    """What is in effect: a place that is not set follows from `home`, and stands here as it is."""
    default: str
    is_set: bool
    """Whether it is another than the default."""
    meaning: str


#: Settings that name no place by default, and the property that says which one is then in effect.
_FOLLOWING = {
    "lake_uri": "lake",
    "artifacts_uri": "artifacts",
    "online_store_uri": "online_store",
    "feast_registry_uri": "feast_registry",
    "mlflow_tracking_uri": "tracking",
    "mlflow_artifacts_uri": "model_artifacts",
    "mlflow_url": "mlflow_address",
    "airflow.url": "airflow_address",
    "airflow.database_url": "airflow_database",
}


def describe(settings: Settings) -> list[Described]:
    """Every setting with its value now; passwords in URLs are hidden."""
    return list(_described(settings, settings, prefix=()))


def without_password(url: str) -> str:
    """The URL, fit to be shown: `postgresql://user:***@host/db`."""
    return re.sub(r"(://[^:/@\s]*:)[^@/\s]+@", r"\1***@", url)


def _described(settings: Settings, section: BaseModel, prefix: tuple[str, ...]) -> Iterator[Described]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        path = (*prefix, name)
        if isinstance(value, Section):
            yield from _described(settings, value, path)
            continue
        key = ".".join(path)
        default = field.get_default(call_default_factory=True)
        follows = value is None and key in _FOLLOWING
        yield Described(
            variable=ENV_PREFIX + "__".join(path).upper(),
            key=key,
            value=_shown(getattr(settings, _FOLLOWING[key]) if follows else value),
            default=_shown(default),
            is_set=value != default,
            meaning=field.description or "",
        )


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | Path):
        return without_password(str(value))
    return json.dumps(value)
