"""The canary's recount of heavy keys: the popular items and busy users whose events are too many to count each row by.

One user and one item a night, others on other nights; of each two recent rows a view. A key of a few thousand events is
counted whole. Of a larger one the events of the longest window that is small enough are read, and what is counted in
such windows is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl

from evensong.data.lake import Lake
from evensong.monitoring.feature_truth import WINDOWS, Truth, Untrue, untrue_row
from evensong.settings import Settings
from evensong.types import Frame, Night

#: Events of one key that are read at most.
MAX_HEAVY_EVENTS = 10_000
#: Between a view's newest row of a key and the other one that is looked at.
REACH = timedelta(days=7)
#: Keys of an entity that are asked, one after the other, until one has a window that is small enough.
MAX_TRIED = 5
_COLUMNS = ("user_id", "item_id", "event_type", "event_timestamp", "created_timestamp", "value")


class Heavy(NamedTuple):
    """One key, and what of it is read."""

    entity: str
    key: str
    window: timedelta | None
    """Whatever is counted in a longer one is not compared; none: everything is."""
    events: Frame
    """All that are known, or those that the window and the rows that are looked at need."""
    since: datetime | None
    """Rows of before lack events."""

    def __str__(self) -> str:
        what = "whole" if self.window is None else f"in windows of up to {self.window.days} days"
        return f"{self.entity} {self.key}: {len(self.events):,} events, {what}"


class Recount(NamedTuple):
    """What came of one view's rows of a heavy key."""

    truth: Truth
    view: str
    num_rows: int
    untrue: list[Untrue]


def chosen(settings: Settings, night: Night, keys: Mapping[str, Sequence[str]]) -> list[Heavy]:
    """Of each entity's keys, which stand in the night's order, the first of which enough can be read."""
    found = []
    for entity, asked in keys.items():
        heavy = (one for key in asked[:MAX_TRIED] if (one := _read(settings, night, entity, key)) is not None)
        found += [one for one in [next(heavy, None)] if one is not None]
    return found


def recount(settings: Settings, night: Night, heavy: Heavy, views: Sequence[str]) -> Iterator[Recount]:
    """Two rows of the key in each view that is made from events: the newest, and one that is drawn."""
    from evensong.features.shadow import rows_of
    from evensong.features.views import declared_views, entity_of

    declared = declared_views(settings.features)
    truth = _truth(settings, heavy)
    draw = np.random.default_rng([night.seed, int(night.as_of.timestamp())])
    for view in views:
        if entity_of(view) != heavy.entity or "interactions" not in declared[view].input.tables:
            continue
        moment = pl.col("event_timestamp")
        past = rows_of(settings, view).filter((pl.col(heavy.entity) == heavy.key) & (moment <= night.as_of))
        past = past if heavy.since is None else past.filter(moment > heavy.since)
        rows = past.filter(moment > moment.max() - REACH).collect().sort("event_timestamp")
        if rows.is_empty():
            continue
        looked_at = sorted({len(rows) - 1, int(draw.integers(max(1, len(rows) - 1)))})
        names = None if heavy.window is None else _counted_in(settings, view, heavy.window)
        untrue = [
            one
            for row in rows[looked_at].iter_rows(named=True)
            for one in untrue_row(truth, view, heavy.key, row, night.as_of, names=names)
        ]
        yield Recount(truth, view, len(looked_at), untrue)


def _read(settings: Settings, night: Night, entity: str, key: str) -> Heavy | None:
    """The key with its events, all or those of the longest window that is small enough; none where none is."""
    events = Lake(settings.lake).scan("interactions").select(_COLUMNS)
    known = pl.max_horizontal("event_timestamp", "created_timestamp")
    mine = events.filter((pl.col(entity) == key) & (known <= night.as_of))
    # of the largest window first: the rows that are looked at reach back as well
    spans = {window: min(REACH, window) for window in sorted(WINDOWS.values(), reverse=True)}
    starts = {window: night.as_of - reach - window for window, reach in spans.items()}
    sizes = mine.select(
        pl.len().alias("all"), *((known > start).sum().alias(str(window)) for window, start in starts.items())
    ).collect()
    if sizes["all"].item() <= MAX_HEAVY_EVENTS:
        return Heavy(entity, key, None, mine.collect(), None)
    for window, start in starts.items():
        if 0 < sizes[str(window)].item() <= MAX_HEAVY_EVENTS:
            return Heavy(entity, key, window, mine.filter(known > start).collect(), start + window)
    return None


def _truth(settings: Settings, heavy: Heavy) -> Truth:
    lake, met = Lake(settings.lake), heavy.events
    items = lake.scan("items").filter(pl.col("item_id").is_in(met["item_id"].unique().implode())).collect()
    users = lake.scan("users").filter(pl.col("user_id").is_in(met["user_id"].unique().implode())).collect()
    return Truth(heavy.events, items, users, settings.features, settings.split)


def _counted_in(settings: Settings, view: str, window: timedelta) -> frozenset[str]:
    """The features of the view that need no event of before the window."""
    from evensong.features.columns import load_columns
    from evensong.features.views import declared_views

    own = load_columns(settings.features.columns_path).statistics
    within = {one.name for one in own if one.kind == "window" and timedelta(days=one.window_days) <= window}
    endings = tuple(f"_{name}" for name, length in WINDOWS.items() if length <= window)
    names = (feature.name for feature in declared_views(settings.features)[view].features)
    return frozenset(name for name in names if name in within or (name.endswith(endings) and "statistics" not in view))
