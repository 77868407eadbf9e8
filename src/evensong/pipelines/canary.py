"""The step that proves the night's join: leaks planted in a shadow copy of the tables must not come through.

A bounded sample of the night's labels, items and feature rows is copied into a lake of its own. Rows that a label
must not see, and rows that it must, are planted among them; then the very code that makes the training set runs on the
copy, and everything that it wrote is compared with what a slow loop over all rows finds. The night's own feature rows
are held against what the interactions known at their moment say, event by event. The sample, not the data, decides how
long it takes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle, islice
from typing import Any

import numpy as np
import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import LeakFoundError, NothingToLearnError
from evensong.monitoring.leaks import INSTANT, KINDS, SHORT_LIFE, Oracle, Plants, Problem, compare
from evensong.settings import Settings
from evensong.types import INTERACTIONS, ITEMS, TIMESTAMP, Frame, Night

log = logging.getLogger(__name__)

RESULT = "leak_canary.json"
LABELS_PER_USER, ROWS_PER_KEY, MAX_ITEMS = 10, 30, 300
#: Labels, and keys at the cutoffs, that rows are planted around; every kind several times over.
MAX_PLANTED = 200
#: Rows of a key whose values are counted again, and the most events that a key may have for it.
TRUE_ROWS_PER_KEY, MAX_EVENTS_PER_KEY = 5, 3_000
SLATE = 12
#: Problems that the result tells in full.
MAX_TOLD = 20
_HOUR = timedelta(hours=1)


@dataclass
class World:
    """The shadow copy as values, and what was planted in it."""

    interactions: Frame
    items: Frame
    features: dict[str, Frame]
    plants: Plants
    planted: Counter[str] = field(default_factory=Counter)
    """Kind to the number of its rows."""


@dataclass
class Findings:
    """What was compared, and what was wrong with it."""

    problems: list[Problem] = field(default_factory=list)
    rows: int = 0


def run(settings: Settings, night: Night) -> str:
    """Write `leak_canary.json` and return its URI.

    Raises:
        LeakFoundError: a planted row came through, or a row or a value was lost.
        StaleFeaturesError: the feature tables do not reach `as_of`.
    """
    from evensong.features.refresh import STATE, require
    from evensong.features.shadow import shadow, write_view

    require(settings, night.as_of)
    world = sample(settings, night)
    found = Findings()
    _tables(settings, night, world, found)
    plant(world, settings, night)
    with shadow(settings) as copy:
        # every label of the sample is compared, however few a training set may hold
        # the holdout begins where the settings say, however few users the sample has
        split = copy.split.model_copy(update={"max_examples": 10_000_000, "min_holdout_users": 0})
        copy = copy.model_copy(update={"split": split})
        lake = Lake(copy.lake)
        lake.replace("interactions", world.interactions)
        lake.replace("items", world.items)
        for view, rows in world.features.items():
            write_view(copy, view, rows)
        state = storage.join("features", STATE)
        storage.write_json(storage.join(copy.lake, state), storage.read_json(storage.join(settings.lake, state)))
        for check in (_training_set, _probes, _short_lived):
            try:
                check(copy, night, world, found)
            except (AssertionError, NothingToLearnError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
                found.problems.append(Problem("lost", f"the join did not come to its end: {error}"))
    return _tell(settings, night, world, found)


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
            _newest(of_users.filter(known), "user_id", LABELS_PER_USER, last=True),
            _newest(of_users.filter(~known), "user_id", 3, last=False),
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
                _newest(found.filter(past), entity, ROWS_PER_KEY, last=True),
                _newest(found.filter(~past), entity, 3, last=False),
            ]
        )
    return World(interactions, items, features, Plants(night.as_of))


def _users(settings: Settings, night: Night, events: pl.LazyFrame) -> pl.Series:
    """Half of them with an event in the holdout, half with one before it; drawn by a hash of their ids."""
    start = _holdout_start(settings, night)
    number = max(1, settings.quality.canary_users // 2)
    in_holdout = (pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= night.as_of)
    drawn = []
    for part in (in_holdout, pl.col("event_timestamp") <= start):
        ids = events.filter(part).select("user_id").unique().collect()["user_id"]
        drawn.append(ids.to_frame().sort(pl.col("user_id").hash(night.seed), "user_id").head(number)["user_id"])
    return pl.concat(drawn).unique().sort()


def _newest(rows: Frame, key: str, number: int, *, last: bool) -> Frame:
    """At most so many rows of each key, the last ones or the first ones by time."""
    ordered = rows.sort(key, "event_timestamp", maintain_order=True).group_by(key, maintain_order=True)
    return (ordered.tail(number) if last else ordered.head(number)).select(rows.columns)


# ---------------------------------------------------------------- planting


def plant(world: World, settings: Settings, night: Night) -> None:
    """Put labels, items and feature rows of every kind into the copy, and its feature rows out of order."""
    start = _holdout_start(settings, night)
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
    labels = _expected_labels(world, settings, night, start)
    # slates last: they are asked for whatever was drawn
    step = max(1, len(labels) // MAX_PLANTED)
    chosen = [*labels[::step][:MAX_PLANTED], *(row for row in labels if row[0].startswith("canary"))]
    asked: dict[str, list[tuple[str, datetime]]] = {"user_id": [], "item_id": []}
    for user, item, moment, _, _, _ in chosen:
        asked["user_id"].append((user, moment - INSTANT))
        asked["item_id"].append((item, moment - INSTANT))
    asked["user_id"] += [(user, start) for user in sorted({row[0] for row in labels if row[5] == "holdout"})]
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
                "created_timestamp": created,
            }
            for user, item, event, created, request in rows
        ],
        schema=INTERACTIONS,
    )


# ---------------------------------------------------------------- the plain answer

#: user, item, moment, type, value, part.
Label = tuple[str, str, datetime, str, float | None, str]


def _expected_labels(world: World, settings: Settings, night: Night, start: datetime) -> list[Label]:
    """The labels that a training set must hold, in its order, decided row by row."""
    split = settings.split
    labels: list[Label] = []
    columns = ("user_id", "item_id", "event_timestamp", "created_timestamp", "event_type", "value")
    for user, item, event, created, kind, value in world.interactions.select(columns).iter_rows():
        if event > night.as_of or created > night.as_of or not _is_positive(settings, kind, value):
            continue
        if split.training_days is not None and event < start - timedelta(days=split.training_days):
            continue
        if event > start:
            part = "holdout"
        elif created > start:
            continue
        else:
            part = "ranker" if event >= start - timedelta(days=split.ranker_days) else "retriever"
        labels.append((user, item, event, kind, value, part))
    return sorted(
        labels,
        key=lambda row: (row[2], row[0], row[1], row[3], row[4] is not None, row[4] if row[4] is not None else 0),
    )


def _holdout_start(settings: Settings, night: Night) -> datetime:
    return night.as_of - timedelta(days=settings.split.holdout_days)


def _is_positive(settings: Settings, kind: str, value: float | None) -> bool:
    split = settings.split
    smallest = split.min_value.get(kind)
    return kind in split.positive_event_types and (smallest is None or (value is not None and value >= smallest))


def _met_by(world: World, settings: Settings, moment: datetime) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """What each user had seen, and bought, by the moment."""
    seen: dict[str, set[str]] = {}
    bought: dict[str, set[str]] = {}
    columns = ("user_id", "item_id", "event_timestamp", "created_timestamp", "event_type")
    for user, item, event, created, kind in world.interactions.select(columns).iter_rows():
        if max(event, created) <= moment and kind in (*settings.split.positive_event_types, "purchase"):
            seen.setdefault(user, set()).add(item)
            if kind == "purchase":
                bought.setdefault(user, set()).add(item)
    return seen, bought


# ---------------------------------------------------------------- the checks


def _tables(settings: Settings, night: Night, world: World, found: Findings) -> None:
    """The night's feature rows say what was known at their moment: the join cannot help where they say more."""
    from evensong.monitoring import feature_truth as truth

    length = settings.features.history_length
    for entity, views in (("user_id", ("user_history", "user_activity")), ("item_id", ("item_popularity",))):
        rows = {view: _newest(world.features[view], entity, TRUE_ROWS_PER_KEY, last=True) for view in views}
        keys = pl.concat([frame[entity] for frame in rows.values()]).unique().sort().head(settings.quality.canary_users)
        columns = ["user_id", "item_id", "event_type", "event_timestamp", "created_timestamp", "value"]
        events = Lake(settings.lake).scan("interactions").filter(pl.col(entity).is_in(keys.implode())).select(columns)
        few = events.group_by(entity).len().filter(pl.col("len") <= MAX_EVENTS_PER_KEY).collect()[entity]
        kept = events.filter(pl.col(entity).is_in(few.implode())).collect()
        positive = [
            _is_positive(settings, kind, value) for kind, value in kept.select("event_type", "value").iter_rows()
        ]
        by_key = truth.events_by(kept.filter(pl.Series(positive, dtype=pl.Boolean)), entity)
        counted = {
            "user_history": lambda key, moment, of=by_key: truth.user_history(of.get(key, []), moment, length),
            "user_activity": lambda key, moment, of=by_key: truth.user_activity(of.get(key, []), moment),
            "item_popularity": lambda key, moment, of=by_key: truth.item_popularity(of.get(key, []), moment),
        }
        for view, frame in rows.items():
            checked = frame.filter(pl.col(entity).is_in(few.implode()) & (pl.col("event_timestamp") <= night.as_of))
            found.rows += len(checked)
            for key, moment, name, value, expected in truth.untrue(checked, entity, counted[view]):
                place = f"the table {view}: {name} of {key} at {moment.isoformat()}"
                found.problems.append(Problem("wrong", f"{place} is {value!r}, what was known then says {expected!r}"))


