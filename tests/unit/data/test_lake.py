"""The lake keeps each row once, cuts by what was known, and remembers earlier versions."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.data.lake import Lake, conform, empty, moment
from evensong.errors import StorageError
from evensong.types import Frame

NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)


def views(*rows: tuple[str, str, int], created: int | None = None) -> Frame:
    """Views `(user, item, hours after noon)`."""
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "hour"], orient="row").select(
        "user_id",
        "item_id",
        event_type=pl.lit("view"),
        event_timestamp=pl.lit(NOON) + pl.duration(hours=pl.col("hour")),
    )
    known = pl.col("event_timestamp") if created is None else pl.lit(NOON) + pl.duration(hours=created)
    return conform("interactions", frame.with_columns(created_timestamp=known))


def test_a_table_that_nobody_wrote_reads_as_empty_in_the_right_columns(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    assert lake.read("interactions", NOON).equals(empty("interactions"))
    assert lake.version("interactions") is None
    assert lake.current_items(NOON).columns == empty("items").columns


def test_adding_the_same_rows_again_adds_nothing(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    assert lake.append_new("interactions", views(("ann", "tea", 0), ("bob", "mug", 1))) == 2
    assert lake.append_new("interactions", views(("bob", "mug", 1), ("ann", "tea", 0), ("bob", "tea", 2))) == 1
    assert lake.append_new("interactions", views(("ann", "tea", 0))) == 0
    assert lake.read("interactions").height == 3
    assert lake.version("interactions") == 1, "adding nothing commits nothing"


def test_nulls_in_a_key_count_as_equal(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    nameless = views(("ann", "tea", 0)).with_columns(user_id=pl.lit(None, pl.String))
    assert lake.append_new("raw_interactions", nameless) == 1
    assert lake.append_new("raw_interactions", nameless) == 0


def test_a_clean_table_keeps_the_first_of_equal_keys(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    twice = pl.concat([views(("ann", "tea", 0))] * 2).with_columns(propensity=pl.Series([0.1, 0.2]))
    assert lake.append_new("interactions", twice) == 1
    assert lake.read("interactions")["propensity"].to_list() == [0.1]


def test_raw_repeats_survive_numbered_and_arrive_once(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    thrice = pl.concat([views(("ann", "tea", 0))] * 3)
    assert lake.append_new("raw_interactions", thrice[:2]) == 2
    assert lake.append_new("raw_interactions", thrice) == 1, "the grown source repeats the row once more"
    assert lake.read("raw_interactions")["repeat"].to_list() == [0, 1, 2]


def test_a_reader_sees_only_what_was_known_at_its_moment(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    late = views(("cid", "tea", -5), created=3)
    lake.append_new("interactions", pl.concat([views(("ann", "tea", 0), ("bob", "mug", 2)), late]))
    assert lake.read("interactions", NOON)["user_id"].to_list() == ["ann"]
    assert lake.read("interactions", NOON + timedelta(hours=2))["user_id"].to_list() == ["ann", "bob"]
    assert lake.read("interactions", NOON + timedelta(hours=3))["user_id"].to_list() == ["cid", "ann", "bob"]


def test_rows_come_in_one_order_whatever_order_they_came_in(tmp_path: Path) -> None:
    rows = views(("bob", "mug", 0), ("ann", "tea", 0), ("ann", "mug", 0), ("cid", "tea", -1))
    one, two = Lake(str(tmp_path / "one")), Lake(str(tmp_path / "two"))
    one.append_new("interactions", rows)
    for row in reversed(range(rows.height)):
        two.append_new("interactions", rows[row])
    assert one.read("interactions").equals(two.read("interactions"))
    assert one.read("interactions")["item_id"].to_list() == ["tea", "mug", "tea", "mug"]


def test_the_newest_known_row_of_an_item_counts(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    row = {"item_id": "tea", "title": "Tea", "attributes": "{}", "event_timestamp": NOON}
    items = pl.DataFrame([row | {"price": 1.0}, row | {"price": 2.0, "event_timestamp": NOON + timedelta(days=1)}])
    lake.append_new("items", items)
    assert lake.current_items(NOON)["price"].to_list() == [1.0]
    assert lake.current_items(NOON + timedelta(days=1))["price"].to_list() == [2.0]


def test_earlier_versions_can_be_read(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.append_new("interactions", views(("ann", "tea", 0)))
    lake.append_new("interactions", views(("bob", "mug", 0)))
    assert lake.read("interactions", version=0).height == 1
    assert lake.read("interactions", NOON, version=1).height == 2
    with pytest.raises(StorageError, match="version 7"):
        lake.read("interactions", version=7)


def test_replacing_by_a_predicate_leaves_the_other_rows(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    rows = pl.DataFrame(
        {"table": ["items"] * 2, "reason": ["a", "b"], "row": ["1", "2"], "as_of": [NOON, NOON + timedelta(1)]}
    )
    lake.replace("quarantine", rows)
    for _ in range(2):
        lake.replace("quarantine", rows[1].with_columns(row=pl.lit("3")), f"as_of = {moment(NOON + timedelta(1))}")
        assert lake.read("quarantine")["row"].to_list() == ["1", "3"]
    assert lake.replace("quarantine", rows[:0], f"as_of = {moment(NOON)}") == 0
    assert lake.read("quarantine")["row"].to_list() == ["3"]


def test_a_table_of_another_room_keeps_its_own_columns(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.replace("features/thing", pl.DataFrame({"item_id": ["b", "a"], "score": [1, 2]}))
    lake.replace("features/thing", pl.DataFrame({"item_id": ["c"], "other": [1.5]}))
    assert lake.read("features/thing").to_dicts() == [{"item_id": "c", "other": 1.5}]
    with pytest.raises(StorageError, match="features/absent"):
        lake.read("features/absent")


def test_writers_at_once_add_each_row_once(tmp_path: Path) -> None:
    added: list[int] = []

    def write(first: int) -> None:
        rows = views(*[(f"user{n}", "tea", 0) for n in range(first, first + 30)])
        for start in range(0, 30, 10):
            added.append(Lake(str(tmp_path)).append_new("interactions", rows[start : start + 10]))

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 10, 0, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    users = Lake(str(tmp_path)).read("interactions")["user_id"]
    assert sorted(users) == sorted(f"user{n}" for n in range(50))
    assert sum(added) == 50


def test_a_commit_between_the_look_and_the_write_is_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer comes in between twice: once creating the table, once adding to it."""
    slow, quick = Lake(str(tmp_path)), Lake(str(tmp_path))
    commit = Lake._commit
    between = [views(("ann", "tea", 0), ("bob", "mug", 1)), views(("dan", "tea", 4))]

    def late_commit(lake: Lake, *args: Any, **options: Any) -> bool:
        if lake is slow and between:
            quick.append_new("interactions", between.pop(0))
        return commit(lake, *args, **options)

    monkeypatch.setattr(Lake, "_commit", late_commit)
    assert slow.append_new("interactions", views(("ann", "tea", 0), ("cid", "tea", 2), ("dan", "tea", 4))) == 1
    assert not between
    assert slow.read("interactions")["user_id"].to_list() == ["ann", "bob", "cid", "dan"]


def test_a_frame_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing: item_id, event_timestamp; unknown: itm"):
        Lake(str(tmp_path)).append_new("interactions", pl.DataFrame({"user_id": ["ann"], "itm": ["tea"]}))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 2)), max_size=6), max_size=4
    )
)
def test_any_sequence_of_batches_leaves_the_set_of_rows(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str, int]]]
) -> None:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    filled = [batch for batch in batches if batch]
    added = sum(lake.append_new("interactions", views(*batch)) for batch in filled)
    distinct = {row for batch in filled for row in batch}
    assert added == len(distinct) == lake.read("interactions").height
