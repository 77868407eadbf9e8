"""The step that proves the night's features and its join: leaks planted in shadow copies must not come through.

Three things are held against slow and plain answers. The night's own feature rows, of some users and items, against
what the interactions known at their moment say, event by event; of popular items and busy users, one of each. A small
shop whose rows come late, early and never: the very steps that the night uses compute its views, twice, and fill an
online store from them. And the join: a bounded sample of the night's labels, items and feature rows is copied into a
lake of its own, rows that a label must not see, and rows that it must, are planted among them, and the very code that
makes the training set runs on the copy. The sample, not the data, decides how long it takes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import LeakFoundError, NothingToLearnError
from evensong.monitoring.feature_truth import Truth, Untrue, agrees, untrue
from evensong.monitoring.leaks import INSTANT, SHORT_LIFE, Oracle, Plants, Problem, compare
from evensong.monitoring.raw_plants import EARLIER, LATER, raw_world
from evensong.pipelines import canary_heavy
from evensong.pipelines import canary_world as worlds
from evensong.pipelines.canary_world import MAX_PLANTED, World, holdout_start
from evensong.settings import Settings
from evensong.types import TABLES, TIMESTAMP, Frame, Night

log = logging.getLogger(__name__)

RESULT = "leak_canary.json"
#: Rows of a key whose values are counted again, the most events that a key may have for it, and all keys together.
TRUE_ROWS_PER_KEY, MAX_EVENTS_PER_KEY, MAX_EVENTS = 5, 3_000, 40_000
#: Items whose place among all others is counted again, which takes the whole catalogue.
MAX_STANDINGS = 8
#: Problems that the result tells in full.
MAX_TOLD = 20


@dataclass
class Findings:
    """What was compared, and what was wrong with it."""

    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    heavy: list[str] = field(default_factory=list)
    """Keys of many events of which some rows were counted again."""


def run(settings: Settings, night: Night) -> str:
    """Write `leak_canary.json` and return its URI.

    Raises:
        LeakFoundError: a planted row came through, or a row or a value was lost.
        StaleFeaturesError: the feature tables do not reach `as_of`.
    """
    from evensong.features.refresh import require
    from evensong.features.shadow import shadow

    # what an earlier try said is not said of this one, which may end before it says anything
    storage.remove(settings.run_uri(night.run_id, RESULT))
    require(settings, night.as_of)
    world = worlds.sample(settings, night)
    found = Findings()
    _stamps(settings, found)
    _tables(settings, night, world, found)
    worlds.plant(world, settings, night)
    with shadow(settings) as copy:
        _guarded(found, "the views of the planted rows", lambda: _views(copy, night, world, found))
        # every label of the sample is compared, however few a training set may hold
        # the holdout begins where the settings say, however few users the sample has
        split = copy.split.model_copy(update={"max_examples": 10_000_000, "min_holdout_users": 0})
        copy = copy.model_copy(update={"split": split})
        _write(settings, copy, world)
        for check in (_training_set, _probes, _short_lived):
            _guarded(found, "the join", lambda check=check: check(copy, night, world, found))  # type: ignore[misc]
    return _tell(settings, night, world, found)


def _guarded(found: Findings, what: str, check: Callable[[], None]) -> None:
    """Run a check; what our own code cannot do with planted rows is a problem of the night, not of the machine."""
    try:
        check()
    except (AssertionError, NothingToLearnError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        found.problems.append(Problem("lost", f"{what} did not come to their end: {error}"))


def _write(settings: Settings, copy: Settings, world: World) -> None:
    from evensong.features.refresh import STATE
    from evensong.features.shadow import write_view

    lake = Lake(copy.lake)
    lake.replace("interactions", world.interactions)
    lake.replace("items", world.items)
    for view, rows in world.features.items():
        write_view(copy, view, rows)
    state = storage.join("features", STATE)
    storage.write_json(storage.join(copy.lake, state), storage.read_json(storage.join(settings.lake, state)))


# ---------------------------------------------------------------- the night's own tables


def _stamps(settings: Settings, found: Findings) -> None:
    """Every row of every feature table: it is of one moment, of some key, and not of after the tables' own end."""
    from evensong.features.refresh import STATE
    from evensong.features.shadow import rows_of
    from evensong.features.views import declared_views, entity_of

    state = storage.read_json(storage.join(settings.lake, "features", STATE))
    horizon = datetime.fromisoformat(state["horizon"])
    event, created = pl.col("event_timestamp"), pl.col("created_timestamp")
    for view in declared_views(settings.features):
        counts = (
            rows_of(settings, view)
            .select(
                event.ne_missing(created).sum().alias("rows of two moments"),
                (event.is_null() | pl.col(entity_of(view)).is_null()).sum().alias("rows without a moment or a key"),
                (event > horizon).sum().alias(f"rows of after {horizon.isoformat()}, where the tables end"),
            )
            .collect(engine="streaming")
        )
        for what, number in counts.row(0, named=True).items():
            if number:
                found.problems.append(Problem("leaked", f"the table {view} holds {number} {what}"))


