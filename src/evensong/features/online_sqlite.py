"""Feast's layout in SQLite: a table a view with one row an entity and feature, read and written in whole columns.

The table is `project_view`; a row holds the entity key, the feature's name, its serialized value, that value as text
where it is a scalar, and the row's two times as seconds (feast/infra/online_stores/sqlite.py).
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

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
        """Write the rows, except where a newer one is stored; the number given.

        Raises:
            sqlite3.OperationalError: the table is not there: the view was not applied.
        """
        rows = Rows(keys, values, columns, moments, created)
        return self.write_blocks(view, iter([rows]))

    def write_blocks(self, view: str, blocks: Iterator[Rows]) -> int:
        """The same for many blocks in the order of their keys.

        A thread puts the next block into a file of its own, one wide row an entity; meanwhile one statement spreads the
        block before over the view's table, which holds no Python object and so leaves the interpreter to the thread.
        """
        table = f"{self._project}_{view}"
        written = 0
        with self._loading(table) as fresh, TemporaryDirectory() as folder, ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(_spool_next, blocks, folder)
            while (block := waiting.result()) is not None:
                waiting = ahead.submit(_spool_next, blocks, folder)
                self._spread(table, block, fresh)
                written += block.size
        return written

    def _spread(self, table: str, block: Spooled, fresh: bool) -> None:
        connection = self._connection()
        connection.execute("ATTACH ? AS spool", (block.path,))
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.execute(_insert(table, block.names, fresh))
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        finally:
            connection.execute("DETACH spool")
            Path(block.path).unlink()

    @contextmanager
    def _loading(self, table: str) -> Iterator[bool]:
        """Whether the table is empty; then it is filled without what only a table in use needs.

        The index on the entity key alone is built at the end (reads use the primary key, which begins with it), and
        where nobody else has the file open there is no write-ahead log, through which every page would go twice.
        """
        connection = self._connection()
        fresh = connection.execute(f"SELECT 1 FROM {_quoted(table)} LIMIT 1").fetchone() is None  # noqa: S608
        if not fresh:
            yield False
            return
        connection.execute(f"DROP INDEX IF EXISTS {_quoted(table + '_ek')}")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA busy_timeout = 0")
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute(f"PRAGMA busy_timeout = {round(self._timeout * 1000)}")
        try:
            yield True
        finally:
            connection.execute(f"CREATE INDEX IF NOT EXISTS {_quoted(table + '_ek')} ON {_quoted(table)} (entity_key)")
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


class Rows:
    """A block of entities with everything that a table holds of them."""

    def __init__(
        self,
        keys: pa.BinaryArray,
        values: Mapping[str, pa.BinaryArray],
        columns: Mapping[str, pl.Series],
        moments: pl.Series,
        created: pl.Series | None,
    ) -> None:
        self.keys, self.values, self.columns, self.moments, self.created = keys, values, columns, moments, created

    def cells(self) -> tuple[list[str], int, Iterator[tuple[Any, ...]]]:
        """The features' names and, an entity a tuple, the key, each feature's value and text, and the two times.

        In the order of keys and names, in which the table's index grows at its end: several times quicker than
        anywhere.
        """
        order = pc.sort_indices(self.keys)
        places = pl.Series(order)
        names = sorted(self.values)
        cells: list[Iterable[Any]] = [self.keys.take(order).to_pylist()]
        for name in names:
            cells += [self.values[name].take(order).to_pylist(), _texts(self.columns[name].gather(places))]
        cells.append(_seconds(self.moments.gather(places)))
        cells.append(itertools.repeat(None) if self.created is None else _seconds(self.created.gather(places)))
        return names, len(self.keys), zip(*cells, strict=False)


class Spooled(NamedTuple):
    """A block in a file: the table `block` with a row an entity, columns c0 (key), c1, c2 … in the order of `cells`."""

    path: str
    names: list[str]
    size: int


def _spool_next(blocks: Iterator[Rows], folder: str) -> Spooled | None:
    block = next(blocks, None)
    if block is None:
        return None
    names, count, rows = block.cells()
    path = str(Path(folder, f"{uuid.uuid4().hex}.db"))
    columns = [f"c{place}" for place in range(2 * len(names) + 3)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"CREATE TABLE block ({', '.join(columns)})")
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO block VALUES ({', '.join('?' * len(columns))})", rows)  # noqa: S608
        connection.execute("COMMIT")
    return Spooled(path, names, count)


def _prepare(connection: sqlite3.Connection) -> None:
    """Readers go on while a night is written; a lost power supply may cost the last transaction, never the file."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -65536")


def _insert(table: str, names: Sequence[str], fresh: bool) -> str:
    """One statement that makes a row an entity and feature from the block's row an entity, in the block's order."""
    features = ", ".join(f"({place}, {_text(name)})" for place, name in enumerate(names))
    values = " ".join(f"WHEN {place} THEN c{1 + 2 * place}" for place in range(len(names)))
    texts = " ".join(f"WHEN {place} THEN c{2 + 2 * place}" for place in range(len(names)))
    times = f"c{1 + 2 * len(names)}, c{2 + 2 * len(names)}"
    insert = (
        f"INSERT INTO main.{_quoted(table)} (entity_key, feature_name, value, value_text, event_ts, created_ts) "  # noqa: S608
        f"SELECT c0, name, CASE place {values} END, CASE place {texts} END, {times} FROM spool.block "
        f"CROSS JOIN (SELECT column1 AS place, column2 AS name FROM (VALUES {features})) WHERE true"
    )
    if fresh:
        return insert
    return (
        f"{insert} ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
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
        numbers = column.cast(pl.Float64).fill_nan(None)
        size = numbers.abs()
        # Between these bounds both show the shortest digits that mean the number, without an exponent.
        alike = (size >= 1e-4) & (size < 1e15) | (size == 0)
        shown = numbers.cast(pl.String)
        if alike.fill_null(True).all():
            return shown.to_list()
        others = numbers.filter(~alike.fill_null(True))
        places = (~alike.fill_null(True)).arg_true()
        return shown.scatter(places, [repr(value) for value in others.to_list()]).to_list()
    return [None] * len(column)


def _seconds(moments: pl.Series) -> list[int | None]:
    """Seconds as Feast's SQLite adapter counts them: it takes the UTC clock for the machine's own time zone."""
    naive = moments.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    unique = naive.drop_nulls().unique()
    counted = [int(moment.timestamp()) for moment in unique.to_list()]
    return naive.replace_strict(unique, counted, default=None, return_dtype=pl.Int64).to_list()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
