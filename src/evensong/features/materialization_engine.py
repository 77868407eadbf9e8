"""The materialization engine: each key's newest row into Feast's online store, in the bytes that Feast itself writes.

Beside what it writes the engine keeps, for each view, a snapshot: key, moment and a hash of the row. The next night
writes only the keys whose row is another one. A token in the online store says which snapshot it agrees with; where
there is none, or another (the store was emptied, or a run was killed on the way), every key is written.

Feast finds this class by its path: `batch_engine: {type: evensong.features.materialization_engine.PolarsEngine}`.
Whatever it does not know (other online stores, on-demand and stream views, types beyond scalars and lists) goes
Feast's own way.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from evensong.data import storage
from evensong.features.encoding import encode, entity_keys, supports
from evensong.features.offline_store import PolarsOfflineStore, latest_rows, scan
from evensong.features.online_redis import RedisOnline
from evensong.features.online_sqlite import Rows, SqliteOnline
from evensong.features.point_in_time import to_moments
from evensong.types import TIMESTAMP, Frame

Online = RedisOnline | SqliteOnline

#: Entities encoded at once, which bounds the memory beside the rows themselves.
BLOCK = 20_000
_HASH = "__hash"

_Block = tuple[pa.BinaryArray, dict[str, pa.BinaryArray], dict[str, pl.Series], pl.Series, pl.Series | None]


class PolarsEngineConfig(FeastConfigBaseModel):
    """The `batch_engine` section of feature_store.yaml."""

    type: Literal["evensong.features.materialization_engine.PolarsEngine"] = (
        "evensong.features.materialization_engine.PolarsEngine"
    )
    snapshots: str | None = None
    """The folder or S3 prefix of the snapshots; without it every key is written each time."""


class PolarsEngine(LocalComputeEngine):
    """Feast's compute engine on polars; see the module's docstring."""

    def __init__(self, *, repo_config: RepoConfig, offline_store: Any, online_store: Any, **options: Any) -> None:
        super().__init__(repo_config=repo_config, offline_store=offline_store, online_store=online_store)
        self._snapshots: str | None = options.get("snapshots")
        self.written: dict[str, int] = {}
        """Keys written by the last materialization of each view."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        online = _open_online(self.repo_config)
        if online is None or not isinstance(self.offline_store, PolarsOfflineStore) or not _is_plain(view):
            return super()._materialize_one(registry, task, **kwargs)
        name = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            rows = _newest(view, task, self.repo_config)
            if not all(supports(rows.schema[feature.name]) for feature in view.features):
                return super()._materialize_one(registry, task, **kwargs)
            self.written[view.name] = self._write(online, view, rows)
        except Exception as error:
            return LocalMaterializationJob(job_id=name, status=MaterializationJobStatus.ERROR, error=error)
        finally:
            online.close()
        return LocalMaterializationJob(job_id=name, status=MaterializationJobStatus.SUCCEEDED)

    def _write(self, online: Online, view: FeatureView, rows: Frame) -> int:
        """Write the rows that the snapshot does not hold, and leave the snapshot of what is stored now."""
        stamp = _stamps(view)[0]
        snapshot = rows.select(*view.join_keys, stamp).with_columns(
            rows.drop(view.join_keys).hash_rows(seed=0).alias(_HASH)
        )
        place = None if self._snapshots is None else storage.join(self._snapshots, f"{view.name}.parquet")
        token = online.token(view.name)
        before = _read_snapshot(place, token, view) if token and place else None
        if before is not None:
            changed = snapshot.with_row_index("__row").join(before, on=[*view.join_keys, stamp, _HASH], how="anti")
            rows = rows[changed["__row"].sort()]
            kept = before.join(snapshot, on=view.join_keys, how="anti")  # older than the span of this materialization
            snapshot = pl.concat([kept.select(snapshot.columns), snapshot])
        if before is not None and rows.is_empty():
            return 0
        online.set_token(view.name, None)
        written = _write_rows(online, view, rows)
        if place is not None:
            token = f"{_definition(view)}-{uuid.uuid4().hex}"
            storage.write_frame(place, snapshot.with_columns(pl.lit(token).alias("__token")))
            online.set_token(view.name, token)
        return written


