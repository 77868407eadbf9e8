"""Ids, times and numbers are read whatever they were written as; what cannot be read is shown."""

from __future__ import annotations

import gzip
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.data import tabular
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
        ["2026/01/10 12:30:15"],
        [MOMENT],
        [MOMENT.replace(tzinfo=None)],
        [MOMENT.astimezone(timezone(timedelta(hours=9)))],
    ],
)
def test_a_moment_is_read_however_it_is_written(written: list[object]) -> None:
    assert tabular.times(pl.Series("time", written), "file").to_list() == [MOMENT]


def test_dates_are_midnights() -> None:
    midnight = [datetime(2026, 1, 10, tzinfo=UTC)]
    assert tabular.times(pl.Series([date(2026, 1, 10)]), "file").to_list() == midnight
    assert tabular.times(pl.Series(["2026-01-10"]), "file").to_list() == midnight


def test_ways_of_writing_may_mix_in_one_column() -> None:
    mixed = pl.Series(["2026-01-10T12:30:15Z", "2026-01-10", None, "", "2026-01-10T13:30:15+01:00"])
    assert tabular.times(mixed, "file").to_list() == [MOMENT, datetime(2026, 1, 10, tzinfo=UTC), None, None, MOMENT]


def test_a_time_format_says_which_number_is_the_month() -> None:
    written = pl.Series(["10.01.2026 12:30"])
    assert tabular.times(written, "file", "%d.%m.%Y %H:%M")[0] == MOMENT.replace(second=0)


def test_an_unreadable_time_is_shown_with_its_row() -> None:
    with pytest.raises(
        SourceError, match=r"clicks\.csv: column 'when', row 2: expected a time.*found 'yesterday'.*format"
    ):
        tabular.times(pl.Series("when", ["2026-01-10", "yesterday"]), "clicks.csv")


def test_a_column_that_holds_no_times_is_refused() -> None:
    with pytest.raises(SourceError, match="expected times"):
        tabular.times(pl.Series("when", [[1]]), "clicks.csv")


@settings(deadline=None)
@given(st.datetimes(EARLY, LATE))
def test_any_time_survives_as_text_and_as_microseconds(moment: datetime) -> None:
    there = moment.replace(tzinfo=UTC)
    assert tabular.times(pl.Series([there.isoformat()]), "file")[0] == there
    if moment.year >= 1990:
        microseconds = (there - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        assert tabular.times(pl.Series([microseconds]), "file")[0] == there


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
    assert tabular.ids(pl.Series(written)).to_list() == read


def test_what_stands_for_nothing_is_no_number() -> None:
    assert tabular.numbers(pl.Series(["1.5", "", "NaN", "null", " 2 "]), "file").to_list() == [
        1.5,
        None,
        None,
        None,
        2.0,
    ]
    with pytest.raises(SourceError, match=r"row 2: expected a number, found 'cheap' \(and 1 more\)"):
        tabular.numbers(pl.Series("price", ["1", "cheap", "dear"]), "file")


def test_text_files_are_read_whatever_separates_them(tmp_path: Path) -> None:
    for name, text in {
        "comma.csv": "user,item\nann,tea\n",
        "semicolon.csv": "user;item\r\nann;tea\r\n",
        "tab.tsv": "user\titem\nann\ttea\n",
        "marked.csv": "\ufeffuser,item\nann,tea\n",
    }.items():
        (tmp_path / name).write_bytes(text.encode())
        read = tabular.read_file(str(tmp_path / name), {"user_id": "user"})
        assert read.to_dicts() == [{"user_id": "ann"}], name
    (tmp_path / "small.csv.gz").write_bytes(gzip.compress(b"user,item\nann,tea\n"))
    assert tabular.read_file(str(tmp_path / "small.csv.gz"), {"i": "item"}).to_dicts() == [{"i": "tea"}]


def test_numbers_in_text_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user\n00123\n")
    assert tabular.read_file(str(tmp_path / "a.csv"), {"user_id": "user"})["user_id"].to_list() == ["00123"]


def test_a_wrong_column_name_shows_the_right_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,movie_id,stamp\n1,2,3\n")
    with pytest.raises(
        SourceError,
        match=r"no column 'user' for user_id; it has 'user_id', 'movie_id', 'stamp'; did you mean 'user_id'",
    ):
        tabular.read_file(str(tmp_path / "a.csv"), {"user_id": "user"})


def test_a_missing_file_an_empty_folder_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing"):
        tabular.files(str(tmp_path / "absent.csv"))
    (tmp_path / "notes.doc").write_text("no data")
    with pytest.raises(SourceError, match=r"expected a file ending in \.parquet.*notes\.doc"):
        tabular.files(str(tmp_path))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(SourceError, match="found an empty file"):
        tabular.read_file(str(tmp_path / "empty.csv"), {"a": "a"})
    (tmp_path / "not.parquet").write_text("user,item\n")
    with pytest.raises(SourceError, match="cannot be read"):
        tabular.read_file(str(tmp_path / "not.parquet"), {"a": "a"})


@pytest.mark.parametrize("secret", ["pa:ss", "p@ss/w0rd", "plain"])
def test_no_password_is_shown_or_stored(secret: str) -> None:
    url = f"postgresql://ann:{secret}@host:5432/shop"
    assert secret not in tabular.shown(url)
    stored = tabular.without_secret(url.replace("p@ss/w0rd", "p%40ss%2Fw0rd"), "my-shop")
    assert stored == "postgresql://ann:${SOURCE_MY_SHOP_PASSWORD}@host:5432/shop"


def test_a_stored_password_comes_back_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = "postgresql://ann:${SOURCE_MY_SHOP_PASSWORD}@host/shop"
    with pytest.raises(SourceError, match="SOURCE_MY_SHOP_PASSWORD, it is not set"):
        tabular.sql_url(stored)
    monkeypatch.setenv("SOURCE_MY_SHOP_PASSWORD", "p@ss/w0rd")
    assert tabular.sql_url(stored).password == "p@ss/w0rd"
    monkeypatch.setenv("SHOP_URL", "mysql://ann:secret@host/shop")
    assert tabular.sql_url("env:SHOP_URL").drivername == "mysql+pymysql"


def test_a_secret_in_the_urls_query_is_refused_without_showing_it() -> None:
    with pytest.raises(SourceError, match="env:NAME") as error:
        tabular.without_secret("postgresql://host/shop?user=ann&password=hunter2", "shop")
    assert "hunter2" not in str(error.value)


def test_where_a_file_lies_is_no_reason_to_leave_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, here = tmp_path / ".cache" / "_parts", tmp_path / "here"
    hidden.mkdir(parents=True)
    here.mkdir()
    (hidden / "_events.csv").write_text("a\n1\n")
    assert tabular.files(str(hidden / "_events.csv")) == [str(hidden / "_events.csv")]
    (hidden / "events.csv").write_text("a\n1\n")
    assert [Path(uri).name for uri in tabular.files(str(hidden))] == ["events.csv"]
    monkeypatch.chdir(here)
    assert [Path(uri).name for uri in tabular.files("../.cache/_parts")] == ["events.csv"]
    assert tabular.files("../.cache/_parts/events.csv") == ["../.cache/_parts/events.csv"]


def test_what_a_folder_hides_is_no_data(tmp_path: Path) -> None:
    for name in ("_SUCCESS.csv", ".part.csv", "_delta_log/x.csv", "day=1/part.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    assert [Path(uri).name for uri in tabular.files(str(tmp_path))] == ["part.csv"]
