"""Folders whose Parquet files already have the lake's columns: `interactions/`, `items/` and `users/`.

A folder with a `shop.json` is a simulated shop's. A day of it counts from its record on, `days/DATE.json`, which is
written last: so no night meets a day's events without its items.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath

import polars as pl

from evensong.data import batch, lake, storage
from evensong.data.batch import Batch
from evensong.errors import SourceError, StorageError
from evensong.types import TABLES, Frame

SHOP = "shop.json"
DAYS = "days"


def read(location: str, seen: dict[str, str], now: datetime) -> Batch:
    """The rows of every file that is new or has changed since `seen` (file to mark, as `fingerprints` gives them).

    An event that does not say when it became known did so when it happened, or `now` where that lies ahead.

    Raises:
        SourceError: the folder is gone, has none of the tables, or a file has other columns.
    """
    new = [uri for uri, mark in fingerprints(location).items() if seen.get(uri) != mark]
    rows = {table: _rows(table, [uri for uri in new if _table(location, uri) == table], now) for table in TABLES}
    return Batch(interactions=rows["interactions"], items=rows["items"], users=rows["users"])


def fingerprints(location: str) -> dict[str, str]:
    """Each file of the three tables with a mark that changes when the file does."""
    try:
        listed = storage.fingerprints(location)
    except StorageError as error:
        raise SourceError(str(error)) from error
    found = {uri: mark for uri, mark in listed.items() if _table(location, uri) in TABLES}
    if storage.join(location, SHOP) in listed:
        found = {
            uri: mark
            for uri, mark in found.items()
            if storage.join(location, DAYS, f"{PurePosixPath(uri).stem}.json") in listed
        }
    if not found:
        raise SourceError(f"{location}: expected folders interactions, items or users with Parquet files, found none")
    return found


def _table(location: str, uri: str) -> str:
    return uri.removeprefix(location.rstrip("/") + "/").partition("/")[0] if uri.endswith(".parquet") else ""


def _rows(table: str, uris: list[str], now: datetime) -> Frame:
    if not uris:
        return lake.empty(table)
    return pl.concat([_file(table, uri, now) for uri in uris])


def _file(table: str, uri: str, now: datetime) -> Frame:
    try:
        raw = storage.read_frame(uri)
        rows = lake.conform(table, raw)
    except StorageError as error:
        raise SourceError(str(error) if str(error).startswith(uri) else f"{uri}: {error}") from error
    if table != "interactions":
        return rows.with_columns(created_timestamp=pl.coalesce("created_timestamp", "event_timestamp"))
    own = rows if "created_timestamp" in raw.columns else rows.drop("created_timestamp")
    return batch.arrived(own, now).select(rows.columns)
