"""Feast's own monitoring over our offline store: it runs, keeps what it finds, and finds what Feast's stores find."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.monitoring.monitoring_service import MonitoringService
from feast.types import Array, Float32, Float64, Int64, String

OURS = "evensong.features.offline_store.PolarsOfflineStore"
START = datetime(2026, 1, 1, tzinfo=UTC)
FIGURES = ("row_count", "null_count", "null_rate", "mean", "stddev", "min_val", "max_val", "p50", "p90", "p99")


def store_over(folder: Path, kind: str, rows: pl.DataFrame, **offline: Any) -> FeatureStore:
    folder.mkdir(exist_ok=True)
    rows.write_parquet(folder / "rows.parquet")
    store = FeatureStore(
        config=RepoConfig(
            project="watched",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store={"type": kind, **offline},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(name="rows", path=str(folder / "rows.parquet"), timestamp_field="event_timestamp")
    types = {"rate": Float64, "trips": Int64, "town": String, "vector": Array(Float32)}
    schema = [Field(name="driver_id", dtype=Int64)]
    schema += [Field(name=name, dtype=types[name]) for name in rows.columns if name in types]
    store.apply([driver, source, FeatureView(name="view", entities=[driver], source=source, schema=schema)])
    return store


def rows_of(days: int = 40) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "driver_id": list(range(days)),
            "rate": [None if day % 7 == 0 else day / 3 for day in range(days)],
            "trips": [day * day for day in range(days)],
            "town": [None if day % 5 == 0 else "abc"[day % 3] for day in range(days)],
            "event_timestamp": [START + timedelta(days=day) for day in range(days)],
        }
    )


@pytest.fixture
def watched(tmp_path: Path) -> FeatureStore:
    return store_over(tmp_path / "ours", OURS, rows_of())


def test_the_figures_are_those_of_feasts_own_store(watched: FeatureStore, tmp_path: Path) -> None:
    peer = store_over(tmp_path / "peer", "dask", rows_of())
    found: list[dict[str, dict[str, Any]]] = []
    for store in (watched, peer):
        metrics = MonitoringService(store).compute_transient(
            project="watched",
            feature_view_name="view",
            start_date=date(2026, 1, 5),
            end_date=date(2026, 1, 25),
        )["metrics"]
        found.append({metric["feature_name"]: metric for metric in metrics})
    ours, theirs = found
    assert ours.keys() == theirs.keys() == {"rate", "trips", "town"}
    for name, figures in theirs.items():
        for figure in FIGURES:
            assert ours[name][figure] == pytest.approx(figures[figure]), (name, figure)
    assert ours["rate"]["histogram"] == theirs["rate"]["histogram"]
    counted = [
        sorted((entry["value"], entry["count"]) for entry in side["town"]["histogram"]["values"])
        for side in (ours, theirs)
    ]
    assert counted[0] == counted[1]


def test_what_was_found_is_kept_once_a_day_and_baselines_are_one(watched: FeatureStore) -> None:
    service = MonitoringService(watched)
    for _ in range(2):
        assert service.auto_compute(project="watched")["status"] == "completed"
    offline = watched.provider.offline_store
    kept = offline.query_monitoring_metrics(watched.config, "watched", "feature", {"feature_name": "rate"})
    assert len(kept) == len({(row["metric_date"], row["granularity"]) for row in kept}) > 1
    assert [row["metric_date"] for row in kept] == sorted(row["metric_date"] for row in kept)
    service.compute_baseline(project="watched", feature_view_name="view")
    baselines = offline.query_monitoring_metrics(
        watched.config, "watched", "feature", {"feature_name": "rate", "is_baseline": True}
    )
    assert len(baselines) == 1
    assert baselines[0]["histogram"]["counts"]
    offline.clear_monitoring_baseline(watched.config, "watched", feature_view_name="view", feature_name="rate")
    baselines = offline.query_monitoring_metrics(watched.config, "watched", "feature", {"is_baseline": True})
    assert {row["feature_name"] for row in baselines} == {"trips", "town"}
    assert offline.query_monitoring_metrics(watched.config, "another", "feature") == []


def test_days_are_bounds_that_are_both_included(watched: FeatureStore) -> None:
    offline = watched.provider.offline_store
    offline.ensure_monitoring_tables(watched.config)
    row = {"project_id": "watched", "feature_view_name": "view", "feature_name": "rate", "granularity": "daily"}
    for day in (1, 2, 3):
        offline.save_monitoring_metrics(
            watched.config, "feature", [{**row, "data_source_type": "batch", "metric_date": date(2026, 1, day)}]
        )
    found = offline.query_monitoring_metrics(
        watched.config, "watched", "feature", start_date=date(2026, 1, 2), end_date=date(2026, 1, 3)
    )
    assert [row["metric_date"] for row in found] == ["2026-01-02", "2026-01-03"]


def test_jobs_are_kept_through_their_states(watched: FeatureStore) -> None:
    jobs = MonitoringService(watched).job_manager
    job = jobs.submit("watched", "auto_compute", parameters={"a": 1})
    jobs.execute_job(job, MonitoringService(watched))
    done = jobs.get_job(job, "watched")
    assert done is not None
    assert (done["status"], done["parameters"]) == ("completed", {"a": 1})
    assert done["started_at"] <= done["completed_at"]
    assert jobs.get_job(job, "another") is None


def test_lists_and_what_is_no_number_do_not_stop_the_others(tmp_path: Path) -> None:
    rows = rows_of(3).with_columns(
        rate=pl.Series([1.0, math.nan, math.inf]),
        vector=pl.Series([[1.0, 2.0], None, []], dtype=pl.List(pl.Float32)),
    )
    store = store_over(tmp_path / "ours", OURS, rows)
    found = store.provider.offline_store.compute_monitoring_metrics(
        store.config,
        store.get_feature_view("view").batch_source,
        [("rate", "numeric"), ("vector", "numeric"), ("nothing", "numeric")],
        "event_timestamp",
    )
    rate, vector = found
    assert (rate["row_count"], rate["null_count"], rate["mean"]) == (3, 2, 1.0)
    assert (vector["row_count"], vector["null_count"], vector["mean"]) == (3, 1, 1.5)


def test_the_newest_moment_of_nothing_is_none(watched: FeatureStore, tmp_path: Path) -> None:
    offline = watched.provider.offline_store
    source = watched.get_feature_view("view").batch_source
    newest = offline.get_monitoring_max_timestamp(watched.config, source, "event_timestamp")
    assert newest == START + timedelta(days=39)
    rows_of().clear().write_parquet(source.path)
    assert offline.get_monitoring_max_timestamp(watched.config, source, "event_timestamp") is None
    Path(source.path).unlink()
    assert offline.get_monitoring_max_timestamp(watched.config, source, "event_timestamp") is None


def test_the_tables_lie_where_the_configuration_says(tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    store = store_over(tmp_path / "ours", OURS, rows_of(), monitoring=str(place))
    MonitoringService(store).auto_compute(project="watched")
    assert (place / "feast_monitoring_feature_metrics.parquet").is_file()
    assert not (tmp_path / "ours" / "feast_monitoring").exists()