def _training_set(copy: Settings, night: Night, world: World, found: Findings) -> None:
    """The training set itself: its labels, its items at both cutoffs, its held-out users, and every feature of them."""
    from evensong.features.shadow import views_of
    from evensong.features.store import RECOMMENDER
    from evensong.features.views import entity_of, schemas
    from evensong.pipelines import training_set

    uri = training_set.build(copy, night)
    start = _holdout_start(copy, night)
    oracles = [
        (view, entity_of(view), Oracle(world.features[view], entity_of(view), ttl))
        for view, ttl in views_of(copy, RECOMMENDER).items()
        if view in schemas(copy.features)
    ]
    of_users = [one for one in oracles if one[1] == "user_id"]
    of_items = [one for one in oracles if one[1] == "item_id"]

    expected = _expected_labels(world, copy, night, start)
    examples = storage.read_frame(storage.join(uri, "examples.parquet"))
    columns = ("user_id", "item_id", "event_timestamp", "event_type", "value", "part")
    found.problems += _same_rows("label", expected, examples.select(columns).rows())
    moments = [moment - INSTANT for moment in examples["event_timestamp"]]
    _compare(found, examples, moments, oracles, world, "a label")

    for name, cutoff in (("items_train", start), ("items_final", night.as_of)):
        items = storage.read_frame(storage.join(uri, f"{name}.parquet"))
        known = pl.col("event_timestamp").le(cutoff) & pl.col("created_timestamp").le(cutoff)
        ids = world.items.filter(known)["item_id"].unique().sort().to_list()
        found.problems += _same_rows(f"row of {name}", ids, items["item_id"].to_list())
        _compare(found, items, [cutoff] * len(items), of_items, world, name)

    users = storage.read_frame(storage.join(uri, "users_holdout.parquet"))
    ids = sorted({label[0] for label in expected if label[5] == "holdout"})
    found.problems += _same_rows("held-out user", ids, users["user_id"].to_list())
    _compare(found, users, [start] * len(users), of_users, world, "users_holdout")
    found.problems += _seen(copy, world, users, start)


