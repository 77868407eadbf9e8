"""The leak canary sings for every way in which the join, the training set or a feature table can see too much."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.variants import first_daily

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import LeakFoundError, StaleFeaturesError
from evensong.features import (
    materialization_engine,
    materialize,
    offline,
    offline_store,
    online,
    point_in_time,
    refresh,
)
from evensong.features.shadow import rows_of, write_view
from evensong.features.store import feature_table_uri
from evensong.monitoring.leaks import KINDS
from evensong.pipelines import canary, canary_heavy, features, train, training_set
from evensong.settings import Settings
from evensong.types import Frame, Night

AS_OF = datetime(2026, 1, 11, tzinfo=UTC)
NIGHT = Night(as_of=AS_OF)
match_rows = point_in_time.match_rows
Break = Callable[..., pl.Series]


def fill(home: Path, **options: object) -> Settings:
    """Ten days of twelve users and nine items; every fifth event arrives half a day late, and so do prices and ages."""
    settings = Settings(home=home, **options)  # type: ignore[arg-type]
    lake, start = Lake(settings.lake), AS_OF - timedelta(days=10)
    ids = [f"i{n}" for n in range(9)]
    paths = [("a > b", "a > c", "d")[n % 3] for n in range(9)]
    items = pl.DataFrame(
        {"item_id": ids, "title": ids, "category_path": paths, "price": [1.5 + n % 4 for n in range(9)]}
    )
    raised = items.with_columns(pl.col("price") * 2).head(4)
    late = pl.lit(start + timedelta(days=6)).alias("event_timestamp")
    known = pl.lit(start + timedelta(days=7)).alias("created_timestamp")
    lake.append_new("items", items.with_columns(event_timestamp=pl.lit(start)))
    lake.append_new("items", raised.with_columns(late, known))
    ages = pl.DataFrame({"user_id": [f"u{n}" for n in range(12)], "attributes": ['{"age": 17}', '{"age": 33}'] * 6})
    lake.append_new("users", ages.with_columns(event_timestamp=pl.lit(start)))
    lake.append_new("users", ages.reverse().with_columns(attributes=pl.lit('{"age": 60}')).with_columns(late, known))
    rows = []
    for user in range(12):
        for step in range(14):
            moment = start + timedelta(hours=17 * step + user, minutes=7 * user)
            late_by = timedelta(hours=12) if (user + step) % 5 == 0 else timedelta()
            kind = ("view", "cart", "click", "view", "click", "purchase")[step % 6]
            rows.append((f"u{user}", ids[(user * 5 + step * 2) % 9], kind, 2.5 * step, moment, moment + late_by))
    names = ["user_id", "item_id", "event_type", "value", "event_timestamp", "created_timestamp"]
    lake.append_new("interactions", pl.DataFrame(rows, schema=names, orient="row"))
    return settings


def only(monkeypatch: pytest.MonkeyPatch, *checks: str) -> None:
    """Leave out the other checks: what is broken is to be found by these alone."""
    for check in {"_stamps", "_tables", "_views", "_training_set", "_probes", "_short_lived"} - set(checks):
        monkeypatch.setattr(canary, check, lambda *_: None)


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
    assert min(told["planted"][kind] for kind in KINDS) >= 20
    assert {"raw: late-arriving", "raw: late-arriving, items", "raw: late-arriving, users"} < told["planted"].keys()
    assert told["rows_checked"] > 5000
    assert "none leaked and none was lost" in told["message"]


@pytest.mark.slow
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


def test_without_features_up_to_the_night_it_says_so_and_no_earlier_pass_stands(settings: Settings) -> None:
    night = Night(as_of=AS_OF + timedelta(days=3))
    place = storage.write_json(settings.run_uri(night.run_id, canary.RESULT), {"success": True})
    with pytest.raises(StaleFeaturesError):
        canary.run(settings, night)
    assert not storage.exists(place)


@pytest.mark.slow
def test_home_with_one_user_is_enough(tmp_path: Path) -> None:
    made = Settings(home=tmp_path)
    lake = Lake(made.lake)
    one = {"user_id": ["u"], "item_id": ["i"], "event_type": ["click"], "event_timestamp": [AS_OF - timedelta(days=3)]}
    lake.append_new("interactions", pl.DataFrame(one))
    features.build(made, NIGHT)
    assert storage.read_json(canary.run(made, NIGHT))["success"] is True


@pytest.mark.slow
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


#: The others run among the slow tests.
EVERY_DAY = {
    *("ignores when a row became known", "takes the newest row there is"),
    *("user_history with the values of later", "spend of a later purchase", "newest rows lost", "items lost"),
}


@pytest.mark.parametrize(
    "how", [how if how in EVERY_DAY else pytest.param(how, marks=pytest.mark.slow) for how in BROKEN]
)
def test_broken_join_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    only(monkeypatch, "_training_set", "_probes", "_short_lived")
    breaks_matching(monkeypatch, BROKEN[how])
    sings(settings)


def test_join_that_fills_nulls_from_older_rows_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    join = offline.FeatureReader.join

    def filled(self: offline.FeatureReader, entities: Frame, service: str, *, of: str | None = None) -> Frame:
        if of == "item_id":
            return join(self, entities, service, of=of)
        rows = join(self, entities, service, of=of).with_row_index("at").sort("user_id", "event_timestamp")
        return rows.with_columns(pl.col("num_interactions").forward_fill().over("user_id")).sort("at").drop("at")

    only(monkeypatch, "_training_set", "_probes")
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
    first_daily(
        [
            (
                "one row a user and moment",
                lambda rows: rows.unique(["user_id", "event_timestamp"], maintain_order=True),
            ),
            ("drops rows without features", lambda rows: rows.drop_nulls("num_interactions")),
            ("sorts by user", lambda rows: rows.sort("user_id", nulls_last=True)),
            ("repeats a row", lambda rows: pl.concat([rows, rows.tail(1)])),
            ("forgets a feature", lambda rows: rows.drop("num_events_7d")),
        ],
        1,
    ),
)
def test_lost_and_misplaced_rows_are_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str, change: Callable[[Frame], Frame]
) -> None:
    only(monkeypatch, "_training_set", "_probes")
    wraps_the_join(monkeypatch, change)
    sings(settings)


@pytest.mark.parametrize("entity", first_daily(["user_id", "item_id"]))
def test_join_that_is_wrong_for_one_key_alone_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, entity: str
) -> None:
    join = offline.FeatureReader.join

    def wrong(self: offline.FeatureReader, rows: Frame, service: str, *, of: str | None = None) -> Frame:
        if of != entity:
            return join(self, rows, service, of=of)
        later = rows.with_columns(pl.col("event_timestamp") + timedelta(hours=2))
        return join(self, later, service, of=of).with_columns(rows["event_timestamp"])

    only(monkeypatch, "_probes")
    monkeypatch.setattr(offline.FeatureReader, "join", wrong)
    assert f"a probe of the {entity} alone" in sings(settings)


# ---------------------------------------------------------------- the training set, broken


def test_label_that_sees_its_own_moment_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    monkeypatch.setattr(training_set, "INSTANT", timedelta(0))
    assert "the planted row of the same moment" in sings(settings)


def test_items_of_the_holdout_as_candidates_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    right = training_set._items
    monkeypatch.setattr(training_set, "_items", lambda settings, reader, _: right(settings, reader, AS_OF))
    assert "row of items_train: canary-item-of-the-holdout came 1 times, expected 0" in sings(settings)


def test_item_features_of_the_future_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    right = training_set._features_at

    def wrong(reader: Any, ids: Frame, moment: datetime, service: str, entity: str) -> Frame:
        return right(reader, ids, AS_OF if entity == "item" else moment, service, entity)

    monkeypatch.setattr(training_set, "_features_at", wrong)
    assert "items_train" in sings(settings)


def test_held_out_users_seen_at_as_of_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    right = training_set._holdout_users
    monkeypatch.setattr(training_set, "_holdout_users", lambda s, reader, labels, _: right(s, reader, labels, AS_OF))
    assert "users_holdout" in sings(settings)


def test_filters_that_know_the_holdout_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    right = refresh.seen_at
    monkeypatch.setattr(refresh, "seen_at", lambda settings, _: right(settings, AS_OF))
    assert "met later" in sings(settings)


def test_label_that_was_not_known_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    right = Lake.scan

    def blind(self: Lake, table: str, as_of: datetime | None = None, *, version: int | None = None) -> pl.LazyFrame:
        rows = right(self, table, None, version=version)
        return rows if as_of is None else rows.filter(pl.col("event_timestamp") <= as_of)

    monkeypatch.setattr(Lake, "scan", blind)
    assert "canary-user-unknown" in sings(settings)


def broken_targets(change: Callable[[Frame, Frame], Frame]) -> Callable[..., Frame]:
    right = training_set._targets
    return lambda settings, labels, users: change(right(settings, labels, users), labels)


@pytest.mark.parametrize(
    ("how", "change"),
    first_daily(
        [
            (
                "what the policy was bound to show",
                lambda rows, labels: pl.concat([rows, held_out(labels, "canary-item-bound")]),
            ),
            ("what is seen already", lambda rows, labels: pl.concat([rows, held_out(labels, "canary-item-00")])),
            ("not what was lost", lambda rows, labels: rows.head(-1)),
            (
                "what was wanted before",
                lambda rows, labels: rows.with_columns(pl.col("event_timestamp") - timedelta(days=2)),
            ),
        ],
        1,
    ),
)
def test_models_judged_by_something_else_are_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str, change: Callable[[Frame, Frame], Frame]
) -> None:
    only(monkeypatch, "_training_set")
    monkeypatch.setattr(training_set, "_targets", broken_targets(change))
    assert "target: " in sings(settings)


def test_models_that_learn_from_the_holdout_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    right = train.read_labels
    monkeypatch.setattr(train, "read_labels", lambda settings, uri, final: right(settings, uri, True))
    assert "label that a model of before the holdout learns" in sings(settings)


def test_other_users_are_looked_at_on_another_night(settings: Settings) -> None:
    few = settings.model_copy(update={"quality": settings.quality.model_copy(update={"canary_users": 4})})
    nights = [Night(as_of=AS_OF - timedelta(hours=hours)) for hours in range(0, 48, 8)]
    drawn = [tuple(canary.worlds.sample(few, night).users) for night in nights]
    assert len(set(drawn)) > 2
    assert drawn[0] == tuple(canary.worlds.sample(few, NIGHT).users)


def held_out(labels: Frame, item_id: str) -> Frame:
    mine = labels.filter((pl.col("item_id") == item_id) & (pl.col("part") == "holdout")).head(1)
    return mine.select("user_id", "item_id", "event_timestamp", "event_type")


def test_holdout_that_begins_elsewhere_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_training_set")
    right = training_set._meta
    moved = {"holdout_start": AS_OF.isoformat()}
    monkeypatch.setattr(training_set, "_meta", lambda *arguments: right(*arguments) | moved)
    assert "start of the holdout" in sings(settings)


# ---------------------------------------------------------------- the tables, broken


@dataclasses.dataclass(frozen=True)
class Spoiled:
    """One way in which a feature table says what was not known."""

    view: str
    change: Callable[[Frame], Frame]


def later_values(view: str) -> Spoiled:
    """Each row says what the key's next one says."""

    def change(rows: Frame) -> Frame:
        (entity,) = [name for name in rows.columns if name in ("user_id", "item_id")]
        names = [name for name in rows.columns if name not in (entity, "event_timestamp", "created_timestamp")]
        rows = rows.sort(entity, "event_timestamp")
        return rows.with_columns(pl.col(name).shift(-1).over(entity).fill_null(pl.col(name)) for name in names)

    return Spoiled(view, change)


