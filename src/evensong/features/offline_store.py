"""The offline store: Feast's `OfflineStore` on polars, over Parquet and Delta, local and S3; exact, and fast.

What a historical retrieval means, to the row, stands in `evensong.features.point_in_time`: for each row of the entity
frame the newest feature row with `event_timestamp` at or before the row's moment, known by then (with
`filter_by_created_timestamp`), no older than the view's TTL, ties to the larger `created_timestamp`; rows in = rows
out, in the same order; nulls where nothing matches.

A join reads twice: first just the keys and the timestamps of a view, which say which of its rows are needed, and then,
in a stream, the features of those rows. So memory holds the keys and the answer, and never a whole large feature table;
features that are small beside the memory are read while the keys are matched.

Feast finds this class by the path in `feature_store.yaml`: `type: evensong.features.offline_store.PolarsOfflineStore`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.errors import EntityTimestampInferenceException, SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.monitoring.monitoring_utils import MONITORING_DIR
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import compute_non_entity_date_range

from evensong.data import storage
from evensong.errors import StorageError
from evensong.features import monitored
from evensong.features.point_in_time import match_rows, to_moments
from evensong.types import TIMESTAMP, Frame

EVENT_TIMESTAMP = "event_timestamp"
#: Features of a fixed width are read whole up to this size.
MAX_READ_BYTES = 512 * 2**20
_WIDTHS: dict[Any, int] = {
    **dict.fromkeys((pl.Boolean, pl.Int8, pl.UInt8), 1),
    **dict.fromkeys((pl.Int16, pl.UInt16), 2),
    **dict.fromkeys((pl.Int32, pl.UInt32, pl.Float32, pl.Date), 4),
    **dict.fromkeys((pl.Int64, pl.UInt64, pl.Float64, pl.Datetime, pl.Duration, pl.Time), 8),
}
_ROW = "__row"
#: Of the files that are written: quick, and read by all; pandas, Spark and DuckDB write it too.
_COMPRESSION: Literal["snappy"] = "snappy"


class PolarsOfflineStoreConfig(FeastConfigBaseModel):
    """The `offline_store` section of feature_store.yaml."""

    type: Literal["evensong.features.offline_store.PolarsOfflineStore"] = (
        "evensong.features.offline_store.PolarsOfflineStore"
    )
    monitoring: str | None = None
    """The folder or S3 prefix of what Feast's monitoring finds; without it `feast_monitoring` beside
    feature_store.yaml, where Feast's own file stores keep it."""


class PolarsRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for."""

    def __init__(
        self,
        evaluate: Callable[[], Frame],
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
        repo_path: Path | None = None,
    ) -> None:
        super().__init__()
        self._evaluate = evaluate
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata
        self._repo_path = repo_path

    def to_polars(self) -> Frame:
        """The result as a polars frame; on-demand views are computed where there are any."""
        if not self._on_demand_feature_views:
            return self._evaluate()
        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return _plain_arrow(self._evaluate())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result, on-demand features included, as a saved dataset.

        Raises:
            SavedDatasetLocationAlreadyExists: something is there and `allow_overwrite` is not set.
        """
        _write_dataset(self.to_polars(), storage.to_data_source(), self._repo_path, allow_overwrite)


