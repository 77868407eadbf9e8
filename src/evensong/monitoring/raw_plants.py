"""What the leak canary plants among raw rows: a small shop of its own whose events come late, early, twice and never.

Every kind of moment is planted as interactions, as rows of the items table and as rows of the users table; beside them
stand as many drawn at random. Some that became known long ago reach the lake only now, as an import of old data does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import numpy as np
import polars as pl

from evensong.features.columns import StatisticDeclaration
from evensong.settings import SplitSettings
from evensong.types import INTERACTIONS, ITEMS, USERS, Frame

INSTANT = timedelta(microseconds=1)
STAMPS = ("event_timestamp", "created_timestamp")
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
#: The nights before and after, whose views are computed too, stand so far from `as_of`; the one before at no midnight.
EARLIER, LATER = timedelta(hours=31, minutes=7), timedelta(hours=26)
NUM_USERS, NUM_ITEMS, NUM_RANDOM = 6, 9, 150
CATEGORIES = ("Food > Bread", "Food > Fruit", "Tools > Hand > Saws", "Tools", None)

#: When a row happened and when it became known.
Stamps = tuple[datetime, datetime]


@dataclass(frozen=True)
class RawWorld:
    """Rows of the three tables of the lake."""

    tables: Mapping[str, Frame]
    """`interactions`, `items`, `users`."""
    earlier: Mapping[str, Frame]
    """What the lake holds of them before the import."""
    planted: Counter[str] = field(default_factory=Counter)
    """Kind to the number of its rows."""


def moments(as_of: datetime) -> Iterator[tuple[str, Stamps]]:
    """Kind and stamps of what is planted around a night."""
    earlier, later = as_of - EARLIER, as_of + LATER
    midnight = as_of.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for days in (60, 45, 31, 29, 20, 8, 6, 2, 0.4):
        yield "known at once", _at(as_of - days * _DAY)
    for end in (as_of, midnight):
        for length in (_DAY, 7 * _DAY, 30 * _DAY):
            for aside in (-INSTANT, timedelta(0), INSTANT):
                yield "at the border of a window", _at(end - length + aside)
    for aside in (-INSTANT, timedelta(0), INSTANT):
        yield "at midnight", _at(midnight - _DAY + aside)
        yield "at the end of the night before", _at(earlier + aside)
    yield "of the last moment", _at(as_of)
    yield "late-arriving", (as_of - 3 * _DAY, as_of - _DAY)
    yield "late-arriving", (as_of - 5 * _DAY, as_of - 4 * _DAY)
    yield "late-arriving", (earlier - _HOUR, earlier + INSTANT)
    yield "late by an instant", (as_of - 5 * _DAY, as_of - 5 * _DAY + INSTANT)
    yield "late past the windows", (as_of - 40 * _DAY, as_of - 2 * _DAY)
    yield "late past the windows", (as_of - 8 * _DAY, as_of - _HOUR)
    yield "known only at as_of", (as_of - 1.5 * _DAY, as_of)
    yield "known after as_of", (as_of - _HOUR, as_of + INSTANT)
    yield "known after as_of", (as_of - 2 * _DAY, as_of + 5 * _HOUR)
    yield "known after as_of", (as_of - 9 * _DAY, as_of + 3 * _DAY)
    yield "known after as_of", (as_of - 4 * _DAY, later + INSTANT)
    yield "future-dated", _at(as_of + INSTANT)
    yield "future-dated", _at(as_of + _HOUR)
    yield "future-dated", _at(as_of + 40 * _DAY)
    yield "future-dated", _at(later + INSTANT)
    yield "future-dated and known already", (as_of + INSTANT, as_of - 3 * _DAY)
    yield "future-dated and known already", (as_of + 2 * _HOUR, as_of - 10 * _DAY)
    yield "future-dated and known already", (later + INSTANT, as_of - 2 * _DAY)
    yield "future-dated and known already", (earlier + 3 * _HOUR, earlier - _DAY)
    for hours in (5.5, 9, 14):
        yield "in another time zone", _at(as_of + hours * _HOUR)
        yield "in another time zone", _at(as_of - 2 * _DAY - hours * _HOUR)
    yield "corrected later", (as_of - 12 * _DAY, as_of - 11 * _DAY)
    yield "corrected later", (as_of - 12 * _DAY, as_of - 3 * _HOUR)


def raw_world(as_of: datetime, split: SplitSettings, seed: int, own: Sequence[StatisticDeclaration] = ()) -> RawWorld:
    """The shop's rows around a night; the same night and seed give the same rows.

    Args:
        as_of: the night's cutoff.
        split: which events are positive.
        seed: of what is drawn.
        own: people's own statistics, whose events and attributes are planted too.
    """
    draw = np.random.default_rng([seed % 2**63, 31])
    planted: Counter[str] = Counter()
    types = {one for declared in own for one in declared.event_types or ()}
    found = {
        "interactions": pl.DataFrame(list(_interactions(as_of, split, types, draw, planted)), schema=INTERACTIONS),
        "items": pl.DataFrame(list(_items(as_of, _read(own, "item"), draw, planted)), schema=ITEMS),
        "users": pl.DataFrame(list(_users(as_of, _read(own, "user"), draw, planted)), schema=USERS),
    }
    tables = {
        # no two rows of one thing say otherwise of the same moments: which of them counts is for the lake to say
        name: (
            rows
            if name == "interactions"
            else rows.unique([f"{name[:-1]}_id", *STAMPS], keep="first", maintain_order=True)
        )
        .sort(pl.all())
        .sample(fraction=1, shuffle=True, seed=seed)
        for name, rows in found.items()
    }
    known = pl.max_horizontal("event_timestamp", "created_timestamp") <= as_of - EARLIER
    fifth = pl.int_range(pl.len()) % 5 == 0
    return RawWorld(tables, {name: rows.filter(~(known & fifth)) for name, rows in tables.items()}, planted)


def _read(own: Sequence[StatisticDeclaration], table: str) -> list[list[str]]:
    """The places in a table's attributes that statistics read."""
    places = {one.column for one in own if one.column and one.column.startswith(f"{table}.attributes.")}
    return [place.split(".")[2:] for place in sorted(places)]


