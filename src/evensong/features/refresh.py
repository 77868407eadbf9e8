"""Keeps the feature tables equal to what the lake says, computing only what is new or has changed.

The tables are a function of the lake and of one moment, the horizon: the latest `as_of` ever built. Beside them,
`features/state.json` holds, of each table of the lake, the version that was read and a fingerprint of what became known
on each day (`changes`), and of each view its definition (`definitions`). A refresh finds, view by view, the first day
that differs, and computes the rows stamped after that day's beginning again; a Delta commit puts them in the place of
the old ones. So a rerun, a skipped night, an older night after a newer one and a historical import all end in the same
tables, a view that is defined otherwise is computed anew and no other one, and a refresh that is killed is repeated by
the next one: each commit says what it was computed from, so that what stands there already is not written once more.
Views of events go on from the states of the last midnight (`states`), views of items and users from the
rows that still count, so that a night reads and computes what is new in it. Optional views that no column reads
(`shop_columns`) are left empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake, moment
from evensong.errors import StaleFeaturesError
from evensong.features import changes, states
from evensong.features import transformations as t
from evensong.features.changes import Reading
from evensong.features.declarations import Input, View
from evensong.features.definitions import short_hash, view_definition
from evensong.features.newest import still_counting
from evensong.features.shop_columns import active_views
from evensong.features.state import BEGINNING, midnight_before
from evensong.features.states import Keeper, Kept
from evensong.features.views import check_event_types, declared_views
from evensong.settings import Settings
from evensong.types import Frame

STATE = "state.json"
#: Events of one partition of users or items, which bounds the memory of a refresh.
PARTITION_EVENTS = 250_000
#: Rows of one partition of the states that are kept.
PARTITION_ROWS = 1_000_000
#: What is read of each table.
COLUMNS = {
    "interactions": t.INTERACTION_COLUMNS,
    "items": (
        *("item_id", "title", "category_path", "price", "image_uri", "attributes"),
        *("event_timestamp", "created_timestamp"),
    ),
    "users": ("user_id", "attributes", "event_timestamp", "created_timestamp"),
}
_KEYS = {"items": "item_id", "users": "user_id"}
#: The definition of a view that is not computed.
_EMPTY = "empty"
_ROWS = "rows.parquet"
#: In a commit's metadata: what its table was computed from.
_MADE_FROM = "evensong.made_from"


@dataclass
class _Run:
    """One refresh: what it found, and what it hands from view to view."""

    settings: Settings
    before: Mapping[str, Any]
    """What the last refresh left in `state.json`; empty before the first."""
    reached: datetime | None
    horizon: datetime
    readings: Mapping[str, Reading]
    tokens: dict[str, str] = field(default_factory=dict)
    """Of each view of events, and of each table that other views read: the name of what is kept for the next night."""
    _inputs: dict[tuple[str, bool], Frame] = field(default_factory=dict)

    @property
    def midnight(self) -> datetime:
        """The midnight up to which what the last refresh kept stands for everything."""
        return midnight_before(self.reached) if self.reached else BEGINNING

    def changed_since(self, table: str) -> datetime | None:
        """The first midnight after which a table differs from what the last refresh saw."""
        return self.readings[table].changed_since(self.before["tables"][table]["days"])

    def token(self, name: str, *of: Any, tables: Sequence[str]) -> str:
        """Names everything that is known of the tables at the midnight before the horizon."""
        midnight = midnight_before(self.horizon)
        days = [
            {day: mark for day, mark in self.readings[table].days.items() if datetime.fromisoformat(day) <= midnight}
            for table in tables
        ]
        self.tokens[name] = short_hash([*of, midnight.isoformat(), days])
        return self.tokens[name]

    def made_from(self, view: View, definition: str) -> str:
        """Names all that the view's table is a function of."""
        days = [self.readings[table].days for table in view.input.tables]
        return short_hash([definition, self.horizon.isoformat(), days, pl.__version__])

    def input(self, made: Input, *, everything: bool) -> Frame:
        """What a view is handed: of all rows, or of those that became known after the midnight."""
        if made.function is None:
            reading = self.readings[made.tables[0]]
            return reading.everything() if everything else reading.new
        key = (made.name, everything)
        if key not in self._inputs:
            first, *others = made.tables
            rows = self.readings[first].everything() if everything else self.readings[first].new
            beside = [self.readings[o].everything() if everything else self.counting(o) for o in others]
            self._inputs[key] = made.function(rows, *beside, **made.arguments(self.settings))
        return self._inputs[key]

    def counting(self, table: str) -> Frame:
        """The rows of items or users on which anything depends that became known after the midnight."""
        reading = self.readings[table]
        token = self.before.get("states", {}).get(table)
        if token is None:
            return reading.everything()
        changed = self.changed_since(table)
        uri = storage.join(states.place(self.settings.lake, table, token), _ROWS)
        if (changed is not None and changed < self.midnight) or not storage.exists(uri):
            return reading.everything()
        return pl.concat([storage.read_frame(uri), reading.new])


