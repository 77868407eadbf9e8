"""One request to its answer: features, filter, funnel, titles. Knows nothing of HTTP."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from evensong.features import filtering
from evensong.features.views import USER_FEATURES
from evensong.recommender.session import continued
from evensong.serving.metrics import Metrics
from evensong.settings import Settings
from evensong.types import Frame

if TYPE_CHECKING:
    from evensong.features.online import OnlineFeatures
    from evensong.serving.champion import InUse

log = logging.getLogger("evensong.serving")

#: Failures in a row after which the online store is left alone for a poll, so that requests do not queue behind it.
FAILURES_TO_PAUSE = 3


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked for."""

    request_id: str
    user_id: str
    k: int
    exclude_item_ids: Sequence[str] = ()
    recent_item_ids: Sequence[str] = ()
    session_id: str | None = None
    surface: str | None = None


@dataclasses.dataclass(frozen=True)
class Reply:
    """What is answered, and what decided it."""

    answer: dict[str, Any]
    """The fields of `schemas.Recommendations`."""
    now: datetime
    users: Frame | None
    """The user's row as it was read from the online store."""
    num_hidden: int


class UserReader:
    """Reads what the online store knows of one user; leaves the store alone for a while when it keeps failing."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._filter = settings.serving.filter
        self._pause = settings.serving.poll_seconds
        self._metrics = metrics
        self._lock = threading.Lock()
        self._failures, self._paused_until = 0, 0.0

    def read(self, features: OnlineFeatures | None, user_id: str) -> tuple[Frame | None, Collection[str]]:
        """The user's features and the items that the filter rule hides; None and nothing when they cannot be read."""
        if features is None or not self._may_ask():
            return None, ()
        try:
            users, seen = features.users_and_seen([user_id])
        except Exception as error:
            self._failed(error)
            return None, ()
        self._failures, self._paused_until = 0, 0.0
        return users, self._hidden(seen, user_id)

    def _may_ask(self) -> bool:
        """Whether this request reads the store. After a pause one of them finds out for all whether it is back."""
        with self._lock:
            now = time.monotonic()
            if now < self._paused_until:
                return False
            if self._failures >= FAILURES_TO_PAUSE:
                self._paused_until = now + self._pause
            return True

    def _hidden(self, seen: Frame, user_id: str) -> Collection[str]:
        if self._filter == "none":
            return ()
        return filtering.hidden(seen, self._filter)[user_id]

    def _failed(self, error: Exception) -> None:
        self._metrics.feature_errors.labels("users").inc()
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES_TO_PAUSE:
                self._paused_until = time.monotonic() + self._pause
            if self._failures == 1:
                log.error(
                    "user features cannot be read (%s: %s); popular items are answered; start the online store, "
                    "or run `evensong nightly`",
                    type(error).__name__,
                    error,
                )


def recommend(
    ask: Ask,
    in_use: InUse,
    features: OnlineFeatures | None,
    reader: UserReader,
    metrics: Metrics,
    *,
    filter_rule: str,
    now: datetime,
) -> Reply:
    """Answer one request from the model in use.

    A user without history, or whose features cannot be read, gets popular items and the reason; where everything that
    could be recommended is hidden or excluded, the list is empty and the reason says that.
    """
    with metrics.stage("features"):
        stored, hidden = reader.read(features, ask.user_id)
        if in_use.redefined:
            stored = None  # their names are the same, their meaning is not
    users = stored if stored is not None else without_features(ask.user_id)
    users = continued(users, ask.recent_item_ids)
    exclude = {*hidden, *ask.exclude_item_ids, *ask.recent_item_ids}
    with metrics.stage("funnel"):
        chosen, failed = _choose(ask, in_use, users, exclude, now)
    with metrics.stage("answer"):
        items = [_item(row, in_use) for row in chosen.iter_rows(named=True)]
    source = "model" if any(item["source"] == "model" for item in items) else "popularity"
    reason = None if source == "model" else failed or _reason(stored, items)
    if reason:
        metrics.fallbacks.labels(reason).inc()
    answer = {
        "request_id": ask.request_id,
        "user_id": ask.user_id,
        "k": ask.k,
        "source": source,
        "reason": reason,
        "model_version": in_use.version,
        "model_as_of": in_use.as_of,
        "filter": filter_rule,
        "items": items,
    }
    return Reply(answer, now, stored, len(exclude))


def without_features(user_id: str) -> Frame:
    """The row of a user of whom nothing is known."""
    nulls = {name: pl.Series([None], dtype=dtype) for name, dtype in USER_FEATURES.items()}
    return pl.DataFrame({"user_id": [user_id], **nulls})


def record(ask: Ask, reply: Reply, in_use: InUse) -> dict[str, Any]:
    """What the request log keeps (the fields of `monitoring.request_log.Record`)."""
    return {
        "request_id": ask.request_id,
        "at": reply.now,
        "user_id": ask.user_id,
        "k": ask.k,
        "filter": reply.answer["filter"],
        "exclude_item_ids": list(ask.exclude_item_ids),
        "num_hidden": reply.num_hidden,
        "context": {
            "recent_item_ids": list(ask.recent_item_ids),
            "session_id": ask.session_id,
            "surface": ask.surface,
        },
        "model_name": in_use.name,
        "model_version": in_use.version,
        "source": reply.answer["source"],
        "reason": reply.answer["reason"],
        "features_as_of": in_use.materialized.as_of.isoformat() if in_use.materialized else None,
        "feature_versions": dict(in_use.materialized.versions) if in_use.materialized else None,
        "user_features": reply.users.row(0, named=True) if reply.users is not None else None,
        "items": [
            {name: item[name] for name in ("rank", "item_id", "score", "source")}
            | {"features": _item_features(item["item_id"], in_use)}
            for item in reply.answer["items"]
        ],
    }


def _choose(ask: Ask, in_use: InUse, users: Frame, exclude: set[str], now: datetime) -> tuple[Frame, str | None]:
    """The funnel's rows, and why the model did not speak if it should have."""
    if in_use.redefined:
        return in_use.popular(ask.k, exclude), "features_redefined"
    if in_use.items is None:
        return in_use.popular(ask.k, exclude), "item_features_unavailable"
    try:
        rows = in_use.recommender.recommend(users, in_use.items, now=now, k=ask.k, exclude={ask.user_id: exclude})
    except Exception:
        # a defect of the model or a feature it cannot read must not cost the user their page; it costs us a log entry
        log.exception("version %s failed on request %s; popular items are answered", in_use.version, ask.request_id)
        return in_use.popular(ask.k, exclude), "model_failed"
    return rows, None


def _reason(stored: Frame | None, items: Sequence[dict[str, Any]]) -> str:
    if stored is None:
        return "features_unavailable"
    if not items:
        return "nothing_left"
    known = [name for name in stored.columns if name != "user_id"]
    if stored.select(pl.all_horizontal(pl.col(known).is_null())).item():
        return "unknown_user"
    return "no_history"


def _item(row: dict[str, Any], in_use: InUse) -> dict[str, Any]:
    title, category = in_use.titles.get(row["item_id"], (None, None))
    return {
        "rank": row["rank"],
        "item_id": row["item_id"],
        "title": title,
        "category": category,
        "score": row["score"],
        "source": row["source"],
    }


def _item_features(item_id: str, in_use: InUse) -> dict[str, Any] | None:
    if in_use.item_features is None:
        return None
    position = in_use.positions.get(item_id)
    return in_use.item_features.row(position, named=True) if position is not None else None
