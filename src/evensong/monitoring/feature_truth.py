"""What feature rows must say, counted event by event from what was known at the moment of each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evensong.types import Frame

WINDOWS = {"1d": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}


@dataclass(frozen=True)
class Event:
    """One positive event."""

    user_id: str
    item_id: str
    event_type: str
    event_timestamp: datetime
    known: datetime
    """When a run may first see it."""


def events_by(events: Frame, entity: str) -> dict[str, list[Event]]:
    """The events of each key, in no order.

    Args:
        events: positive interactions: user, item, type, event and created timestamp.
    """
    found: dict[str, list[Event]] = {}
    columns = ("user_id", "item_id", "event_type", "event_timestamp", "created_timestamp")
    for user, item, kind, event, created in events.select(columns).iter_rows():
        key = user if entity == "user_id" else item
        found.setdefault(key, []).append(Event(user, item, kind, event, max(event, created)))
    return found


def user_history(events: list[Event], moment: datetime, length: int) -> dict[str, Any]:
    """The last `length` items in the order in which their events became known, and counts of all of them."""
    known = sorted(
        (one for one in events if one.known <= moment),
        key=lambda one: (one.known, one.event_timestamp, one.item_id, one.event_type),
    )
    return {
        "recent_item_ids": [one.item_id for one in known[-length:]],
        "recent_event_types": [one.event_type for one in known[-length:]],
        "num_interactions": len(known),
        "last_interaction_seconds": int(max(one.event_timestamp for one in known).timestamp()) if known else None,
    }


def user_activity(events: list[Event], moment: datetime) -> dict[str, Any]:
    """Events in the windows that end at the moment."""
    return {f"num_events_{name}": len(_inside(events, moment, length)) for name, length in WINDOWS.items()}


def item_popularity(events: list[Event], moment: datetime) -> dict[str, Any]:
    """Events in the windows that end at the moment, all so far, and the different users of the longest window."""
    counts: dict[str, Any] = {
        f"item_events_{name}": len(_inside(events, moment, length)) for name, length in WINDOWS.items()
    }
    total = sum(one.known <= moment for one in events)
    users = {one.user_id for one in _inside(events, moment, WINDOWS["30d"])}
    return counts | {"item_events_total": total, "item_users_30d": len(users)}


def untrue(
    rows: Frame, entity: str, truth: Callable[[str, datetime], Mapping[str, Any]]
) -> Iterator[tuple[str, datetime, str, Any, Any]]:
    """Key, moment, feature, value and what it must be, for each value of the rows that is not what `truth` says."""
    for row in rows.iter_rows(named=True):
        key, moment = row[entity], row["event_timestamp"]
        if row["created_timestamp"] != moment:
            yield key, moment, "created_timestamp", row["created_timestamp"], moment
        for name, expected in truth(key, moment).items():
            if row[name] != expected:
                yield key, moment, name, row[name], expected


def _inside(events: list[Event], moment: datetime, length: timedelta) -> list[Event]:
    return [one for one in events if one.known <= moment and moment - length < one.event_timestamp <= moment]
