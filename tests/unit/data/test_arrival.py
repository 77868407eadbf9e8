"""When a row became known, and since when what it is about is known: nothing waits for ever, and nothing is lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evensong.data.lake import Lake
from evensong.data.mapping import EventMapping
from evensong.errors import SourceError
from evensong.pipelines import imports, ingest, validate
from evensong.settings import Settings
from evensong.types import Night

MAPPING = EventMapping(user="who", item="what", time="when")
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def lines(path: Path, *rows: str, header: str = "who,what,when") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def with_change(**change: Any) -> EventMapping:
    return EventMapping.model_validate(MAPPING.model_dump() | change)


def judged(settings: Settings, as_of: datetime) -> list[tuple[str, str]]:
    """The clean events after a night, as user and item."""
    validate.run(settings, Night(as_of=as_of))
    return Lake(settings.lake).read("interactions").select("user_id", "item_id").rows()


def reasons(settings: Settings) -> list[str]:
    return Lake(settings.lake).read("quarantine")["reason"].to_list()


# ---------------------------------------------------------------- rows from the future


def test_an_event_from_the_future_is_known_at_its_import_and_quarantined_by_the_next_night(
    settings: Settings, tmp_path: Path
) -> None:
    path = lines(tmp_path / "e.csv", f"ann,tea,{NOW - timedelta(hours=2)}", "bob,tea,2099-01-01")
    imports.events(settings, path, MAPPING)
    raw = Lake(settings.lake).read("raw_interactions")
    assert raw["created_timestamp"][0] == NOW - timedelta(hours=2), "what has happened became known when it did"
    assert NOW <= raw["created_timestamp"][1] <= datetime.now(UTC)
    assert any("1 events are dated after" in said and "--time-zone" in said for said in imports.warnings(settings))
    assert judged(settings, datetime.now(UTC) + timedelta(seconds=1)) == [("ann", "tea")]
    [reason] = reasons(settings)
    assert reason.startswith("event_timestamp is more than 300 s after the row became known")


def test_a_night_before_the_import_does_not_see_what_nobody_knew_then(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,tea,2026-01-02", "bob,tea,2099-01-01", "cid,tea,2026-01-09")
    imports.events(settings, path, MAPPING)
    assert judged(settings, datetime(2026, 1, 3, tzinfo=UTC)) == [("ann", "tea")]
    assert reasons(settings) == []


def test_the_first_imports_moment_stays(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "bob,tea,2099-01-01")
    imports.events(settings, path, MAPPING)
    first = Lake(settings.lake).read("raw_interactions")
    lines(tmp_path / "e.csv", "bob,tea,2099-01-01", "ann,tea,2026-01-02")
    assert imports.events(settings, path, MAPPING) == {"interactions": 1, "items": 1, "users": 1}
    again = Lake(settings.lake).read("raw_interactions").filter(pl.col("user_id") == "bob")
    assert again.equals(first)
    assert imports.events(settings, path, MAPPING) == {"interactions": 0, "items": 0, "users": 0}


def test_a_movielens_rating_from_the_future_is_known_at_its_import(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "u.data").write_text("1\t10\t5\t875000000\n1\t10\t4\t4000000000\n")
    (folder / "u.item").write_text(f"10|Film|01-Jan-1995||http://x|{'|'.join('0' * 19)}\n")
    (folder / "u.user").write_text("1|24|M|technician|85711\n")
    imports.movielens(settings, str(folder))
    assert Lake(settings.lake).read("raw_interactions")["created_timestamp"].max() <= datetime.now(UTC)  # type: ignore[operator]


def test_local_times_are_no_future_when_their_zone_is_named(settings: Settings, tmp_path: Path) -> None:
    local = (NOW + timedelta(hours=9)).replace(tzinfo=None)
    path = lines(tmp_path / "e.csv", f"ann,tea,{local}")
    imports.events(settings, path, with_change(time_zone="Asia/Tokyo"))
    assert Lake(settings.lake).read("raw_interactions")["event_timestamp"].to_list() == [NOW]
    assert imports.warnings(settings) == []
    with pytest.raises(ValueError, match="no time zone 'Europe/Berln'"):
        with_change(time_zone="Europe/Berln")


# ---------------------------------------------------------------- days without a time


def test_events_by_the_day_count_within_their_day(settings: Settings, tmp_path: Path) -> None:
    """A night as of a midnight sees the day that ends there as its last, and nothing of the one that begins."""
    rows = [f"u{n},i{n % 3},2026-01-{day:02d}" for day in range(1, 15) for n in range(20)]
    imports.events(settings, lines(tmp_path / "e.csv", *rows), MAPPING)
    uri = validate.run(settings, Night(as_of=datetime(2026, 1, 12, tzinfo=UTC)))
    volume = json.loads(Path(uri).read_text())["volume"]
    assert (volume["last_day_rows"], volume["trailing_days"][0]) == (20, 20)
    assert Lake(settings.lake).read("interactions").height == 11 * 20
    assert validate.run(settings, Night(as_of=datetime(2026, 1, 15, tzinfo=UTC)))


# ---------------------------------------------------------------- rows without an arrival


def test_an_empty_arrival_is_the_events_own_time(settings: Settings, tmp_path: Path) -> None:
    rows = ["ann,tea,2026-01-02,", "bob,tea,2026-01-02,2026-01-04", "cid,tea,2099-01-01,"]
    path = lines(tmp_path / "e.csv", *rows, header="who,what,when,seen")
    imports.events(settings, path, with_change(created="seen"))
    assert judged(settings, datetime(2026, 1, 3, tzinfo=UTC)) == [("ann", "tea")]
    assert sorted(judged(settings, datetime(2026, 1, 5, tzinfo=UTC))) == [("ann", "tea"), ("bob", "tea")]
    visible = Lake(settings.lake).read("interactions", datetime(2026, 1, 5, tzinfo=UTC))
    assert visible.height == 2, "what was accepted is seen"


# ---------------------------------------------------------------- the earliest word


def test_events_before_their_items_row_are_about_an_item_that_is_known_by_its_id(
    settings: Settings, tmp_path: Path
) -> None:
    path = lines(tmp_path / "e.csv", "ann,t1,2026-01-02", "bob,t1,2026-01-08")
    items = lines(tmp_path / "i.csv", "t1,Tea,2026-01-05", header="what,name,updated")
    mapping = with_change(items=items, title="name", items_time="updated")
    assert imports.events(settings, path, mapping)["items"] == 2
    assert judged(settings, datetime(2026, 1, 3, tzinfo=UTC)) == [("ann", "t1")]
    known = Lake(settings.lake).current_items
    assert known(datetime(2026, 1, 4, tzinfo=UTC))["title"].to_list() == ["t1"], "its title is not known yet"
    assert len(judged(settings, datetime(2026, 1, 9, tzinfo=UTC))) == 2
    assert known(datetime(2026, 1, 9, tzinfo=UTC))["title"].to_list() == ["Tea"]
    lines(tmp_path / "e.csv", "ann,t1,2026-01-02", "bob,t1,2026-01-08", "cid,t1,2026-01-08")
    assert imports.events(settings, path, mapping) == {"interactions": 1, "items": 0, "users": 1}


def test_users_with_times_of_their_own_are_known_from_their_first_event_too(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "ann,t1,2026-01-02")
    users = lines(tmp_path / "u.csv", "ann,York,2026-01-05", header="who,town,since")
    imports.events(settings, path, with_change(users=users, user_attributes=("town",), users_time="since"))
    assert judged(settings, datetime(2026, 1, 3, tzinfo=UTC)) == [("ann", "t1")]


@pytest.mark.parametrize("described", [False, True])
def test_older_events_that_arrive_later_find_their_item_known(
    settings: Settings, tmp_path: Path, described: bool
) -> None:
    items = lines(tmp_path / "i.csv", "t1,Tea", header="what,name")
    mapping = with_change(items=items, title="name") if described else MAPPING
    path = lines(tmp_path / "in" / "2.csv", "ann,t1,2026-01-08")
    imports.events(settings, str(tmp_path / "in"), mapping)
    lines(tmp_path / "in" / "1.csv", "ann,t1,2026-01-02")
    assert imports.events(settings, str(Path(path).parent), mapping)["items"] == 1
    assert judged(settings, datetime(2026, 1, 3, tzinfo=UTC)) == [("ann", "t1")]
    assert reasons(settings) == []
    assert ingest.run(settings, Night(as_of=NOW)) == {"interactions": 0, "items": 0, "users": 0}


def test_a_future_row_does_not_hide_its_item_from_sound_events(settings: Settings, tmp_path: Path) -> None:
    items = lines(tmp_path / "i.csv", "t1,Tea", "m1,Mug", header="what,name")
    mapping = with_change(items=items, title="name")
    rows = ["ann,x9,2099-01-01", "ann,t1,2099-01-01", f"ann,m1,{NOW - timedelta(hours=1)}"]
    path = lines(tmp_path / "e.csv", *rows)
    imports.events(settings, path, mapping)
    fresh = [f"bob,{item},{NOW + timedelta(seconds=1)}" for item in ("x9", "t1")]
    lines(tmp_path / "e.csv", *rows, *fresh)
    imports.events(settings, path, mapping)
    as_of = datetime.now(UTC) + timedelta(seconds=5)
    assert sorted(judged(settings, as_of)) == [("ann", "m1"), ("bob", "t1"), ("bob", "x9")]
    lines(tmp_path / "i.csv", "t1,Tea", "m1,Big mug", header="what,name")
    imports.events(settings, path, mapping)
    newest = Lake(settings.lake).read("raw_items").filter(pl.col("title") == "Big mug")["event_timestamp"]
    assert newest[0] < as_of, "a change of the list is dated by what has happened"


# ---------------------------------------------------------------- what is the same row


def test_order_lines_that_differ_in_their_value_are_different_events(settings: Settings, tmp_path: Path) -> None:
    rows = ["ann,tea,2026-01-02 10:00,2", "ann,tea,2026-01-02 10:00,3", "ann,tea,2026-01-02 10:00,3"]
    path = lines(tmp_path / "e.csv", *rows, header="who,what,when,pieces")
    imports.events(settings, path, with_change(value="pieces", event_type="purchase"))
    assert judged(settings, datetime(2026, 1, 3, tzinfo=UTC)) == [("ann", "tea")] * 2
    assert reasons(settings) == ["duplicate of an earlier row"]
    assert imports.events(settings, path, with_change(value="pieces", event_type="purchase"))["interactions"] == 0


def test_keeping_the_order_counts_within_one_file(settings: Settings, tmp_path: Path) -> None:
    """Files that come in between, and files that overlap, give no row of the others a new time."""
    mapping = with_change(keep_order=True)
    folder = tmp_path / "in"
    lines(folder / "2.csv", "ann,tea,2026-01-02", "ann,mug,2026-01-02", "ann,tea,2026-01-02")
    assert imports.events(settings, str(folder), mapping)["interactions"] == 3
    lines(folder / "1.csv", "ann,jam,2026-01-02", "bob,jam,2026-01-02")
    lines(folder / "3.csv", "ann,tea,2026-01-02", "ann,mug,2026-01-02", "ann,tea,2026-01-02", "ann,pot,2026-01-02")
    imports.events(settings, str(folder), mapping)
    assert len(judged(settings, datetime(2026, 1, 3, tzinfo=UTC))) == 6, "jam twice and a pot came to the three"
    assert reasons(settings) == ["duplicate of an earlier row"] * 3


def test_an_sql_table_has_no_order_to_keep(settings: Settings) -> None:
    with pytest.raises(SourceError, match=r"--keep-order keeps .* an SQL table has none.*--request"):
        imports.events(settings, "env:NOWHERE", with_change(keep_order=True, table="t"))


def test_an_import_says_when_many_rows_repeat_others(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", *["ann,tea,2026-01-02"] * 3, "bob,tea,2026-01-02")
    imports.events(settings, path, MAPPING)
    assert any("2 of 4 events repeat" in said and "--keep-order" in said for said in imports.warnings(settings))


# ---------------------------------------------------------------- kinds of columns


def test_numbers_and_times_are_read_as_the_mapping_says(settings: Settings, tmp_path: Path) -> None:
    path = lines(tmp_path / "e.csv", "7;8;1767312000000;1.234", header="who;what;when;paid")
    imports.events(settings, path, with_change(value="paid", decimal=","))
    row = Lake(settings.lake).read("raw_interactions").row(0, named=True)
    assert (row["value"], row["event_timestamp"]) == (1234.0, datetime(2026, 1, 2, 0, 0, 0, 1, tzinfo=UTC))


def test_nested_columns_give_lists_of_categories_and_attributes(settings: Settings, tmp_path: Path) -> None:
    rows = [{"who": "ann", "what": {"id": "t1", "path": ["Food", "Tea"], "made": NOW}, "when": NOW}]
    pl.DataFrame(rows).write_parquet(tmp_path / "e.parquet")
    mapping = with_change(item="what.id", category=("what.path",), item_attributes=("what.made", "what"))
    imports.events(settings, str(tmp_path / "e.parquet"), mapping)
    item = Lake(settings.lake).read("raw_items").row(0, named=True)
    assert item["category_path"] == "Food > Tea"
    assert json.loads(item["attributes"])["what"]["id"] == "t1"
    with pytest.raises(SourceError, match=r"'what': expected one value a row, found Struct.*such as what\.id"):
        imports.events(settings, str(tmp_path / "e.parquet"), with_change(item="what"))


def test_files_whose_columns_do_not_go_together_are_refused(settings: Settings, tmp_path: Path) -> None:
    for number, tag in enumerate([[1], 7]):
        frame = pl.DataFrame([{"who": "ann", "what": "tea", "when": NOW, "tag": tag}])
        frame.write_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(SourceError, match="of one kind in one file and of another in the next"):
        imports.events(settings, str(tmp_path), with_change(item_attributes="tag"))