def refresh(settings: Settings, as_of: datetime) -> dict[str, int]:
    """Bring every feature table up to `as_of`, or to the later moment that it has reached already.

    Returns:
        The Delta version of each feature table.
    """
    lake = Lake(settings.lake)
    state_uri = storage.join(settings.lake, "features", STATE)
    before = _state_at(state_uri)
    reached = datetime.fromisoformat(before["horizon"]) if before else None
    horizon = max(as_of, reached or as_of)
    views = declared_views(settings.features)
    check_event_types(settings)
    definitions = _definitions(settings, views)
    versions = {view: lake.version(f"features/{view}") for view in views}
    there = {view: version for view, version in versions.items() if version is not None}
    if len(there) == len(views) and _is_up_to_date(lake, before, horizon, definitions):
        return there
    held = before.get("tables", {})
    readings = {
        table: changes.read(lake, table, columns, horizon, held.get(table), reached)
        for table, columns in COLUMNS.items()
    }
    run = _Run(settings, before, reached, horizon, readings)
    for name, view in views.items():
        is_new = name not in there or before.get("definitions", {}).get(name) != definitions[name]
        since = None if is_new else _since(run, view)
        if is_new or (definitions[name] != _EMPTY and _is_due(run, view)):
            made_from = run.made_from(view, definitions[name])
            if name in there and _made_from(settings, view) == made_from:  # a refresh that did not get to its end
                if view.goes_on_from_a_state and definitions[name] != _EMPTY:
                    run.token(name, definitions[name], tables=view.input.tables)
                continue
            rows = iter(()) if definitions[name] == _EMPTY else _rows(run, view, definitions[name], since)
            _replace(settings, view, rows, since if name in there else None, made_from, exists=name in there)
        elif name in before["states"]:
            run.tokens[name] = before["states"][name]
    for table in _KEYS:
        _keep(run, table)
    state = {
        "horizon": horizon.isoformat(),
        "polars": pl.__version__,  # the fingerprints' hash may change with it
        "definitions": definitions,
        "tables": {name: {"version": reading.version, "days": reading.days} for name, reading in readings.items()},
        "states": run.tokens,
    }
    storage.write_json(state_uri, state)
    states.forget_others(settings.lake, run.tokens)
    return {view: _version(lake, view) for view in views}


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


def seen_at(settings: Settings, as_of: datetime) -> Frame:
    """`user_id, seen_item_ids, purchased_item_ids` of every user with an event known at `as_of`, midnight or not."""
    interactions = Lake(settings.lake).scan("interactions", as_of).select(t.INTERACTION_COLUMNS).collect()
    view = declared_views(settings.features)["user_seen"]
    rows, _ = t.user_seen(interactions, until=as_of, **view.arguments(settings))
    return rows.unique("user_id", keep="last", maintain_order=True).drop("event_timestamp", "created_timestamp")


def _state_at(uri: str) -> dict[str, Any]:
    """What the last refresh left; its horizon alone where this release cannot go on from the rest."""
    if not storage.exists(uri):
        return {}
    found: dict[str, Any] = storage.read_json(uri)
    if found.get("polars") != pl.__version__:
        return {"horizon": found["horizon"]}
    return found


def _definitions(settings: Settings, views: Mapping[str, View]) -> dict[str, str]:
    active = active_views(settings.features)
    return {
        name: _EMPTY if view.optional and name not in active else view_definition(view, settings)
        for name, view in views.items()
    }


