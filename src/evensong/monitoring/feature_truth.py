"""What feature rows must say, counted event by event from what was known at the moment of each row.

Slow and plain on purpose, and made of none of the view functions' code, so that a mistake there is not made here too.
Only the parsing of attributes is the column language's own, one row at a time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

import polars as pl

from evensong.features.columns import NumericColumn, load_columns
from evensong.settings import FeatureSettings, SplitSettings
from evensong.types import CATEGORY_SEPARATOR, Frame

_DAY, _INSTANT = timedelta(days=1), timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WINDOWS = {"1d": _DAY, "7d": 7 * _DAY, "30d": 30 * _DAY}
#: Whole half-lives after which a row is due for a decayed sum; then a hundredth is left.
HALF_LIVES_OF_ROWS = 7
#: Shares that rounding may have moved so far are not compared.
_VAGUE = 1e-2
PURCHASE, COUNTED, TRIALS = "purchase", ("view", "click", "cart", "purchase"), ("view", "click")
STAMPS = ("event_timestamp", "created_timestamp")

Values = dict[str, Any]


class _Anything:
    """Stands where rounding leaves nothing to compare."""

    def __repr__(self) -> str:
        return "anything"


ANYTHING = _Anything()


@dataclass(frozen=True)
class Ranking:
    """The names with the largest shares; names whose shares are equal but for rounding may change places."""

    shares: Mapping[str, float]
    length: int
    tolerance: float = 0.0

    def __repr__(self) -> str:
        return repr(sorted(self.shares, key=lambda name: (-self.shares[name], name))[: self.length])

    def fits(self, names: Sequence[str]) -> bool:
        """Whether the names are the largest ones, largest first."""
        if len(names) != min(self.length, len(self.shares)) or len(set(names)) < len(names):
            return False
        if not self.tolerance:
            return list(names) == sorted(self.shares, key=lambda name: (-self.shares[name], name))[: self.length]
        found = [self.shares.get(name, -1.0) for name in names]
        others = [share for name, share in self.shares.items() if name not in names]
        falling = all(one >= other - self.tolerance for one, other in pairwise(found))
        return falling and min(found, default=1.0) >= max(others, default=0.0) - self.tolerance


@dataclass(frozen=True)
class Near:
    """Numbers that sums of rounded amounts may miss by so much."""

    values: Sequence[float]
    tolerance: float

    def __repr__(self) -> str:
        return repr(list(self.values))

    def fits(self, values: Sequence[float]) -> bool:
        """Whether the numbers are these."""
        same_length = len(values) == len(self.values)
        pairs = zip(values, self.values, strict=False)
        return same_length and all(abs(one - other) <= self.tolerance for one, other in pairs)


@dataclass(frozen=True)
class Event:
    """One interaction."""

    user_id: str
    item_id: str
    event_type: str
    event_timestamp: datetime
    known: datetime
    """When a run may first see it."""
    value: float | None = None
    positive: bool = False
    """Whether it counts as wanting the item."""


@dataclass(frozen=True)
class Said:
    """One row of the items or the users table."""

    event_timestamp: datetime
    created_timestamp: datetime
    values: Values

    @property
    def known(self) -> datetime:
        """When a run may first see it."""
        return max(self.event_timestamp, self.created_timestamp)


@dataclass(frozen=True)
class _View:
    at: Callable[[str, datetime], Values | None]
    due: Callable[[str], Iterable[datetime]]


class Truth:
    """What each feature view must say of a key at a moment, from rows of the three tables.

    Args:
        interactions: every row of the keys that are asked about: `user_id, item_id, event_type, value` and stamps.
        items: every row of the items asked about, and of those in the interactions.
        users: every row of the users asked about.
        catalogue: every row of every item, for an item's place among the others; none: `items` is that.
    """

    def __init__(
        self,
        interactions: Frame,
        items: Frame,
        users: Frame,
        features: FeatureSettings,
        split: SplitSettings,
        *,
        catalogue: Frame | None = None,
    ) -> None:
        self._features, self._split = features, split
        fields = ("title", "category_path", "price", "attributes", "image_uri")
        self._items = _said(items, "item_id", fields)
        self._users = _said(users, "user_id", ("attributes",))
        self._catalogue = (items if catalogue is None else catalogue).sort(*STAMPS)
        self._days = {day_end(day) for day in self._catalogue.select(pl.max_horizontal(*STAMPS)).unique().to_series()}
        self._prices: dict[datetime, dict[str | None, list[float]]] = {}
        self._categories: dict[tuple[str, datetime], str | None] = {}
        self._numbers: dict[tuple[int, str], float | None] = {}
        self._of_user: dict[str, list[Event]] = {}
        self._of_item: dict[str, list[Event]] = {}
        self._met: dict[str, list[Event]] = {}
        self._every: dict[str, dict[str, list[Event]]] = {"user": {}, "item": {}}
        self._declared = load_columns(features.columns_path).statistics
        columns = ("user_id", "item_id", "event_type", "event_timestamp", "created_timestamp", "value")
        for user, item, kind, moment, created, value in interactions.select(columns).iter_rows():
            known = max(moment, created)
            event = Event(user, item, kind, moment, known, value, is_positive(split, kind, value))
            self._every["user"].setdefault(user, []).append(event)
            self._every["item"].setdefault(item, []).append(event)
            if kind in split.positive_event_types or kind == PURCHASE:
                self._met.setdefault(user, []).append(event)
            if event.positive:
                self._of_user.setdefault(user, []).append(event)
                self._of_item.setdefault(item, []).append(event)
        self._views: dict[str, _View] = {
            "user_history": _View(self._user_history, lambda key: _known(self._of_user, key)),
            "user_activity": _View(self._user_activity, lambda key: _moves(self._of_user, key, events=True)),
            "user_sequence": _View(self._user_sequence, lambda key: _known(self._of_user, key)),
            "user_dynamics": _View(self._user_dynamics, self._due_of_dynamics),
            "user_profile": _View(self._user_profile, lambda key: _known(self._users, key)),
            "user_seen": _View(self._user_seen, lambda key: map(day_end, _known(self._met, key))),
            "item_popularity": _View(self._item_popularity, lambda key: _moves(self._of_item, key, events=False)),
            "item_conversion": _View(self._item_conversion, self._due_of_conversion),
            "item_content": _View(self._item_content, lambda key: _known(self._items, key)),
            "item_details": _View(self._item_details, lambda key: _known(self._items, key)),
            "item_standing": _View(self._item_standing, self._due_of_standing),
            "user_statistics": _View(
                lambda key, moment: self._statistics("user", key, moment),
                lambda key: self._due_of_statistics("user", key),
            ),
            "item_statistics": _View(
                lambda key, moment: self._statistics("item", key, moment),
                lambda key: map(day_end, self._due_of_statistics("item", key)),
            ),
        }

    @property
    def views(self) -> frozenset[str]:
        """The views that it can count."""
        return frozenset(self._views)

    def at(self, view: str, key: str, moment: datetime) -> Values | None:
        """What a row of that moment must say, by feature; none: nothing was known, or no row may stand there."""
        return self._views[view].at(key, moment)

    def due(self, view: str, key: str, until: datetime) -> list[datetime]:
        """Moments up to `until` at which the newest row must say what is true then, in order."""
        return sorted({moment for moment in self._views[view].due(key) if moment <= until})

    # ------------------------------------------------------------ users

    def _user_history(self, key: str, moment: datetime) -> Values | None:
        known = _in_order(self._of_user.get(key, ()), moment)
        if not known:
            return None
        named = [category for one in known if (category := self._category(one)) is not None]
        shares = {name: named.count(name) / len(named) for name in set(named)}
        length = self._features.num_top_categories
        last = known[-self._features.history_length :]
        return {
            "recent_item_ids": [one.item_id for one in last],
            "recent_event_types": [one.event_type for one in last],
            "num_interactions": len(known),
            "last_interaction_seconds": math.floor(max(one.event_timestamp for one in known).timestamp()),
            "top_categories": Ranking(shares, length),
            "top_category_shares": Near(sorted(shares.values(), reverse=True)[:length], 1e-6),
        }

    def _user_activity(self, key: str, moment: datetime) -> Values | None:
        events = self._of_user.get(key, [])
        if not any(one.known <= moment for one in events):
            return None
        return {f"num_events_{name}": len(_inside(events, moment, length)) for name, length in WINDOWS.items()}

    def _user_sequence(self, key: str, moment: datetime) -> Values | None:
        known = _in_order(self._of_user.get(key, ()), moment)
        if not known:
            return None
        gaps = [0.0]
        for before, one in pairwise(known):
            gaps.append(max(0.0, (one.event_timestamp - before.event_timestamp).total_seconds()))
        length = self._features.sequence_length
        last = known[-length:]
        return {
            "sequence_item_ids": [one.item_id for one in last],
            "sequence_event_types": [one.event_type for one in last],
            "sequence_categories": [self._category(one) or "" for one in last],
            "sequence_gap_seconds": gaps[-length:],
        }

    def _user_dynamics(self, key: str, moment: datetime) -> Values | None:
        known = [one for one in self._of_user.get(key, ()) if one.known <= moment]
        if not known:
            return None
        days = self._features.half_life_days
        weights = [_weight(one, moment, days) for one in known]
        found: Values = {"decayed_events": sum(weights)}
        for kind in COUNTED:
            found[f"decayed_{kind}s"] = sum(
                weight for one, weight in zip(known, weights, strict=True) if one.event_type == kind
            )
        bought = [one for one in known if one.event_type == PURCHASE]
        for name, length in WINDOWS.items():
            found[f"spend_{name}"] = sum(one.value or 0.0 for one in _inside(bought, moment, length))
        taste: dict[str, float] = {}
        for one, weight in zip(known, weights, strict=True):
            if (category := self._category(one)) is not None:
                taste[category] = taste.get(category, 0.0) + weight
        shares, tolerance = _shares(taste, len(known))
        most = self._features.num_top_categories
        found["taste_categories"] = Ranking(shares, most, tolerance)
        found["taste_shares"] = Near(sorted(shares.values(), reverse=True)[:most], tolerance)
        # habits of the day change four times slower
        hours = dict.fromkeys(range(24), 0.0)
        for one in known:
            hours[one.event_timestamp.astimezone(UTC).hour] += _weight(one, moment, 4 * days)
        shares_of_hours, tolerance_of_hours = _shares(hours, len(known))
        found["hour_shares"] = Near(list(shares_of_hours.values()), tolerance_of_hours)
        if tolerance > _VAGUE:
            found |= dict.fromkeys(("taste_categories", "taste_shares"), ANYTHING)
        if tolerance_of_hours > _VAGUE:
            found["hour_shares"] = ANYTHING
        return found

    def _due_of_dynamics(self, key: str) -> Iterator[datetime]:
        half_life = timedelta(days=self._features.half_life_days)
        for one in self._of_user.get(key, ()):
            yield one.known
            yield from _halved(one, half_life)
            if one.event_type == PURCHASE and one.value is not None:
                yield from _left(one)

    def _user_profile(self, key: str, moment: datetime) -> Values | None:
        newest = _newest(self._users.get(key, ()), moment)
        return None if newest is None else _profile(newest.values["attributes"])

    def _user_seen(self, key: str, moment: datetime) -> Values | None:
        known = [one for one in self._met.get(key, ()) if one.known <= moment]
        if not known:
            return None
        known.sort(key=lambda one: (one.known, one.event_timestamp, one.item_id))
        length = self._features.seen_length
        bought = [one for one in known if one.event_type == PURCHASE]
        return {
            name: _met([one.item_id for one in met], length)
            for name, met in (("seen_item_ids", known), ("purchased_item_ids", bought))
        }

    # ------------------------------------------------------------ items

    def _item_popularity(self, key: str, moment: datetime) -> Values | None:
        events = self._of_item.get(key, [])
        total = sum(one.known <= moment for one in events)
        if not total or day_end(moment) != moment:
            return None
        counts: Values = {f"item_events_{name}": len(_inside(events, moment, w)) for name, w in WINDOWS.items()}
        users = {one.user_id for one in _inside(events, moment, WINDOWS["30d"])}
        return counts | {"item_events_total": total, "item_users_30d": len(users)}

    def _item_conversion(self, key: str, moment: datetime) -> Values | None:
        known = [one for one in self._of_item.get(key, ()) if one.known <= moment]
        if not known or day_end(moment) != moment:
            return None
        found: Values = {}
        for name, kinds in (("views", TRIALS), ("carts", ("cart",)), ("purchases", (PURCHASE,))):
            of_kind = [one for one in known if one.event_type in kinds]
            found |= {f"item_{name}_{days}": len(_inside(of_kind, moment, w)) for days, w in WINDOWS.items()}
        days = self._features.half_life_days
        return found | {"item_decayed_events": sum(_weight(one, moment, days) for one in known)}

    def _due_of_conversion(self, key: str) -> Iterator[datetime]:
        half_life = timedelta(days=self._features.half_life_days)
        for one in self._of_item.get(key, ()):
            yield day_end(one.known)
            yield from _halved(one, half_life)
            if one.event_type in (*TRIALS, "cart", PURCHASE):
                yield from _left(one)

    def _item_content(self, key: str, moment: datetime) -> Values | None:
        known = [one for one in self._items.get(key, ()) if one.known <= moment]
        newest = _newest(known, moment)
        if newest is None:
            return None
        arrival = math.floor(min(one.event_timestamp for one in known).timestamp())
        fields = {name: newest.values[name] for name in ("title", "category_path", "price")}
        return fields | {"arrival_seconds": arrival}

    def _item_details(self, key: str, moment: datetime) -> Values | None:
        newest = _newest(self._items.get(key, ()), moment)
        if newest is None:
            return None
        return {"item_attributes": newest.values["attributes"], "item_image_uri": newest.values["image_uri"]}

    def _item_standing(self, key: str, moment: datetime) -> Values | None:
        newest = _newest(self._items.get(key, ()), moment)
        if newest is None or day_end(moment) != moment:
            return None
        price = newest.values["price"]
        if price is None:
            return {"price_rank": None}
        prices = self._prices_at(moment)[level_one(newest.values["category_path"])]
        cheaper, upto = bisect_left(prices, price), bisect_right(prices, price)
        others = len(prices) - 1
        # the others of the same price count half
        return {"price_rank": (cheaper + (upto - cheaper - 1) / 2) / others if others else 0.5}

    def _due_of_standing(self, key: str) -> Iterator[datetime]:
        own = min(_known(self._items, key), default=None)
        # another item of the category may have moved it
        return (day for day in self._days if own is not None and day >= own)

    def _prices_at(self, moment: datetime) -> dict[str | None, list[float]]:
        """The prices of each level-one category at a moment, ascending."""
        if moment not in self._prices:
            known = (pl.col("event_timestamp") <= moment) & (pl.col("created_timestamp") <= moment)
            newest = (
                self._catalogue.filter(known)
                .group_by("item_id")
                .last()
                .select("category_path", "price")
                .drop_nulls("price")
            )
            found: dict[str | None, list[float]] = {}
            for path, price in newest.iter_rows():
                found.setdefault(level_one(path), []).append(price)
            self._prices[moment] = {category: sorted(prices) for category, prices in found.items()}
        return self._prices[moment]

    # ------------------------------------------------------------ people's own statistics

    def _statistics(self, entity: str, key: str, moment: datetime) -> Values | None:
        mine = [one for one in self._declared if one.entity == entity]
        if entity == "item" and day_end(moment) != moment:
            return None
        known = [event for event in self._every[entity].get(key, ()) if event.known <= moment]
        if not any(self._amount(one, event) is not None for one in mine for event in known):
            return None
        return {one.name: self._statistic(one, known, moment) for one in mine}

    def _statistic(self, declared: Any, known: Sequence[Event], moment: datetime) -> Any:
        """A sum, a number of events, or their mean, each event with its weight."""
        total = weights = 0.0
        for event in known:
            amount = self._amount(declared, event)
            if amount is None:
                continue
            if declared.kind == "decay":
                weight = _weight(event, moment, declared.half_life_days)
            else:
                start = moment - timedelta(days=declared.window_days)
                weight = float(start < event.event_timestamp <= moment)
            total, weights = total + weight * amount, weights + weight
        if declared.computes != "mean":
            return weights if declared.computes == "count" else total
        if declared.kind == "decay" and weights < _VAGUE:
            # sums are kept in billionths, and so little of a mean is lost in them
            return ANYTHING
        return total / weights if weights > 0 else None

    def _due_of_statistics(self, entity: str, key: str) -> Iterator[datetime]:
        for event in self._every[entity].get(key, ()):
            for one in self._declared:
                if one.entity != entity or self._amount(one, event) is None:
                    continue
                yield event.known
                if one.kind == "decay":
                    yield from _halved(event, timedelta(days=one.half_life_days))
                elif (end := day_end(event.event_timestamp + timedelta(days=one.window_days))) > event.known:
                    yield end

    def _amount(self, declared: Any, event: Event) -> float | None:
        """What a statistic takes of an event; none: it does not count it."""
        if not (event.positive if declared.event_types is None else event.event_type in declared.event_types):
            return None
        if declared.column is None:
            return 1.0
        table, _, place = declared.column.partition(".")
        if not place:
            return event.value
        rows = self._items.get(event.item_id, ()) if table == "item" else self._users.get(event.user_id, ())
        newest = _newest(rows, event.known)
        return None if newest is None else self._number(newest, place)

    def _number(self, said: Said, place: str) -> float | None:
        from evensong.features.column_values import numbers

        asked = id(said), place
        if asked not in self._numbers:
            row = pl.DataFrame([said.values], schema_overrides={"attributes": pl.String, "price": pl.Float64})
            self._numbers[asked] = numbers(row, NumericColumn(name="number", source=place))[0]
        return self._numbers[asked]

    def _category(self, event: Event) -> str | None:
        """The level-one category of the item, as the items table named it when the event became known."""
        place = event.item_id, event.known
        if place not in self._categories:
            newest = _newest(self._items.get(event.item_id, ()), event.known)
            path = newest.values["category_path"] if newest else None
            self._categories[place] = None if path is None else str(path).split(CATEGORY_SEPARATOR)[0]
        return self._categories[place]


@dataclass(frozen=True)
class Untrue:
    """One value of a feature table that is not what it must be."""

    key: str
    moment: datetime
    name: str
    value: Any
    expected: Any


@lru_cache(maxsize=10_000)
def _profile(attributes: str | None) -> Values:
    from evensong.features.column_values import categories
    from evensong.features.user_features import STATIC_COLUMNS

    row = pl.DataFrame({"attributes": [attributes]}, schema={"attributes": pl.String})
    return {column.name: categories(row, column, lenient=True)[0] for column in STATIC_COLUMNS.root}  # type: ignore[arg-type]


def untrue(
    truth: Truth, view: str, rows: Frame, keys: Iterable[str], until: datetime, *, last: int | None = None
) -> Iterator[Untrue]:
    """What a view's rows say otherwise than they must, at their own moments and at those at which a row was due.

    Args:
        rows: of these keys, all up to `until`, or at least the `last` ones of each.
        keys: the keys to look at, also those that have no row.
        last: looks at so many rows and due moments of each key, the newest ones; none: at all.
    """
    entity = "user_id" if "user_id" in rows.columns else "item_id"
    by_key: dict[str, list[Values]] = {key: [] for key in keys}
    for row in rows.sort("event_timestamp", maintain_order=True).iter_rows(named=True):
        if row[entity] in by_key:
            by_key[row[entity]].append(row)
    for key, mine in by_key.items():
        moments = [row["event_timestamp"] for row in mine]
        for place, row in list(enumerate(mine))[-(last or len(mine)) :]:
            yield from untrue_row(truth, view, key, row, until)
            if place and moments[place - 1] == moments[place]:
                yield Untrue(key, moments[place], "rows of that moment", 2, 1)
        due = truth.due(view, key, until)
        for moment in due[-(last or len(due)) :]:
            place = bisect_right(moments, moment)
            newest = mine[place - 1] if place else {}
            if newest and newest["event_timestamp"] == moment:
                continue  # seen above
            for name, expected in (truth.at(view, key, moment) or {}).items():
                if not agrees(value := newest.get(name), expected):
                    yield Untrue(key, moment, name, value, expected)


def untrue_row(
    truth: Truth, view: str, key: str, row: Values, until: datetime, *, names: Collection[str] | None = None
) -> Iterator[Untrue]:
    """What one row of a view says otherwise than it must at its moment.

    Args:
        names: the features that the truth has every event for, which alone are compared; none: all of them.
    """
    moment = row["event_timestamp"]
    if row["created_timestamp"] != moment:
        yield Untrue(key, moment, "created_timestamp", row["created_timestamp"], moment)
    if moment > until:
        yield Untrue(key, moment, "event_timestamp", moment, f"none after {until.isoformat()}")
    expected = truth.at(view, key, moment)
    if expected is None and names is not None:
        return
    if expected is None:
        said = {name: value for name, value in row.items() if name not in (*STAMPS, "user_id", "item_id")}
        yield Untrue(key, moment, "the row", said, None)
        return
    for name, wanted in expected.items():
        if (names is None or name in names) and not agrees(row[name], wanted):
            yield Untrue(key, moment, name, row[name], wanted)


def agrees(value: Any, expected: Any) -> bool:
    """Whether a feature's value is the expected one, but for the rounding of sums."""
    if expected is ANYTHING:
        return True
    if isinstance(expected, Ranking | Near):
        return isinstance(value, list) and expected.fits(value)
    if value is None or expected is None:
        return value is None and expected is None
    if isinstance(expected, list):
        same_length = isinstance(value, list) and len(value) == len(expected)
        return same_length and all(agrees(one, other) for one, other in zip(value, expected, strict=True))
    if isinstance(value, float) or isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=1e-5, abs_tol=1e-5)
    return bool(value == expected)