class PolarsOfflineStore(OfflineStore):
    """Feast's offline store on polars; see the module's docstring for what its joins mean."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pl.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Features at each entity row's moment.

        Args:
            config: Feast's configuration.
            feature_views: the views that the references name.
            feature_refs: `view:feature` each.
            entity_df: a pandas or polars frame with the join keys and `event_timestamp` (or one timestamp column of
                another name), or an SQL query that gives one (DuckDB's dialect; `read_parquet('…')` reads files).
                None: one row for each key and moment with a feature row between `start_date` and `end_date`; then all
                views need the same entities.
            registry: Feast's registry.
            project: Feast's project.
            full_feature_names: name the columns `view__feature`.
            filter_by_created_timestamp: see only what was known at the row's moment.
            start_date: see `entity_df`.
            end_date: see `entity_df`.

        Raises:
            ValueError: a join key or a timestamp is missing, or a feature has the name of an entity column.
        """
        plans = [_Plan(config, view, feature_refs, full_feature_names) for view in feature_views]
        earliest: datetime | None = None
        if entity_df is None:
            earliest, latest = compute_non_entity_date_range(feature_views, start_date, end_date)
            entities = _every_row(plans, earliest, latest)
        else:
            entities = _entity_frame(entity_df)
        moment = _moment_column(entities)
        _check_columns(entities, plans)

        def evaluate() -> Frame:
            frame = entities
            for plan in plans:
                frame = plan.join(frame, moment, filter_by_created_timestamp, earliest)
            assert len(frame) == len(entities), "the join must keep every row of the entity frame"
            return frame

        moments = to_moments(entities[moment])
        return PolarsRetrievalJob(
            evaluate,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.columns if name != moment],
                min_event_timestamp=moments.min(),
                max_event_timestamp=moments.max(),
            ),
            repo_path=config.repo_path,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Each key's newest row between the two moments, both included; ties to the one created last. Sorted by key."""
        stamps = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]

        def evaluate() -> Frame:
            # The names are those of the source: Feast maps them to the features' names afterwards.
            rows = scan(data_source, config.repo_path, mapped=False)
            return latest_rows(rows, join_key_columns, feature_name_columns, stamps, start_date, end_date)

        return PolarsRetrievalJob(evaluate, repo_path=config.repo_path)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row between the two moments, both included and each optional, in the order of the source."""
        stamps = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]

        def evaluate() -> Frame:
            source = scan(data_source, config.repo_path, mapped=False)
            rows = _within(source, timestamp_field, start_date, end_date)
            return rows.select(list(dict.fromkeys([*join_key_columns, *feature_name_columns, *stamps]))).collect()

        return PolarsRetrievalJob(evaluate, repo_path=config.repo_path)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Append logged features to the destination's folder, as Parquet, one file a call.

        With `partition_by` one file a call and partition, in folders named `column=value`.
        """
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise ValueError(f"expected a FileLoggingDestination, got {type(destination).__name__}; log to files")
        frame = pl.read_parquet(data) if isinstance(data, Path) else pl.from_arrow(data)
        assert isinstance(frame, pl.DataFrame)
        folder = _absolute(destination.path, config.repo_path)
        access = _access(destination.to_data_source())
        for part, rows in _partitions(frame, destination.partition_by or []):
            _write_file(rows, storage.join(folder, *part, f"{uuid.uuid4().hex}.parquet"), access)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the source of a feature view.

        Raises:
            ValueError: the columns are not those of the source, in their order.
        """
        source = feature_view.batch_source
        if not isinstance(source, FileSource):
            raise ValueError(f"{feature_view.name}: expected a file source, got {type(source).__name__}")
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        expected = scan(source, config.repo_path, mapped=False).collect_schema()
        if list(expected) != frame.columns:
            raise ValueError(
                f"{feature_view.name}: expected the columns {list(expected)} in this order, got {frame.columns}"
            )
        _append(frame.cast(expected), source, config.repo_path)
        if progress:
            progress(len(frame))

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """The source's columns and their Arrow types, which Feast infers features and checks what is written from.

        Feast's own way is right for Parquet on this machine; it misses relative Delta tables, and most of S3.
        """
        assert isinstance(data_source, FileSource)
        uri, access = _absolute(data_source.path, config.repo_path), _access(data_source)
        if isinstance(data_source.file_format, DeltaFormat):
            from deltalake import DeltaTable

            table = DeltaTable(uri, storage_options=storage.storage_options(uri, access) or None)
            schema = pa.schema(table.schema().to_arrow())
        elif storage.is_remote(uri) or "*" in uri:
            schema = _plain_arrow(scan(data_source, config.repo_path, mapped=False).collect_schema().to_frame()).schema
        else:
            return super().get_table_column_names_and_types_from_data_source(config, data_source)
        return [(field.name, str(_plain_type(field.type))) for field in schema]

    @staticmethod
    def compute_monitoring_metrics(
        config: RepoConfig,
        data_source: DataSource,
        feature_columns: list[tuple[str, str]],
        timestamp_field: str,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        histogram_bins: int = 20,
        top_n: int = 10,
    ) -> list[dict[str, Any]]:
        """Feast's figures of the columns, over the rows between the two moments, both included."""
        rows = _within(scan(data_source, config.repo_path, mapped=False), timestamp_field, start_date, end_date)
        return monitored.figures(rows, feature_columns, histogram_bins=histogram_bins, top_n=top_n)

    @staticmethod
    def get_monitoring_max_timestamp(
        config: RepoConfig, data_source: DataSource, timestamp_field: str
    ) -> datetime | None:
        """The newest moment of a source; None where it has no rows, or is not there yet."""
        try:
            rows = scan(data_source, config.repo_path, mapped=False)
        except StorageError:
            return None
        newest = to_moments(rows.select(pl.col(timestamp_field).max()).collect()[timestamp_field]).item()
        assert newest is None or isinstance(newest, datetime)
        return newest

    @staticmethod
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Make the tables that keep the figures and jobs of Feast's monitoring."""
        _monitoring(config).ensure()

    @staticmethod
    def save_monitoring_metrics(config: RepoConfig, metric_type: str, metrics: list[dict[str, Any]]) -> None:
        """Keep figures (`feature`, `feature_view`, `feature_service`) or jobs (`job`) in the place of their like."""
        _monitoring(config).save(metric_type, metrics)

    @staticmethod
    def query_monitoring_metrics(
        config: RepoConfig,
        project: str,
        metric_type: str,
        filters: dict[str, Any] | None = None,
        start_date: date | None = None,
        end_date: date | None = None,
    ) -> list[dict[str, Any]]:
        """What was kept of a project, with these values, between the two days, both included; by day."""
        return _monitoring(config).query(metric_type, project, filters or {}, start_date, end_date)

    @staticmethod
    def clear_monitoring_baseline(
        config: RepoConfig,
        project: str,
        feature_view_name: str | None = None,
        feature_name: str | None = None,
        data_source_type: str | None = None,
    ) -> None:
        """Let the matching figures no longer be a baseline, so that each feature has one at most."""
        named = {
            "feature_view_name": feature_view_name,
            "feature_name": feature_name,
            "data_source_type": data_source_type,
        }
        _monitoring(config).end_baselines(project, named)


