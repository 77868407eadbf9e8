"""What a person does about the rows that hold nights back: looks at them, and says that they count no more.

They are the rows of nights that validation stopped, which count again in every night until one goes on
(`pipelines/validate`). A release is noted beside the quarantine and takes nothing out of it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl

from evensong.data import quarantine
from evensong.data.lake import Lake
from evensong.errors import ConfigurationError
from evensong.pipelines import validate
from evensong.registry.commands import person
from evensong.settings import Settings
from evensong.types import Frame


def listed(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """`counting`: rows that count in the next night, by the night that found them, table and reason; `released`: what
    was released so far, oldest first: `at`, `by`, `reason`, `rows`.
    """
    lake = Lake(settings.lake)
    counting = _counting(settings, lake).group_by("as_of", "table", "reason").agg(pl.len().alias("rows"))
    released = lake.read(quarantine.RELEASED).group_by("at", "by", "reason").agg(pl.len().alias("rows"))
    return {
        "counting": _as_json(counting.sort("as_of", "table", "reason")),
        "released": _as_json(released.sort("at", "by", "reason")),
    }


def release(settings: Settings, reason: str, by: str | None = None) -> dict[str, Any]:
    """Say that the bad rows that count now stop no night any more: who, when, why, and how many of each table.

    They stay in the quarantine. One commit, harmless beside a night.

    Raises:
        ConfigurationError: no reason was given, or no row counts.
    """
    if not reason.strip():
        raise ConfigurationError("reason: expected some words, got none; say why these rows count no more")
    lake = Lake(settings.lake)
    rows = _counting(settings, lake)
    if rows.is_empty():
        raise ConfigurationError(
            "expected rows of a night that validation stopped, found none that count: there is nothing to release; "
            "`evensong quarantine list` shows what was released before"
        )
    at, who, why = datetime.now(UTC), by or person(), reason.strip()
    quarantine.release(lake, rows, at=at, by=who, reason=why)
    counts = dict(rows.group_by("table").len().sort("table").iter_rows())
    return {"at": at.isoformat(), "by": who, "reason": why, "rows": counts}


def _counting(settings: Settings, lake: Lake) -> Frame:
    _, stopped = validate.gone_on(settings, lake.read(quarantine.TABLE))
    return stopped.filter(~quarantine.released(lake, stopped))


def _as_json(rows: Frame) -> list[dict[str, Any]]:
    times = {"as_of", "at"}
    return [{k: v.isoformat() if k in times else v for k, v in row.items()} for row in rows.iter_rows(named=True)]
