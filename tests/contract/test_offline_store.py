"""What an offline store must do for Feast: ours, and Feast's own DuckDB store beside it where both must agree."""

from __future__ import annotations

import base64
import json
import os
import struct
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.data_format import DeltaFormat, ParquetFormat
from feast.errors import RequestDataNotFoundInEntityDfException, SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import OnDemandFeatureView, PandasTransformation
from feast.types import Array, Float32, Float64, Int64, String
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.variants import first_daily

from evensong.data import storage
from evensong.errors import StorageError
from evensong.features import offline_store

# Feast says of some of its parts that they are experimental, each time that they are used.
pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Saving dataset is an experimental feature:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Retrieving datasets is an experimental feature:RuntimeWarning"),
]

OURS = "evensong.features.offline_store.PolarsOfflineStore"
START = datetime(2026, 1, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def plus(frame: pd.DataFrame) -> pd.DataFrame:
    """The on-demand view's function: rate + asked, and its double."""
    return pd.DataFrame(
        {"rate_plus": frame["rate"] + frame["asked"], "rate_plus_twice": 2 * (frame["rate"] + frame["asked"])}
    )


class World:
    """Drivers with hourly rates, orders keyed by two entities, one table without an entity."""

    def __init__(
        self, folder: Path, offline_store: str, kind: str, root: str | None = None, endpoint: str | None = None
    ) -> None:
        self.folder, self.kind, self.root, self.endpoint = folder, kind, root or str(folder), endpoint
        self.store = FeatureStore(
            config=RepoConfig(
                project="contract",
                provider="local",
                registry=str(folder / "registry.db"),
                offline_store={"type": offline_store},
                online_store={"type": "sqlite", "path": str(folder / "online.db")},
                entity_key_serialization_version=3,
            )
        )
        driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
        self.rates = FeatureView(
            name="rates",
            entities=[driver],
            ttl=timedelta(hours=24),
            source=self.source("rates", _rates()),
            schema=[
                Field(name="driver_id", dtype=Int64),
                Field(name="rate", dtype=Float64),
                Field(name="places", dtype=Array(String)),
            ],
        )
        orders = FeatureView(
            name="orders",
            entities=[customer, driver],
            ttl=timedelta(0),
            source=self.source("orders", _orders(), {"ok": "success", "when": "event_timestamp"}),
            schema=[
                Field(name="driver_id", dtype=Int64),
                Field(name="customer_id", dtype=String),
                Field(name="success", dtype=Int64),
            ],
        )
        world = FeatureView(
            name="world",
            entities=[],
            ttl=timedelta(0),
            source=self.source("world", _world()),
            schema=[Field(name="rain", dtype=Float32)],
        )
        request = RequestSource(name="request", schema=[Field(name="asked", dtype=Int64)])
        on_demand = OnDemandFeatureView(
            name="plus",
            sources=[self.rates, request],
            schema=[Field(name="rate_plus", dtype=Float64), Field(name="rate_plus_twice", dtype=Float64)],
            feature_transformation=PandasTransformation(udf=plus, udf_string="plus"),
            mode="pandas",
        )
        self.pairs = FeatureService(
            name="pairs",
            features=[
                self.rates[["rate"]].with_name("first").with_join_key_map({"driver_id": "first_id"}),
                self.rates[["rate"]].with_name("second").with_join_key_map({"driver_id": "second_id"}),
            ],
        )
        self.logged = FeatureService(
            name="logged",
            features=[self.rates],
            logging_config=LoggingConfig(
                destination=FileLoggingDestination(path=f"{self.root}/logs", s3_endpoint_override=endpoint or "")
            ),
        )
        self.store.apply([driver, customer, self.rates, orders, world, on_demand, self.pairs, self.logged])

    def source(self, name: str, rows: pl.DataFrame, mapping: dict[str, str] | None = None) -> FileSource:
        place = f"{self.root}/{name}" + (".parquet" if self.kind == "parquet" else "")
        options = storage.storage_options(place, storage.Access(endpoint=self.endpoint)) or None
        if self.kind == "delta":
            from deltalake import write_deltalake

            write_deltalake(place, rows, storage_options=options)
        elif self.kind == "folder":
            rows.head(2).write_parquet(f"{place}/a.parquet", storage_options=options, mkdir=True)
            rows.slice(2).write_parquet(f"{place}/b.parquet", storage_options=options)
        else:
            rows.write_parquet(place, storage_options=options)
        return FileSource(
            name=name,
            path=place,
            file_format=DeltaFormat() if self.kind == "delta" else ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
            field_mapping=mapping or {},
            s3_endpoint_override=self.endpoint,
        )

    def join(self, entities: Any, features: list[str], **options: Any) -> pd.DataFrame:
        frame: pd.DataFrame = self.store.get_historical_features(
            entity_df=entities, features=features, **options
        ).to_df()
        return frame


def _rates() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "driver_id": [1, 1, 1, 2, 2],
            "rate": [0.1, 0.2, 0.25, 0.3, 0.4],
            "places": [["a"], [], ["b", "c"], None, ["d"]],
            "event_timestamp": [at(1), at(2), at(2), at(3), at(5)],
            "created": [at(1), at(9), at(2), at(3), at(4)],
        }
    )


