"""The feature tables end in the same state whatever way led there."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.variants import first_daily

from evensong.data.lake import Lake
from evensong.features import changes, definitions, views
from evensong.features import refresh as refresh_module
from evensong.features.declarations import View
from evensong.features.refresh import refresh, seen_at
from evensong.features.views import BUILT_IN
from evensong.settings import FeatureGroup, FeatureSettings, Settings
from evensong.types import Frame

#: An encoder of pictures is named so that every optional view is computed.
EVERY_VIEW = FeatureSettings(image_encoder="/weights", groups=get_args(FeatureGroup))
DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMAS = {view.name: view.schema for view in BUILT_IN}
OPTIONAL_VIEWS = {view.name for view in BUILT_IN if view.optional}


def at(days: float) -> datetime:
    return DAY0 + timedelta(days=days)


def interactions(*rows: tuple[str, str, float] | tuple[str, str, float, float]) -> Frame:
    return pl.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "event_type": ["purchase" if row[1] == "c" else "click" for row in rows],
            "event_timestamp": [at(row[2]) for row in rows],
            "created_timestamp": [at(row[-1]) for row in rows],
        }
    )


def catalogue(*rows: tuple[str, str, float]) -> Frame:
    return pl.DataFrame(
        {
            "item_id": [row[0] for row in rows],
            "title": [f"The {row[0]}" for row in rows],
            "category_path": [row[1] for row in rows],
            "price": [float(ord(row[0])) for row in rows],
            "event_timestamp": [at(row[2]) for row in rows],
            "created_timestamp": [at(row[2]) for row in rows],
        }
    )


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    return make_shop(tmp_path / "home")


def make_shop(home: Path) -> Settings:
    settings = Settings(home=home, features=EVERY_VIEW)
    Lake(settings.lake).append_new("items", catalogue(("a", "Food", 0), ("b", "Toys", 0), ("c", "Food", 0)))
    Lake(settings.lake).append_new("users", people(("u", 17, 0.4), ("u", 18, 2.1), ("v", 60, 0.6)))
    return settings


def people(*rows: tuple[str, int, float]) -> Frame:
    return pl.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "attributes": [f'{{"age": {row[1]}, "gender": "f"}}' for row in rows],
            "event_timestamp": [at(row[2]) for row in rows],
            "created_timestamp": [at(row[2]) for row in rows],
        }
    )


def add(settings: Settings, *rows: tuple[str, str, float] | tuple[str, str, float, float]) -> None:
    Lake(settings.lake).append_new("interactions", interactions(*rows))


def tables(settings: Settings) -> dict[str, list[tuple[object, ...]]]:
    lake = Lake(settings.lake)
    found = {}
    for view in SCHEMAS:
        rows = lake.scan(f"features/{view}").collect()
        assert dict(rows.schema) == SCHEMAS[view]
        keys = [rows.columns[0], "event_timestamp"]
        assert rows.select(keys).is_duplicated().sum() == 0, f"{view}: two rows for one key and moment"
        found[view] = rows.sort(keys).rows()
    return found


def from_scratch(settings: Settings, as_of: datetime, home: Path) -> dict[str, list[tuple[object, ...]]]:
    other = Settings(home=home, features=EVERY_VIEW)
    for table in ("interactions", "items", "users"):
        Lake(other.lake).append_new(table, Lake(settings.lake).read(table))
    refresh(other, as_of)
    return tables(other)


FIRST = [("u", "a", 0.5), ("v", "b", 0.7), ("u", "b", 1.2)]
SECOND = [("u", "c", 2.3), ("v", "a", 2.4)]


def test_two_nights_make_what_one_night_makes(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    add(shop, *SECOND)
    refresh(shop, at(3))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


def test_a_second_run_of_a_night_commits_nothing(shop: Settings) -> None:
    add(shop, *FIRST)
    assert refresh(shop, at(2)) == refresh(shop, at(2)) == dict.fromkeys(SCHEMAS, 0)


def test_skipped_nights_are_filled_with_the_midnights_between(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    refresh(shop, at(40))
    assert tables(shop) == from_scratch(shop, at(40), tmp_path / "other")
    activity = Lake(shop.lake).scan("features/user_activity").filter(pl.col("user_id") == "u").collect()
    assert activity.sort("event_timestamp")["num_events_30d"].to_list()[-1] == 0


def test_what_has_left_every_window_is_still_counted(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST)
    refresh(shop, at(35))
    add(shop, ("u", "a", 35.5), ("w", "b", 35.6))
    refresh(shop, at(36))
    assert tables(shop) == from_scratch(shop, at(36), tmp_path / "other")


def test_an_older_night_after_a_newer_one_loses_nothing(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(3))
    before = tables(shop)
    refresh(shop, at(2))
    assert tables(shop) == before == from_scratch(shop, at(3), tmp_path / "other")


def test_an_import_of_older_events_is_found(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(3))
    add(shop, ("w", "a", 0.1), ("u", "a", 1.9))
    refresh(shop, at(3))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


def test_an_older_night_after_an_import_brings_all_tables_up_to_the_newest(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(3))
    add(shop, ("w", "a", 0.1))
    refresh(shop, at(1))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


def test_a_new_category_of_an_item_changes_the_tastes_after_it(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(3))
    Lake(shop.lake).append_new("items", catalogue(("a", "Garden", 2)))
    refresh(shop, at(3))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


def test_a_night_in_the_middle_of_a_day_is_completed_by_the_next(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(2.35))
    refresh(shop, at(3))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


@pytest.mark.parametrize("last", first_daily(["user_dynamics", "item_popularity", "item_conversion"]))
def test_a_refresh_that_was_killed_between_two_tables_is_repaired(
    shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    add(shop, *SECOND, ("w", "a", 0.1))
    whole = refresh_module._replace

    def killed(settings: Settings, view: View, *rest: object, **options: object) -> None:
        if view.name == last:
            raise KeyboardInterrupt
        whole(settings, view, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(refresh_module, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        refresh(shop, at(3))
    monkeypatch.undo()
    assert set(refresh(shop, at(3)).values()) <= {0, 1}, "no table was written twice"
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")
    add(shop, ("v", "c", 3.2))
    refresh(shop, at(4))
    assert tables(shop) == from_scratch(shop, at(4), tmp_path / "later")


#: The views of events, each with the column that names an event in what it is handed.
OF_EVENTS = [view.name for view in BUILT_IN if view.goes_on_from_a_state]


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """From now on: how many rows each view's function is handed, call by call."""
    handed: dict[str, list[int]] = {view.name: [] for view in BUILT_IN}

    def counting(view: View) -> View:
        def counted(rows: Frame, *rest: object, **options: object) -> object:
            handed[view.name].append(len(rows))
            return view.function(rows, *rest, **options)

        return dataclasses.replace(view, function=counted)

    monkeypatch.setattr(views, "BUILT_IN", tuple(counting(view) for view in BUILT_IN))
    # the watch is no other definition
    names = {view.name: view for view in BUILT_IN}
    monkeypatch.setattr(
        refresh_module, "view_definition", lambda view, of: definitions.view_definition(names[view.name], of)
    )
    return handed


