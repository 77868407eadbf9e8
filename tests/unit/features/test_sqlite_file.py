"""The files written page by page hold what SQLite itself reads back, and pass SQLite's own check."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evensong.features import sqlite_file
from evensong.features.sqlite_file import write_table

row = st.tuples(
    st.none() | st.binary(max_size=300),
    st.none() | st.text(max_size=100).filter(lambda text: "\0" not in text),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)


def read(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute('SELECT rowid, * FROM "a table" ORDER BY rowid').fetchall()


def columns(rows: list[tuple[Any, ...]]) -> dict[str, pa.Array]:
    blobs, texts, numbers = zip(*rows, strict=True)
    return {
        "blob": pa.array(blobs, pa.binary()),
        "the text": pa.array(texts, pa.string()),
        "number": pa.array(numbers, pa.int64()),
    }


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(row, min_size=1, max_size=60), copies=st.sampled_from([1, 400]))
def test_sqlite_reads_back_every_row(rows: list[tuple[Any, ...]], copies: int, tmp_path: Path) -> None:
    path = tmp_path / "table.db"
    assert write_table(path, "a table", columns(rows * copies))
    assert read(path) == [(place, *values) for place, values in enumerate(rows * copies, 1)]


@pytest.mark.parametrize("count", [1, 2, 70, 20_000])
def test_rows_of_nearly_a_page_make_a_tree_of_any_height(count: int, tmp_path: Path) -> None:
    size = sqlite_file.MAX_ROW - 30 if count < 100 else 3_000
    rows = [(bytes([place % 251]) * size, str(place), place) for place in range(count)]
    assert write_table(tmp_path / "table.db", "a table", columns(rows))
    found = read(tmp_path / "table.db")
    assert [values[1:] for values in found] == rows


def test_many_pages_have_a_level_between_them_and_the_root(tmp_path: Path) -> None:
    count = 7_000  # a page each, more than one page of the tree can name
    rows = [(b"x" * 40_000, None, place) for place in range(count)]
    assert write_table(tmp_path / "table.db", "a table", columns(rows))
    with closing(sqlite3.connect(tmp_path / "table.db")) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        found = connection.execute('SELECT number FROM "a table" WHERE rowid IN (1, 6553, 6554, 7000)').fetchall()
    assert found == [(0,), (6552,), (6553,), (6999,)]


def test_a_row_that_needs_more_than_a_page_is_left_to_another_way(tmp_path: Path) -> None:
    path = tmp_path / "table.db"
    assert not write_table(path, "a table", columns([(b"x" * 70_000, None, 1)]))
    assert not path.exists()