def _seen(copy: Settings, world: World, users: Frame, start: datetime) -> Iterator[Problem]:
    """What the filters hide from the held-out users is what these had met when the holdout began."""
    seen, bought = _met_by(world, copy, start)
    for user, *lists in users.select("user_id", "seen_item_ids", "purchased_item_ids").iter_rows():
        for name, ids, met in zip(("seen", "purchased"), lists, (seen, bought), strict=True):
            there = met.get(user, set())
            if extra := sorted(set(ids or []) - there):
                yield Problem("leaked", f"{name} items of {user} at {start.isoformat()} hold {extra[0]}, met later")
            if len(there) <= copy.features.seen_length and (less := sorted(there - set(ids or []))):
                yield Problem("lost", f"{name} items of {user} at {start.isoformat()} lack {less[0]}")


def _probes(copy: Settings, night: Night, world: World, found: Findings, ttl: timedelta | None = None) -> None:
    """The join alone, asked in no order for what a training set never asks for: nulls, strangers, repeats, zones."""
    from evensong.features.offline import FeatureReader
    from evensong.features.shadow import views_of
    from evensong.features.store import RECOMMENDER
    from evensong.features.views import entity_of

    start = _holdout_start(copy, night)
    labels = _expected_labels(world, copy, night, start)
    pairs: list[tuple[str | None, str | None, datetime]] = [
        (user, item, moment - INSTANT) for user, item, moment, *_ in labels
    ]
    pairs = pairs[:: max(1, len(pairs) // MAX_PLANTED)]
    pairs += [
        (None, None, start),
        *((None, item, moment) for _, item, moment in pairs[:5]),
        *((user, None, moment) for user, _, moment in pairs[:5]),
        *((f"{user} ", f" {item}", moment) for user, item, moment in pairs[:5]),
        ("canary-stranger", "canary-stranger", start),
        *pairs[:5],
    ]
    order = np.random.default_rng(night.seed).permutation(len(pairs))
    asked = pl.DataFrame(
        [(*pairs[i], int(i)) for i in order],
        schema={"user_id": pl.String, "item_id": pl.String, "event_timestamp": TIMESTAMP, "probe": pl.Int64},
        orient="row",
    )
    oracles = [
        (view, entity_of(view), Oracle(world.features[view], entity_of(view), ttl or own))
        for view, own in views_of(copy, RECOMMENDER).items()
    ]
    reader = FeatureReader(copy)
    elsewhere = asked.with_columns(pl.col("event_timestamp").dt.convert_time_zone("Asia/Kolkata"))
    for frame, where in ((asked, "a probe"), (elsewhere, "a probe in Indian time")):
        joined = reader.join(frame, RECOMMENDER)
        where = where if ttl is None else f"{where}, rows living {ttl}"
        found.problems += _same_rows(where, asked["probe"].to_list(), joined["probe"].to_list())
        if len(joined) == len(asked):
            _compare(found, joined, asked["event_timestamp"].to_list(), oracles, world, where)


def _short_lived(copy: Settings, night: Night, world: World, found: Findings) -> None:
    """The same probes where every view forgets after an hour."""
    from evensong.features.shadow import limit_age
    from evensong.features.store import RECOMMENDER

    limit_age(copy, RECOMMENDER, SHORT_LIFE)
    _probes(copy, night, world, found, ttl=SHORT_LIFE)


def _compare(
    found: Findings,
    rows: Frame,
    moments: list[datetime],
    oracles: list[tuple[str, str, Oracle]],
    world: World,
    where: str,
) -> None:
    found.problems += compare(rows, moments, oracles, world.plants, where)
    found.rows += len(rows)


def _same_rows(what: str, expected: list[Any], came: list[Any]) -> Iterator[Problem]:
    """Rows that are missing or too many; where none is, the first that does not stand in its place."""
    if expected == came:
        return
    wanted, got = Counter(expected), Counter(came)
    for row, number in (got - wanted).items():
        yield Problem("leaked", f"{what}: {row} came {got[row]} times, expected {got[row] - number}")
    for row, number in (wanted - got).items():
        yield Problem("lost", f"{what}: {row} came {got[row]} times, expected {got[row] + number}")
    if wanted == got:
        place = next(i for i, (one, other) in enumerate(zip(expected, came, strict=True)) if one != other)
        yield Problem("wrong", f"{what}: row {place} is {came[place]}, expected {expected[place]}: the order changed")


def _tell(settings: Settings, night: Night, world: World, found: Findings) -> str:
    found.problems.sort(key=lambda problem: ("leaked", "lost", "wrong").index(problem.kind))
    counts = Counter(problem.kind for problem in found.problems)
    success = not found.problems
    message = (
        f"{sum(world.planted.values()):,} planted rows of {len(world.planted)} kinds: none leaked and none was lost "
        f"in {found.rows:,} joined rows"
        if success
        else f"{', '.join(f'{number} {kind}' for kind, number in sorted(counts.items()))} of {found.rows:,} joined "
        f"rows; {found.problems[0]}"
    )
    place = settings.run_uri(night.run_id, RESULT)
    storage.write_json(
        place,
        {
            "success": success,
            "message": message,
            "as_of": night.as_of.isoformat(),
            "planted": dict(sorted(world.planted.items())),
            "rows_checked": found.rows,
            "num_users": world.interactions["user_id"].n_unique(),
            "num_items": world.items["item_id"].n_unique(),
            "problems": [str(problem) for problem in found.problems[:MAX_TOLD]],
            "num_problems": len(found.problems),
        },
    )
    if not success:
        raise LeakFoundError(
            f"the leak canary stopped the night: {message}; nothing may be trained until the point-in-time join is "
            f"right again, {place} lists more"
        )
    log.info("leak canary: %s", message)
    return place
