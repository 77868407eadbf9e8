"""The lake: Delta tables under one URI, read as of a moment and added to without ever adding a row twice.

A row is the same row as another when `types.TABLE_KEYS` agree, nulls counted as equal. The raw tables also carry
`repeat`, the row's count among equal keys within what its source gave at once (0 for the first), so that exact repeats
live long enough to be judged: validation quarantines every row whose `repeat` is above 0. All other tables keep the
first of equal keys.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.errors import BusyError, StorageError
from evensong.types import TABLE_KEYS, TABLES, TIMESTAMP, Frame

RAW = "raw_"
#: Which of several rows with an equal key a raw row is; 0 for the first.
REPEAT = "repeat"
QUARANTINE: dict[str, pl.DataType] = {
    "table": pl.String(),
    "reason": pl.String(),
    "row": pl.String(),
    "as_of": TIMESTAMP,
}
"""What validation did not let through: a line a row, `row` the whole row as JSON, `as_of` the night that judged it."""
RELEASED: dict[str, pl.DataType] = {
    "table": pl.String(),
    "row": pl.String(),
    "at": TIMESTAMP,
    "by": pl.String(),
    "reason": pl.String(),
}
"""The rows of the quarantine that stop no night any more: the moment at which a person said so, who, and why."""

SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    **TABLES,
    **{RAW + name: {**schema, REPEAT: pl.Int32()} for name, schema in TABLES.items()},
    "quarantine": QUARANTINE,
    "released": RELEASED,
}
KEYS: dict[str, tuple[str, ...]] = {
    **TABLE_KEYS,
    **{RAW + name: (*keys, REPEAT) for name, keys in TABLE_KEYS.items()},
    "quarantine": ("table", "row"),
    "released": ("table", "row"),
}
ATTEMPTS = 20


class Lake:
    """The tables under a URI, a local folder or `s3://bucket/prefix`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def read(self, table: str, as_of: datetime | None = None, *, version: int | None = None) -> Frame:
        """The rows known at `as_of` (all of them without it), in an order that depends on nothing but the rows.

        A row is known when both its `event_timestamp` and its `created_timestamp` are at or before `as_of`; a table
        with just one time column is cut by that one. `version` reads the table as an earlier commit left it. A table
        that nobody wrote yet is empty.

        Raises:
            StorageError: as `scan`, or the store cannot be reached.
        """
        rows = self.scan(table, as_of, version=version)
        with storage.reaching(storage.join(self.uri, table)):
            return in_order(table, rows.collect())

    def scan(self, table: str, as_of: datetime | None = None, *, version: int | None = None) -> pl.LazyFrame:
        """The same rows as `read`, lazily and in no particular order.

        Raises:
            StorageError: the table has no such version, or it is not one of the lake's and was never written.
        """
        found = self._open(table, version)
        if found is None:
            rows = pl.LazyFrame(schema=_schema(table, self.uri))
        else:
            rows = pl.scan_delta(found, storage_options=storage.storage_options(self.uri) or None)
        if as_of is None:
            return rows
        moment = pl.lit(_utc(as_of), dtype=TIMESTAMP)
        times = [name for name in ("event_timestamp", "created_timestamp", "as_of") if name in rows.collect_schema()]
        return rows.filter([pl.col(name) <= moment for name in times])

    def added_since(self, table: str, version: int) -> pl.LazyFrame | None:
        """The rows that commits after a version added, where these did nothing else; none where they took rows away,
        or the version cannot be read any more.
        """
        now = self._open(table)
        try:
            then = self._open(table, version)
        except StorageError:
            return None
        held, there = set(then.file_uris()), now.file_uris()
        if now is None or not held <= set(there):
            return None
        added = [uri for uri in there if uri not in held]
        if not added:
            return pl.LazyFrame(schema=_schema(table, self.uri))
        return pl.scan_parquet(added, storage_options=storage.storage_options(self.uri) or None)

    def current_items(self, as_of: datetime | None = None, *, version: int | None = None) -> Frame:
        """The newest known row of every item, sorted by `item_id`."""
        return self._newest("items", "item_id", as_of, version)

    def current_users(self, as_of: datetime | None = None, *, version: int | None = None) -> Frame:
        """The newest known row of every user, sorted by `user_id`."""
        return self._newest("users", "user_id", as_of, version)

    def append_new(self, table: str, frame: Frame) -> int:
        """Add the rows whose key the table does not hold yet, in one commit, and return their number.

        The commit succeeds only on the very version that the rows were compared with; another writer in between makes
        us compare again. So two writers, or one killed and repeated, add nothing twice.

        Raises:
            StorageError: a column is missing, unknown, or of a type that cannot be cast.
            BusyError: other writers never let go.
        """
        rows = conform(table, frame)
        if table.startswith(RAW):
            keys = list(KEYS[table][:-1])
            rows = rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over(keys).alias(REPEAT))
        keys = list(KEYS[table])
        rows = rows.unique(keys, keep="first", maintain_order=True)
        for attempt in range(ATTEMPTS):
            found = self._open(table)
            new = rows if found is None else rows.join(self._keys(found, rows, keys), keys, "anti", nulls_equal=True)
            if new.is_empty():
                return 0
            if self._commit(table, in_order(table, new), found, mode="append"):
                return new.height
            _wait(attempt)
        raise BusyError(
            f"{table}: other writers committed {ATTEMPTS} times in between; end them, then run this step again"
        )

    def replace(self, table: str, frame: Frame, predicate: str | None = None) -> int:
        """Put `frame` in place of the rows that match the SQL `predicate` (of all rows without one), in one commit.

        The rows of `frame` must match the predicate too; `moment` writes a time in it. Returns the number of rows.
        """
        rows = conform(table, frame) if table in SCHEMAS else frame
        rows = in_order(table, rows)
        for attempt in range(ATTEMPTS):
            found = self._open(table)
            options: dict[str, Any] = {"mode": "overwrite"}
            if found is not None and predicate is not None:
                options["predicate"] = predicate
            elif found is not None:
                options["schema_mode"] = "overwrite"
            if self._commit(table, rows, found, **options):
                return rows.height
            _wait(attempt)
        raise BusyError(
            f"{table}: other writers committed {ATTEMPTS} times in between; end them, then run this step again"
        )

    def version(self, table: str) -> int | None:
        """The number of the table's last commit; None when nobody wrote it yet."""
        found = self._open(table)
        return None if found is None else int(found.version())

    def versions(self) -> dict[str, int]:
        """The version of every table of the contract that exists."""
        found = {table: self.version(table) for table in sorted(SCHEMAS)}
        return {table: version for table, version in found.items() if version is not None}

    def _newest(self, table: str, key: str, as_of: datetime | None, version: int | None) -> Frame:
        rows = self.read(table, as_of, version=version)
        newest = rows.sort(key, "event_timestamp", "created_timestamp", maintain_order=True)
        return newest.unique(key, keep="last", maintain_order=True)

    def _open(self, table: str, version: int | None = None) -> Any:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        uri = storage.join(self.uri, table)
        try:
            with storage.reaching(uri):
                return DeltaTable(uri, version=version, storage_options=storage.storage_options(uri) or None)
        except TableNotFoundError:
            if version is None:
                return None
            raise StorageError(
                f"{uri}: expected version {version}, found no table; run the step that writes it"
            ) from None
        except DeltaError as error:
            wanted = "a Delta table" if version is None else f"version {version} of a Delta table"
            raise StorageError(f"{uri}: expected {wanted}, and it cannot be opened: {error}") from error

    def _keys(self, found: Any, rows: Frame, keys: list[str]) -> Frame:
        """The keys that the table holds in the time span of `rows`: files outside it are never read."""
        held = pl.scan_delta(found, storage_options=storage.storage_options(self.uri) or None)
        if "event_timestamp" in keys and not rows["event_timestamp"].has_nulls():
            held = held.filter(
                pl.col("event_timestamp").is_between(rows["event_timestamp"].min(), rows["event_timestamp"].max())
            )
        with storage.reaching(self.uri):
            return held.select(keys).collect()

    def _commit(self, table: str, rows: Frame, found: Any, **options: Any) -> bool:
        """Whether the rows went in as the commit right after `found`, or as the very first one."""
        from deltalake import CommitProperties, write_deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError

        uri = storage.join(self.uri, table)
        if found is None:
            # an append would join a table that another writer has created since we looked
            options = {"mode": "error"}
        try:
            with storage.reaching(uri):
                write_deltalake(
                    uri if found is None else found,
                    rows,
                    storage_options=storage.storage_options(uri) or None,
                    commit_properties=CommitProperties(max_commit_retries=0),
                    **options,
                )
        except CommitFailedError:
            return False
        except DeltaError as error:
            if found is None and self._open(table) is not None:
                return False
            raise StorageError(f"{uri}: cannot be written: {error}") from error
        return True


