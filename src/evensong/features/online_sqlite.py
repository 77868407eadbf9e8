"""Feast's layout in SQLite: a table a view with one row an entity and feature, read and written in whole columns.

The table is `project_view`; a row holds the entity key, the feature's name, its serialized value, that value as text
where it is a scalar, and the row's two times as seconds (feast/infra/online_stores/sqlite.py).
"""

from __future__ import annotations

import itertools
import math
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

#: Entities in one transaction: readers wait for no more than one of them.
BLOCK = 20_000
_ASKED = 500


class SqliteOnline:
    """The rows of Feast's online store in one SQLite file; one connection a thread."""

    def __init__(self, path: str, project: str) -> None:
        self._path = str(Path(path).resolve())
        self._project = project
        self._local = threading.local()

    def read(self, keys: pa.BinaryArray, features: Sequence[tuple[str, str]]) -> list[pa.BinaryArray]:
        """The stored values of each `(view, feature)`, a row a key; empty bytes where nothing is stored."""
        asked = keys.to_pylist()
        found: dict[tuple[str, str], dict[bytes, bytes]] = {feature: {} for feature in features}
        for view in dict.fromkeys(view for view, _ in features):
            for start in range(0, len(asked), _ASKED):
                for key, name, value in self._rows(view, asked[start : start + _ASKED]):
                    if (view, name) in found:
                        found[view, name][key] = value
        return [pa.array([column.get(key, b"") for key in asked], pa.binary()) for column in found.values()]

    def every_key(self, prefix: bytes, views: Sequence[str]) -> pa.BinaryArray:
        """The entity keys of these views that begin with the prefix, sorted."""
        found: set[bytes] = set()
        for view in views:
            table = _quoted(f"{self._project}_{view}")
            # Keys with the prefix lie between it and the prefix followed by the largest bytes.
            keys = f"SELECT DISTINCT entity_key FROM {table} WHERE entity_key >= ? AND entity_key < ?"  # noqa: S608
            found.update(row[0] for row in self._fetch(keys, (prefix, prefix + b"\xff" * 8)))
        return pa.array(sorted(found), pa.binary())

    def write(
        self,
        view: str,
        keys: pa.BinaryArray,
        values: Mapping[str, pa.BinaryArray],
        columns: Mapping[str, pl.Series],
        moments: pl.Series,
        created: pl.Series | None,
    ) -> int:
        """Write the rows that are not older than what is stored; the number given, as SQLite decides row by row."""
        order = pc.sort_indices(keys)  # the index grows at its end, which is several times quicker
        ordered = pl.Series(order)
        names = sorted(values)  # likewise within an entity
        connection = self._connection()
        for start in range(0, len(keys), BLOCK):
            rows, places = order.slice(start, BLOCK), ordered.slice(start, BLOCK)
            cells: list[Sequence[Any]] = [keys.take(rows).to_pylist()]
            for name in names:
                cells.append(values[name].take(rows).to_pylist())
                cells.append(_texts(columns[name].gather(places)))
            cells.append(_seconds(moments.gather(places)))
            cells.append(itertools.repeat(None) if created is None else _seconds(created.gather(places)))  # type: ignore[arg-type]
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(_upsert(f"{self._project}_{view}", names), zip(*cells, strict=False))
        return len(keys)

    def token(self, view: str) -> str | None:
        """What `set_token` left."""
        self._make_tokens()
        row = (
            self._connection().execute("SELECT token FROM materialized_by_evensong WHERE view = ?", (view,)).fetchone()
        )
        return None if row is None else str(row[0])

    def set_token(self, view: str, token: str | None) -> None:
        """Leave a mark that is lost when the file is; none removes it."""
        self._make_tokens()
        with self._connection() as connection:
            connection.execute("DELETE FROM materialized_by_evensong WHERE view = ?", (view,))
            if token is not None:
                connection.execute("INSERT INTO materialized_by_evensong VALUES (?, ?)", (view, token))

    def close(self) -> None:
        """Close this thread's connection."""
        if connection := getattr(self._local, "connection", None):
            connection.close()
            del self._local.connection

    def _rows(self, view: str, keys: Sequence[bytes]) -> list[tuple[bytes, str, bytes]]:
        marks = ",".join("?" * len(keys))
        table = _quoted(f"{self._project}_{view}")
        statement = f"SELECT entity_key, feature_name, value FROM {table} WHERE entity_key IN ({marks})"  # noqa: S608
        return self._fetch(statement, keys)

    def _fetch(self, statement: str, values: Sequence[bytes]) -> list[Any]:
        try:
            return self._connection().execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # nothing was materialized yet: nobody is known
                return []
            raise

    def _make_tokens(self) -> None:
        with self._connection() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS materialized_by_evensong (view TEXT PRIMARY KEY, token TEXT)"
            )

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=60, isolation_level=None)
            # Readers go on while a night is written; a lost power supply may cost the last transaction, never the file.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA cache_size = -65536")
            self._local.connection = connection
        return connection


def _upsert(table: str, names: Sequence[str]) -> str:
    """One statement for all features of an entity: the key is ?1, then value and text of each, then the two times."""
    event, created = 2 + 2 * len(names), 3 + 2 * len(names)
    rows = ",".join(f"(?1,{_text(name)},?{2 + 2 * i},?{3 + 2 * i},?{event},?{created})" for i, name in enumerate(names))
    columns = "entity_key, feature_name, value, value_text, event_ts, created_ts"
    return (
        f"INSERT INTO {_quoted(table)} ({columns}) VALUES {rows} "  # noqa: S608
        "ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
        "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts "
        "WHERE excluded.event_ts >= event_ts"
    )


def _texts(column: pl.Series) -> Sequence[str | None]:
    """What Feast writes beside a value: text as it is, a number as Python shows it, nothing for lists and bytes."""
    if column.dtype == pl.String or column.dtype.is_integer():
        return column.cast(pl.String).to_list()
    if column.dtype == pl.Boolean:
        return [None if value is None else str(value) for value in column.to_list()]
    if column.dtype.is_float():
        return [None if value is None or math.isnan(value) else repr(value) for value in column.to_list()]
    return [None] * len(column)


def _seconds(moments: pl.Series) -> list[int | None]:
    """Seconds as Feast's SQLite adapter counts them: it takes the UTC clock for the machine's own time zone."""
    naive = moments.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return [None if moment is None else int(moment.timestamp()) for moment in naive.to_list()]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