def scan(source: DataSource | None, repo_path: Path | None, *, mapped: bool = True) -> pl.LazyFrame:
    """The rows of a file source, lazily, the same rows in the same order each time; `mapped`: columns renamed as
    declared.

    Raises:
        ValueError: the source is no file source.
        StorageError: nothing is there.
    """
    if not isinstance(source, FileSource):
        raise ValueError(
            f"expected a FileSource, got {type(source).__name__}; this store reads Parquet and Delta files"
        )
    uri, access = _absolute(source.path, repo_path), _access(source)
    if "*" not in uri and not storage.exists(uri, access):
        raise StorageError(
            f"{uri}: expected the rows of {source.name}, found nothing; run the step that writes them first"
        )
    options = storage.storage_options(uri, access) or None
    if isinstance(source.file_format, DeltaFormat):
        rows = pl.scan_delta(uri, storage_options=options)
    else:
        if storage.is_remote(uri) and "*" not in uri and not storage.is_file(uri, access):
            uri = uri.rstrip("/") + "/"  # only so is it a folder to polars
        rows = pl.scan_parquet(uri, storage_options=options)
    if not mapped:
        return rows
    mapping = {old: new for old, new in (source.field_mapping or {}).items() if old in rows.collect_schema()}
    return rows.rename(mapping) if mapping else rows


def latest_rows(
    rows: pl.LazyFrame,
    keys: Sequence[str],
    columns: Sequence[str],
    stamps: Sequence[str],
    start: datetime | None,
    end: datetime | None,
) -> Frame:
    """Each key's newest row with its first stamp between the two moments; ties to the larger second stamp, then to the
    last.

    Sorted by key; a row with a null in its key has no key and is left out.
    """
    keys = [key for key in keys if key != DUMMY_ENTITY_ID]
    narrow = _within(rows.with_row_index(_ROW), stamps[0], start, end)
    found = narrow.select(*dict.fromkeys([*keys, *stamps]), _ROW).collect(engine="streaming")
    if keys:
        found = found.drop_nulls(keys).sort(*keys, *stamps, _ROW, nulls_last=False)
        latest = found.unique(subset=keys, keep="last", maintain_order=True)
    else:
        latest = found.sort(*stamps, _ROW, nulls_last=False).tail(1)
    names = list(dict.fromkeys([*keys, *columns, *stamps]))
    size = _count(rows)
    newest = _gather(rows, size, latest[_ROW], names, _read_whole(rows, names, size))
    return newest if keys else newest.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))