def moment(time: datetime) -> str:
    """A time as an SQL literal for the predicate of `Lake.replace`."""
    return f"arrow_cast('{_utc(time):%Y-%m-%dT%H:%M:%S.%f}Z', 'Timestamp(Microsecond, Some(\"UTC\"))')"


def in_order(table: str, frame: Frame) -> Frame:
    """The rows by time, then by key, then by everything else that can be compared: no two orders are possible."""
    first = [name for name in ("event_timestamp", *KEYS.get(table, ())) if name in frame.columns]
    rest = [name for name in frame.columns if not frame.schema[name].is_nested()]
    return frame.sort(list(dict.fromkeys([*first, *rest])), maintain_order=True)


def empty(table: str) -> Frame:
    """No rows, in the table's columns."""
    return pl.DataFrame(schema=SCHEMAS[table])


def conform(table: str, frame: Frame) -> Frame:
    """The frame in the table's columns, order and types; columns that may be null and are not there become null.

    Not a number counts as no value.

    Raises:
        StorageError: a column is unknown, a key is missing, or a value cannot be cast.
    """
    schema = _schema(table, table)
    unknown = sorted(set(frame.columns) - set(schema))
    needed = [
        name for name in ("user_id", "item_id", "event_timestamp") if name in schema and name not in frame.columns
    ]
    if unknown or needed:
        raise StorageError(
            f"{table}: expected the columns {', '.join(schema)}; missing: {', '.join(needed) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}"
        )
    if "created_timestamp" in schema and "created_timestamp" not in frame.columns:
        frame = frame.with_columns(created_timestamp=pl.col("event_timestamp"))
    try:
        return frame.select(
            (pl.col(name) if name in frame.columns else pl.lit(0 if name == REPEAT else None)).cast(dtype).alias(name)
            for name, dtype in schema.items()
        ).with_columns(pl.col(pl.Float64).fill_nan(None))
    except pl.exceptions.PolarsError as error:
        raise StorageError(f"{table}: a value does not fit the column's type ({error}); correct the source") from error


def _schema(table: str, where: str) -> dict[str, pl.DataType]:
    if table not in SCHEMAS:
        raise StorageError(
            f"{where}: no table {table}; expected one of {', '.join(sorted(SCHEMAS))}, or one written before"
        )
    return SCHEMAS[table]


def _utc(time: datetime) -> datetime:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def _wait(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))
