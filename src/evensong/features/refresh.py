"""Keeps the feature tables equal to what the lake says, computing only what is new or has changed.

The tables are a function of the lake and of one moment, the horizon: the latest `as_of` ever built. Beside them,
`features/state.json` holds a fingerprint (rows, hash) of what became known on each day. A refresh compares the
fingerprints, finds the first day that differs, and computes the rows stamped after that day's beginning again, for the
entities that can have any; a Delta commit puts them in the place of the old ones. So a rerun, a skipped night, an
older night after a newer one and a historical import all end in the same tables, and a refresh that is killed is
repeated by the next one. Views that carry a state (`stateful`) go on from the last midnight's, so that a night costs
what is new in it. Optional views that no column reads (`shop_columns`) are left empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, TypedDict

import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake, moment
from evensong.errors import StaleFeaturesError
from evensong.features import stateful
from evensong.features import transformations as t
from evensong.features.item_features import item_details, item_standing
from evensong.features.shop_columns import OPTIONAL_VIEWS, active_views
from evensong.features.stateful import Held
from evensong.features.user_features import user_profile
from evensong.settings import Settings
from evensong.types import Frame

#: Raise when a transformation gives other values for the same rows: every table is then computed anew.
REVISION = 2
STATE = "state.json"
#: Events of one partition of users or items, which bounds the memory of a refresh.
PARTITION_EVENTS = 250_000

SCHEMAS = {
    "user_history": t.USER_HISTORY,
    "user_activity": t.USER_ACTIVITY,
    "item_popularity": t.ITEM_POPULARITY,
    "item_content": t.ITEM_CONTENT,
    "user_seen": t.USER_SEEN,
    **OPTIONAL_VIEWS,
}
_ITEM_COLUMNS = (
    *("item_id", "title", "category_path", "price", "image_uri", "attributes"),
    *("event_timestamp", "created_timestamp"),
)
#: Settings that decide what the models make of the features, not what the features are.
_OF_MODELS = {"groups", "columns_path", "text_encoder", "text_device", "image_encoder", "prior_strength"}

States = dict[str, list[Frame]]


def refresh(settings: Settings, as_of: datetime) -> dict[str, int]:
    """Bring every feature table up to `as_of`, or to the later moment that it has reached already.

    Returns:
        The Delta version of each feature table.
    """
    lake = Lake(settings.lake)
    state_uri = storage.join(settings.lake, "features", STATE)
    state = storage.read_json(state_uri) if storage.exists(state_uri) else {}
    reached = datetime.fromisoformat(state["horizon"]) if state else None
    horizon = max(as_of, reached or as_of)
    tables = {
        "interactions": lake.scan("interactions", horizon).select(t.INTERACTION_COLUMNS).collect(),
        "items": lake.scan("items", horizon).select(_ITEM_COLUMNS).collect(),
        "users": lake.scan("users", horizon).collect(),
    }
    wanted = {
        "horizon": horizon.isoformat(),
        "definition": _definition(settings),
        "days": {name: _fingerprints(table) for name, table in tables.items()},
    }
    since = _changed_since(state, wanted)
    if state == wanted and all(lake.version(f"features/{view}") is not None for view in SCHEMAS):
        return {view: _version(lake, view) for view in SCHEMAS}
    token = _token(wanted)
    states: States = {}
    held = _held(settings, state, since)
    for view, frames in _computed(tables, settings, since, horizon, held, states).items():
        _replace(settings, view, frames, since)
        stateful.keep(settings.lake, token, view, states.get(view, []))
    storage.write_json(state_uri, wanted)
    stateful.forget_others(settings.lake, token)
    return {view: _version(lake, view) for view in SCHEMAS}


class _Window(TypedDict):
    since: datetime | None
    until: datetime


def require(settings: Settings, as_of: datetime) -> None:
    """Refuse to go on with feature tables that do not reach the moment.

    Raises:
        StaleFeaturesError: they end before it.
    """
    place = storage.join(settings.lake, "features", STATE)
    reached = storage.read_json(place)["horizon"] if storage.exists(place) else "nothing yet"
    if reached == "nothing yet" or datetime.fromisoformat(reached) < as_of:
        raise StaleFeaturesError(
            f"{place}: expected feature tables up to {as_of.isoformat()}, they reach {reached}; "
            "run the night's step `features` first"
        )


def _computed(
    tables: dict[str, Frame],
    settings: Settings,
    since: datetime | None,
    until: datetime,
    held: Callable[[str], Held],
    states: States,
) -> dict[str, Iterator[Frame]]:
    """The rows of each view stamped after `since`, one partition of entities at a time; `states` gets the new ones."""
    split, features = settings.split, settings.features
    window = _Window(since=since, until=until)
    interactions, items = tables["interactions"], tables["items"]
    positives = t.positive_events(interactions, split)
    views = {
        "user_history": _partitioned(
            positives, "user_id", since, lambda part: t.user_history(part, items, features, **window)
        ),
        "user_activity": _partitioned(positives, "user_id", since, lambda part: t.user_activity(part, **window)),
        "item_popularity": _partitioned(positives, "item_id", since, lambda part: t.item_popularity(part, **window)),
        "item_content": iter([t.item_content(items, **window)]),
        "user_seen": _partitioned(
            interactions, "user_id", since, lambda part: t.user_seen(part, split, features, **window)
        ),
    }
    active = active_views(features)
    views |= dict.fromkeys(OPTIONAL_VIEWS.keys() - active, iter(()))
    for name, compute in (
        ("user_profile", user_profile),
        ("item_details", item_details),
        ("item_standing", item_standing),
    ):
        if name in active:
            table = tables["users"] if name == "user_profile" else items
            views[name] = iter([compute(table, **window).sort("event_timestamp", next(iter(SCHEMAS[name])))])
    for view in stateful.stateful_views(items, features):
        if view.name in active:
            rows = view.rows(positives, held(view.name), partition_events=PARTITION_EVENTS, **window)
            views[view.name] = _keeping(rows, states.setdefault(view.name, []))
    return views


def _keeping(rows: Iterator[tuple[Frame, Frame]], states: list[Frame]) -> Iterator[Frame]:
    for frame, state in rows:
        states.append(state)
        yield frame


def _held(settings: Settings, state: dict[str, Any], since: datetime | None) -> Callable[[str], Held]:
    """What is held of each view at the last midnight, where nothing that was known by then has changed."""
    until = _midnight(datetime.fromisoformat(state["horizon"])) if state else None

    def find(view: str) -> Held:
        if since is not None and until is not None and until <= since:
            found = stateful.load(settings.lake, _token(state), view)
            if found is not None:
                return Held(found, until)
        return Held(None, stateful.BEGINNING)

    return find


def _token(state: dict[str, Any]) -> str:
    """Names everything that the states of a refresh were computed from."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:24]