def test_a_night_hands_each_view_only_what_is_new_in_it(
    shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    add(shop, *SECOND)
    Lake(shop.lake).append_new("items", catalogue(("a", "Garden", 2.5)))
    handed = watched(monkeypatch)
    refresh(shop, at(3))
    assert {name: sum(handed[name]) for name in OF_EVENTS} == dict.fromkeys(OF_EVENTS, len(SECOND))
    # the row of before and the new one of the item that has one; ranks need the other items as well
    assert (handed["item_content"], handed["item_details"], handed["item_standing"]) == ([2], [2], [4])
    assert handed["user_profile"] == [2], "one user has a row at day 2.1"
    monkeypatch.undo()
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


def test_a_night_reads_only_the_rows_that_are_new(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    add(shop, *SECOND)
    read: list[int] = []
    whole = changes._read
    monkeypatch.setattr(changes, "_read", lambda *what: read.append(len(found := whole(*what))) or found)
    refresh(shop, at(3))
    assert sum(read) == len(SECOND) + 1, "two events and a user's row"


def test_a_table_that_was_written_anew_is_read_whole_and_changes_nothing(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    lake = Lake(shop.lake)
    lake.replace("interactions", lake.read("interactions"))
    before = {view: lake.version(f"features/{view}") for view in SCHEMAS}
    assert refresh(shop, at(2)) == before
    add(shop, *SECOND)
    refresh(shop, at(3))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


def test_rows_that_were_taken_away_are_missed(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(3))
    lake = Lake(shop.lake)
    lake.replace("interactions", lake.read("interactions").filter(pl.col("item_id") != "b"))
    refresh(shop, at(3))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


@pytest.mark.parametrize(
    ("module", "old", "new", "changed"),
    first_daily(
        [
            ("user_features", '_stamps("known")', '_stamps("known")[:2]', {"user_sequence"}),
            ("item_features", "then(0.5)", "then(0.25)", {"item_standing"}),
            (
                "transformations",
                "-1 if name == leaving",
                "-2 + 1 if name == leaving",
                {"user_activity", "item_popularity"},
            ),
        ]
    ),
)
def test_changed_code_computes_its_views_anew_and_no_other(
    shop: Settings, monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str, changed: set[str]
) -> None:
    add(shop, *FIRST)
    before = refresh(shop, at(2))
    sound = definitions._tree
    path = Path(definitions.__file__).with_name(f"{module}.py")
    assert old in path.read_text()
    other = ast.parse(path.read_text().replace(old, new))
    monkeypatch.setattr(
        definitions, "_tree", lambda name: other if name == f"evensong.features.{module}" else sound(name)
    )
    after = refresh(shop, at(2))
    assert {view for view in after if after[view] != before[view]} == changed


def test_changed_words_compute_nothing_anew(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    add(shop, *FIRST)
    before = refresh(shop, at(2))
    sound = definitions._tree
    path = Path(definitions.__file__).with_name("transformations.py")
    other = ast.parse(path.read_text().replace("Positive events so far.", "All of them."))
    monkeypatch.setattr(
        definitions, "_tree", lambda name: other if name == "evensong.features.transformations" else sound(name)
    )
    assert refresh(shop, at(2)) == before


@pytest.mark.parametrize(
    ("update", "changed"),
    first_daily(
        [
            ({"half_life_days": 3.0}, {"user_dynamics", "item_conversion"}),
            ({"num_top_categories": 1}, {"user_history", "user_dynamics"}),
            ({"sequence_length": 3}, {"user_sequence"}),
            ({"seen_length": 1}, {"user_seen"}),
        ]
    ),
)
def test_a_setting_computes_the_views_that_read_it_anew_and_no_other(
    shop: Settings, tmp_path: Path, update: dict[str, object], changed: set[str]
) -> None:
    add(shop, *FIRST)
    before = refresh(shop, at(2))
    other = shop.model_copy(update={"features": shop.features.model_copy(update=update)})
    after = refresh(other, at(2))
    assert {view for view in after if after[view] != before[view]} == changed


def test_only_the_last_midnights_states_are_kept(shop: Settings) -> None:
    add(shop, *FIRST)
    for day in (2, 2.5, 3):
        refresh(shop, at(day))
        kept = sorted(path.parent.parent.name for path in Path(shop.lake, "features", "states").glob("*/*/index.json"))
        assert kept == sorted(OF_EVENTS)


def test_a_state_that_is_lost_is_computed_again(shop: Settings, tmp_path: Path) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    shutil.rmtree(Path(shop.lake, "features", "states"))
    add(shop, *SECOND)
    refresh(shop, at(3))
    assert tables(shop) == from_scratch(shop, at(3), tmp_path / "other")


def test_views_that_no_column_reads_stay_empty(shop: Settings) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    fewer = shop.model_copy(update={"features": FeatureSettings(groups=("price",))})
    refresh(fewer, at(2))
    found = tables(fewer)
    assert {view for view in OPTIONAL_VIEWS if found[view]} == {"item_standing"}
    assert found["user_history"]


def test_other_settings_compute_everything_again(shop: Settings) -> None:
    add(shop, *FIRST)
    refresh(shop, at(2))
    shorter = shop.model_copy(update={"features": shop.features.model_copy(update={"history_length": 1})})
    refresh(shorter, at(2))
    lists = Lake(shop.lake).scan("features/user_history").collect()["recent_item_ids"].list.len()
    assert lists.to_list() == [1, 1, 1]


def test_partitions_of_entities_do_not_change_the_result(
    shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(3))
    expected = tables(shop)
    monkeypatch.setattr(refresh_module, "PARTITION_EVENTS", 1)
    monkeypatch.setattr(refresh_module, "PARTITION_ROWS", 1)
    other = Settings(home=tmp_path / "other", features=EVERY_VIEW)
    for table in ("items", "users"):
        Lake(other.lake).append_new(table, Lake(shop.lake).read(table))
    add(other, *FIRST)
    refresh(other, at(2))
    index = next(Path(other.lake, "features", "states", "user_history").glob("*/index.json"))
    assert json.loads(index.read_text())["firsts"] == ["", "v"], "each user is a partition"
    add(other, *SECOND)
    refresh(other, at(3))
    assert tables(other) == expected


def test_what_was_seen_at_midnight_is_what_the_table_says(shop: Settings) -> None:
    add(shop, *FIRST, *SECOND)
    refresh(shop, at(3))
    table = Lake(shop.lake).scan("features/user_seen").filter(pl.col("event_timestamp") <= at(2)).collect()
    newest = table.sort("event_timestamp").unique("user_id", keep="last", maintain_order=True).sort("user_id")
    assert seen_at(shop, at(2)).equals(newest.drop("event_timestamp", "created_timestamp"))


def test_an_empty_lake_makes_empty_tables(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    refresh(settings, at(1))
    assert all(not rows for rows in tables(settings).values())


nights = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.sampled_from("uvw"),
                st.sampled_from("abc"),
                st.integers(0, 14).map(lambda n: n / 2),
                st.integers(0, 4),
            ),
            max_size=4,
        ),
        st.integers(2, 16).map(lambda n: n / 2),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nights)
def test_any_order_of_imports_and_nights_ends_in_the_same_tables(
    tmp_path_factory: pytest.TempPathFactory, nights: list[tuple[list[tuple[str, str, float, int]], float]]
) -> None:
    home = tmp_path_factory.mktemp("shop")
    settings = make_shop(home / "a")
    for rows, as_of in nights:
        if rows:
            add(settings, *[(user, item, day, day + late / 2) for user, item, day, late in rows])
        refresh(settings, at(as_of))
    newest = max(as_of for _, as_of in nights)
    assert tables(settings) == from_scratch(settings, at(newest), home / "b")