class _Plan:
    """What one feature view adds to the entity frame."""

    def __init__(self, config: RepoConfig, view: FeatureView, feature_refs: Sequence[str], full_names: bool) -> None:
        source = view.batch_source
        if source is None:
            raise ValueError(f"{view.name}: expected a batch source, found none; this view cannot be joined")
        mapping = source.field_mapping or {}
        self.config = config
        self.source = source
        self.ttl = view.ttl if isinstance(view.ttl, timedelta) else None
        self.event = mapping.get(source.timestamp_field, source.timestamp_field)
        created = source.created_timestamp_column
        self.created = mapping.get(created, created) or None
        renamed = view.projection.join_key_map
        names = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
        self.keys = {renamed.get(name, name): name for name in names}
        prefix = view.projection.name_to_use()
        wanted = [ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] == prefix]
        shown = view.projection.name_alias or view.name
        self.columns = {feature: f"{shown}__{feature}" if full_names else feature for feature in wanted}

    def join(self, entities: Frame, moment: str, known_only: bool, earliest: datetime | None) -> Frame:
        rows = scan(self.source, self.config.repo_path)
        stamps = [self.event, *([self.created] if self.created else [])]
        columns = list(self.columns)
        narrow = rows.select(list(dict.fromkeys([*self.keys.values(), *stamps])))
        if earliest is not None:
            # A row from before is as good as a row without a moment: it stays where it is and matches nothing.
            before = ~_inside(narrow, self.event, earliest, None)
            narrow = narrow.with_columns(pl.when(~before).then(pl.col(self.event)).alias(self.event))
        known = narrow.collect(engine="streaming")
        with ThreadPoolExecutor(1) as beside:
            whole = beside.submit(_read_whole, rows, columns, len(known))
            found = match_rows(
                entities,
                known,
                keys=self.keys,
                moment=moment,
                event_timestamp=self.event,
                created_timestamp=self.created,
                ttl=self.ttl,
                known_only=known_only,
            )
            features = _gather(rows, len(known), found, columns, whole.result())
        return entities.with_columns(features[feature].alias(name) for feature, name in self.columns.items())


def _every_row(plans: Sequence[_Plan], start: datetime, end: datetime) -> Frame:
    """One entity row for each key and moment of a feature row between the two moments, sorted."""
    names = {tuple(sorted(plan.keys)) for plan in plans}
    if len(names) != 1:
        raise ValueError(
            f"without an entity frame all views need the same entities, got {sorted(names)}; pass an entity frame"
        )
    found = []
    for plan in plans:
        rows = _within(scan(plan.source, plan.config.repo_path), plan.event, start, end)
        keys = [pl.col(plan.keys[key]).alias(key) for key in plans[0].keys]
        frame = rows.select(*keys, pl.col(plan.event).alias(EVENT_TIMESTAMP)).unique().collect()
        found.append(frame.with_columns(to_moments(frame[EVENT_TIMESTAMP])))
    return pl.concat(found, how="vertical_relaxed").drop_nulls().unique().sort(EVENT_TIMESTAMP, *plans[0].keys)


def _entity_frame(entity_df: pd.DataFrame | pl.DataFrame | str) -> Frame:
    if isinstance(entity_df, str):
        import duckdb

        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            return connection.sql(entity_df).pl()
    if isinstance(entity_df, pl.DataFrame):
        return entity_df
    return pl.from_pandas(entity_df.reset_index(drop=True))


def _moment_column(entities: Frame) -> str:
    if EVENT_TIMESTAMP in entities.columns:
        return EVENT_TIMESTAMP
    stamps = [name for name, dtype in entities.schema.items() if isinstance(dtype, pl.Datetime)]
    if len(stamps) != 1:
        raise EntityTimestampInferenceException(EVENT_TIMESTAMP)
    return stamps[0]


