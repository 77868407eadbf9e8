"""The leak canary sings for every way in which the join, the training set or a feature table can see too much."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import LeakFoundError, StaleFeaturesError
from evensong.features import offline, offline_store, point_in_time, refresh
from evensong.features.shadow import rows_of, write_view
from evensong.features.store import feature_table_uri
from evensong.monitoring.leaks import KINDS
from evensong.pipelines import canary, features, training_set
from evensong.settings import Settings
from evensong.types import Frame, Night

AS_OF = datetime(2026, 1, 11, tzinfo=UTC)
NIGHT = Night(as_of=AS_OF)
match_rows = point_in_time.match_rows
Break = Callable[..., pl.Series]


def fill(home: Path, **options: object) -> Settings:
    """Ten days of twelve users and nine items; every fifth event arrives half a day late."""
    settings = Settings(home=home, **options)  # type: ignore[arg-type]
    lake, start = Lake(settings.lake), AS_OF - timedelta(days=10)
    ids = [f"i{n}" for n in range(9)]
    lake.append_new(
        "items",
        pl.DataFrame({"item_id": ids, "title": ids, "category_path": ["a > b"] * 9, "price": [1.5] * 9}).with_columns(
            event_timestamp=pl.lit(start)
        ),
    )
    rows = []
    for user in range(12):
        for step in range(14):
            moment = start + timedelta(hours=17 * step + user, minutes=7 * user)
            late = timedelta(hours=12) if (user + step) % 5 == 0 else timedelta()
            kind = "purchase" if step % 6 == 5 else "click"
            rows.append((f"u{user}", ids[(user * 5 + step * 2) % 9], kind, moment, moment + late))
    names = ["user_id", "item_id", "event_type", "event_timestamp", "created_timestamp"]
    lake.append_new("interactions", pl.DataFrame(rows, schema=names, orient="row"))
    return settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    made = fill(tmp_path_factory.mktemp("home"))
    features.build(made, NIGHT)
    return made


def sings(settings: Settings) -> str:
    """What the canary says when something is broken; a canary that stays silent fails the test."""
    with pytest.raises(LeakFoundError) as caught:
        canary.run(settings, NIGHT)
    told = storage.read_json(settings.run_uri(NIGHT.run_id, canary.RESULT))
    assert told["success"] is False
    assert told["problems"]
    assert told["message"] in str(caught.value)
    return str(told["problems"])


def test_sound_join_passes_and_says_what_was_planted(settings: Settings) -> None:
    told = storage.read_json(canary.run(settings, NIGHT))
    assert told["success"] is True
    assert set(KINDS) < told["planted"].keys()
    assert min(told["planted"].values()) >= 20
    assert told["rows_checked"] > 500
    assert "none leaked and none was lost" in told["message"]


def test_the_same_night_writes_the_same_bytes_and_leaves_the_real_tables_alone(settings: Settings) -> None:
    before = (
        Lake(settings.lake).versions(),
        [Lake(settings.lake).version(f"features/{view}") for view in refresh.declared_views(settings.features)],
    )
    first = storage.read_bytes(canary.run(settings, NIGHT))
    assert storage.read_bytes(canary.run(settings, NIGHT)) == first
    after = (
        Lake(settings.lake).versions(),
        [Lake(settings.lake).version(f"features/{view}") for view in refresh.declared_views(settings.features)],
    )
    assert after == before


def test_without_features_up_to_the_night_it_says_so(settings: Settings) -> None:
    with pytest.raises(StaleFeaturesError):
        canary.run(settings, Night(as_of=AS_OF + timedelta(days=3)))


def test_home_with_one_user_is_enough(tmp_path: Path) -> None:
    made = Settings(home=tmp_path)
    lake = Lake(made.lake)
    one = {"user_id": ["u"], "item_id": ["i"], "event_type": ["click"], "event_timestamp": [AS_OF - timedelta(days=3)]}
    lake.append_new("interactions", pl.DataFrame(one))
    features.build(made, NIGHT)
    assert storage.read_json(canary.run(made, NIGHT))["success"] is True


@pytest.mark.parametrize(
    "options",
    [
        {"split": {"positive_event_types": ["rating"], "min_value": {"rating": 4}, "holdout_days": 2.5}},
        {"split": {"training_days": 4, "ranker_days": 1}, "features": {"history_length": 3, "seen_length": 2}},
    ],
)
def test_other_settings_are_no_leak(tmp_path: Path, options: dict[str, Any]) -> None:
    made = fill(tmp_path, **options)
    features.build(made, NIGHT)
    assert storage.read_json(canary.run(made, NIGHT))["success"] is True


# ---------------------------------------------------------------- the join, broken


def breaks_matching(monkeypatch: pytest.MonkeyPatch, wrong: Break) -> None:
    monkeypatch.setattr(offline_store, "match_rows", wrong)


def altered(**changes: Any) -> Break:
    return lambda entities, rows, **options: match_rows(entities, rows, **options | changes)


def shifted(column: str, by: timedelta, *, on_features: bool) -> Break:
    def wrong(entities: Frame, rows: Frame, **options: Any) -> pl.Series:
        moved = pl.col(options["moment"] if not on_features else options[column]) + by
        if on_features:
            return match_rows(entities, rows.with_columns(moved), **options)
        return match_rows(entities.with_columns(moved), rows, **options)

    return wrong


def newest_of_the_key(entities: Frame, rows: Frame, **options: Any) -> pl.Series:
    (left, right), *_ = options["keys"].items()
    newest = rows.with_row_index("at").sort(options["event_timestamp"]).unique(right, keep="last").select(right, "at")
    return entities.join(newest, left_on=left, right_on=right, how="left", maintain_order="left")["at"]


def by_arrival(entities: Frame, rows: Frame, **options: Any) -> pl.Series:
    """The row that became known last, whatever it is about."""
    created = rows.with_columns(pl.max_horizontal(options["event_timestamp"], options["created_timestamp"]))
    return match_rows(
        entities, created.with_columns(pl.col("created_timestamp").alias(options["event_timestamp"])), **options
    )


def first_of_a_tie(entities: Frame, rows: Frame, **options: Any) -> pl.Series:
    """Of the rows of one moment the one that was known first."""
    epoch = datetime(2100, 1, 1, tzinfo=UTC)
    known = match_rows(entities, rows, **options)
    mirrored = epoch + (epoch - pl.col("created_timestamp"))
    found = match_rows(entities, rows.with_columns(mirrored), **options | {"known_only": False})
    events, created = rows[options["event_timestamp"]], rows["created_timestamp"]
    tie = events[known.fill_null(0)].eq(events[found.fill_null(0)])
    visible = created[found.fill_null(0)].le(entities[options["moment"]])
    return known.zip_with(~(known.is_not_null() & found.is_not_null() & tie & visible).fill_null(False), found)


def strips_keys(entities: Frame, rows: Frame, **options: Any) -> pl.Series:
    (left, right), *_ = options["keys"].items()
    tidy = rows.with_columns(pl.col(right).str.strip_chars().str.to_lowercase())
    return match_rows(entities.with_columns(pl.col(left).str.strip_chars().str.to_lowercase()), tidy, **options)


def nulls_equal(entities: Frame, rows: Frame, **options: Any) -> pl.Series:
    (left, right), *_ = options["keys"].items()
    filled = rows.with_columns(pl.col(right).fill_null("nobody"))
    return match_rows(entities.with_columns(pl.col(left).fill_null("nobody")), filled, **options)


def strictly_before(entities: Frame, rows: Frame, **options: Any) -> pl.Series:
    earlier = entities.with_columns(pl.col(options["moment"]) - timedelta(microseconds=1))
    return match_rows(earlier, rows, **options)


BROKEN: dict[str, Break] = {
    "ignores when a row became known": altered(known_only=False),
    "ignores the time to live": altered(ttl=None),
    "forgets after a week": altered(ttl=timedelta(days=7)),
    "sees the label's own moment": shifted("", timedelta(microseconds=1), on_features=False),
    "does not see the last moment": strictly_before,
    "takes the newest row there is": newest_of_the_key,
    "takes the row that arrived last": by_arrival,
    "takes the first of a tie": first_of_a_tie,
    "reads the moments as of another zone": shifted("", timedelta(hours=1), on_features=False),
    "reads the features as of another zone": shifted("event_timestamp", timedelta(hours=-5.5), on_features=True),
    "reads arrivals as of another zone": shifted("created_timestamp", timedelta(hours=-1), on_features=True),
    "matches nearly equal keys": strips_keys,
    "matches a null with a null": nulls_equal,
    "gives the row of the neighbour": lambda entities, rows, **options: match_rows(entities, rows, **options).shift(1),
    "loses every tenth match": lambda entities, rows, **options: match_rows(entities, rows, **options).set(
        pl.Series([i % 10 == 9 for i in range(len(entities))]), None
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_join_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    breaks_matching(monkeypatch, BROKEN[how])
    sings(settings)


def test_join_that_fills_nulls_from_older_rows_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    join = offline.FeatureReader.join

    def filled(self: offline.FeatureReader, entities: Frame, service: str, *, of: str | None = None) -> Frame:
        if of == "item_id":
            return join(self, entities, service, of=of)
        rows = join(self, entities, service, of=of).with_row_index("at").sort("user_id", "event_timestamp")
        return rows.with_columns(pl.col("num_interactions").forward_fill().over("user_id")).sort("at").drop("at")

    monkeypatch.setattr(offline.FeatureReader, "join", filled)
    sings(settings)


def wraps_the_join(monkeypatch: pytest.MonkeyPatch, change: Callable[[Frame], Frame]) -> None:
    join = offline.FeatureReader.join

    def wrapped(self: offline.FeatureReader, rows: Frame, service: str, *, of: str | None = None) -> Frame:
        joined = join(self, rows, service, of=of)
        # of items alone there is no user to be wrong about
        return joined if of == "item_id" else change(joined)

    monkeypatch.setattr(offline.FeatureReader, "join", wrapped)


@pytest.mark.parametrize(
    ("how", "change"),
    [
        ("one row a user and moment", lambda rows: rows.unique(["user_id", "event_timestamp"], maintain_order=True)),
        ("drops rows without features", lambda rows: rows.drop_nulls("num_interactions")),
        ("sorts by user", lambda rows: rows.sort("user_id", nulls_last=True)),
        ("repeats a row", lambda rows: pl.concat([rows, rows.tail(1)])),
        ("forgets a feature", lambda rows: rows.drop("num_events_7d")),
    ],
)
def test_lost_and_misplaced_rows_are_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str, change: Callable[[Frame], Frame]
) -> None:
    wraps_the_join(monkeypatch, change)
    sings(settings)


# ---------------------------------------------------------------- the training set, broken


def test_label_that_sees_its_own_moment_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_set, "INSTANT", timedelta(0))
    assert "the planted row of the same moment" in sings(settings)


def test_items_of_the_holdout_as_candidates_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    right = training_set._items
    monkeypatch.setattr(training_set, "_items", lambda settings, reader, _: right(settings, reader, AS_OF))
    assert "row of items_train: canary-item-of-the-holdout came 1 times, expected 0" in sings(settings)


def test_item_features_of_the_future_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    right = training_set._features_at

    def wrong(reader: Any, ids: Frame, moment: datetime, service: str, entity: str) -> Frame:
        return right(reader, ids, AS_OF if entity == "item" else moment, service, entity)

    monkeypatch.setattr(training_set, "_features_at", wrong)
    assert "items_train" in sings(settings)


def test_held_out_users_seen_at_as_of_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    right = training_set._holdout_users
    monkeypatch.setattr(training_set, "_holdout_users", lambda s, reader, labels, _: right(s, reader, labels, AS_OF))
    assert "users_holdout" in sings(settings)


def test_filters_that_know_the_holdout_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    right = refresh.seen_at
    monkeypatch.setattr(refresh, "seen_at", lambda settings, _: right(settings, AS_OF))
    assert "met later" in sings(settings)


def test_label_that_was_not_known_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Lake.scan

    def blind(self: Lake, table: str, as_of: datetime | None = None, *, version: int | None = None) -> pl.LazyFrame:
        rows = right(self, table, None, version=version)
        return rows if as_of is None else rows.filter(pl.col("event_timestamp") <= as_of)

    monkeypatch.setattr(Lake, "scan", blind)
    assert "canary-user-unknown" in sings(settings)


# ---------------------------------------------------------------- the tables, broken


@dataclasses.dataclass(frozen=True)
class Spoiled:
    """One way in which a feature table says what was not known."""

    view: str
    change: Callable[[Frame], Frame]


SPOILED = {
    "counts one event more": Spoiled("user_history", lambda rows: rows.with_columns(pl.col("num_interactions") + 1)),
    "history with the next item": Spoiled(
        "user_history",
        lambda rows: rows.sort("user_id", "event_timestamp").with_columns(
            pl.col("recent_item_ids").shift(-1).over("user_id").fill_null(pl.col("recent_item_ids"))
        ),
    ),
    "window of the next day": Spoiled("item_popularity", lambda rows: rows.with_columns(pl.col("item_events_1d") + 1)),
    "stamped an hour early": Spoiled(
        "user_activity", lambda rows: rows.with_columns(pl.col("event_timestamp") - timedelta(hours=1))
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_feature_table_that_knows_too_much_is_caught(tmp_path: Path, how: str) -> None:
    made = fill(tmp_path)
    features.build(made, NIGHT)
    spoiled = SPOILED[how]
    rows = rows_of(made, spoiled.view).collect()
    assert feature_table_uri(made, spoiled.view).startswith(str(tmp_path))
    write_view(made, spoiled.view, spoiled.change(rows))
    assert f"the table {spoiled.view}" in sings(made)