def _tables(settings: Settings, night: Night, world: World, found: Findings) -> None:
    """The night's feature rows say what was known at their moment: the join cannot help where they say more."""
    from evensong.features.views import entity_of

    truth, keys, many = _truth(settings, night, world)
    for view in _active(settings):
        entity = entity_of(view)
        mine, last = keys[entity], TRUE_ROWS_PER_KEY
        if view == "item_standing":
            mine, last = mine[:MAX_STANDINGS], 2
        rows = world.features[view].filter(pl.col("event_timestamp") <= night.as_of)
        rows = worlds.newest(rows.filter(pl.col(entity).is_in(mine)), entity, 2 * last, last=True)
        found.rows += len(rows)
        for one in untrue(truth, view, rows, mine, night.as_of, last=last):
            found.problems.append(_untrue(truth, view, one, f"the table {view}"))
    for heavy in canary_heavy.chosen(settings, night, many):
        found.heavy.append(str(heavy))
        for counted in canary_heavy.recount(settings, night, heavy, _active(settings)):
            found.rows += counted.num_rows
            where = f"the table {counted.view}"
            found.problems += [_untrue(counted.truth, counted.view, one, where) for one in counted.untrue]


def _truth(settings: Settings, night: Night, world: World) -> tuple[Truth, dict[str, list[str]], dict[str, list[str]]]:
    """What the real rows say of some users and items, by the events of each, which these are, and which have too many
    events for it."""
    lake = Lake(settings.lake)
    events = lake.scan("interactions")
    keys, many = {}, {}
    for entity, drawn in (("user_id", world.users), ("item_id", world.items["item_id"])):
        asked = drawn.unique().to_frame(entity).sort(pl.col(entity).hash(worlds.seed(night)), entity)
        sizes = events.group_by(entity).len().collect(engine="streaming")
        # of all keys: a busy user is hardly ever drawn among the others
        crowded = sizes.filter(pl.col("len") > MAX_EVENTS_PER_KEY)
        many[entity] = crowded.sort(pl.col(entity).hash(worlds.seed(night)), entity)[entity].to_list()
        few = asked.head(settings.quality.canary_users).join(sizes, on=entity, how="left", maintain_order="left")
        few = few.with_columns(pl.col("len").fill_null(0)).filter(pl.col("len") <= MAX_EVENTS_PER_KEY)
        keys[entity] = few.filter(pl.col("len").cum_sum() <= MAX_EVENTS)[entity].to_list()
    of_keys = pl.col("user_id").is_in(keys["user_id"]) | pl.col("item_id").is_in(keys["item_id"])
    columns = ["user_id", "item_id", "event_type", "event_timestamp", "created_timestamp", "value"]
    interactions = events.filter(of_keys).select(columns).collect()
    met = interactions["item_id"].unique().to_list()
    items = lake.scan("items").filter(pl.col("item_id").is_in([*met, *keys["item_id"]])).collect()
    # statistics of an item may count what its users are
    seen = interactions["user_id"].unique().to_list()
    users = lake.scan("users").filter(pl.col("user_id").is_in([*seen, *keys["user_id"]])).collect()
    placed = ("item_id", "category_path", "price", "event_timestamp", "created_timestamp")
    catalogue = lake.scan("items", night.as_of).select(placed).collect()
    return Truth(interactions, items, users, settings.features, settings.split, catalogue=catalogue), keys, many