def _orders() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "driver_id": [1, 1, 2],
            "customer_id": ["x", "y", "x"],
            "ok": [1, 0, 1],
            "when": [at(1), at(1), at(4)],
            "created": [at(1), at(1), at(4)],
        }
    )


def _world() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "rain": pl.Series([0.5, 0.75], dtype=pl.Float32),
            "event_timestamp": [at(1), at(4)],
            "created": [at(1), at(4)],
        }
    )


@pytest.fixture(params=["parquet", "folder", "delta"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, OURS, request.param)


@pytest.fixture
def parquet(tmp_path: Path) -> World:
    return World(tmp_path, OURS, "parquet")


def entities(*rows: tuple[int, str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "driver_id": [row[0] for row in rows],
            "customer_id": [row[1] for row in rows],
            "event_timestamp": [at(row[2]) for row in rows],
        }
    )


def test_several_views_with_one_two_and_no_entities(world: World) -> None:
    asked = entities((1, "x", 3), (2, "x", 3), (2, "x", 4), (3, "y", 0))
    found = world.join(asked, ["rates:rate", "orders:success", "world:rain"])
    pd.testing.assert_frame_equal(found[asked.columns], asked, check_dtype=False)
    assert _plain(found["rate"]) == [0.2, 0.3, 0.3, None]
    assert _plain(found["success"]) == [1, None, 1, None]
    assert _plain(found["rain"]) == [0.5, 0.5, 0.75, None]


def test_known_only_hides_what_was_created_later(world: World) -> None:
    asked = entities((1, "x", 3), (1, "x", 9))
    assert _plain(world.join(asked, ["rates:rate"])["rate"]) == [0.2, 0.2]
    assert _plain(world.join(asked, ["rates:rate"], filter_by_created_timestamp=True)["rate"]) == [0.25, 0.2]


def test_lists_come_back_as_lists(world: World) -> None:
    table = world.store.get_historical_features(
        entity_df=entities((1, "x", 1), (2, "x", 3), (2, "x", 5)), features=["rates:places"]
    ).to_arrow()
    assert table.schema.field("places").type == pa.list_(pa.string())
    assert table["places"].to_pylist() == [["a"], None, ["d"]]


def test_streamed_and_read_whole_the_answer_is_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = entities((2, "x", 5), (1, "x", 3), (3, "y", 9), (2, "x", 5), (1, "x", 1))
    whole = world.join(asked, ["rates:rate"])
    monkeypatch.setattr(offline_store, "MAX_READ_BYTES", 0)
    pd.testing.assert_frame_equal(world.join(asked, ["rates:rate"]), whole)
    assert _plain(whole["rate"]) == [0.4, 0.2, None, 0.4, 0.1]


def test_a_slate_of_one_user_at_one_moment_keeps_its_rows(world: World) -> None:
    slate = entities(*[(1, "x", 3.0)] * 20)
    assert len(world.join(slate, ["rates:rate"])) == 20


def test_full_names_and_renamed_views(parquet: World) -> None:
    found = parquet.join(entities((1, "x", 3)), ["rates:rate", "orders:success"], full_feature_names=True)
    assert {"rates__rate", "orders__success"} < set(found.columns)
    pairs = pd.DataFrame({"first_id": [1, 2], "second_id": [2, 1], "event_timestamp": [at(5)] * 2})
    found = parquet.store.get_historical_features(pairs, parquet.pairs, full_feature_names=True).to_df()
    assert found[["first__rate", "second__rate"]].values.tolist() == [[0.2, 0.4], [0.4, 0.2]]


def test_on_demand_views_compute_on_top(parquet: World) -> None:
    asked = entities((1, "x", 3), (2, "x", 3)).assign(asked=[10, 20])
    found = parquet.join(asked, ["rates:rate", "plus:rate_plus"])
    assert _plain(found["rate_plus"]) == [10.2, 20.3]
    assert "rate_plus_twice" not in found
    with pytest.raises(RequestDataNotFoundInEntityDfException):
        parquet.join(entities((1, "x", 3)), ["plus:rate_plus"])


def test_an_entity_frame_from_a_query(parquet: World) -> None:
    entities((1, "x", 3), (2, "x", 4)).to_parquet(parquet.folder / "asked.parquet")
    query = f"SELECT * FROM read_parquet('{parquet.folder}/asked.parquet') WHERE driver_id = 2"  # noqa: S608
    found = parquet.join(query, ["rates:rate"])
    assert _plain(found["rate"]) == [0.3]
    assert found["event_timestamp"].tolist() == [at(4)]


def test_a_polars_frame_needs_no_pandas(parquet: World) -> None:
    job = parquet.store.get_historical_features(pl.from_pandas(entities((1, "x", 3))), features=["rates:rate"])
    assert job.to_polars()["rate"].to_list() == [0.2]


def test_without_an_entity_frame_every_row_in_the_span_comes(world: World) -> None:
    found = world.join(None, ["rates:rate"], start_date=at(2), end_date=at(4))
    rows = [(int(driver), rate) for driver, rate in zip(found["driver_id"], found["rate"], strict=True)]
    assert rows == [(1, 0.2), (2, 0.3)]


def test_time_zones_naive_times_text_and_another_name_of_the_moment(parquet: World) -> None:
    asked = entities((2, "x", 3))
    forms = {
        "Tokyo": asked["event_timestamp"].dt.tz_convert("Asia/Tokyo"),
        "naive": asked["event_timestamp"].dt.tz_localize(None),
        "text": asked["event_timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    for name, moments in forms.items():
        assert _plain(parquet.join(asked.assign(event_timestamp=moments), ["rates:rate"])["rate"]) == [0.3], name
    renamed = asked.rename(columns={"event_timestamp": "e_ts"})
    assert _plain(parquet.join(renamed, ["rates:rate"])["rate"]) == [0.3]


def test_nanoseconds_tell_two_moments_apart(tmp_path: Path) -> None:
    world = World(tmp_path, OURS, "parquet")
    moment = pd.Timestamp(at(3)) - pd.Timedelta(1, "ns")
    asked = entities((2, "x", 3)).assign(event_timestamp=[moment])
    assert _plain(world.join(asked, ["rates:rate"])["rate"]) == [None]


def test_a_missing_key_and_a_doubled_name_are_told(parquet: World) -> None:
    with pytest.raises(ValueError, match="lacks the join key driver_id"):
        parquet.join(entities((1, "x", 3)).drop(columns="driver_id"), ["rates:rate"])
    with pytest.raises(ValueError, match="rename the entity column"):
        parquet.join(entities((1, "x", 3)).assign(rate=1.0), ["rates:rate"])


def test_a_feature_that_the_view_has_not_is_refused(parquet: World) -> None:
    with pytest.raises(KeyError):
        parquet.join(entities((1, "x", 3)), ["orders:rate"])


def test_a_table_that_is_not_there_is_named(parquet: World) -> None:
    Path(parquet.rates.batch_source.path).unlink()
    with pytest.raises(StorageError, match=r"rates\.parquet: expected the rows of rates"):
        parquet.join(entities((1, "x", 3)), ["rates:rate"])


def test_a_saved_dataset_comes_back_and_is_not_overwritten(world: World) -> None:
    asked = entities((1, "x", 3), (2, "x", 4))
    job = world.store.get_historical_features(entity_df=asked, features=["rates:rate", "orders:success"])
    place = str(world.folder / "saved")
    target = SavedDatasetFileStorage(
        path=place, file_format=DeltaFormat() if world.kind == "delta" else ParquetFormat()
    )
    saved = world.store.create_saved_dataset(from_=job, name="saved", storage=target)
    pd.testing.assert_frame_equal(
        saved.to_df().sort_values("driver_id")[["driver_id", "rate", "success"]].reset_index(drop=True),
        job.to_df()[["driver_id", "rate", "success"]],
    )
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(target)
    smaller = world.store.get_historical_features(entity_df=asked.head(1), features=["rates:rate", "orders:success"])
    smaller.persist(target, allow_overwrite=True)
    assert len(world.store.get_saved_dataset("saved").to_df()) == 1


def test_pull_latest_and_pull_all(world: World) -> None:
    source = world.rates.batch_source
    columns = (["driver_id"], ["rate"], "event_timestamp", "created")
    offline = world.store.provider.offline_store
    latest = offline.pull_latest_from_table_or_query(world.store.config, source, *columns, at(0), at(3)).to_df()
    assert latest[["driver_id", "rate"]].values.tolist() == [[1, 0.2], [2, 0.3]]
    everything = offline.pull_all_from_table_or_query(world.store.config, source, *columns, at(2), at(3)).to_df()
    assert sorted(everything["rate"]) == [0.2, 0.25, 0.3]


def test_rows_are_appended_to_a_source(world: World) -> None:
    new = pd.DataFrame(
        {"rate": [0.9], "created": [at(8)], "driver_id": [1], "event_timestamp": [at(8)], "places": [["z"]]}
    )
    world.store.write_to_offline_store("rates", new)
    assert _plain(world.join(entities((1, "x", 7), (1, "x", 8)), ["rates:rate"])["rate"]) == [0.2, 0.9]
    with pytest.raises(ValueError, match="missing_expected_columns"):
        world.store.write_to_offline_store("rates", new.drop(columns="rate"))


def logs_of(world: World) -> pa.Table:
    """Two served requests, as Feast's server logs them."""
    from feast.feature_logging import FeatureServiceLoggingSource

    schema = FeatureServiceLoggingSource(world.logged, world.store.project).get_schema(world.store.registry)
    values = {
        "driver_id": [1, 2],
        "rates__rate": [0.1, None],
        "rates__places": [["a"], None],
        "__request_id": ["r1", "r2"],
        "__log_timestamp": [at(1), at(30)],
        "__log_date": [at(1).date(), at(30).date()],
    }
    columns = [
        pa.array(values.get(field.name, [None, None]), field.type)
        if not field.name.endswith(("__timestamp", "__status"))
        else pa.nulls(2, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def read_logs(world: World) -> pd.DataFrame:
    found: pd.DataFrame = world.store.provider.retrieve_feature_service_logs(
        world.logged, at(0), at(48), world.store.config, world.store.registry
    ).to_df()
    return found.sort_values("__request_id")


@pytest.mark.parametrize("as_path", [True, False])
def test_logged_features_come_back(parquet: World, as_path: bool) -> None:
    table = logs_of(parquet)
    for part in (table.slice(0, 1), table.slice(1)):
        logs: Any = part
        if as_path:
            logs = parquet.folder / f"part-{part['__request_id'][0]}"
            logs.mkdir()
            pl.from_arrow(part).write_parquet(logs / "0.parquet")  # type: ignore[union-attr]
        parquet.store.write_logged_features(logs, parquet.logged)
    found = read_logs(parquet)
    assert found["__request_id"].tolist() == ["r1", "r2"]
    assert found["rates__rate"].tolist()[0] == 0.1


def test_logs_are_partitioned_into_folders_that_every_reader_knows(parquet: World) -> None:
    destination = parquet.logged.logging_config.destination
    destination.partition_by = ["__log_date", "driver_id"]
    for _ in range(2):
        parquet.store.write_logged_features(logs_of(parquet), parquet.logged)
    folders = sorted(
        str(path.parent.relative_to(destination.path)) for path in Path(destination.path).rglob("*.parquet")
    )
    assert folders == ["__log_date=2026-01-01/driver_id=1"] * 2 + ["__log_date=2026-01-02/driver_id=2"] * 2
    found = read_logs(parquet)
    assert found["__request_id"].tolist() == ["r1", "r1", "r2", "r2"]
    assert found["driver_id"].tolist() == [1, 1, 2, 2]
    by_arrow = pads.dataset(destination.path, partitioning="hive", ignore_prefixes=["."]).to_table()
    assert sorted(by_arrow["driver_id"].to_pylist()) == [1, 1, 2, 2]


def test_duckdb_and_we_agree_on_a_random_world(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("ours", "peer"):
        (tmp_path / name).mkdir()
    worlds = [World(tmp_path / "ours", OURS, "parquet"), World(tmp_path / "peer", "duckdb", "parquet")]
    event = rng.permutation(2000)[:500]  # no two rows at one moment: the peer breaks such ties as it likes
    rows = pl.DataFrame(
        {
            "driver_id": rng.integers(0, 20, 500),
            "rate": rng.random(500),
            "places": [[str(n)] for n in range(500)],
            "event_timestamp": [at(float(hour) / 10) for hour in event],
            "created": [
                at(float(hour) / 10 + late) for hour, late in zip(event, rng.integers(0, 30, 500), strict=True)
            ],
        }
    )
    asked = pd.DataFrame(
        {
            "driver_id": rng.integers(0, 22, 300),
            "customer_id": "x",
            "event_timestamp": [at(float(hour) / 7) for hour in rng.permutation(1500)[:300]],
        }
    )
    for known_only in (True, False):
        answers = []
        for world in worlds:
            rows.write_parquet(world.rates.batch_source.path)
            found = world.join(asked, ["rates:rate"], filter_by_created_timestamp=known_only)
            answers.append(found.sort_values(["event_timestamp", "driver_id"])["rate"].tolist())
        np.testing.assert_array_equal(*answers)


class Views:
    """Four views that are joined at once: keys of one, two and no parts, two times to live, names that the tables have
    not, and one table that does not say when its rows became known."""

    KEYS: ClassVar = {
        "by_driver": ("driver_id",),
        "by_pair": ("customer_id", "driver_id"),
        "by_customer": ("customer_id",),
        "of_all": (),
    }
    TTL: ClassVar = {"by_driver": 6, "by_pair": None, "by_customer": 3, "of_all": None}
    FEATURES: ClassVar = [
        *(f"{view}:{view}_row" for view in KEYS),
        "by_pair:by_pair_tags",
        "by_customer:by_customer_again",
    ]

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, bare_store(folder)
        types = {"driver_id": Int64, "customer_id": String}
        driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
        of_key = {"driver_id": driver, "customer_id": customer}
        more = {"by_pair": ("by_pair_tags", Array(String)), "by_customer": ("by_customer_again", Float32)}
        views = []
        for view, keys in self.KEYS.items():
            self.write(view, [])
            ttl = self.TTL[view]
            features = [(f"{view}_row", Int64), *([more[view]] if view in more else [])]
            views.append(
                FeatureView(
                    name=view,
                    entities=[of_key[key] for key in keys],
                    ttl=timedelta(hours=ttl) if ttl else timedelta(0),
                    source=FileSource(
                        name=view,
                        path=str(folder / f"{view}.parquet"),
                        timestamp_field="happened" if view == "by_pair" else "event_timestamp",
                        created_timestamp_column={"by_pair": "seen", "by_customer": ""}.get(view, "created"),
                        field_mapping={"happened": "moment", "seen": "known", "n": "by_pair_row", "t": "by_pair_tags"}
                        if view == "by_pair"
                        else {},
                    ),
                    schema=[Field(name=name, dtype=dtype) for name, dtype in features]
                    + [Field(name=key, dtype=types[key]) for key in keys],
                )
            )
        self.store.apply([driver, customer, *views])

    def write(self, view: str, rows: list[tuple[dict[str, Any], float, float | None]]) -> None:
        """The view's table: of each row the keys, the moment, when it became known; a feature says which row it is."""
        numbers = range(len(rows))
        made = {
            "driver_id": pl.Series([row[0]["driver_id"] for row in rows], dtype=pl.Int64),
            "customer_id": pl.Series([row[0]["customer_id"] for row in rows], dtype=pl.String),
            "event_timestamp": moments_of([row[1] for row in rows]),
            "created": moments_of([row[2] for row in rows]),
            f"{view}_row": pl.Series(numbers, dtype=pl.Int64),
            "by_pair_tags": pl.Series([[str(n)] * (n % 3) for n in numbers], dtype=pl.List(pl.String)),
            "by_customer_again": pl.Series([n / 2 for n in numbers], dtype=pl.Float32),
        }
        left_out = {"driver_id", "customer_id"} - set(self.KEYS[view])
        left_out |= {name for name in ("by_pair_tags", "by_customer_again") if not name.startswith(view)}
        left_out |= {"created"} if view == "by_customer" else set()
        table = pl.DataFrame({name: values for name, values in made.items() if name not in left_out})
        if view == "by_pair":
            table = table.rename(
                {"event_timestamp": "happened", "created": "seen", "by_pair_row": "n", "by_pair_tags": "t"}
            )
        table.write_parquet(self.folder / f"{view}.parquet")

    def expected(
        self, view: str, rows: list[tuple[dict[str, Any], float, float | None]], asked: Any, known_only: bool
    ) -> int | None:
        """The row that is the answer, found one by one."""
        keys, moment = asked
        best: tuple[tuple[float, float, int], int] | None = None
        for number, (of_row, event, created) in enumerate(rows):
            if any(of_row[key] is None or of_row[key] != keys[key] for key in self.KEYS[view]) or event > moment:
                continue
            if view == "by_customer":
                created = event
            if known_only and (created is None or created > moment):
                continue
            order = (event, float("-inf") if created is None else created, number)
            if best is None or order > best[0]:
                best = (order, number)
        ttl = self.TTL[view]
        return None if best is None or (ttl is not None and best[0][0] < moment - ttl) else best[1]


def moments_of(hours: list[float | None]) -> pl.Series:
    return pl.Series([None if hour is None else at(hour) for hour in hours], dtype=pl.Datetime("us", "UTC"))


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    return Views(tmp_path_factory.mktemp("views"))


some_keys = st.fixed_dictionaries(
    {"driver_id": st.sampled_from([1, 2, None]), "customer_id": st.sampled_from(["x", "y", None])}
)
some_hours = st.integers(0, 9)
some_rows = st.lists(st.tuples(some_keys, some_hours, st.none() | some_hours), max_size=8)


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    tables=st.fixed_dictionaries(dict.fromkeys(Views.KEYS, some_rows)),
    asked=st.lists(st.tuples(some_keys, some_hours), min_size=1, max_size=6),
    known_only=st.booleans(),
    streamed=st.booleans(),
    full_names=st.booleans(),
)
def test_several_views_at_once_give_the_rows_that_the_definition_names(
    views: Views, tables: dict[str, Any], asked: list[Any], known_only: bool, streamed: bool, full_names: bool
) -> None:
    for view, rows in tables.items():
        views.write(view, rows)
    frame = pl.DataFrame(
        {
            "driver_id": pl.Series([keys["driver_id"] for keys, _ in asked], dtype=pl.Int64),
            "customer_id": pl.Series([keys["customer_id"] for keys, _ in asked], dtype=pl.String),
            "event_timestamp": moments_of([hour for _, hour in asked]),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        if streamed:
            patch.setattr(offline_store, "MAX_READ_BYTES", 0)
        job = views.store.get_historical_features(
            frame, features=Views.FEATURES, filter_by_created_timestamp=known_only, full_feature_names=full_names
        )
        found = job.to_polars()
    assert found.select(frame.columns).equals(frame)
    for view, rows in tables.items():
        numbers = [views.expected(view, rows, one, known_only) for one in asked]
        prefix = f"{view}__" if full_names else ""
        assert found[f"{prefix}{view}_row"].to_list() == numbers, view
        if view == "by_pair":
            tags = [None if number is None else [str(number)] * (number % 3) for number in numbers]
            assert found[f"{prefix}by_pair_tags"].to_list() == tags
        if view == "by_customer":
            halves = [None if number is None else number / 2 for number in numbers]
            assert found[f"{prefix}by_customer_again"].to_list() == halves


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import boto3

    boto3.client("s3").create_bucket(Bucket="features")
    yield f"s3://features/{uuid.uuid4().hex}"  # the servers of one process share what they hold
    server.stop()


@pytest.fixture(
    params=[pytest.param("parquet", marks=pytest.mark.slow), pytest.param("folder", marks=pytest.mark.slow), "delta"]
)
def remote(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> World:
    return World(tmp_path, OURS, request.param, root=bucket)


def test_s3_is_read_appended_to_and_saved_to(remote: World, bucket: str) -> None:
    asked = entities((1, "x", 3), (2, "x", 4))
    assert _plain(remote.join(asked, ["rates:rate", "orders:success"])["rate"]) == [0.2, 0.3]
    new = pd.DataFrame(
        {"rate": [0.9], "created": [at(8)], "driver_id": [1], "event_timestamp": [at(8)], "places": [["z"]]}
    )
    remote.store.write_to_offline_store("rates", new)
    assert _plain(remote.join(entities((1, "x", 7), (1, "x", 8)), ["rates:rate"])["rate"]) == [0.2, 0.9]
    target = SavedDatasetFileStorage(
        path=f"{bucket}/saved", file_format=DeltaFormat() if remote.kind == "delta" else ParquetFormat()
    )
    job = remote.store.get_historical_features(entity_df=asked, features=["rates:rate", "orders:success"])
    saved = remote.store.create_saved_dataset(from_=job, name="saved", storage=target)
    assert sorted(saved.to_df()["rate"]) == [0.2, 0.3]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(target)
    smaller = remote.store.get_historical_features(asked.head(1), features=["rates:rate", "orders:success"])
    smaller.persist(target, allow_overwrite=True)
    assert remote.store.get_saved_dataset("saved").to_df()["rate"].tolist() == [0.2]


def test_features_are_logged_to_s3(bucket: str, tmp_path: Path) -> None:
    world = World(tmp_path, OURS, "parquet", root=bucket)
    for _ in range(2):
        world.store.write_logged_features(logs_of(world), world.logged)
    assert read_logs(world)["__request_id"].tolist() == ["r1", "r1", "r2", "r2"]


@pytest.mark.parametrize("kind", first_daily(["delta", "parquet", "folder"]))
def test_a_source_names_its_own_endpoint(
    kind: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody answers there
    world = World(tmp_path, OURS, kind, root=bucket, endpoint=endpoint)
    new = pd.DataFrame(
        {"rate": [0.9], "created": [at(8)], "driver_id": [1], "event_timestamp": [at(8)], "places": [["z"]]}
    )
    world.store.write_to_offline_store("rates", new)
    asked = entities((1, "x", 7), (1, "x", 8))
    assert _plain(world.join(asked, ["rates:rate"])["rate"]) == [0.2, 0.9]
    target = SavedDatasetFileStorage(path=f"{bucket}/saved", s3_endpoint_override=endpoint)
    for rows in (asked, asked.head(1)):
        job = world.store.get_historical_features(entity_df=rows, features=["rates:rate"])
        job.persist(target, allow_overwrite=True)
    saved = offline_store.scan(target.to_data_source(), None).collect()
    assert saved["rate"].to_list() == [0.2]
    world.store.write_logged_features(logs_of(world), world.logged)
    assert len(read_logs(world)) == 2


def test_a_source_names_its_own_credentials(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feast.credentials import ConnectionRef

    World(tmp_path, OURS, "parquet", root=bucket)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    given = {"AWS_ACCESS_KEY_ID": "named", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1"}
    monkeypatch.setattr(FileSource, "resolve_credentials", lambda self: given if self.connection_ref else None)
    source = FileSource(
        path=f"{bucket}/rates.parquet",
        timestamp_field="event_timestamp",
        connection_ref=ConnectionRef(provider="env", name="AWS"),
    )
    assert len(offline_store.scan(source, None).collect()) == 5
    options = storage.storage_options(source.path, offline_store._access(source))
    assert (options["aws_access_key_id"], options["aws_region"]) == ("named", "eu-west-1")


def test_an_overwritten_folder_holds_none_of_the_old_rows(parquet: World) -> None:
    folder = parquet.folder / "old"
    folder.mkdir()
    for name in ("a", "b"):
        pl.DataFrame({"rate": [9.9], "driver_id": [9]}).write_parquet(folder / f"{name}.parquet")
    target = SavedDatasetFileStorage(path=str(folder))
    job = parquet.store.get_historical_features(entity_df=entities((1, "x", 3)), features=["rates:rate"])
    job.persist(target, allow_overwrite=True)
    assert offline_store.scan(target.to_data_source(), None).collect()["rate"].to_list() == [0.2]


def test_a_file_without_the_ending_is_still_one_file(parquet: World) -> None:
    source = parquet.rates.batch_source
    bare = parquet.folder / "bare"
    Path(source.path).rename(bare)
    parquet.rates.batch_source.file_options.uri = str(bare)
    parquet.store.apply([parquet.rates])
    new = pd.DataFrame(
        {"rate": [0.9], "created": [at(8)], "driver_id": [1], "event_timestamp": [at(8)], "places": [["z"]]}
    )
    parquet.store.write_to_offline_store("rates", new)
    assert bare.is_file()
    assert _plain(parquet.join(entities((1, "x", 7), (1, "x", 8)), ["rates:rate"])["rate"]) == [0.2, 0.9]


def test_a_pattern_is_read_and_not_appended_to(parquet: World) -> None:
    source = FileSource(
        name="pattern",
        path=str(parquet.folder / "rat*.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    assert len(offline_store.scan(source, None).collect()) == 5
    parquet.rates.batch_source = source
    with pytest.raises(ValueError, match="name the folder"):
        offline_store.PolarsOfflineStore.offline_write_batch(
            parquet.store.config, parquet.rates, _rates().to_arrow(), None
        )


def test_relative_delta_paths_are_inferred_from_and_written_to(tmp_path: Path) -> None:
    from deltalake import write_deltalake

    write_deltalake(tmp_path / "tables" / "rates", _rates())
    store = bare_store(tmp_path, repo_path=tmp_path)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(
        name="rates",
        path="tables/rates",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    store.apply([driver, source, FeatureView(name="rates", entities=[driver], source=source)])
    view = store.get_feature_view("rates")
    assert {field.name: field.dtype for field in view.features} == {"rate": Float64, "places": Array(String)}
    store.write_to_offline_store("rates", _rates().to_pandas())
    assert len(offline_store.scan(source, tmp_path).collect()) == 10


def bare_store(folder: Path, **options: Any) -> FeatureStore:
    return FeatureStore(
        config=RepoConfig(
            project="bare",
            provider="local",
            registry=str(folder / "bare.db"),
            offline_store={"type": OURS},
            online_store={"type": "sqlite", "path": str(folder / "bare_online.db")},
            entity_key_serialization_version=3,
            **options,
        )
    )


def view_of(folder: Path, rows: pl.DataFrame, **source: Any) -> tuple[FeatureStore, FeatureView]:
    """A store with one view `view` over these rows, keyed by `driver_id`."""
    named = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created", **source}
    if "path" not in named:
        rows.write_parquet(folder / "rows.parquet")
        named["path"] = str(folder / "rows.parquet")
    store = bare_store(folder)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    found = FileSource(name="rows", **named)
    view = FeatureView(
        name="view",
        entities=[driver],
        source=found,
        schema=[Field(name="driver_id", dtype=Int64), Field(name="rate", dtype=Float64)],
    )
    store.apply([driver, found, view])
    return store, view


def rates_of(store: FeatureStore, asked: pd.DataFrame, **options: Any) -> list[Any]:
    job = store.get_historical_features(asked, features=["view:rate"], filter_by_created_timestamp=True, **options)
    return _plain(job.to_df()["rate"])


@pytest.mark.parametrize("form", ["date", "text", "naive", "nanoseconds"])
def test_moments_of_the_table_come_in_every_form(tmp_path: Path, form: str) -> None:
    days = [at(24 * day) for day in (0, 1, 2, 0, 1)]
    known = [at(24 * day) for day in (0, 1, 2, 0, 0)]
    rows = _rates().drop("places").with_columns(event_timestamp=pl.Series(days), created=pl.Series(known))
    forms = {
        "date": pl.col("event_timestamp", "created").dt.date(),
        "text": pl.col("event_timestamp", "created").dt.to_string("%Y-%m-%dT%H:%M:%SZ"),
        "naive": pl.col("event_timestamp", "created").dt.replace_time_zone(None),
        "nanoseconds": pl.col("event_timestamp", "created").dt.cast_time_unit("ns"),
    }
    store, view = view_of(tmp_path, rows.with_columns(forms[form]))
    asked = entities((1, "x", 23), (1, "x", 24), (1, "x", 100), (2, "x", -1))
    assert rates_of(store, asked) == [0.1, 0.2, 0.25, None]
    found = store.get_historical_features(None, features=["view:rate"], start_date=at(24), end_date=at(48)).to_df()
    assert sorted(found["rate"]) == [0.2, 0.25, 0.4]
    latest = store.provider.offline_store.pull_latest_from_table_or_query(
        store.config, view.batch_source, ["driver_id"], ["rate"], "event_timestamp", "created", at(0), at(24)
    ).to_df()
    assert latest["rate"].tolist() == [0.2, 0.4]


def test_the_moment_may_have_another_name_in_the_table(tmp_path: Path) -> None:
    rows = _rates().drop("places").rename({"event_timestamp": "happened", "created": "seen"})
    names = {"timestamp_field": "happened", "created_timestamp_column": "seen"}
    store, _ = view_of(tmp_path, rows, **names, field_mapping={"happened": "moment"})
    assert rates_of(store, entities((1, "x", 3), (1, "x", 9))) == [0.25, 0.2]


def test_several_views_of_one_source_join_it_each_for_itself(parquet: World) -> None:
    driver = parquet.store.get_entity("driver")
    source = parquet.rates.batch_source
    short = FeatureView(
        name="short",
        entities=[driver],
        ttl=timedelta(hours=1),
        source=source,
        schema=[Field(name="driver_id", dtype=Int64), Field(name="rate", dtype=Float64)],
    )
    parquet.store.apply([short])
    found = parquet.join(
        entities((1, "x", 2.5), (1, "x", 9)), ["rates:rate", "short:rate", "rates:places"], full_feature_names=True
    )
    assert _plain(found["rates__rate"]) == [0.2, 0.2]
    assert _plain(found["short__rate"]) == [0.2, None]


def test_empty_entity_frames_and_empty_tables_give_empty_columns(tmp_path: Path) -> None:
    store, view = view_of(tmp_path, _rates().drop("places"))
    nobody = entities((1, "x", 3)).head(0)
    job = store.get_historical_features(nobody, features=["view:rate"])
    assert job.to_arrow().schema.field("rate").type == pa.float64()
    assert len(job.to_df()) == 0
    _rates().drop("places").clear().write_parquet(view.batch_source.path)
    assert rates_of(store, entities((1, "x", 3))) == [None]
    found = store.get_historical_features(None, features=["view:rate"], start_date=at(0), end_date=at(9)).to_df()
    assert found.columns.tolist() == ["driver_id", "event_timestamp", "rate"]
    assert len(found) == 0
    offline = store.provider.offline_store
    columns = (["driver_id"], ["rate"], "event_timestamp", "created", at(0), at(9))
    assert len(offline.pull_latest_from_table_or_query(store.config, view.batch_source, *columns).to_df()) == 0
    assert len(offline.pull_all_from_table_or_query(store.config, view.batch_source, *columns).to_df()) == 0


def test_without_an_entity_frame_the_order_of_the_entities_does_not_matter(parquet: World) -> None:
    driver, customer = parquet.store.get_entity("driver"), parquet.store.get_entity("customer")
    turned = FeatureView(
        name="turned",
        entities=[driver, customer],
        ttl=timedelta(0),
        source=parquet.store.get_feature_view("orders").batch_source,
        schema=[
            Field(name="customer_id", dtype=String),
            Field(name="driver_id", dtype=Int64),
            Field(name="success", dtype=Int64),
        ],
    )
    parquet.store.apply([turned])
    found = parquet.join(
        None, ["orders:success", "turned:success"], start_date=at(0), end_date=at(9), full_feature_names=True
    )
    assert found["orders__success"].tolist() == found["turned__success"].tolist() == [1, 0, 1]


def test_a_column_added_later_is_null_before(tmp_path: Path) -> None:
    from deltalake import write_deltalake

    old = _rates().drop("places", "rate")
    write_deltalake(tmp_path / "rows", old)
    new = pl.DataFrame({"driver_id": [1], "event_timestamp": [at(6)], "created": [at(6)], "rate": [0.6]})
    write_deltalake(tmp_path / "rows", new, mode="append", schema_mode="merge")
    store, _ = view_of(tmp_path, new, path=str(tmp_path / "rows"), file_format=DeltaFormat())
    assert rates_of(store, entities((1, "x", 3), (1, "x", 7), (2, "x", 7))) == [None, 0.6, None]


def commit(table: Path, *actions: dict[str, Any]) -> None:
    """A further commit of a Delta table, as another writer makes it."""
    log = table / "_delta_log"
    place = log / f"{len(list(log.glob('*.json'))):020}.json"
    place.write_text("\n".join(json.dumps(action) for action in actions))


def deletion_vector(rows: list[int]) -> dict[str, Any]:
    """The rows of a file that are gone, as Delta's protocol serializes them ("Deletion Vector Format"), inline."""
    bitmap = struct.pack("<IIHHI", 12346, 1, 0, len(rows) - 1, 16) + struct.pack(f"<{len(rows)}H", *rows)
    packed = struct.pack("<iqi", 1681511377, 1, 0) + bitmap
    python = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = base64.b85encode(packed + b"\0" * (-len(packed) % 4)).translate(bytes.maketrans(python, z85)).decode()
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(packed), "cardinality": len(rows)}


def test_rows_behind_a_deletion_vector_are_gone(tmp_path: Path) -> None:
    from deltalake import write_deltalake

    table = tmp_path / "rows"
    write_deltalake(table, _rates().drop("places"))
    first = [json.loads(line) for line in (table / "_delta_log" / f"{0:020}.json").read_text().splitlines()]
    add = next(action["add"] for action in first if "add" in action)
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    commit(
        table,
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
        {"remove": {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}},
        {"add": {**add, "deletionVector": deletion_vector([1, 4])}},
    )
    store, view = view_of(tmp_path, _rates(), path=str(table), file_format=DeltaFormat())
    assert rates_of(store, entities((1, "x", 1), (1, "x", 9), (2, "x", 9))) == [0.1, 0.25, 0.3]
    latest = store.provider.offline_store.pull_latest_from_table_or_query(
        store.config, view.batch_source, ["driver_id"], ["rate"], "event_timestamp", "created", at(0), at(9)
    ).to_df()
    assert latest["rate"].tolist() == [0.25, 0.3]


def test_a_table_with_mapped_columns_is_refused(tmp_path: Path) -> None:
    from deltalake import write_deltalake

    table = tmp_path / "rows"
    write_deltalake(table, _rates().drop("places"))
    store, _ = view_of(tmp_path, _rates(), path=str(table), file_format=DeltaFormat())
    commit(table, {"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}})
    with pytest.raises(Exception, match="column mapping"):
        rates_of(store, entities((1, "x", 3)))


def _plain(column: pd.Series) -> list[Any]:
    return [None if pd.isna(value) else value for value in column.tolist()]