ACTIVE = [
    *("user_history", "user_activity", "user_profile", "user_dynamics", "user_sequence", "user_seen"),
    *("item_popularity", "item_content", "item_standing", "item_conversion"),
]
SPOILED = {
    **{f"{view} with the values of later": later_values(view) for view in ACTIVE},
    "counts one event more": Spoiled("user_history", lambda rows: rows.with_columns(pl.col("num_interactions") + 1)),
    "window of the next day": Spoiled("item_popularity", lambda rows: rows.with_columns(pl.col("item_events_1d") + 1)),
    "stamped an hour early": Spoiled(
        "user_activity",
        lambda rows: rows.with_columns(
            pl.col(name) - timedelta(hours=1) for name in ("event_timestamp", "created_timestamp")
        ),
    ),
    "taste of one event more": Spoiled(
        "user_dynamics", lambda rows: rows.with_columns(pl.col("decayed_events") + 0.01)
    ),
    "spend of a later purchase": Spoiled("user_dynamics", lambda rows: rows.with_columns(pl.col("spend_30d") + 1)),
    "steps in another order": Spoiled(
        "user_sequence", lambda rows: rows.with_columns(pl.col("sequence_item_ids").list.reverse())
    ),
    "age of the next birthday": Spoiled("user_profile", lambda rows: rows.with_columns(age_bucket=pl.lit("25 to 35"))),
    "price of the sale": Spoiled("item_content", lambda rows: rows.with_columns(pl.col("price") * 0.9)),
    "rank after the sale": Spoiled(
        "item_standing", lambda rows: rows.with_columns(price_rank=1 - pl.col("price_rank"))
    ),
    "views of tomorrow": Spoiled("item_conversion", lambda rows: rows.with_columns(pl.col("item_views_7d") + 1)),
    "newest rows lost": Spoiled(
        "user_sequence", lambda rows: rows.filter(pl.col("event_timestamp") < AS_OF - timedelta(days=3))
    ),
    "users lost": Spoiled("user_seen", lambda rows: rows.filter(pl.col("user_id") > "u3")),
    "items lost": Spoiled("item_content", lambda rows: rows.filter(pl.col("item_id") != "i1")),
}


