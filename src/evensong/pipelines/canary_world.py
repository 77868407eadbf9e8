"""The canary's shadow world: a bounded sample of the night's tables, what is planted in it, what must come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from evensong.data.lake import Lake
from evensong.monitoring.feature_truth import Truth, Values, is_positive
from evensong.monitoring.leaks import INSTANT, KINDS, Plants
from evensong.settings import Settings
from evensong.types import INTERACTIONS, ITEMS, USERS, Frame, Night

LABELS_PER_USER, ROWS_PER_KEY, MAX_ITEMS = 10, 30, 300
#: Labels, and keys at the cutoffs, that rows are planted around; every kind several times over.
MAX_PLANTED = 200
SLATE = 12
_HOUR = timedelta(hours=1)


@dataclass
class World:
    """The shadow copy as values, and what was planted in it."""

    users: pl.Series
    """Whose real rows are in it."""
    interactions: Frame
    items: Frame
    features: dict[str, Frame]
    plants: Plants
    planted: Counter[str] = field(default_factory=Counter)
    """Kind to the number of its rows."""


def sample(settings: Settings, night: Night) -> World:
    """A bounded part of the night's tables: some users with their labels, the items of those, and the rows of both.

    What is in the tables although the night must not see it yet comes along.
    """
    from evensong.features.shadow import rows_of
    from evensong.features.views import entity_of, schemas

    lake = Lake(settings.lake)
    events = lake.scan("interactions").select(list(INTERACTIONS))
    users = _users(settings, night, events)
    of_users = events.filter(pl.col("user_id").is_in(users.implode())).collect()
    known = (pl.col("event_timestamp") <= night.as_of) & (pl.col("created_timestamp") <= night.as_of)
    interactions = pl.concat(
        [
            newest(of_users.filter(known), "user_id", LABELS_PER_USER, last=True),
            newest(of_users.filter(~known), "user_id", 3, last=False),
        ]
    )
    item_ids = interactions["item_id"].unique().sort().head(MAX_ITEMS)
    items = lake.scan("items").select(list(ITEMS)).filter(pl.col("item_id").is_in(item_ids.implode())).collect()
    keys = {"user_id": users, "item_id": item_ids}
    features = {}
    for view, schema in schemas(settings.features).items():
        entity = entity_of(view)
        of_keys = rows_of(settings, view).select(list(schema)).filter(pl.col(entity).is_in(keys[entity].implode()))
        found = of_keys.collect(engine="streaming")
        past = pl.col("event_timestamp") <= night.as_of
        features[view] = pl.concat(
            [
                newest(found.filter(past), entity, ROWS_PER_KEY, last=True),
                newest(found.filter(~past), entity, 3, last=False),
            ]
        )
    return World(users, interactions, items, features, Plants(night.as_of))


def _users(settings: Settings, night: Night, events: pl.LazyFrame) -> pl.Series:
    """Half of them with an event in the holdout, half with one before it; drawn by a hash of their ids."""
    start = holdout_start(settings, night)
    number = max(1, settings.quality.canary_users // 2)
    in_holdout = (pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= night.as_of)
    drawn = []
    for part in (in_holdout, pl.col("event_timestamp") <= start):
        ids = events.filter(part).select("user_id").unique().collect()["user_id"]
        drawn.append(ids.to_frame().sort(pl.col("user_id").hash(seed(night)), "user_id").head(number)["user_id"])
    return pl.concat(drawn).unique().sort()


def seed(night: Night) -> int:
    """Draws others each night, so that nights together see more than one of them; a rerun draws the same."""
    return night.seed + 1_000_003 * int(night.as_of.timestamp())


def newest(rows: Frame, key: str, number: int, *, last: bool) -> Frame:
    """At most so many rows of each key, the last ones or the first ones by time."""
    ordered = rows.sort(key, "event_timestamp", maintain_order=True).group_by(key, maintain_order=True)
    return (ordered.tail(number) if last else ordered.head(number)).select(rows.columns)


def plant(world: World, settings: Settings, night: Night) -> None:
    """Put labels, items and feature rows of every kind into the copy, and its feature rows out of order."""
    start = holdout_start(settings, night)
    world.items = pl.concat([world.items, _planted_items(start, night.as_of)])
    world.interactions = pl.concat([world.interactions, _planted_labels(world, settings, night, start)])
    moments = _moments(world, settings, night, start)
    for number, (view, rows) in enumerate(sorted(world.features.items())):
        entity = "user_id" if "user_id" in rows.columns else "item_id"
        kinds = islice(cycle(KINDS), 3 * number, None)  # one label has different kinds in different views
        made = [rows]
        schema = dict(rows.schema)
        for (key, moment), kind in zip(moments[entity], kinds, strict=False):
            made.append(_add(world, schema, entity, key, kind, moment))
        # a key that nothing asks for, nearly one that something asks for, must stay its own
        for key, moment in moments[entity][:3]:
            for near in {f"{key} ", f" {key}", key.swapcase(), f"{key}0"} - {key}:
                made.append(_add(world, schema, entity, near, "of the last moment", moment))
        for kind in KINDS:
            made.append(_add(world, schema, entity, None, kind, start))
        planted = pl.concat(made)
        order = np.random.default_rng([night.seed, number]).permutation(len(planted))
        world.features[view] = planted[order]


def _add(world: World, schema: dict[str, Any], entity: str, key: str | None, kind: str, moment: datetime) -> Frame:
    rows = world.plants.rows(schema, entity, key, kind, moment)
    world.planted[kind if key is not None else "without a key"] += len(rows)
    return rows


def _moments(world: World, settings: Settings, night: Night, start: datetime) -> dict[str, list[tuple[str, datetime]]]:
    """The keys and moments that the training set asks for, so many that every kind is planted around several."""
    labels = expected_labels(world, settings, night)
    # slates last: they are asked for whatever was drawn
    step = max(1, len(labels) // MAX_PLANTED)
    chosen = [*labels[::step][:MAX_PLANTED], *(row for row in labels if row.user_id.startswith("canary"))]
    asked: dict[str, list[tuple[str, datetime]]] = {"user_id": [], "item_id": []}
    for label in chosen:
        asked["user_id"].append((label.user_id, label.moment - INSTANT))
        asked["item_id"].append((label.item_id, label.moment - INSTANT))
    asked["user_id"] += [(user, start) for user in sorted({row.user_id for row in labels if row.part == "holdout"})]
    for cutoff in (start, night.as_of):
        asked["item_id"] += [(item, cutoff) for item in world.items["item_id"].unique().sort().to_list()]
    return {entity: pairs[: 3 * MAX_PLANTED] for entity, pairs in asked.items()}


def _planted_items(start: datetime, as_of: datetime) -> Frame:
    """Items known from the beginning, one known only after the holdout began, one only after `as_of`."""
    moments = [(f"canary-item-{i:02d}", start - 20 * _HOUR, start - 20 * _HOUR) for i in range(SLATE)]
    moments += [
        ("canary-item-late", start - _HOUR, start + INSTANT),
        ("canary-item-of-the-holdout", start + INSTANT, start + INSTANT),
        ("canary-item-unknown", start - _HOUR, as_of + INSTANT),
        ("canary-item-future", as_of + INSTANT, as_of + INSTANT),
    ]
    return pl.DataFrame(
        [
            {"item_id": item, "title": item, "event_timestamp": event, "created_timestamp": created}
            for item, event, created in moments
        ],
        schema=ITEMS,
    )


def _planted_labels(world: World, settings: Settings, night: Night, start: datetime) -> Frame:
    """Slates whose labels share one moment, the same label twice, and labels that belong to no part."""
    kind = settings.split.positive_event_types[0]
    value = settings.split.min_value.get(kind)
    holdout = start + (night.as_of - start) / 2
    rows: list[tuple[str, str, datetime, datetime, str]] = []
    real = world.interactions["user_id"].unique().sort().head(1).to_list()
    for user in (*real, "canary-user-0", "canary-user-1"):
        for moment in (start - _HOUR, start, start + INSTANT, holdout, night.as_of):
            rows += [
                (user, f"canary-item-{i:02d}", moment, moment, f"canary-slate-{moment:%m%dT%H%M%S%f}")
                for i in range(SLATE)
            ]
        twice = start - 2 * _HOUR
        rows += [(user, "canary-item-00", twice, twice, f"canary-twice-{i}") for i in range(2)]
    rows += [
        ("canary-user-1", "canary-item-bound", holdout, holdout, "canary-bound"),
        ("canary-user-1", "canary-item-by-chance", holdout, holdout, "canary-by-chance"),
        ("canary-user-late", "canary-item-00", start - _HOUR, start + INSTANT, "canary-late"),
        ("canary-user-unknown", "canary-item-00", start - _HOUR, night.as_of + INSTANT, "canary-unknown"),
        ("canary-user-unknown", "canary-item-01", holdout, night.as_of + _HOUR, "canary-unknown"),
        ("canary-user-future", "canary-item-00", night.as_of + INSTANT, night.as_of + INSTANT, "canary-future"),
        ("canary-user-future", "canary-item-01", night.as_of + _HOUR, start - _HOUR, "canary-future"),
    ]
    world.planted["labels of a slate or of no part"] += len(rows)
    return pl.DataFrame(
        [
            {
                "user_id": user,
                "item_id": item,
                "event_type": kind,
                "event_timestamp": event,
                "value": value,
                "request_id": request,
                # bound to be shown, and so no judge of any model; by chance
                "propensity": {"canary-bound": 1.0, "canary-by-chance": 0.01}.get(request),
                "created_timestamp": created,
            }
            for user, item, event, created, request in rows
        ],
        schema=INTERACTIONS,
    )


class Label(NamedTuple):
    """One row of the training set's labels."""

    user_id: str
    item_id: str
    moment: datetime
    event_type: str
    value: float | None
    part: str
    propensity: float | None