def _active(settings: Settings) -> list[str]:
    """The views that are computed under these settings."""
    from evensong.features.shop_columns import active_views
    from evensong.features.views import declared_views

    active = active_views(settings.features)
    return [name for name, view in declared_views(settings.features).items() if not view.optional or name in active]


def _untrue(truth: Truth, view: str, one: Untrue, where: str) -> Problem:
    """The kind of an untrue value: a leak where it says what was true later."""
    due = truth.due(view, one.key, datetime.max.replace(tzinfo=UTC))
    known = ((truth.at(view, one.key, moment) or {}) for moment in [day for day in due if day > one.moment][:5])
    if one.value is None:
        kind = "lost"
    elif one.expected is None or any(one.name in said and agrees(one.value, said[one.name]) for said in known):
        kind = "leaked"
    else:
        kind = "wrong"
    place = f"{where}: {one.name} of {one.key} at {one.moment.isoformat()}"
    return Problem(kind, f"{place} is {one.value!r}, what was known then says {one.expected!r}")


# ---------------------------------------------------------------- the views of planted rows


def _views(copy: Settings, night: Night, world: World, found: Findings) -> None:
    """The views of the planted shop on an earlier night, this one and the next, and what is served of this one."""
    from evensong.features.columns import load_columns
    from evensong.features.materialize import materialize
    from evensong.features.shadow import rows_of
    from evensong.features.views import entity_of
    from evensong.pipelines import features

    own = load_columns(copy.features.columns_path).statistics
    raw = raw_world(night.as_of, copy.split, worlds.seed(night), own)
    world.planted.update({f"raw: {kind}": number for kind, number in raw.planted.items()})
    lake = Lake(copy.lake)
    for moment, tables in (
        (night.as_of - EARLIER, raw.earlier),
        # goes on from the state that the night before left
        (night.as_of, raw.earlier),
        # an import of old rows; and what an older night serves must not hold what a newer one added to the tables
        (night.as_of + LATER, raw.tables),
    ):
        for name in TABLES:
            lake.replace(name, tables[name])
        features.build(copy, night.model_copy(update={"as_of": moment}))
        truth = Truth(tables["interactions"], tables["items"], tables["users"], copy.features, copy.split)
        for view in _active(copy):
            rows, entity = rows_of(copy, view).collect(), entity_of(view)
            keys = {key for name in TABLES if entity in tables[name] for key in tables[name][entity]}
            keys |= set(rows[entity].drop_nulls())
            found.rows += len(rows)
            where = f"the view {view} of planted rows, {moment.isoformat()}"
            for one in untrue(truth, view, rows, sorted(keys), moment):
                found.problems.append(_untrue(truth, view, one, where))
    materialize(copy, night.as_of)
    _served(copy, night, raw.tables, found)


def _served(copy: Settings, night: Night, tables: Any, found: Findings) -> None:
    """The online store says of each key what its tables said at `as_of`."""
    from evensong.features.online import OnlineFeatures
    from evensong.features.shadow import rows_of
    from evensong.features.views import entity_of

    online = OnlineFeatures(copy)
    try:
        for entity, views, read in (
            ("user_id", [view for view in _active(copy) if view != "user_seen"], online.users),
            ("user_id", ["user_seen"], online.seen),
            ("item_id", _active(copy), online.items),
        ):
            keys = [*tables["interactions"][entity].unique().sort(), "canary-stranger"]
            rows = read(keys)
            found.problems += _same_rows("key of the online store", keys, rows[entity].to_list())
            oracles = [
                (view, entity, Oracle(rows_of(copy, view).collect(), entity, None))
                for view in views
                if entity_of(view) == entity
            ]
            found.rows += len(rows)
            moments = [night.as_of] * len(rows)
            found.problems += compare(rows, moments, oracles, Plants(night.as_of), "the online store")
    finally:
        online.close()


# ---------------------------------------------------------------- the join


