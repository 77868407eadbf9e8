"""Ids, times and numbers are read whatever they were written as; what cannot be read is shown."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.data import values
from evensong.errors import SourceError

MOMENT = datetime(2026, 1, 10, 12, 30, 15, tzinfo=UTC)
UNIX = int(MOMENT.timestamp())
#: Hypothesis wants its bounds without a zone.
EARLY, LATE = (datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None) for year in (1975, 2200))


@pytest.mark.parametrize(
    "written",
    [
        [UNIX],
        [UNIX * 1000],
        [UNIX * 1_000_000],
        [UNIX * 1_000_000_000],
        [float(UNIX)],
        [str(UNIX)],
        [f"{UNIX}.0"],
        ["2026-01-10T12:30:15Z"],
        ["2026-01-10T12:30:15"],
        ["2026-01-10 12:30:15"],
        ["2026-01-10 12:30:15.000"],
        ["2026-01-10T13:30:15+01:00"],
        ["2026-01-10 13:30:15 +0100"],
        ["2026-01-10 12:30:15 UTC"],
        ["2026-01-10 13:30:15 +0100 UTC"],
        ["2026/01/10 12:30:15"],
        [MOMENT],
        [MOMENT.replace(tzinfo=None)],
        [MOMENT.astimezone(timezone(timedelta(hours=9)))],
    ],
)
def test_a_moment_is_read_however_it_is_written(written: list[object]) -> None:
    assert values.times(pl.Series("time", written), "file").to_list() == [MOMENT]


def test_dates_are_midnights() -> None:
    midnight = [datetime(2026, 1, 10, tzinfo=UTC)]
    assert values.times(pl.Series([date(2026, 1, 10)]), "file").to_list() == midnight
    assert values.times(pl.Series(["2026-01-10"]), "file").to_list() == midnight


def test_ways_of_writing_may_mix_in_one_column() -> None:
    mixed = pl.Series(["2026-01-10T12:30:15Z", "2026-01-10", None, "", "2026-01-10T13:30:15+01:00"])
    assert values.times(mixed, "file").to_list() == [MOMENT, datetime(2026, 1, 10, tzinfo=UTC), None, None, MOMENT]


def test_a_time_format_says_which_number_is_the_month() -> None:
    written = pl.Series(["10.01.2026 12:30"])
    assert values.times(written, "file", "%d.%m.%Y %H:%M")[0] == MOMENT.replace(second=0)


def test_an_unreadable_time_is_shown_with_its_row() -> None:
    with pytest.raises(
        SourceError, match=r"clicks\.csv: column 'when', row 2: expected a time.*found 'yesterday'.*format"
    ):
        values.times(pl.Series("when", ["2026-01-10", "yesterday"]), "clicks.csv")


def test_a_column_that_holds_no_times_is_refused() -> None:
    with pytest.raises(SourceError, match="expected times"):
        values.times(pl.Series("when", [[1]]), "clicks.csv")


@settings(deadline=None)
@given(st.datetimes(EARLY, LATE))
def test_any_time_survives_as_text_and_as_microseconds(moment: datetime) -> None:
    there = moment.replace(tzinfo=UTC)
    assert values.times(pl.Series([there.isoformat()]), "file")[0] == there
    if moment.year >= 1990:
        microseconds = (there - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        assert values.times(pl.Series([microseconds]), "file")[0] == there


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([17850.0, None], ["17850", None]),
        (["17850.0", "12346.0", ""], ["17850", "12346", None]),
        (["007", " a1 "], ["007", "a1"]),
        (["1.0", "beta"], ["1.0", "beta"]),
        ([5, 6], ["5", "6"]),
        ([Decimal("5")], ["5"]),
        ([0.5, 1.0], ["0.5", "1.0"]),
        ([b"\x01\xff"], ["01ff"]),
        ([True], ["true"]),
    ],
)
def test_ids_are_strings_whatever_they_were(written: list[object], read: list[str | None]) -> None:
    assert values.ids(pl.Series(written)).to_list() == read


def test_what_stands_for_nothing_is_no_number() -> None:
    assert values.numbers(pl.Series(["1.5", "", "NaN", "null", " 2 "]), "file").to_list() == [
        1.5,
        None,
        None,
        None,
        2.0,
    ]
    with pytest.raises(SourceError, match=r"row 2: expected a number, found 'cheap' \(and 1 more\)"):
        values.numbers(pl.Series("price", ["1", "cheap", "dear"]), "file")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["12,50", "7", None], [12.5, 7.0, None]),
        (["1.234,56", "1.000"], [1234.56, 1000.0]),
        (["1,234.56", "1,000"], [1234.56, 1000.0]),
        (["-1 234 567,8", "1\u00a0000"], [-1234567.8, 1000.0]),
        (["1'234.5"], [1234.5]),
        (["1.234", "2.5"], [1.234, 2.5]),
    ],
)
def test_a_decimal_comma_is_read_where_it_can_mean_nothing_else(written: list[str], read: list[float | None]) -> None:
    assert values.numbers(pl.Series("price", written), "file").to_list() == read


def test_a_number_that_may_mean_two_things_is_refused_until_the_mark_is_said() -> None:
    column = pl.Series("price", ["5", "1,234"])
    with pytest.raises(SourceError, match=r"'price', row 2: '1,234' may be .*--decimal"):
        values.numbers(column, "file")
    assert values.numbers(column, "file", ",").to_list() == [5.0, 1.234]
    assert values.numbers(column, "file", ".").to_list() == [5.0, 1234.0]
    with pytest.raises(SourceError, match=r"expected a number, found '12\.5'"):
        values.numbers(pl.Series("price", ["12.5"]), "file", ",")


def test_a_place_in_a_slate_is_a_whole_number() -> None:
    assert values.whole_numbers(pl.Series(["3", "", "4.0"]), "file").to_list() == [3, None, 4]
    for wrong in ("3.7", "99999999999"):
        with pytest.raises(SourceError, match=f"row 2: expected a whole number, found '{wrong}'"):
            values.whole_numbers(pl.Series("slot", ["1", wrong]), "file")


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ([20260110], datetime(2026, 1, 10, tzinfo=UTC)),
        (["20260110"], datetime(2026, 1, 10, tzinfo=UTC)),
        ([20260110.0], datetime(2026, 1, 10, tzinfo=UTC)),
        ([20260110123015], MOMENT),
    ],
)
def test_a_day_may_be_written_as_one_number(written: list[object], moment: datetime) -> None:
    assert values.times(pl.Series([*written, None]), "file").to_list() == [moment, None]


def test_a_number_that_is_no_day_is_a_unix_time() -> None:
    assert values.times(pl.Series([20260110, 20261399]), "file")[0].year == 1970


def test_a_time_format_reads_numbers_too() -> None:
    assert values.times(pl.Series([10012026]), "file", "%d%m%Y")[0] == datetime(2026, 1, 10, tzinfo=UTC)


def test_times_without_a_zone_are_those_of_the_zone_that_is_named() -> None:
    local = pl.Series(["2026-01-10 13:30:15", "2026-01-10T12:30:15Z", "2026-07-10 14:30:15"])
    read = values.times(local, "file", time_zone="Europe/Berlin").to_list()
    assert read == [MOMENT, MOMENT, MOMENT.replace(month=7)]
    for naive in ([MOMENT.replace(tzinfo=None)], ["10.01.2026 12:30:15"]):
        written = None if isinstance(naive[0], datetime) else "%d.%m.%Y %H:%M:%S"
        assert values.times(pl.Series(naive), "f", written, "Asia/Tokyo")[0] == MOMENT - timedelta(hours=9)
    assert values.times(pl.Series([date(2026, 1, 10)]), "f", None, "Asia/Tokyo")[0] == datetime(
        2026, 1, 9, 15, tzinfo=UTC
    )
    assert values.times(pl.Series([UNIX]), "f", None, "Asia/Tokyo")[0] == MOMENT, "unix time has no zone"


def test_the_hours_that_a_clock_repeats_or_leaves_out_are_read_as_said() -> None:
    autumn, spring = ["2026-10-25 01:30:00", "2026-10-25 02:30:00", "2026-10-25 03:30:00"], ["2026-03-29 02:30:00"]
    assert [moment.hour for moment in values.times(pl.Series(autumn), "f", None, "Europe/Berlin")] == [23, 0, 2]
    assert values.times(pl.Series(spring), "f", None, "Europe/Berlin")[0] == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def test_a_time_without_end_is_no_time() -> None:
    assert values.times(pl.Series([float(UNIX), float("inf")]), "file").to_list() == [MOMENT, None]


def test_attributes_of_any_kind_can_stand_in_json() -> None:
    kinds = {
        "bytes": pl.Series([b"\x01"]), "price": pl.Series([Decimal("1.5")]), "day": pl.Series([date(2026, 1, 10)]),
        "long": pl.Series([timedelta(seconds=1)]), "kind": pl.Series(["a"], dtype=pl.Categorical),
        "deep": pl.Series([{"day": date(2026, 1, 10), "list": [b"x"]}]), "nothing": pl.Series([None]),
    }  # fmt: skip
    frame = pl.DataFrame([values.plain(column).alias(name) for name, column in kinds.items()])
    assert json.loads(frame.select(pl.struct(pl.all()).struct.json_encode()).item()) == {
        "bytes": "01", "price": 1.5, "day": "2026-01-10", "long": 1_000_000, "kind": "a",
        "deep": {"day": "2026-01-10", "list": ["x"]}, "nothing": None,
    }  # fmt: skip
