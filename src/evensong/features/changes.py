"""What the lake holds that a refresh has not seen: the rows known since, and the days on which anything else changed.

Of each table a refresh remembers the version that it read and a fingerprint (rows, hash) of what became known on each
day. Hashes are added up by XOR, so where later commits only appended files, the fingerprints follow from those files
alone; where a commit took files away, the table is read whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from evensong.data.lake import Lake
from evensong.features.state import BEGINNING, day_end, midnight_before, with_known
from evensong.types import Frame

#: Day end to (rows, hash) of what became known on that day.
Days = dict[str, list[str]]


@dataclass
class Reading:
    """One table as a refresh finds it."""

    lake: Lake
    table: str
    columns: Sequence[str]
    horizon: datetime
    version: int | None
    days: Days
    new: Frame
    """The rows that became known after the midnight up to which the last refresh has them all; all without one."""
    _all: Frame | None = field(default=None, repr=False)

    def everything(self) -> Frame:
        """Every row known at the horizon; read when it is first asked for."""
        if self._all is None:
            self._all = _read(self.lake.scan(self.table, self.horizon), self.columns)
        return self._all

    def changed_since(self, before: Days) -> datetime | None:
        """The midnight that begins the first day on which something else became known than the last refresh saw."""
        differing = [day for day in {*self.days, *before} if self.days.get(day) != before.get(day)]
        return datetime.fromisoformat(min(differing)) - timedelta(days=1) if differing else None


def read(
    lake: Lake,
    table: str,
    columns: Sequence[str],
    horizon: datetime,
    held: Mapping[str, Any] | None,
    reached: datetime | None,
) -> Reading:
    """Look at a table.

    Args:
        horizon: rows that became known later are not seen.
        held: `version` and `days` of the last refresh.
        reached: the horizon of the last refresh.
    """
    version = lake.version(table)
    added = None
    if held is not None and reached is not None and held["version"] is not None:
        added = lake.added_since(table, held["version"])
    midnight = midnight_before(reached) if reached else BEGINNING
    after = pl.max_horizontal("event_timestamp", "created_timestamp") > midnight
    if added is None or held is None:
        rows = _read(lake.scan(table, horizon), columns)
        return Reading(lake, table, columns, horizon, version, fingerprints(rows), rows.filter(after), rows)
    # either time stands in the files' statistics, so that files and row groups of before are passed over
    recent = (pl.col("event_timestamp") > midnight) | (pl.col("created_timestamp") > midnight)
    new = _read(lake.scan(table, horizon).filter(recent), columns)
    late = _read(added.filter(~after), columns)
    settled = {day: mark for day, mark in held["days"].items() if datetime.fromisoformat(day) <= midnight}
    return Reading(lake, table, columns, horizon, version, _together(settled, late) | fingerprints(new), new)


def fingerprints(rows: Frame) -> Days:
    """What became known on each day, whatever the order of the rows."""
    rows = with_known(rows)
    days = (
        rows.select(day_end(pl.col("known")).alias("day"), pl.struct(rows.columns).hash(seed=0).alias("hash"))
        .group_by("day")
        .agg(pl.len(), pl.col("hash").bitwise_xor())
        .sort("day")
    )
    return {day.isoformat(): [str(count), str(mark)] for day, count, mark in days.iter_rows()}


def _together(days: Days, rows: Frame) -> Days:
    """The fingerprints with these rows added."""
    together = dict(days)
    for day, (count, mark) in fingerprints(rows).items():
        held_count, held_mark = together.get(day, ("0", "0"))
        together[day] = [str(int(held_count) + int(count)), str(int(held_mark) ^ int(mark))]
    return together


def _read(rows: pl.LazyFrame, columns: Sequence[str]) -> Frame:
    found: Frame = rows.select(columns).collect(engine="streaming")
    return found
