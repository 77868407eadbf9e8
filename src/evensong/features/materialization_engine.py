"""The materialization engine: each key's newest row into Feast's online store, in the bytes that Feast itself writes.

Beside what it writes the engine keeps, for each view, a snapshot (`snapshots`): key, moment and a hash of the row. The
next night writes only the keys whose row is another one. A token in the online store says which snapshot it agrees
with; where there is none, or another (the store was emptied, or a run was killed on the way), every key is written.
So it is where rows that the snapshot names are not there: a view's table was dropped, and the token stayed.

A row in the store that is newer than the one to be written stays, and counts as not written, unless it is one that the
engine itself put there: then the table was corrected since, and the older row is the truth. A key that the engine wrote
and that has no row in the table any more is removed from the store.

Feast finds this class by its path: `batch_engine: {type: evensong.features.materialization_engine.PolarsEngine}`.
Whatever it does not know (other online stores, on-demand and stream views, types beyond scalars and lists) goes
Feast's own way.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import polars as pl
import pyarrow.compute as pc
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from evensong.features.encoding import encode, entity_keys, supports
from evensong.features.offline_store import PolarsOfflineStore, latest_rows, scan
from evensong.features.online_redis import RedisOnline
from evensong.features.online_rows import Rows
from evensong.features.online_sqlite import SqliteOnline
from evensong.features.point_in_time import to_moments
from evensong.features.snapshots import HASH, MOMENT, Snapshot, newest_moments, stamped
from evensong.types import TIMESTAMP, Frame

log = logging.getLogger(__name__)

Online = RedisOnline | SqliteOnline

#: Entities encoded at once, which bounds the memory beside the rows themselves.
BLOCK = 20_000
#: Rows of a view that are looked for in the store before its token is believed.
PROBED = 1000


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
            self.written[view.name] = self._write(online, view, rows, task)
        except Exception as error:
            return LocalMaterializationJob(job_id=name, status=MaterializationJobStatus.ERROR, error=error)
        finally:
            online.close()
        return LocalMaterializationJob(job_id=name, status=MaterializationJobStatus.SUCCEEDED)

    def _write(self, online: Online, view: FeatureView, rows: Frame, task: MaterializationTask) -> int:
        """Write the rows that the snapshot does not hold, and leave the snapshot of what is stored now."""
        keys = view.join_keys
        now = stamped(rows, keys, _utc(rows[_stamps(view)[0]]))
        if self._snapshots is None:
            online.set_token(view.name, None)
            return int(_write_rows(online, view, rows, None).sum())
        snapshot, definition = Snapshot(self._snapshots, view.name, keys), _definition(view)
        token = online.token(view.name)
        before = snapshot.recall(token if token and token.startswith(definition) else None, now)
        if before.agrees and not _holds(online, view, before.rows):
            log.warning("%s: rows are gone from the online store; every key is written", view.name)
            before = snapshot.recall(None, now)
        changed = now.with_row_index("__row").join(before.rows, on=[*keys, MOMENT, HASH], how="anti")["__row"].sort()
        away = before.rows.join(now, on=keys, how="anti")
        newest = newest_moments(away, keys)
        # what lies outside of the span of this materialization is not said to be gone
        gone = newest.filter(pl.col(MOMENT).is_between(_aware(task.start_time), _aware(task.end_time)))
        if before.agrees and changed.is_empty() and gone.is_empty():
            return 0
        online.set_token(view.name, None)
        snapshot.intend(pl.concat([before.rows, now[changed]]))
        limits = now[changed].join(newest_moments(before.rows, keys), on=keys, how="left", maintain_order="left")
        fresh = _write_rows(online, view, rows[changed], limits[f"{MOMENT}_right"])
        if len(gone):
            online.remove(view.name, entity_keys([gone[key] for key in keys]), _names(view), gone[MOMENT])
        refused = changed.filter(~fresh)
        stored = now.with_row_index("__row").filter(~pl.col("__row").is_in(refused.implode())).drop("__row")
        token = f"{definition}-{uuid.uuid4().hex}"
        snapshot.keep(pl.concat([away.join(gone, on=keys, how="anti"), stored]), token)
        online.set_token(view.name, token)
        snapshot.settle()
        return int(fresh.sum())


def _holds(online: Online, view: FeatureView, rows: Frame) -> bool:
    """Whether the store has rows of these keys, whatever they say; some of them, evenly spread, stand for all."""
    written = rows.filter(pl.col(HASH).is_not_null())
    probed = written.gather_every(max(1, len(written) // PROBED))
    return online.holds(view.name, entity_keys([probed[key] for key in view.join_keys]), _names(view))


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
    rows = latest_rows(
        scan(view.batch_source, config.repo_path),
        view.join_keys,
        _names(view),
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


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


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


def _names(view: FeatureView) -> list[str]:
    return [feature.name for feature in view.features]


def _write_rows(online: Online, view: FeatureView, rows: Frame, ours: pl.Series | None) -> pl.Series:
    """Write the rows; which of them were not refused, for a newer one in the store.

    Args:
        ours: the newest moment that this engine wrote of each row's key, which may be replaced by an older one.
    """
    order = None
    if isinstance(online, SqliteOnline):
        # One order over all blocks lets the table's index grow at its end.
        order = pl.Series(pc.sort_indices(entity_keys([rows[key] for key in view.join_keys])))
        rows, ours = rows[order], None if ours is None else ours[order]
    fresh = pl.Series(online.write(view.name, _encoded(view, rows, ours)), dtype=pl.Boolean)
    return fresh if order is None else fresh[order.arg_sort()]


def _encoded(view: FeatureView, rows: Frame, ours: pl.Series | None) -> Iterator[Rows]:
    """The rows in the store's bytes, a block of entities at a time."""
    event, *created = _stamps(view)
    for start in range(0, len(rows), BLOCK):
        block = rows.slice(start, BLOCK)
        yield Rows(
            keys=entity_keys([block[key] for key in view.join_keys]),
            values={name: encode(block[name]) for name in _names(view)},
            columns={name: block[name] for name in _names(view)},
            moments=_utc(block[event]),
            created=_utc(block[created[0]]) if created else None,
            ours=None if ours is None else ours.slice(start, BLOCK),
        )


def _definition(view: FeatureView) -> str:
    """What decides the bytes beside the rows: the features, their types, and the library that hashes."""
    declared = [(feature.name, str(feature.dtype)) for feature in view.features]
    return hashlib.sha256(repr((declared, view.join_keys, pl.__version__)).encode()).hexdigest()[:16]
