"""What the leak canary plants among real feature rows, and the slow and plain answer that a join is held against.

A planted row carries values that nothing else has, so a value that should not be there tells which plant it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from evensong.types import Frame

INSTANT = timedelta(microseconds=1)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
STAMPS = ("event_timestamp", "created_timestamp")
#: The time to live that the canary gives every view for one of its joins.
SHORT_LIFE = _HOUR

#: When a planted row happened and when it became known.
Stamps = tuple[datetime | None, datetime | None]


def _zones(moment: datetime, _: datetime) -> list[Stamps]:
    """One row just before the moment, and one at each distance by which a mistaken time zone would move it."""
    distances = (_HOUR, 2 * _HOUR, 5.5 * _HOUR, 9 * _HOUR, 12 * _HOUR, 14 * _HOUR)
    return [(moment - _HOUR / 2, moment - _HOUR / 2), *((moment + far, moment + far) for far in distances)]


KINDS: Mapping[str, Callable[[datetime, datetime], list[Stamps]]] = {
    # what must not be seen
    "future-dated": lambda m, _: [(m + _HOUR, m + _HOUR), (m + 30 * _DAY, m + 30 * _DAY)],
    "future-dated and known already": lambda m, _: [(m + _HOUR, m - _DAY)],
    "late-arriving": lambda m, _: [(m - _DAY, m + _DAY)],
    "late by an instant": lambda m, _: [(m, m + INSTANT)],
    "of the same moment": lambda m, _: [(m + INSTANT, m + INSTANT)],
    "after as_of": lambda m, as_of: [(as_of + _HOUR, as_of + _HOUR), (m - _HOUR, as_of + INSTANT)],
    "in another time zone": _zones,
    "never known": lambda m, _: [(m, None)],
    "without a moment": lambda m, _: [(None, m)],
    # what must be seen, and not lost to something else
    "of the last moment": lambda m, _: [(m, m)],
    "ancient": lambda m, _: [(m - 3000 * _DAY, m - 3000 * _DAY)],
    "out of order": lambda m, _: [(m - _HOUR / 6, m - _HOUR / 6), (m - 2 * _DAY, m - _HOUR / 60)],
    "corrected later": lambda m, _: [(m - _HOUR / 12, m - _HOUR / 60), (m - _HOUR / 12, m - _HOUR / 15)],
    "repeated": lambda m, _: [(m - _HOUR / 60, m - _HOUR / 60)] * 3,
    "emptied": lambda m, _: [(m - 2 * INSTANT, m - 2 * INSTANT), (m - INSTANT, m - INSTANT)],
    "at the end of its life": lambda m, _: [(m - SHORT_LIFE, m - SHORT_LIFE)],
    "past its life": lambda m, _: [(m - SHORT_LIFE - INSTANT, m - SHORT_LIFE - INSTANT)],
}
"""Kind to its rows, around the last moment `m` that a label sees and the night's `as_of`."""
#: Of this kind's rows the last one holds nulls, which are a value too.
EMPTIED = "emptied"


@dataclass(frozen=True)
class Problem:
    """One value or row that is not what it must be."""

    kind: str
    """`leaked`, `lost` or `wrong`."""
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


class Plants:
    """Makes planted rows and knows them again."""

    def __init__(self, as_of: datetime) -> None:
        self._as_of = as_of
        self._kinds: dict[int, str] = {}

    def rows(
        self, schema: Mapping[str, pl.DataType], entity: str, key: str | None, kind: str, moment: datetime
    ) -> Frame:
        """The rows of one kind for a key around a moment; the repeats of a row have its values."""
        stamps = KINDS[kind](moment, self._as_of)
        made, before = [], None
        for number, (event, created) in enumerate(stamps):
            if before != (event, created):
                self._kinds[len(self._kinds) + 1] = kind
            empty = kind == EMPTIED and number == len(stamps) - 1
            serial = None if empty else len(self._kinds)
            values = {name: _marked(dtype, serial) for name, dtype in schema.items() if name not in STAMPS}
            made.append(values | {entity: key, "event_timestamp": event, "created_timestamp": created})
            before = (event, created)
        return pl.DataFrame(made, schema=dict(schema))

    def kind_of(self, value: Any) -> str | None:
        """The kind of the plant that a value comes from; None: from no plant."""
        serial = _serial(value)
        return None if serial is None else self._kinds.get(serial)


