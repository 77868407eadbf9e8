"""Anybody's events: files and SQL tables that a mapping translates into interactions, items and users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import polars as pl

from evensong.data import batch, lake, sql, tabular, values
from evensong.data.batch import Batch
from evensong.data.mapping import EventMapping
from evensong.data.tabular import EVENT_TYPES, TextFormat
from evensong.errors import SourceError
from evensong.types import TIMESTAMP, Frame

#: The options that name columns, where they are not called like what they fill.
OPTIONS = {
    "user_id": "--user",
    "item_id": "--item",
    "event_timestamp": "--time",
    "created_timestamp": "--created",
    "session_id": "--session",
    "request_id": "--request",
    "image_uri": "--image",
    "event_type": "--event-type",
}


def read(location: str, mapping: EventMapping, now: datetime) -> Batch:
    """Everything that the source holds at the moment `now`, in the lake's columns.

    Items and users that nobody describes become known with their first event.

    Raises:
        SourceError: a file, table or column is missing, a value cannot be read, there is no row, or the mapping asks
            for an order that an SQL table does not have.
    """
    if mapping.keep_order and sql.is_sql(location):
        raise SourceError(
            f"{sql.shown(location)}: --keep-order keeps the order of a file, and an SQL table has none; to tell a "
            "user's events of one moment apart, map a column that differs, such as the row's id, with --request"
        )
    rows = _rows(location, mapping)
    if rows.is_empty():
        raise SourceError(f"{sql.shown(location)}: expected at least one event, found none; is it the right source?")
    rows = batch.arrived(rows, now)
    kept = [name for name in lake.SCHEMAS["interactions"] if name in rows.columns]
    interactions = lake.conform("interactions", rows.select(kept))
    about: dict[str, Any] = _about_items(mapping, rows) | _about_users(mapping, rows)
    # what is dated ahead says nothing of when the list of items was as it is
    sound = interactions.filter(pl.col("event_timestamp") <= pl.lit(now, dtype=TIMESTAMP))
    newest = (sound if sound.height else interactions)["created_timestamp"].max()
    return Batch(interactions, **about, moment=cast(datetime | None, newest))


def _rows(location: str, mapping: EventMapping) -> Frame:
    columns = {"user_id": mapping.user, "item_id": mapping.item, "event_timestamp": mapping.time}
    optional = {
        "value": mapping.value,
        "session_id": mapping.session,
        "request_id": mapping.request,
        "position": mapping.position,
        "propensity": mapping.propensity,
        "created_timestamp": mapping.created,
    }
    columns |= {wanted: name for wanted, name in optional.items() if name is not None}
    if mapping.items is None:
        columns |= _item_columns(mapping)
    if mapping.users is None:
        columns |= {f"user {name}": name for name in mapping.user_attributes}
    if mapping.event_type not in EVENT_TYPES:
        columns["event_type"] = mapping.event_type
    parts = _read(location, mapping.table, columns, mapping, _asked(columns), mapping.text)
    if mapping.keep_order:
        parts = [batch.keep_order(part) for part in parts]
    rows = _together(location, parts)
    if rows.height and rows["event_timestamp"].null_count() == rows.height:
        raise SourceError(f"{sql.shown(location)}: column {mapping.time!r} holds no time at all; map another column")
    if "event_type" not in rows.columns:
        rows = rows.with_columns(event_type=pl.lit(mapping.event_type))
    return rows


def _read(
    location: str,
    table: str | None,
    columns: Mapping[str, str],
    mapping: EventMapping,
    asked: Mapping[str, str],
    text: TextFormat,
) -> list[Frame]:
    """Each file's (or the SQL table's) columns, typed."""
    if sql.is_sql(location):
        where = f"{sql.shown(location)} table {table}"
        return [_typed(sql.read(location, table, columns, asked), where, mapping, columns)]
    uris = tabular.files(location)
    return [_typed(tabular.read_file(uri, columns, text, asked), uri, mapping, columns) for uri in uris]


def _asked(columns: Iterable[str]) -> dict[str, str]:
    """The option by which each column was named."""
    kinds = {"category": "--category", "item": "--item-attributes", "user": "--user-attributes"}
    several = {name: kinds[name.partition(" ")[0]] for name in columns if " " in name}
    return {name: several.get(name) or OPTIONS.get(name, f"--{name}") for name in columns}


def _together(location: str, parts: list[Frame]) -> Frame:
    try:
        return pl.concat(parts, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise SourceError(
            f"{sql.shown(location)}: a column is of one kind in one file and of another in the next: "
            f"{tabular.first_line(error)}; give it one kind in all of them"
        ) from error


def _typed(rows: Frame, where: str, mapping: EventMapping, names: Mapping[str, str]) -> Frame:
    """Ids, times and numbers out of one file's columns (messages say `names`); the attributes stay as they are."""
    found: list[pl.Series] = []
    for column in rows.get_columns():
        shown = column.alias(names[column.name])
        if column.name.startswith("category ") and isinstance(column.dtype, pl.List):
            shown = shown.cast(pl.List(pl.String)).list.join(">", ignore_nulls=True)
        elif column.name.startswith(("item ", "user ")):
            shown = values.plain(shown)
        elif column.dtype.is_nested():
            raise SourceError(
                f"{where}: column {shown.name!r}: expected one value a row, found {column.dtype}; name a field of "
                f"it, such as {shown.name}.id"
            )
        elif column.name in ("event_timestamp", "created_timestamp"):
            read = values.times(shown, where, mapping.time_format, mapping.time_zone)
            shown = values.within_their_day(read)
        elif column.name in ("value", "propensity", "price"):
            shown = values.numbers(shown, where, mapping.decimal)
        elif column.name == "position":
            shown = values.whole_numbers(shown, where)
        elif column.name in lake.SCHEMAS["interactions"] or column.name in lake.SCHEMAS["items"]:
            shown = values.ids(shown)
        found.append(shown.alias(column.name))
    typed = pl.DataFrame(found)
    if categories := [name for name in typed.columns if name.startswith("category ")]:
        typed = typed.with_columns(batch.category_path(categories)).drop(categories)
    return typed


