"""The training set: rows in = rows out, nothing from after the moment, what the filter hides is no target."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import NothingToLearnError, StaleFeaturesError
from evensong.features.offline import FeatureReader
from evensong.features.views import ITEM_FEATURES
from evensong.pipelines import features, training_set
from evensong.settings import Settings
from evensong.types import Frame, Night

DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
AS_OF = DAY0 + timedelta(days=10)


def at(days: float) -> datetime:
    return DAY0 + timedelta(days=days)


def world(home: Path, **options: object) -> Settings:
    """Ten days of two users; item `late` joins the catalogue on the last day."""
    settings = Settings(home=home, **options)  # type: ignore[arg-type]
    lake = Lake(settings.lake)
    items = [("a", 0.0), ("b", 0.0), ("c", 0.0), ("late", 9.5)]
    lake.append_new(
        "items",
        pl.DataFrame(
            {
                "item_id": [item for item, _ in items],
                "title": [f"The {item}" for item, _ in items],
                "category_path": ["Food"] * 4,
                "event_timestamp": [at(day) for _, day in items],
                "created_timestamp": [at(day) for _, day in items],
            }
        ),
    )
    rows = [
        ("u", "a", "click", 1.0, 1.0),
        ("u", "b", "click", 2.0, 2.0),
        ("v", "a", "click", 7.5, 7.5),
        ("v", "b", "impression", 7.6, 7.6),
        ("v", "c", "click", 8.0, 9.2),  # happened before the holdout, became known in it
        ("u", "a", "click", 9.3, 9.3),  # seen before: hidden by the filter
        ("u", "late", "purchase", 9.6, 9.6),
        ("u", "c", "click", 9.9, 10.5),  # not known at as_of
    ]
    lake.append_new(
        "interactions",
        pl.DataFrame(
            {
                "user_id": [row[0] for row in rows],
                "item_id": [row[1] for row in rows],
                "event_type": [row[2] for row in rows],
                "event_timestamp": [at(row[3]) for row in rows],
                "created_timestamp": [at(row[4]) for row in rows],
            }
        ),
    )
    return settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return world(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def built(settings: Settings) -> str:
    night = Night(as_of=AS_OF)
    features.build(settings, night)
    return training_set.build(settings, night)


def read(built: str, name: str) -> Frame:
    return storage.read_frame(storage.join(built, f"{name}.parquet"))


def test_every_label_has_one_row_and_its_part(built: str) -> None:
    rows = read(built, "examples").select("user_id", "item_id", "part").rows()
    assert rows == [
        ("u", "a", "retriever"),
        ("u", "b", "retriever"),
        ("v", "a", "ranker"),
        ("u", "a", "holdout"),
        ("u", "late", "holdout"),
    ]


def test_a_label_sees_what_was_known_strictly_before_it(built: str) -> None:
    examples = read(built, "examples")
    assert examples["recent_item_ids"].to_list() == [None, ["a"], None, ["a", "b"], ["a", "b", "a"]]
    assert examples["event_timestamp"].to_list() == [at(1), at(2), at(7.5), at(9.3), at(9.6)]


def test_items_are_those_known_at_each_cutoff(built: str) -> None:
    assert read(built, "items_train")["item_id"].to_list() == ["a", "b", "c"]
    final = read(built, "items_final")
    assert final["item_id"].to_list() == ["a", "b", "c", "late"]
    assert final["item_events_total"].to_list() == [3, 1, 1, 1]
    assert final.columns == ["item_id", *ITEM_FEATURES]


def test_holdout_users_stand_where_the_holdout_begins(built: str) -> None:
    users = read(built, "users_holdout")
    assert users["user_id"].to_list() == ["u"]
    assert users["recent_item_ids"].to_list() == [["a", "b"]]
    assert users["seen_item_ids"].to_list() == [["a", "b"]]
    assert users["purchased_item_ids"].to_list() == [[]]


def test_what_the_filter_hides_is_no_target(built: str) -> None:
    assert read(built, "targets").rows() == [("u", "late", at(9.6), "purchase")]


def test_without_a_filter_every_held_out_positive_is_a_target(tmp_path: Path) -> None:
    settings = world(tmp_path, serving={"filter": "none"})
    features.build(settings, Night(as_of=AS_OF))
    built = training_set.build(settings, Night(as_of=AS_OF))
    assert read(built, "targets")["item_id"].to_list() == ["a", "late"]


def test_meta_states_the_windows_and_the_versions(built: str) -> None:
    meta = storage.read_json(storage.join(built, "meta.json"))
    assert meta["num_examples"] == {"retriever": 2, "ranker": 1, "holdout": 2}
    assert meta["feature_service"] == "recommender_v1"
    assert meta["lake_versions"]["interactions"] == 0
    assert meta["lake_versions"]["features/user_history"] == 0


def test_the_same_night_gives_the_same_bytes(settings: Settings, built: str) -> None:
    before = {uri: storage.read_bytes(uri) for uri in storage.list_files(built)}
    features.build(settings, Night(as_of=AS_OF))
    training_set.build(settings, Night(as_of=AS_OF))
    assert {uri: storage.read_bytes(uri) for uri in storage.list_files(built)} == before


def test_a_night_before_the_first_event_says_so(settings: Settings) -> None:
    night = Night(as_of=at(0.5))
    features.build(settings, night)
    with pytest.raises(NothingToLearnError, match="found none; choose a later as_of"):
        training_set.build(settings, night)


def test_feature_tables_that_end_before_the_night_are_refused(tmp_path: Path) -> None:
    settings = world(tmp_path)
    with pytest.raises(StaleFeaturesError, match="reach nothing yet"):
        training_set.build(settings, Night(as_of=AS_OF))
    features.build(settings, Night(as_of=at(9)))
    with pytest.raises(StaleFeaturesError, match="run the night's step `features` first"):
        training_set.build(settings, Night(as_of=AS_OF))
    with pytest.raises(StaleFeaturesError):
        features.materialize(settings, Night(as_of=AS_OF))


def test_a_night_without_a_positive_event_says_what_counts_as_one(tmp_path: Path) -> None:
    settings = world(tmp_path, split={"positive_event_types": ["rating"]})
    features.build(settings, Night(as_of=AS_OF))
    with pytest.raises(NothingToLearnError, match=r"positive events \(rating\)"):
        training_set.build(settings, Night(as_of=AS_OF))


def test_join_keeps_rows_order_and_other_columns(settings: Settings, built: str) -> None:
    slate = pl.DataFrame(
        {
            "position": list(range(20)),
            "user_id": ["u"] * 19 + ["stranger"],
            "item_id": ["a", "b"] * 10,
            "event_timestamp": [at(9)] * 20,
        }
    )
    joined = FeatureReader(settings).join(slate, "recommender_v1")
    assert joined.select(slate.columns).equals(slate)
    assert joined["num_interactions"].to_list() == [2] * 19 + [None]
    assert joined["title"].to_list() == ["The a", "The b"] * 10


def test_what_a_policy_was_bound_to_show_judges_no_model(tmp_path: Path) -> None:
    settings = world(tmp_path)
    rows = [("late", 0.9), ("c", 0.02), ("b", None)]
    Lake(settings.lake).append_new(
        "interactions",
        pl.DataFrame(
            {
                "user_id": ["w"] * 3,
                "item_id": [item for item, _ in rows],
                "event_type": ["click"] * 3,
                "event_timestamp": [at(9.7)] * 3,
                "propensity": [propensity for _, propensity in rows],
                "created_timestamp": [at(9.7)] * 3,
            }
        ),
    )
    night = Night(as_of=AS_OF)
    features.build(settings, night)
    built = training_set.build(settings, night)
    targets = read(built, "targets").filter(pl.col("user_id") == "w")
    assert sorted(targets["item_id"]) == ["b", "c"]
    meta = storage.read_json(storage.join(built, "meta.json"))
    assert meta["num_bound_to_be_shown"] == 1
    assert meta["num_examples"]["holdout"] == 5