class Oracle:
    """Finds the row of a key at a moment by looking at every row of the key, one after the other."""

    def __init__(self, rows: Frame, entity: str, ttl: timedelta | None) -> None:
        self.names = [name for name in rows.columns if name not in (entity, *STAMPS)]
        self._ttl = ttl
        self._rows: dict[str, list[tuple[datetime, datetime, int, tuple[Any, ...]]]] = {}
        ordered = rows.select(entity, *STAMPS, *self.names)
        for position, (key, event, created, *values) in enumerate(ordered.iter_rows()):
            if key is not None and event is not None and created is not None:
                self._rows.setdefault(key, []).append((event, created, position, tuple(values)))

    def at(self, key: str | None, moment: datetime) -> dict[str, Any]:
        """The features of the key as they were known at the moment; nulls where none were."""
        newest: tuple[datetime, datetime, int, tuple[Any, ...]] | None = None
        for row in self._rows.get(key, ()) if key is not None else ():
            event, created, position, _ = row
            if event > moment or created > moment or (self._ttl is not None and event < moment - self._ttl):
                continue
            if newest is None or (event, created, position) > newest[:3]:
                newest = row
        return dict(zip(self.names, newest[3] if newest else [None] * len(self.names), strict=True))


def compare(
    rows: Frame,
    moments: Sequence[datetime],
    oracles: Iterable[tuple[str, str, Oracle]],
    plants: Plants,
    where: str,
) -> Iterator[Problem]:
    """What differs between joined rows and the plain answer.

    Args:
        rows: the joined rows.
        moments: the last moment that each row may see.
        oracles: view, the column that holds its key, and its oracle.
        where: what the rows are, for the message.
    """
    for view, entity, oracle in oracles:
        if missing := [name for name in oracle.names if name not in rows.columns]:
            yield Problem("lost", f"{where}: {view}.{', '.join(missing)} did not come out of the join")
            continue
        found = rows.select(entity, *oracle.names)
        for (key, *values), moment in zip(found.iter_rows(), moments, strict=True):
            expected = oracle.at(key, moment)
            for name, value in zip(oracle.names, values, strict=True):
                if value != expected[name]:
                    place = f"{where}: {view}.{name} of {key} at {moment.isoformat()}"
                    yield _problem(place, expected[name], value, plants)


def _problem(place: str, expected: Any, value: Any, plants: Plants) -> Problem:
    came, wanted = plants.kind_of(value), plants.kind_of(expected)
    if came is not None:
        said = f"the planted row {came}" if came != wanted else f"another planted row {came}"
        return Problem("leaked", f"{place} shows {said}, expected {_shown(expected, wanted)}")
    if wanted is not None or (value is None and expected is not None):
        return Problem("lost", f"{place} is {value!r}, expected {_shown(expected, wanted)}")
    return Problem("wrong", f"{place} is {value!r}, expected {expected!r}")


def _shown(value: Any, kind: str | None) -> str:
    return f"the planted row {kind}" if kind else repr(value)


def _marked(dtype: pl.DataType, serial: int | None) -> Any:
    if serial is None:
        return None
    if isinstance(dtype, pl.List):
        return [_marked(pl.String() if dtype.inner == pl.String else pl.Int64(), serial)]
    return f"canary:{serial}" if dtype == pl.String else -(1_000_000 + serial)


def _serial(value: Any) -> int | None:
    if isinstance(value, list):
        return _serial(value[0]) if len(value) == 1 else None
    if isinstance(value, str):
        return int(value.removeprefix("canary:")) if value.startswith("canary:") else None
    if isinstance(value, int | float) and not isinstance(value, bool) and value < -1_000_000 and value % 1 == 0:
        return int(-value) - 1_000_000
    return None