@pytest.mark.parametrize(
    "how", [how if how in EVERY_DAY else pytest.param(how, marks=pytest.mark.slow) for how in SPOILED]
)
def test_feature_table_that_knows_too_much_or_too_little_is_caught(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    only(monkeypatch, "_tables")
    made, spoiled = copied(settings, tmp_path), SPOILED[how]
    rows = rows_of(made, spoiled.view).collect()
    assert feature_table_uri(made, spoiled.view).startswith(str(tmp_path))
    write_view(made, spoiled.view, spoiled.change(rows))
    assert f"the table {spoiled.view}" in sings(made)


def copied(settings: Settings, home: Path) -> Settings:
    """The same tables in another home."""
    shutil.copytree(settings.lake, home / "lake")
    return settings.model_copy(update={"home": home})


def heavy(settings: Settings, night: Night) -> list[canary_heavy.Heavy]:
    """The keys of many events that the night counts again."""
    many = canary._truth(settings, night, canary.worlds.sample(settings, night))[2]
    return canary_heavy.chosen(settings, night, many)


def only_of(entity: str, key: str, change: Callable[[Frame], Frame]) -> Callable[[Frame], Frame]:
    def changed(rows: Frame) -> Frame:
        return pl.concat([change(rows.filter(pl.col(entity) == key)), rows.filter(pl.col(entity) != key)])

    return changed


@pytest.mark.parametrize(
    "view",
    first_daily(
        ["user_dynamics", "user_history", "user_activity", "user_sequence", "item_popularity", "item_conversion"]
    ),
)
def test_value_of_the_future_on_a_key_of_many_events_is_caught(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    only(monkeypatch, "_tables")
    monkeypatch.setattr(canary, "MAX_EVENTS_PER_KEY", 0)
    entity, key = next(one[:2] for one in heavy(settings, NIGHT) if one.entity == f"{view.partition('_')[0]}_id")
    made = copied(settings, tmp_path)
    spoiled = only_of(entity, key, later_values(view).change)
    write_view(made, view, spoiled(rows_of(made, view).collect()))
    assert f"the table {view}" in sings(made)


@pytest.mark.parametrize(
    ("view", "name", "caught"),
    first_daily(
        [
            ("user_activity", "num_events_1d", True),
            ("item_conversion", "item_views_1d", True),
            ("user_activity", "num_events_30d", False),
            ("user_history", "num_interactions", False),
        ],
        1,
    ),
)
def test_key_of_too_many_events_is_counted_in_the_window_that_can_be_read(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, view: str, name: str, caught: bool
) -> None:
    only(monkeypatch, "_tables")
    monkeypatch.setattr(canary, "MAX_EVENTS_PER_KEY", 0)
    # a user has fourteen events, and four at most that were known for the last two days
    monkeypatch.setattr(canary_heavy, "MAX_HEAVY_EVENTS", 6)
    told = storage.read_json(canary.run(settings, NIGHT))
    assert told["success"] is True
    assert all("in windows of up to 1 days" in said for said in told["heavy_keys"])
    keys = {said.partition(":")[0].split(" ")[1] for said in told["heavy_keys"]}
    assert len(keys) == 2
    made = copied(settings, tmp_path)
    rows = rows_of(made, view).collect()
    mine = pl.any_horizontal(pl.col(column).is_in(keys) for column in rows.columns if column in ("user_id", "item_id"))
    write_view(made, view, rows.with_columns(pl.when(mine).then(pl.col(name) + 1).otherwise(pl.col(name)).alias(name)))
    if caught:
        assert f"the table {view}: {name} of " in sings(made)
    else:
        assert storage.read_json(canary.run(made, NIGHT))["success"] is True


def test_other_keys_of_many_events_are_looked_at_on_another_night(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heavy(settings, NIGHT) == []  # nobody here has so many
    monkeypatch.setattr(canary, "MAX_EVENTS_PER_KEY", 0)
    nights = [NIGHT.model_copy(update={"seed": seed}) for seed in range(4)]
    assert len({one.key for night in nights for one in heavy(settings, night)}) > 3


def test_statistic_of_an_item_that_counts_what_its_users_are_is_no_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "_tables")
    columns = tmp_path / "columns.yaml"
    columns.write_text(
        "statistics: [{name: age_of_fans, entity: item, kind: window, window_days: 9, "
        "column: user.attributes.age, function: mean}]"
    )
    # two of the twelve users are in the sample, and the others have met the items too
    made = fill(tmp_path / "home", features={"columns_path": columns}, quality={"canary_users": 2})
    features.build(made, NIGHT)
    assert storage.read_json(canary.run(made, NIGHT))["success"] is True


STAMPED = {
    "of another moment": (["event_timestamp"], pl.col("event_timestamp") - timedelta(hours=1)),
    "of no moment": (["event_timestamp", "created_timestamp"], pl.lit(None)),
    "of after the tables' end": (["event_timestamp", "created_timestamp"], pl.lit(AS_OF + timedelta(days=1))),
    "of nobody": (["user_id"], pl.lit(None)),
}


@pytest.mark.parametrize("how", first_daily(STAMPED))
def test_one_row_is_found_whoever_is_in_the_sample(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    only(monkeypatch, "_stamps")
    made = copied(settings, tmp_path)
    names, value = STAMPED[how]
    rows = rows_of(made, "user_dynamics").collect()
    one = pl.int_range(pl.len()) == 40
    changed = rows.with_columns(pl.when(one).then(value).otherwise(pl.col(name)).alias(name) for name in names)
    write_view(made, "user_dynamics", changed)
    assert "the table user_dynamics holds 1 rows" in sings(made)


def test_table_that_lost_what_arrived_late_is_caught(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are those of a shop in which nothing had come late; each is true of some moment, and none is missing."""
    only(monkeypatch, "_tables")
    made = copied(settings, tmp_path)
    lake = Lake(made.lake)
    rows = lake.read("interactions")
    lake.replace("interactions", rows.with_columns(created_timestamp=pl.col("event_timestamp")))
    features.build(made, NIGHT)
    lake.replace("interactions", rows)
    assert "leaked: the table user_history" in sings(made)


# ---------------------------------------------------------------- the view functions, broken


def breaks_view(monkeypatch: pytest.MonkeyPatch, settings: Settings, spoiled: Spoiled) -> None:
    """The night's step computes a view wrongly, in the shadow as it would in the lake."""
    right = features.build

    def build(of: Settings, night: Night) -> dict[str, int]:
        versions = right(of, night)
        if of.lake != settings.lake:
            write_view(of, spoiled.view, spoiled.change(rows_of(of, spoiled.view).collect()))
        return versions

    monkeypatch.setattr(features, "build", build)


@pytest.mark.parametrize(
    "view", ["user_seen", *(pytest.param(view, marks=pytest.mark.slow) for view in ("user_dynamics", "item_standing"))]
)
def test_view_that_looks_ahead_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch, view: str) -> None:
    only(monkeypatch, "_views")
    breaks_view(monkeypatch, settings, later_values(view))
    assert f"the view {view} of planted rows" in sings(settings)


def breaks_build(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, before: Callable[[Settings, Frame], Frame]
) -> None:
    """The night's step sees other interactions than there are, in the shadow as it would in the lake."""
    right = features.build

    def build(of: Settings, night: Night) -> dict[str, int]:
        if of.lake == settings.lake:
            return right(of, night)
        lake = Lake(of.lake)
        rows = lake.read("interactions")
        lake.replace("interactions", before(of, rows))
        versions = right(of, night)
        lake.replace("interactions", rows)
        return versions

    monkeypatch.setattr(features, "build", build)


@pytest.mark.slow
def test_events_that_count_before_they_are_known_are_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "_views")
    breaks_build(monkeypatch, settings, lambda _, rows: rows.with_columns(created_timestamp=pl.col("event_timestamp")))
    assert "the view user_history of planted rows" in sings(settings)


@pytest.mark.slow
def test_events_of_another_moment_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that ends an instant later, for everybody."""
    only(monkeypatch, "_views")
    earlier = pl.col("event_timestamp") - timedelta(microseconds=1)
    breaks_build(monkeypatch, settings, lambda _, rows: rows.with_columns(earlier))
    assert "num_events_1d" in sings(settings)


@pytest.mark.slow
def test_late_events_that_never_count_are_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_views")
    late = pl.col("created_timestamp") > pl.col("event_timestamp") + timedelta(days=1)
    breaks_build(monkeypatch, settings, lambda _, rows: rows.filter(~late))
    assert "of planted rows" in sings(settings)


@pytest.mark.slow
def test_night_that_forgets_a_state_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The views go on from half of what they knew."""
    only(monkeypatch, "_views")

    def forget(of: Settings, rows: Frame) -> Frame:
        for path in Path(of.lake, "features", "states").rglob("*.parquet"):
            state = pl.read_parquet(path)
            state.head(len(state) // 2).write_parquet(path)
        return rows

    breaks_build(monkeypatch, settings, forget)
    assert "of planted rows" in sings(settings)


@pytest.mark.slow
def test_import_of_old_events_that_changes_nothing_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "_views")
    seen: list[str] = []

    def without_the_import(_: Settings, rows: Frame) -> Frame:
        seen[:] = seen or rows["session_id"].to_list()
        return rows.filter(pl.col("session_id").is_in(seen))

    breaks_build(monkeypatch, settings, without_the_import)
    assert "of planted rows" in sings(settings)


# ---------------------------------------------------------------- what is served, broken


@pytest.mark.slow
def test_night_that_serves_what_a_later_one_computed_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "_views")
    right = materialize.materialize
    monkeypatch.setattr(materialize, "materialize", lambda of, as_of: right(of, as_of + timedelta(hours=12)))
    assert "the online store" in sings(settings)


@pytest.mark.parametrize(
    "reader", ["seen", *(pytest.param(reader, marks=pytest.mark.slow) for reader in ("users", "items"))]
)
def test_online_store_that_gives_the_row_of_another_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    only(monkeypatch, "_views")
    right = getattr(online.OnlineFeatures, reader)

    def wrong(self: online.OnlineFeatures, ids: Any) -> Frame:
        rows = right(self, ids)
        return rows.with_columns(pl.exclude("user_id", "item_id").shift(1))

    monkeypatch.setattr(online.OnlineFeatures, reader, wrong)
    assert "the online store" in sings(settings)


def test_online_store_that_lost_keys_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "_views")
    right = offline_store.latest_rows
    monkeypatch.setattr(materialization_engine, "latest_rows", lambda *asked: right(*asked).head(3))
    assert "lost: the online store" in sings(settings)
