"""The users that a person can choose from on the page: those of the feature tables, the most recently active first."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.serving.freshness import Materialized
from evensong.settings import Settings
from evensong.types import Frame

log = logging.getLogger("evensong.serving")

#: Any id can be typed; only so many can be found by their beginning.
MAX_USERS = 100_000

_EMPTY = pl.DataFrame(
    schema={"user_id": pl.String(), "num_interactions": pl.Int64(), "last_interaction_seconds": pl.Int64()}
)


class People:
    """The users known at the last materialization. A service that cannot reach the lake simply has none to offer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._users = _EMPTY
        self._read_at: Materialized | None = None
        self._told = False

    def refresh(self, marker: Materialized | None) -> None:
        """Read the users anew when the materialization has moved on."""
        if not self._settings.serving.page or marker is None or marker == self._read_at:
            return
        try:
            self._users = _read(self._settings)
        except Exception as error:
            # the next look reads again, and says nothing more
            if not self._told:
                log.warning("users to choose from cannot be read (%s); the page still takes any id", error)
            self._told = True
            return
        self._read_at, self._told = marker, False

    def find(self, starts_with: str, limit: int) -> list[dict[str, Any]]:
        """Users whose id begins so (the fields of `schemas.Person`)."""
        users = self._users
        if starts_with:
            users = users.filter(pl.col("user_id").str.starts_with(starts_with))
        return [
            {
                "user_id": row["user_id"],
                "num_interactions": row["num_interactions"] or 0,
                "last_interaction": unix_time(row["last_interaction_seconds"]),
            }
            for row in users.head(limit).iter_rows(named=True)
        ]


def unix_time(seconds: int | None) -> str | None:
    """A unix time as ISO 8601, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _read(settings: Settings) -> Frame:
    uri = storage.join(settings.lake, "features", "user_history")
    newest = (
        pl.scan_delta(uri, storage_options=storage.storage_options(uri))
        .select("user_id", "num_interactions", "last_interaction_seconds", "event_timestamp")
        .group_by("user_id")
        .agg(pl.all().sort_by("event_timestamp").last())
        .sort("last_interaction_seconds", "user_id", descending=[True, False], nulls_last=True)
        .select(_EMPTY.columns)
        .head(MAX_USERS)
    )
    return newest.collect()