def expected_labels(world: World, settings: Settings, night: Night) -> list[Label]:
    """The labels that a training set must hold, in its order, decided row by row."""
    split, start = settings.split, holdout_start(settings, night)
    labels: list[Label] = []
    columns = ("user_id", "item_id", "event_timestamp", "created_timestamp", "event_type", "value", "propensity")
    for user, item, event, created, kind, value, propensity in world.interactions.select(columns).iter_rows():
        if event > night.as_of or created > night.as_of or not is_positive(split, kind, value):
            continue
        if split.training_days is not None and event < start - timedelta(days=split.training_days):
            continue
        if event > start:
            part = "holdout"
        elif created > start:
            continue
        else:
            part = "ranker" if event >= start - timedelta(days=split.ranker_days) else "retriever"
        labels.append(Label(user, item, event, kind, value, part, propensity))
    return sorted(
        labels,
        key=lambda row: (*row[2:3], *row[:2], row.event_type, row.value is not None, row.value or 0),
    )


def expected_targets(labels: list[Label], hidden: Mapping[str, Values], settings: Settings) -> list[tuple[Any, ...]]:
    """What held-out users are judged by, in its order: what chance showed them, and the filter would not hide.

    Args:
        hidden: what `user_seen` must say of each user where the holdout begins.
    """
    held_out = [label for label in labels if label.part == "holdout"]
    most = settings.split.max_propensity
    fair = [label for label in held_out if label.propensity is None or label.propensity < most] or held_out
    names = {"seen": ("seen_item_ids", "purchased_item_ids"), "purchased": ("purchased_item_ids",), "none": ()}
    found = []
    for label in fair:
        lists = hidden.get(label.user_id, {})
        if not any(label.item_id in lists[name] for name in names[settings.serving.filter] if lists):
            found.append((label.user_id, label.item_id, label.moment, label.event_type))
    return sorted(found, key=lambda row: (row[0], row[2], row[1], row[3]))


def seen_by(world: World, settings: Settings, moment: datetime) -> dict[str, Values]:
    """What `user_seen` must say of each user at a moment; a user who had met nothing is not there."""
    users = world.interactions["user_id"].unique().to_list()
    truth = Truth(world.interactions, world.items, pl.DataFrame(schema=USERS), settings.features, settings.split)
    return {user: said for user in users if (said := truth.at("user_seen", user, moment)) is not None}


def holdout_start(settings: Settings, night: Night) -> datetime:
    """Where the holdout begins, however few users it has."""
    return night.as_of - timedelta(days=settings.split.holdout_days)
