"""Folders whose Parquet files already have the lake's columns: `interactions/`, `items/` and `users/`."""

from __future__ import annotations

import polars as pl

from evensong.data import lake, storage, tabular
from evensong.data.batch import Batch
from evensong.errors import SourceError, StorageError
from evensong.types import TABLES, Frame


def read(location: str, seen: dict[str, str]) -> Batch:
    """The rows of every file that is new or has changed since `seen` (file to mark, as `fingerprints` gives them).

    Raises:
        SourceError: the folder is gone, has none of the tables, or a file has other columns.
    """
    new = [uri for uri, mark in fingerprints(location).items() if seen.get(uri) != mark]
    rows = {table: _rows(table, [uri for uri in new if _table(location, uri) == table]) for table in TABLES}
    return Batch(interactions=rows["interactions"], items=rows["items"], users=rows["users"])


def fingerprints(location: str) -> dict[str, str]:
    """Each file of the three tables with a mark that changes when the file does."""
    found = {uri: mark for uri, mark in tabular.fingerprints(location).items() if _table(location, uri) in TABLES}
    if not found:
        raise SourceError(f"{location}: expected folders interactions, items or users with Parquet files, found none")
    return found


def _table(location: str, uri: str) -> str:
    return uri.removeprefix(location.rstrip("/") + "/").partition("/")[0] if uri.endswith(".parquet") else ""


def _rows(table: str, uris: list[str]) -> Frame:
    if not uris:
        return lake.empty(table)
    return pl.concat([_file(table, uri) for uri in uris])


def _file(table: str, uri: str) -> Frame:
    try:
        return lake.conform(table, storage.read_frame(uri))
    except (StorageError, pl.exceptions.PolarsError) as error:
        raise SourceError(f"{uri}: {error}") from error