def _check_columns(entities: Frame, plans: Sequence[_Plan]) -> None:
    taken = set(entities.columns)
    for plan in plans:
        if missing := [key for key in plan.keys if key not in entities.columns]:
            raise ValueError(f"the entity frame lacks the join key {', '.join(missing)}; it has {entities.columns}")
        if twice := sorted(taken & set(plan.columns.values())):
            raise ValueError(
                f"{', '.join(twice)}: in the result already; rename the entity column or ask for full_feature_names"
            )
        taken |= set(plan.columns.values())


def _within(rows: pl.LazyFrame, column: str, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    """The rows with `start <= column <= end`."""
    return rows.filter(_inside(rows, column, start, end))


def _inside(rows: pl.LazyFrame, column: str, start: datetime | None, end: datetime | None) -> pl.Expr:
    """Whether `start <= column <= end`; a bound without a zone means UTC, as a column without one does."""
    dtype = rows.collect_schema()[column]
    moment = pl.col(column)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is None:
        moment = moment.dt.replace_time_zone("UTC")
    elif dtype == pl.String:
        moment = moment.str.to_datetime(time_unit="us", time_zone="UTC")
    elif dtype == pl.Date:
        moment = moment.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    inside = pl.lit(True)
    for bound, keep in ((start, moment.ge), (end, moment.le)):
        if bound is not None:
            utc = bound.replace(tzinfo=UTC) if bound.tzinfo is None else bound.astimezone(UTC)
            inside &= keep(pl.lit(utc, TIMESTAMP))
    return inside


def _read_whole(rows: pl.LazyFrame, columns: Sequence[str], size: int) -> Frame | None:
    """The columns of all `size` rows where they are of a fixed width and fit; none otherwise."""
    wanted = rows.select(columns)
    widths = [_WIDTHS.get(dtype.base_type()) for dtype in wanted.collect_schema().values()]
    if None in widths or sum(filter(None, widths)) * size > MAX_READ_BYTES:
        return None
    return wanted.collect().rechunk()  # a gather from one piece is several times quicker


def _count(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())


def _gather(
    rows: pl.LazyFrame, size: int, positions: pl.Series, columns: Sequence[str], whole: Frame | None = None
) -> Frame:
    """The columns of the rows at the positions, in their order, nulls for null.

    Args:
        size: the number of rows.
        whole: those columns of every row; without it they come in a stream, and the needed rows stay.

    Raises:
        StorageError: there are other rows by now.
    """
    wanted = rows.select(columns)
    if positions.null_count() == len(positions):
        return pl.DataFrame(schema=wanted.collect_schema()).clear(len(positions))
    changed = StorageError("the source was written to while it was read; do the same again")
    if whole is not None:
        if len(whole) != size:
            raise changed
        return _rows_at(whole, positions)
    used = np.zeros(size, bool)
    used[positions.drop_nulls().to_numpy()] = True
    needed = pl.LazyFrame({_ROW: pl.Series(np.flatnonzero(used)).cast(pl.get_index_type())})
    streamed = wanted.with_row_index(_ROW).join(needed, on=_ROW, how="semi")
    found = streamed.collect(engine="streaming").sort(_ROW).drop(_ROW)
    if len(found) != used.sum():
        raise changed
    places = np.cumsum(used, dtype=np.uint32) - np.uint32(1)
    return _rows_at(found, pl.Series(places[positions.fill_null(0).to_numpy()]).set(positions.is_null(), None))


def _rows_at(frame: Frame, positions: pl.Series) -> Frame:
    """The rows at the positions, nulls for null; a gather by positions without nulls is three times quicker."""
    rows = frame[positions.fill_null(0)]
    return rows.select(pl.when(positions.is_not_null()).then(pl.all())) if positions.null_count() else rows


def _plain_arrow(frame: Frame) -> pa.Table:
    """An Arrow table of the ordinary types: strings and lists with 32-bit offsets, which all of Feast reads."""
    table = frame.rechunk().to_arrow()  # one chunk: Feast writes the first one online and forgets the rest
    return table.cast(pa.schema([field.with_type(_plain_type(field.type)) for field in table.schema]))


def _plain_type(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype):
        return pa.binary()
    if pa.types.is_large_list(dtype) or pa.types.is_list(dtype):
        return pa.list_(_plain_type(dtype.value_type))
    if pa.types.is_struct(dtype):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in dtype])
    return dtype