def is_positive(split: SplitSettings, kind: str, value: float | None) -> bool:
    """Whether an interaction counts as wanting the item."""
    smallest = split.min_value.get(kind)
    return kind in split.positive_event_types and (smallest is None or (value is not None and value >= smallest))


def level_one(path: str | None) -> str | None:
    """The first level of a category path; none for an empty one."""
    return path.split(CATEGORY_SEPARATOR)[0] if path else None


def day_end(moment: datetime) -> datetime:
    """The first midnight (UTC) at or after the moment."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight if midnight == moment else midnight + _DAY


def _said(rows: Frame, entity: str, fields: Sequence[str]) -> dict[str, list[Said]]:
    found: dict[str, list[Said]] = {}
    for key, event, created, *values in rows.select(entity, *STAMPS, *fields).iter_rows():
        found.setdefault(key, []).append(Said(event, created, dict(zip(fields, values, strict=True))))
    return found


def _newest(rows: Iterable[Said], moment: datetime) -> Said | None:
    known = [one for one in rows if one.known <= moment]
    return max(known, key=lambda one: (one.event_timestamp, one.created_timestamp), default=None)


def _known(rows: Mapping[str, Sequence[Event | Said]], key: str) -> Iterator[datetime]:
    return (one.known for one in rows.get(key, ()))


def _moves(rows: Mapping[str, Sequence[Event]], key: str, *, events: bool) -> Iterator[datetime]:
    """When counts of windows move: at midnights, and as events become known."""
    for one in rows.get(key, ()):
        if events:
            yield one.known
        yield day_end(one.known)
        yield from _left(one)


def _left(event: Event) -> Iterator[datetime]:
    """The midnights that end the days in which an event leaves a window."""
    ends = (day_end(event.event_timestamp + length) for length in WINDOWS.values())
    return (end for end in ends if end > event.known)


def _halved(event: Event, half_life: timedelta) -> Iterator[datetime]:
    """The midnights after each whole half-life since 1970 in which an event still counts a hundredth."""
    first = (event.event_timestamp - _EPOCH) // half_life
    ends = (day_end(_EPOCH + (first + age) * half_life) for age in range(1, HALF_LIVES_OF_ROWS + 1))
    return (end for end in ends if end > event.known)


def _in_order(events: Iterable[Event], moment: datetime) -> list[Event]:
    """The events known at a moment, in the order in which they became known."""
    known = [one for one in events if one.known <= moment]
    return sorted(known, key=lambda one: (one.known, one.event_timestamp, one.item_id, one.event_type))


def _met(item_ids: Iterable[str], length: int) -> list[str]:
    """The items in the order in which they were met; a longer list forgets its oldest, which may then be met anew."""
    found: list[str] = []
    for item_id in item_ids:
        if item_id not in found:
            found = [*found, item_id][-length:]
    return found


def _inside(events: Iterable[Event], moment: datetime, length: timedelta) -> list[Event]:
    return [one for one in events if one.known <= moment and moment - length < one.event_timestamp <= moment]


def _weight(event: Event, moment: datetime, half_life_days: float) -> float:
    return float(2.0 ** (-((moment - event.event_timestamp) / timedelta(days=half_life_days))))


def _shares(parts: Mapping[Any, float], num_events: int) -> tuple[dict[Any, float], float]:
    """The shares of decayed sums, and how far they may be off: sums are kept in billionths and ranked in millionths."""
    total = sum(parts.values())
    if total <= 0:
        return {}, _VAGUE + 1 if parts else 0.0
    return {name: part / total for name, part in parts.items()}, 1e-5 + (1e-6 + 2e-9 * num_events) / total