def _is_up_to_date(lake: Lake, before: Mapping[str, Any], horizon: datetime, definitions: Mapping[str, str]) -> bool:
    return (
        before.get("definitions") == definitions
        and before["horizon"] == horizon.isoformat()
        and all(before["tables"][table]["version"] == lake.version(table) for table in COLUMNS)
    )


def _since(run: _Run, view: View) -> datetime:
    """The midnight after which the view's rows may be wrong."""
    changed = [run.changed_since(table) for table in view.input.tables]
    return min([run.midnight, *(moment for moment in changed if moment is not None)])


def _is_due(run: _Run, view: View) -> bool:
    """Whether time has passed, or one of the view's tables says something else."""
    return run.horizon != run.reached or any(run.changed_since(table) is not None for table in view.input.tables)


def _rows(run: _Run, view: View, definition: str, since: datetime | None) -> Iterator[Frame]:
    """The view's rows stamped after `since`, some entities at a time."""
    arguments = view.arguments(run.settings)
    if not view.goes_on_from_a_state:
        yield _of_table(run, view, arguments, since)
        return
    token = run.token(view.name, definition, tables=view.input.tables)
    was = run.before.get("states", {}).get(view.name)
    kept = Kept.find(run.settings.lake, view.name, was, run.midnight) if since == run.midnight else None
    folder = states.place(run.settings.lake, view.name, token)
    keeper = Keeper(folder, midnight_before(run.horizon), view.entity, PARTITION_ROWS)
    events = run.input(view.input, everything=kept is None)
    yield from states.advance(
        view,
        events,
        kept or Kept(),
        None if kept and token == was else keeper,  # the very states that are there already
        arguments,
        since=since,
        until=run.horizon,
        partition_events=PARTITION_EVENTS,
    )


def _of_table(run: _Run, view: View, arguments: Mapping[str, Any], since: datetime | None) -> Frame:
    table = view.input.tables[0]
    if since is None or since < run.midnight:
        rows = run.readings[table].everything()
    else:
        rows = run.counting(table)
        if not view.needs_all:
            new = run.readings[table].new.select(pl.col(view.entity).unique())
            rows = rows.join(new, on=view.entity, how="semi")
    found: Frame = view.function(rows, since=since, until=run.horizon, **arguments)
    return found.sort("event_timestamp", view.entity)


def _keep(run: _Run, table: str) -> None:
    """Keep the rows of items or users on which anything depends that becomes known after the last midnight."""
    token = run.token(table, tables=[table])
    uri = storage.join(states.place(run.settings.lake, table, token), _ROWS)
    if not storage.exists(uri):
        rows = still_counting(run.counting(table), _KEYS[table], midnight_before(run.horizon))
        storage.write_frame(uri, rows)


def _made_from(settings: Settings, view: View) -> str | None:
    """What the newest commit of the view's table says."""
    from deltalake import DeltaTable

    uri = storage.join(settings.lake, "features", view.name)
    newest = DeltaTable(uri, storage_options=storage.storage_options(uri) or None).history(1)[0]
    said: str | None = newest.get(_MADE_FROM)
    return said


def _replace(
    settings: Settings, view: View, frames: Iterator[Frame], since: datetime | None, made_from: str, *, exists: bool
) -> None:
    """Put the rows in the place of those stamped after `since` (of all rows without it), in one Delta commit."""
    import pyarrow as pa
    from deltalake import CommitProperties, WriterProperties, write_deltalake

    uri = storage.join(settings.lake, "features", view.name)
    schema = pl.DataFrame(schema=view.schema).to_arrow().schema
    reader = pa.RecordBatchReader.from_batches(
        schema,
        (batch for f in _ahead(frames) for batch in f.to_arrow().cast(schema).to_batches(max_chunksize=50_000)),
    )
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
        commit_properties=CommitProperties(custom_metadata={_MADE_FROM: made_from}),
        # the writer holds a whole row group of lists
        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=100_000),
        **options,
    )


def _ahead(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The frames, one ahead, computed in a thread: Delta's writer asks from one of its own in which nothing opens."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, frames, None)
        while (frame := coming.result()) is not None:
            coming = pool.submit(next, frames, None)
            yield frame


def _version(lake: Lake, view: str) -> int:
    version = lake.version(f"features/{view}")
    assert version is not None, "a refreshed view has a table"
    return version