def _said(said: dict[str, Any], places: Sequence[Sequence[str]], number: int) -> str:
    """Attributes as JSON, with a number at each of the places, now and then none."""
    for shift, (*path, last) in enumerate(places):
        inside = said
        for key in path:
            inside = inside[key] if isinstance(inside.get(key), dict) else inside.setdefault(key, {})
        # a place that is something else already keeps what it says
        if not isinstance(inside.get(last), dict | int):
            inside[last] = None if (number + shift) % 6 == 0 else 1.25 * ((number + 3 * shift) % 8)
    return json.dumps(said)


def _at(moment: datetime) -> Stamps:
    return moment, moment


def _drawn(as_of: datetime, draw: np.random.Generator) -> Iterator[tuple[str, Stamps]]:
    """Moments of up to 50 days ago to two days ahead, known at once or up to 40 days later."""
    delays = (timedelta(0), INSTANT, _HOUR / 4, 7 * _HOUR, 2 * _DAY, 40 * _DAY)
    for _ in range(NUM_RANDOM):
        event = as_of + timedelta(days=float(draw.uniform(-50, 2)))
        yield "at random", (event, event + delays[draw.integers(len(delays))] * float(draw.uniform(0.5, 1)))


def _interactions(
    as_of: datetime, split: SplitSettings, types: Collection[str], draw: np.random.Generator, planted: Counter[str]
) -> Iterator[dict[str, Any]]:
    unwanted = next(f"unwanted{i}" for i in count() if f"unwanted{i}" not in split.positive_event_types)
    kinds = tuple(dict.fromkeys([*split.positive_event_types, "purchase", *sorted(types), unwanted]))
    numbers = count()

    def row(kind: str, stamps: Stamps, user: int, item: int, **more: Any) -> dict[str, Any]:
        number = next(numbers)
        event_type = more.get("event_type") or kinds[number % len(kinds)]
        smallest = split.min_value.get(event_type)
        values = [None, 4.25, 19.5] if smallest is None else [smallest - 1, smallest, smallest + 1, None]
        planted[kind] += 1
        return {
            "user_id": more.get("user_id") or f"canary-user-{user % NUM_USERS}",
            "item_id": f"canary-item-{item % NUM_ITEMS}",
            "event_type": event_type,
            "event_timestamp": stamps[0],
            "value": values[number % len(values)],
            "session_id": f"canary-session-{number}",
            "request_id": more.get("request_id"),
            "created_timestamp": stamps[1],
        }

    for number, (kind, stamps) in enumerate(moments(as_of)):
        # once by every type, so that each statistic meets each kind of moment
        for place, event_type in enumerate(kinds):
            yield row(kind, stamps, number + place, 2 * number + 5 * place, event_type=event_type)
    for kind, stamps in _drawn(as_of, draw):
        yield row(kind, stamps, int(draw.integers(NUM_USERS)), int(draw.integers(NUM_ITEMS)))
    for moment in (as_of - 4 * _DAY, as_of):
        for item in range(NUM_ITEMS):
            yield row("slate of one moment", _at(moment), 0, item, request_id="canary-slate")
    for _ in range(3):
        yield row("repeated", _at(as_of - 2.5 * _DAY), 1, 1, event_type=kinds[0])
    yield row("of a user not known yet", (as_of - _DAY, as_of + INSTANT), 0, 0, user_id="canary-user-unknown")