def _write_dataset(frame: Frame, source: DataSource, repo_path: Path | None, overwrite: bool) -> None:
    assert isinstance(source, FileSource)
    uri, access = _absolute(source.path, repo_path), _access(source)
    if not overwrite and storage.exists(uri, access):
        raise SavedDatasetLocationAlreadyExists(location=uri)
    if isinstance(source.file_format, DeltaFormat):
        from deltalake import write_deltalake

        options = storage.storage_options(uri, access) or None
        write_deltalake(uri, frame, mode="overwrite", schema_mode="overwrite", storage_options=options)
    elif _is_one_file(uri, access):
        _write_file(frame, uri, access)
    else:
        # a name of its own: a reader of the old files is not handed new bytes under an old name
        new = storage.join(uri, f"rows-{uuid.uuid4().hex}.parquet")
        _write_file(frame, new, access)
        for old in storage.list_files(uri, access):
            if old.endswith(".parquet") and old != new:
                storage.remove(old, access)


def _append(frame: Frame, source: FileSource, repo_path: Path | None) -> None:
    uri, access = _absolute(source.path, repo_path), _access(source)
    if "*" in uri:
        raise ValueError(
            f"{uri}: expected a file or a folder to append to, got a pattern; name the folder in the source"
        )
    options = storage.storage_options(uri, access) or None
    if isinstance(source.file_format, DeltaFormat):
        from deltalake import write_deltalake

        write_deltalake(uri, frame, mode="append", storage_options=options)
    elif _is_one_file(uri, access):
        _write_file(pl.concat([pl.read_parquet(uri, storage_options=options), frame]), uri, access)
    else:
        _write_file(frame, storage.join(uri, f"{uuid.uuid4().hex}.parquet"), access)


def _is_one_file(uri: str, access: storage.Access) -> bool:
    """Whether Parquet rows stand in one file at the URI, or shall; in a folder otherwise."""
    if storage.is_file(uri, access):
        return True
    return uri.endswith(".parquet") and not storage.exists(uri, access)


def _write_file(frame: Frame, uri: str, access: storage.Access) -> None:
    if storage.is_remote(uri):
        frame.write_parquet(uri, compression=_COMPRESSION, storage_options=storage.storage_options(uri, access))
    else:
        storage.write_frame(uri, frame, compression=_COMPRESSION)


def _partitions(frame: Frame, by: Sequence[str]) -> Iterator[tuple[list[str], Frame]]:
    """The folders (`column=value`, as Hive names them) and the rows, without those columns, of each partition."""
    if not by:
        yield [], frame
        return
    for values, rows in frame.partition_by(by, as_dict=True, maintain_order=True, include_key=False).items():
        texts = ["__HIVE_DEFAULT_PARTITION__" if value is None else quote(str(value), safe="") for value in values]
        yield [f"{name}={text}" for name, text in zip(by, texts, strict=True)], rows


def _absolute(uri: str, repo_path: Path | None) -> str:
    return FileSource.get_uri_for_file_path(repo_path, uri.removeprefix("file://"))


def _access(source: DataSource) -> storage.Access:
    """How a source says that its bucket is reached: its own endpoint, and credentials by its `connection_ref`."""
    assert isinstance(source, FileSource)
    named = source.resolve_credentials() or {}
    return storage.Access(
        endpoint=source.s3_endpoint_override or None,
        key_id=named.get("AWS_ACCESS_KEY_ID"),
        secret=named.get("AWS_SECRET_ACCESS_KEY"),
        token=named.get("AWS_SESSION_TOKEN"),
        region=named.get("AWS_DEFAULT_REGION"),
    )


def _monitoring(config: RepoConfig) -> monitored.Tables:
    store = config.offline_store
    folder = store.monitoring if isinstance(store, PolarsOfflineStoreConfig) else None
    return monitored.Tables(folder or str(Path(config.repo_path or ".") / MONITORING_DIR))