def _open_online(config: RepoConfig) -> Online | None:
    """The online store in the layouts that are known here; none for any other."""
    online = config.online_store
    if config.entity_key_serialization_version != 3 or config.registry.enable_online_feature_view_versioning:
        return None
    if online.type == "sqlite" and not (online.vector_enabled or online.enable_openai_compatible_store):
        from feast.infra.online_stores.sqlite import SqliteOnlineStore

        return SqliteOnline(SqliteOnlineStore._get_db_path(config), config.project)
    if online.type == "redis" and online.redis_type == "redis" and not online.key_ttl_seconds:
        return RedisOnline.connect(online.connection_string, config.project)
    return None


def _is_plain(view: Any) -> bool:
    """Whether the view is a table that is copied as it is, and only online."""
    return type(view) is FeatureView and view.online and not view.offline and bool(view.batch_source)


def _newest(view: FeatureView, task: MaterializationTask, config: RepoConfig) -> Frame:
    columns = [feature.name for feature in view.features]
    rows = latest_rows(
        scan(view.batch_source, config.repo_path),
        view.join_keys,
        columns,
        _stamps(view),
        task.start_time,
        task.end_time,
    )
    return _as_declared(rows, view)


def _stamps(view: FeatureView) -> list[str]:
    """The names of the moment and, where the source has one, of the time of creation, as features name them."""
    source = view.batch_source
    mapping = source.field_mapping or {}
    named = [source.timestamp_field, source.created_timestamp_column]
    return [mapping.get(name, name) for name in named if name]


def _utc(moments: pl.Series) -> pl.Series:
    return to_moments(moments).cast(TIMESTAMP)


def _as_declared(rows: Frame, view: FeatureView) -> Frame:
    """The columns in the types that the view declares, which decide the bytes."""
    types = {field.name: _polars_type(field.dtype) for field in [*view.features, *view.entity_columns]}
    return rows.with_columns(
        pl.col(name).cast(dtype) for name, dtype in types.items() if dtype is not None and rows.schema[name] != dtype
    )


def _polars_type(dtype: Any) -> pl.DataType | None:
    from feast import types

    scalars = {
        types.String: pl.String(),
        types.Bytes: pl.Binary(),
        types.Int32: pl.Int32(),
        types.Int64: pl.Int64(),
        types.Float32: pl.Float32(),
        types.Float64: pl.Float64(),
        types.Bool: pl.Boolean(),
    }
    if isinstance(dtype, types.Array):
        inner = scalars.get(dtype.base_type)
        return None if inner is None else pl.List(inner)
    return scalars.get(dtype)


def _write_rows(online: Online, view: FeatureView, rows: Frame) -> int:
    if isinstance(online, SqliteOnline):
        # One order over all blocks lets the table's index grow at its end.
        keys = entity_keys([rows[key] for key in view.join_keys])
        rows = rows[pl.Series(pc.sort_indices(keys))]
        return online.write_blocks(view.name, (Rows(*block) for block in _encoded(view, rows)))
    return sum(online.write(view.name, *block) for block in _encoded(view, rows))


def _encoded(view: FeatureView, rows: Frame) -> Iterator[_Block]:
    """The keys, the encoded and the plain features and the two times of the rows, a block of entities at a time."""
    event, *created = _stamps(view)
    names = [feature.name for feature in view.features]
    for start in range(0, len(rows), BLOCK):
        block = rows.slice(start, BLOCK)
        yield (
            entity_keys([block[key] for key in view.join_keys]),
            {name: encode(block[name]) for name in names},
            {name: block[name] for name in names},
            _utc(block[event]),
            _utc(block[created[0]]) if created else None,
        )


def _read_snapshot(place: str, token: str, view: FeatureView) -> Frame | None:
    """The snapshot that the token in the online store names; none when there is no such one any more."""
    if not token.startswith(_definition(view)) or not storage.exists(place):
        return None
    snapshot = storage.read_frame(place)
    return snapshot.drop("__token") if (snapshot["__token"] == token).all() else None


def _definition(view: FeatureView) -> str:
    """What decides the bytes beside the rows: the features, their types, and the library that hashes."""
    declared = [(feature.name, str(feature.dtype)) for feature in view.features]
    return hashlib.sha256(repr((declared, view.join_keys, pl.__version__)).encode()).hexdigest()[:16]