def _training_set(copy: Settings, night: Night, world: World, found: Findings) -> None:
    """The training set itself: its labels, its items at both cutoffs, its held-out users, and every feature of them."""
    from evensong.features.shadow import views_of
    from evensong.features.store import RECOMMENDER
    from evensong.features.views import entity_of
    from evensong.pipelines import train, training_set

    uri = training_set.build(copy, night)
    start = holdout_start(copy, night)
    oracles = [
        (view, entity_of(view), Oracle(world.features[view], entity_of(view), ttl))
        for view, ttl in views_of(copy, RECOMMENDER).items()
    ]
    of_users = [one for one in oracles if one[1] == "user_id"]
    of_items = [one for one in oracles if one[1] == "item_id"]

    meta = storage.read_json(storage.join(uri, "meta.json"))
    found.problems += _same_rows("start of the holdout", [start.isoformat()], [meta["holdout_start"]])

    expected = worlds.expected_labels(world, copy, night)
    examples = storage.read_frame(storage.join(uri, "examples.parquet"))
    columns = ("user_id", "item_id", "event_timestamp", "event_type", "value", "part")
    found.problems += _same_rows("label", [label[:-1] for label in expected], examples.select(columns).rows())
    moments = [moment - INSTANT for moment in examples["event_timestamp"]]
    _compare(found, examples, moments, oracles, world, "a label")

    read = train.read_labels(copy, uri, final=False)
    learned = [label[:4] for label in expected if label.part != "holdout"]
    came = read.select("user_id", "item_id", "event_timestamp", "event_type").rows()
    found.problems += _same_rows("label that a model of before the holdout learns", learned, came)

    for name, cutoff in (("items_train", start), ("items_final", night.as_of)):
        items = storage.read_frame(storage.join(uri, f"{name}.parquet"))
        known = pl.col("event_timestamp").le(cutoff) & pl.col("created_timestamp").le(cutoff)
        ids = world.items.filter(known)["item_id"].unique().sort().to_list()
        found.problems += _same_rows(f"row of {name}", ids, items["item_id"].to_list())
        _compare(found, items, [cutoff] * len(items), of_items, world, name)

    users = storage.read_frame(storage.join(uri, "users_holdout.parquet"))
    ids = sorted({label.user_id for label in expected if label.part == "holdout"})
    found.problems += _same_rows("held-out user", ids, users["user_id"].to_list())
    _compare(found, users, [start] * len(users), of_users, world, "users_holdout")

    hidden = worlds.seen_by(world, copy, start)
    found.problems += _seen(hidden, users, start)
    targets = storage.read_frame(storage.join(uri, "targets.parquet"))
    came = targets.select("user_id", "item_id", "event_timestamp", "event_type").rows()
    found.problems += _same_rows("target", worlds.expected_targets(expected, hidden, copy), came)


def _seen(hidden: dict[str, dict[str, Any]], users: Frame, start: datetime) -> Iterator[Problem]:
    """What the filters hide from the held-out users is what these had met when the holdout began."""
    for user, *lists in users.select("user_id", "seen_item_ids", "purchased_item_ids").iter_rows():
        for name, ids in zip(("seen", "purchased"), lists, strict=True):
            came, there = ids or [], hidden.get(user, {}).get(f"{name}_item_ids", [])
            place = f"{name} items of {user} at {start.isoformat()}"
            if extra := sorted(set(came) - set(there)):
                yield Problem("leaked", f"{place} hold {extra[0]}, met later")
            elif less := sorted(set(there) - set(came)):
                yield Problem("lost", f"{place} lack {less[0]}")
            elif came != there:
                yield Problem("wrong", f"{place} are {came}, expected {there}")


def _probes(copy: Settings, night: Night, world: World, found: Findings, ttl: timedelta | None = None) -> None:
    """The join alone, asked in no order for what a training set never asks for: nulls, strangers, repeats, zones."""
    from evensong.features.offline import FeatureReader
    from evensong.features.shadow import views_of
    from evensong.features.store import RECOMMENDER
    from evensong.features.views import entity_of

    start = holdout_start(copy, night)
    labels = worlds.expected_labels(world, copy, night)
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
    # as held-out users, candidates and the ranker's slates are asked for
    for entity, other in (("user_id", "item_id"), ("item_id", "user_id")):
        where = f"a probe of the {entity} alone"
        joined = reader.join(asked.drop(other), RECOMMENDER, of=entity)
        found.problems += _same_rows(where, asked["probe"].to_list(), joined["probe"].to_list())
        if len(joined) == len(asked):
            mine = [one for one in oracles if one[1] == entity]
            _compare(found, joined, asked["event_timestamp"].to_list(), mine, world, where)


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
            "heavy_keys": found.heavy,
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
