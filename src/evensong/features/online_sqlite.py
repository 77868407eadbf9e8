"""Feast's layout in SQLite: a table a view with one row an entity and feature, read and written in whole columns.

The table is `project_view`; a row holds the entity key, the feature's name, its serialized value, that value as text
where it is a scalar, and the row's two times as seconds (feast/infra/online_stores/sqlite.py).
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from evensong.features.online_rows import Rows
from evensong.features.sqlite_file import write_table

_ASKED = 500
#: Who writes a night's features has time; who answers a request has not, and says so.
PATIENCE_SECONDS = 60.0


class SqliteOnline:
    """The rows of Feast's online store in one SQLite file; one connection a thread."""

    def __init__(self, path: str, project: str, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """`timeout_seconds` is the patience with a file that somebody else has locked."""
        self._path = str(Path(path).resolve())
        self._timeout = timeout_seconds
        self._project = project
        self._local = threading.local()

    def read(self, keys: Sequence[bytes], features: Sequence[tuple[str, str]]) -> list[Sequence[bytes | None]]:
        """The stored values of each `(view, feature)`, a row an entity key; nothing where nothing is stored."""
        found: dict[tuple[str, str], dict[bytes, bytes]] = {feature: {} for feature in features}
        for view in dict.fromkeys(view for view, _ in features):
            for start in range(0, len(keys), _ASKED):
                for key, name, value in self._rows(view, keys[start : start + _ASKED]):
                    if (view, name) in found:
                        found[view, name][key] = value
        return [[column.get(key) for key in keys] for column in found.values()]

    def every_key(self, prefix: bytes, views: Sequence[str]) -> pa.BinaryArray:
        """The entity keys of these views that begin with the prefix, sorted."""
        found: set[bytes] = set()
        for view in views:
            table = _quoted(f"{self._project}_{view}")
            # Keys with the prefix lie between it and the prefix followed by the largest bytes.
            keys = f"SELECT DISTINCT entity_key FROM {table} WHERE entity_key >= ? AND entity_key < ?"  # noqa: S608
            found.update(row[0] for row in self._fetch(keys, (prefix, prefix + b"\xff" * 8)))
        return pa.array(sorted(found), pa.binary())

    def write(self, view: str, blocks: Iterable[Rows]) -> npt.NDArray[np.bool_]:
        """Write the rows except where a newer one is stored that somebody else wrote; which rows were written.

        A thread puts the next block into a file of its own, as a table of the store's shape; meanwhile one statement
        copies the block before into the view's table. Blocks in the order of their keys are quickest: the table and its
        indexes then grow at their ends.

        Raises:
            sqlite3.OperationalError: the table is not there: the view was not applied.
        """
        table, coming = f"{self._project}_{view}", iter(blocks)
        written = [np.zeros(0, bool)]
        with self._loading(table) as fresh, TemporaryDirectory() as folder, ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(_spool_next, coming, folder)
            while (block := waiting.result()) is not None:
                waiting = ahead.submit(_spool_next, coming, folder)
                written.append(self._copy(table, block, fresh))
        return np.concatenate(written)

    def remove(self, view: str, keys: pa.BinaryArray, features: Sequence[str], moments: pl.Series) -> None:
        """Remove what the view says of these keys, except where it is newer than the moments."""
        table = _quoted(f"{self._project}_{view}")
        newest = f"SELECT MAX(event_ts) FROM {table} WHERE entity_key = ?1"  # noqa: S608
        statement = f"DELETE FROM {table} WHERE entity_key = ?1 AND ({newest}) <= ?2"  # noqa: S608
        with _transaction(self._connection()) as connection:
            connection.executemany(statement, zip(keys.to_pylist(), _seconds(moments).to_list(), strict=True))

    def holds(self, view: str, keys: pa.BinaryArray, features: Sequence[str]) -> bool:
        """Whether every one of these features is stored of each key."""
        marks = ",".join("?" * len(features))
        table = _quoted(f"{self._project}_{view}")
        count = f"SELECT COUNT(*) FROM {table} WHERE entity_key = ? AND feature_name IN ({marks})"  # noqa: S608
        connection = self._connection()
        return all(
            connection.execute(count, (key, *features)).fetchone()[0] == len(features) for key in keys.to_pylist()
        )

    def _copy(self, table: str, block: Spooled, fresh: bool) -> npt.NDArray[np.bool_]:
        connection = self._connection()
        connection.execute("ATTACH ? AS spool", (str(block.path),))
        written = np.ones(block.entities, bool)
        try:
            with _transaction(connection):
                if not fresh:
                    newer = connection.execute(_newer(table), (block.features,)).fetchall()
                    last = block.features - 1
                    bounds = [(row, row + last) for (row,) in newer]
                    connection.executemany("DELETE FROM spool.block WHERE rowid BETWEEN ? AND ?", bounds)
                    written[[(row - 1) // block.features for (row,) in newer]] = False
                connection.execute(_insert(table, fresh))
        finally:
            connection.execute("DETACH spool")
            block.path.unlink()
        return written

    @contextmanager
    def _loading(self, table: str) -> Iterator[bool]:
        """Whether the table is empty; then, where nobody else has the file open, it is filled without the write-ahead
        log, through which every page would go twice. New pages need no other log, and each commit is on the disk."""
        connection = self._connection()
        fresh = connection.execute(f"SELECT 1 FROM {_quoted(table)} LIMIT 1").fetchone() is None  # noqa: S608
        if not fresh:
            yield False
            return
        connection.execute("PRAGMA busy_timeout = 0")
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute(f"PRAGMA busy_timeout = {round(self._timeout * 1000)}")
        try:
            yield True
        finally:
            _prepare(connection)

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
            connection = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)
            _prepare(connection)
            self._local.connection = connection
        return connection


class Spooled(NamedTuple):
    """A block in a file: the table `block` with a row an entity and feature, those of an entity together."""

    path: Path
    entities: int
    features: int


def _spool_next(blocks: Iterator[Rows], folder: str) -> Spooled | None:
    block = next(blocks, None)
    if block is None:
        return None
    spooled = Spooled(Path(folder, f"{uuid.uuid4().hex}.db"), len(block.keys), len(block.values))
    columns = _columns(block)
    if not write_table(spooled.path, "block", columns):
        with closing(sqlite3.connect(spooled.path, isolation_level=None)) as connection:
            connection.execute(f"CREATE TABLE block ({', '.join(columns)})")
            connection.execute("BEGIN")
            marks = ", ".join("?" * len(columns))
            rows = zip(*(column.to_pylist() for column in columns.values()), strict=True)
            connection.executemany(f"INSERT INTO block VALUES ({marks})", rows)  # noqa: S608
            connection.execute("COMMIT")
    return spooled


def _columns(rows: Rows) -> dict[str, pa.Array]:
    """The columns of the store's table, and `ours`: the rows of an entity together, by the features' names."""
    names, count = sorted(rows.values), len(rows.keys)
    entity = np.repeat(np.arange(count), len(names))
    feature = np.tile(np.arange(len(names)), count)

    def spread(parts: list[pa.Array]) -> pa.Array:
        """Each feature's values in the order of the rows."""
        return pa.concat_arrays(parts).take(pa.array(feature * count + entity))

    def moments(stamps: pl.Series | None) -> pa.Array:
        seconds = pl.Series([None] * count, dtype=pl.Int64) if stamps is None else _seconds(stamps)
        return seconds.gather(pl.Series(entity)).to_arrow()

    return {
        "entity_key": rows.keys.take(pa.array(entity)),
        "feature_name": pa.array(names, pa.string()).take(pa.array(feature)),
        "value": spread([rows.values[name] for name in names]),
        "value_text": spread([_texts(rows.columns[name]) for name in names]),
        "event_ts": moments(rows.moments),
        "created_ts": moments(rows.created),
        "ours": moments(rows.ours),
    }


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _prepare(connection: sqlite3.Connection) -> None:
    """Readers go on while a night is written; a lost power supply may cost the last transaction, never the file."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -65536")


def _insert(table: str, fresh: bool) -> str:
    """One statement that puts the block's rows into the table, in the block's order."""
    columns = "entity_key, feature_name, value, value_text, event_ts, created_ts"
    insert = f"INSERT INTO main.{_quoted(table)} ({columns}) SELECT {columns} FROM spool.block WHERE true"  # noqa: S608
    if fresh:
        return insert
    return (
        f"{insert} ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
        "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts"
    )


def _newer(table: str) -> str:
    """The first row of each entity of the block of which a newer row is stored than the block's, and than ours."""
    stored = f"SELECT MAX(event_ts) FROM main.{_quoted(table)} AS held WHERE held.entity_key = block.entity_key"  # noqa: S608
    limit = "MAX(event_ts, COALESCE(ours, event_ts))"
    return f"SELECT rowid FROM spool.block AS block WHERE (rowid - 1) % ? = 0 AND ({stored}) > {limit}"  # noqa: S608


def _texts(column: pl.Series) -> pa.StringArray:
    """What Feast writes beside a value: text as it is, a number as Python shows it, nothing for lists and bytes."""
    shown = pl.Series([None] * len(column), dtype=pl.String)
    if column.dtype == pl.String or column.dtype.is_integer():
        shown = column.cast(pl.String)
    elif column.dtype == pl.Boolean:
        shown = column.replace_strict([True, False], ["True", "False"], default=None, return_dtype=pl.String)
    elif column.dtype.is_float():
        numbers = column.cast(pl.Float64).fill_nan(None)
        size = numbers.abs()
        # Between these bounds both show the shortest digits that mean the number, without an exponent.
        other = ~((size >= 1e-4) & (size < 1e15) | (size == 0)).fill_null(True)
        shown = numbers.cast(pl.String)
        if other.any():
            shown = shown.scatter(other.arg_true(), [repr(value) for value in numbers.filter(other).to_list()])
    return shown.rechunk().to_arrow().cast(pa.string())


def _seconds(moments: pl.Series) -> pl.Series:
    """Seconds as Feast's SQLite adapter counts them: it takes the UTC clock for the machine's own time zone."""
    naive = moments.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    unique = naive.drop_nulls().unique()
    counted = [int(moment.timestamp()) for moment in unique.to_list()]
    return naive.replace_strict(unique, counted, default=None, return_dtype=pl.Int64)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
