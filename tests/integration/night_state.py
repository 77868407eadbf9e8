"""What two homes are compared by: every row of every table, the online store, the versions and their ledger."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import polars as pl
from deltalake import DeltaTable

from evensong.registry import aliases, commands
from evensong.settings import Settings


def tables(home: Path) -> dict[str, pl.DataFrame]:
    """Every Delta table below the home's lake, its rows in an order of their own."""
    found = {}
    for log in sorted((home / "lake").rglob("_delta_log")):
        frame = pl.from_arrow(DeltaTable(str(log.parent)).to_pyarrow_table())
        assert isinstance(frame, pl.DataFrame)
        found[str(log.parent.relative_to(home))] = frame.sort(
            [name for name, dtype in frame.schema.items() if not isinstance(dtype, pl.List)], nulls_last=True
        )
    return found


def online(home: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the online store by table: entity, feature, value, times. Marks of when it was written are none."""
    with sqlite3.connect(home / "feast" / "online.db") as store:
        names = [row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        names = sorted(name for name in names if name.startswith("evensong_"))
        assert names
        return {name: sorted(store.execute(f'SELECT * FROM "{name}"'), key=repr) for name in names}  # noqa: S608


def registry(settings: Settings) -> dict[str, Any]:
    """The versions, which of them is the champion, and how often it moved."""
    versions = commands.list_versions(settings)
    state = aliases.ledger_verify(settings)
    return {
        "versions": [(version["version"], version["champion"], version["digest"]) for version in versions],
        "moves": state.lines,
        "sound": state.sound,
    }


def assert_same(calm: Path, other: Path) -> None:
    """No row more, less or different in the other home's tables and online store."""
    expected, found = tables(calm), tables(other)
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        assert found[name].height == frame.height, name
        assert found[name].equals(frame), name
    assert online(other) == online(calm)