def _item_columns(mapping: EventMapping) -> dict[str, str]:
    columns = {"title": mapping.title, "price": mapping.price, "image_uri": mapping.image}
    columns |= {f"category {number}": name for number, name in enumerate(mapping.category)}
    columns |= {f"item {name}": name for name in mapping.item_attributes}
    return {wanted: name for wanted, name in columns.items() if name is not None}


def _about_items(mapping: EventMapping, events: Frame) -> dict[str, Frame]:
    attributes = mapping.item_attributes
    if mapping.items is None:
        rows = events.rename({f"item {name}": name for name in attributes})
        return {"items": batch.changed_items(rows, attributes), "first_items": batch.first_items(rows, attributes)}
    columns = {"item_id": mapping.items_id or mapping.item, **_item_columns(mapping)}
    rows = _catalogue(mapping.items, mapping.items_table, columns, mapping.items_time, mapping, events)
    rows = rows.rename({f"item {name}": name for name in attributes})
    # an item without a title is one all the same, and its events are events
    title = [pl.col("title")] if "title" in rows.columns else []
    rows = rows.with_columns(title=pl.coalesce(*title, "item_id"))
    kept = [name for name in lake.SCHEMAS["items"] if name in rows.columns and name != "attributes"]
    described = lake.conform("items", rows.select(*kept, batch.as_json(attributes)))
    first = batch.first_items(events)
    if mapping.items_time:
        return {"items": described, "first_items": first}
    return {"catalogue_items": described, "first_items": first.join(described, "item_id", "anti")}


def _about_users(mapping: EventMapping, events: Frame) -> dict[str, Frame]:
    attributes = mapping.user_attributes
    if mapping.users is None:
        return {
            "first_users": batch.first_users(events.rename({f"user {name}": name for name in attributes}), attributes)
        }
    columns = {"user_id": mapping.users_id or mapping.user} | {f"user {name}": name for name in attributes}
    rows = _catalogue(mapping.users, mapping.users_table, columns, mapping.users_time, mapping, events)
    rows = rows.rename({f"user {name}": name for name in attributes})
    kept = ["user_id", "event_timestamp", "created_timestamp"]
    described = lake.conform("users", rows.select(*kept, batch.as_json(attributes)))
    first = batch.first_users(events)
    if mapping.users_time:
        return {"users": described, "first_users": first}
    return {"catalogue_users": described, "first_users": first.join(described, "user_id", "anti")}


def _catalogue(
    location: str, table: str | None, columns: dict[str, str], time: str | None, mapping: EventMapping, events: Frame
) -> Frame:
    """The rows about items or users with their own times; else that of the first event, their own or anyone's."""
    key = next(iter(columns))
    if time is not None:
        columns = columns | {"event_timestamp": time}
    which = "items" if key == "item_id" else "users"
    asked = _asked(columns) | {key: f"--{which}-id", "event_timestamp": f"--{which}-time"}
    # it may be written in another way than the events
    text = replace(mapping.text, other_separators=True)
    rows = _together(location, _read(location, table, columns, mapping, asked, text))
    if rows.is_empty():
        raise SourceError(f"{sql.shown(location)}: expected at least one row, found none; leave it out, or correct it")
    if time is not None:
        return rows.with_columns(created_timestamp=pl.col("event_timestamp"))
    moments = ["event_timestamp", "created_timestamp"]
    # an event that is dated ahead of its arrival says nothing of when what it is about will be there
    events = events.with_columns(event_timestamp=pl.min_horizontal(*moments))
    seen = events.group_by(key).agg(pl.col(moments).min())
    rows = rows.join(seen, key, "left", maintain_order="left")
    return rows.with_columns(pl.col(name).fill_null(events[name].min()) for name in moments)