def _partitioned(
    events: Frame, entity: str, since: datetime | None, compute: Callable[[Frame], Frame]
) -> Iterator[Frame]:
    """Computes one partition of the entities after the other, leaving out those that no longer change after `since`."""
    sizes = (
        t.with_known(events).group_by(entity).agg(pl.len().alias("size"), pl.max("known"), pl.max("event_timestamp"))
    )
    if since is not None:
        longest = max(t.WINDOWS.values())
        sizes = sizes.filter((pl.col("known") > since) | (pl.col("event_timestamp") + longest > since))
    sizes = sizes.sort(entity).with_columns((pl.col("size").cum_sum() // PARTITION_EVENTS).alias("partition"))
    for (_,), entities in sizes.partition_by("partition", as_dict=True, maintain_order=True).items():
        part = events.join(entities.select(entity), on=entity, how="semi", maintain_order="left")
        yield compute(part).sort("event_timestamp", entity)


def _replace(settings: Settings, view: str, frames: Iterator[Frame], since: datetime | None) -> None:
    """Put the rows in the place of those stamped after `since` (of all rows without it), in one Delta commit."""
    import pyarrow as pa
    from deltalake import WriterProperties, write_deltalake

    uri = storage.join(settings.lake, "features", view)
    schema = pl.DataFrame(schema=SCHEMAS[view]).to_arrow().schema
    reader = pa.RecordBatchReader.from_batches(
        schema, (batch for frame in frames for batch in frame.to_arrow().cast(schema).to_batches(max_chunksize=50_000))
    )
    exists = Lake(settings.lake).version(f"features/{view}") is not None
    options: dict[str, Any] = {}
    if exists and since is not None:
        options["predicate"] = f"event_timestamp > {moment(since)}"
    elif exists:
        options["schema_mode"] = "overwrite"
    write_deltalake(
        uri,
        reader,
        mode="overwrite",
        storage_options=storage.storage_options(uri) or None,
        writer_properties=WriterProperties(compression="ZSTD"),
        **options,
    )


def _changed_since(state: dict[str, Any], wanted: dict[str, Any]) -> datetime | None:
    """The midnight after which the tables may be wrong; None when they must be computed from the beginning."""
    if not state or state["definition"] != wanted["definition"]:
        return None
    ends = [_midnight(datetime.fromisoformat(state["horizon"]))]
    for table, days in wanted["days"].items():
        before = state["days"][table]
        differing = [day for day in {*days, *before} if days.get(day) != before.get(day)]
        if differing:
            ends.append(datetime.fromisoformat(min(differing)) - timedelta(days=1))
    return min(ends)


def _fingerprints(rows: Frame) -> dict[str, list[str]]:
    """Day end to (rows, hash) of what became known on that day, whatever the order of the rows."""
    rows = t.with_known(rows)
    days = (
        rows.select(t.day_end(pl.col("known")).alias("day"), pl.struct(rows.columns).hash(seed=0).alias("hash"))
        .group_by("day")
        .agg(pl.len(), pl.col("hash").bitwise_xor())
        .sort("day")
    )
    return {day.isoformat(): [str(count), str(mark)] for day, count, mark in days.iter_rows()}


def _definition(settings: Settings) -> str:
    """A hash of everything beside the data that decides the features."""
    parts = {
        "revision": REVISION,
        "polars": pl.__version__,  # the fingerprints' hash may change with it
        "features": settings.features.model_dump(mode="json", exclude=_OF_MODELS),
        "views": sorted(active_views(settings.features)),
        "positive_event_types": list(settings.split.positive_event_types),
        "min_value": settings.split.min_value,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _midnight(time: datetime) -> datetime:
    return time.replace(hour=0, minute=0, second=0, microsecond=0)


def _version(lake: Lake, view: str) -> int:
    version = lake.version(f"features/{view}")
    assert version is not None, "a refreshed view has a table"
    return version


def seen_at(settings: Settings, as_of: datetime) -> Frame:
    """`user_id, seen_item_ids, purchased_item_ids` of every user with an event known at `as_of`, midnight or not."""
    interactions = Lake(settings.lake).scan("interactions", as_of).select(t.INTERACTION_COLUMNS).collect()
    rows = t.user_seen(interactions, settings.split, settings.features, until=as_of)
    return rows.unique("user_id", keep="last", maintain_order=True).drop("event_timestamp", "created_timestamp")