def _items(
    as_of: datetime, places: Sequence[Sequence[str]], draw: np.random.Generator, planted: Counter[str]
) -> Iterator[dict[str, Any]]:
    numbers = count()

    def row(kind: str, stamps: Stamps, item: int) -> dict[str, Any]:
        number = next(numbers)
        planted[f"{kind}, items"] += 1
        return {
            "item_id": f"canary-item-{item}",
            "title": f"Item {item} as of row {number}",
            "category_path": CATEGORIES[(item + number) % len(CATEGORIES)],
            # prices meet each other, and are missing now and then
            "price": None if number % 11 == 0 else float(2 + number % 7),
            "image_uri": f"file:///{number % 4}.png",
            "attributes": _said({"colour": number % 3}, places, number),
            "event_timestamp": stamps[0],
            "created_timestamp": stamps[1],
        }

    for item in range(NUM_ITEMS - 1):  # one item is wanted and never described
        yield row("known at once", _at(as_of - (50 - 3 * item) * _DAY), item)
    for number, (kind, stamps) in enumerate([*moments(as_of), *list(_drawn(as_of, draw))[: NUM_RANDOM // 3]]):
        yield row(kind, stamps, number % (NUM_ITEMS - 1))


def _users(
    as_of: datetime, places: Sequence[Sequence[str]], draw: np.random.Generator, planted: Counter[str]
) -> Iterator[dict[str, Any]]:
    numbers = count()

    def row(kind: str, stamps: Stamps, user: int) -> dict[str, Any]:
        number = next(numbers)
        planted[f"{kind}, users"] += 1
        said = {"age": 15 + 7 * (number % 7), "gender": "fmx"[number % 3], "membership_level": f"level {number % 4}"}
        return {
            "user_id": f"canary-user-{user}",
            "attributes": None if number % 13 == 0 else _said(said, places, number),
            "event_timestamp": stamps[0],
            "created_timestamp": stamps[1],
        }

    for number, (kind, stamps) in enumerate([*moments(as_of), *list(_drawn(as_of, draw))[: NUM_RANDOM // 3]]):
        yield row(kind, stamps, number % (NUM_USERS - 1))
