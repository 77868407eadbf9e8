"""What a source hands to the lake: rows of the three tables, and first words about items and users nobody described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from evensong.data import lake
from evensong.types import CATEGORY_SEPARATOR, TIMESTAMP, Frame

#: A price that moved by less than this share of itself is the same price.
MATERIAL_CHANGE = 0.10


@dataclass(frozen=True)
class Batch:
    """Rows in the columns of `types.TABLES`, in the source's order."""

    interactions: Frame = field(default_factory=lambda: lake.empty("interactions"))
    items: Frame = field(default_factory=lambda: lake.empty("items"))
    users: Frame = field(default_factory=lambda: lake.empty("users"))
    first_items: Frame = field(default_factory=lambda: lake.empty("items"))
    """One row an item, for those items only of which the lake has not heard by then."""
    first_users: Frame = field(default_factory=lambda: lake.empty("users"))
    """The same for users."""
    catalogue_items: Frame = field(default_factory=lambda: lake.empty("items"))
    """Items as a list without times describes them now; a row that says something new of a known item holds from
    `moment` on."""
    catalogue_users: Frame = field(default_factory=lambda: lake.empty("users"))
    """The same for users."""
    moment: datetime | None = None
    """When the newest of the interactions became known."""


def arrived(events: Frame, now: datetime) -> Frame:
    """The events with `created_timestamp` wherever their source says nothing of it.

    An event became known when it happened; one that is dated after `now`, the moment of the import, became known then,
    and not when it says that it will happen: so validation finds it.
    """
    own = ["created_timestamp"] if "created_timestamp" in events.columns else []
    moment = pl.lit(now, dtype=TIMESTAMP)
    by_now = pl.when(pl.col("event_timestamp") > moment).then(moment).otherwise("event_timestamp")
    return events.with_columns(created_timestamp=pl.coalesce(*own, by_now))


def earlier(rows: Frame, known: Frame, key: str) -> Frame:
    """Those of the `rows` that tell of an id before any of the `known` ones does; so every row of an unknown id."""
    since = pl.max_horizontal("event_timestamp", "created_timestamp")
    first = known.group_by(key).agg(known_since=since.min())
    compared = rows.join(first, key, "left", maintain_order="left")
    return compared.filter(pl.col("known_since").is_null() | (since < pl.col("known_since"))).drop("known_since")


def first_users(events: Frame, attributes: Sequence[str] = ()) -> Frame:
    """One row a user, stamped with the event by which they became known; `attributes` are columns of that event."""
    first = _first(events, "user_id")
    return lake.conform("users", first.select("user_id", as_json(attributes), "event_timestamp", "created_timestamp"))


def first_items(events: Frame, attributes: Sequence[str] = ()) -> Frame:
    """One row an item, as the event by which it became known described it; without a title, the id is the title.

    `events` may have `title`, `category_path`, `price` and `image_uri` beside `item_id` and the two times.
    """
    first = _described(_first(events, "item_id"))
    columns = ["item_id", "title", "category_path", "price", "image_uri", "event_timestamp", "created_timestamp"]
    return lake.conform("items", first.select(*columns, as_json(attributes)))


def changed_items(events: Frame, attributes: Sequence[str] = ()) -> Frame:
    """At most one row an item and month, where what its events say of it changed: nothing in it looks ahead.

    The row is stamped with the month's end and holds the month's median price and last words; there is one when the
    price moved materially from the month before with events, or the title or the category became another. Months are
    those in which the events became known; the last one, still open, gives none.
    """
    if not {"title", "category_path", "price"} & set(events.columns):
        return lake.empty("items")
    known = _described(events.filter(pl.col("item_id").is_not_null() & pl.col("created_timestamp").is_not_null()))
    known = known.sort("created_timestamp", maintain_order=True).with_columns(
        month=pl.col("created_timestamp").dt.truncate("1mo")
    )
    last = [pl.col(name).drop_nulls().last() for name in ("title", "category_path", "image_uri")]
    extra = [pl.col(name).last() for name in attributes]
    months = known.group_by("item_id", "month", maintain_order=True).agg(pl.col("price").median(), *last, *extra)
    months = months.sort("item_id", "month").with_columns(
        pl.col("price", "title", "category_path", "image_uri").forward_fill().over("item_id")
    )
    before = {name: pl.col(name).shift().over("item_id") for name in ("price", "title", "category_path")}
    moved = (pl.col("price") - before["price"]).abs() > MATERIAL_CHANGE * before["price"].abs()
    appeared = pl.col("price").is_not_null() & before["price"].is_null()
    renamed = pl.any_horizontal(pl.col(name).ne_missing(before[name]) for name in ("title", "category_path"))
    end = pl.col("month").dt.offset_by("1mo")
    changed = months.with_columns(
        event_timestamp=end, created_timestamp=end, number=pl.int_range(pl.len()).over("item_id")
    ).filter((pl.col("number") > 0) & (moved | appeared | renamed) & (end <= known["created_timestamp"].max()))
    columns = ["item_id", "title", "category_path", "price", "image_uri", "event_timestamp", "created_timestamp"]
    return lake.conform("items", changed.select(*columns, as_json(attributes)))


def restated(catalogue: Frame, known: Frame, key: str, moment: datetime) -> Frame:
    """What a list without times adds to the `known` rows: what tells of an id before they do (so all of a new one), and
    what it says anew of the others.

    The latter is stamped with `moment`; where the lake already knows something as new as that, it stays.
    """
    new = earlier(catalogue, known, key)
    said = [name for name in catalogue.columns if name not in ("event_timestamp", "created_timestamp")]
    newest = known.sort(key, "event_timestamp", "created_timestamp").unique(key, keep="last", maintain_order=True)
    older = newest.filter((pl.col("event_timestamp") < moment) & (pl.col("created_timestamp") < moment))
    first = catalogue.unique(key, keep="first", maintain_order=True)
    anew = first.join(older, key, "semi").join(older, said, "anti", nulls_equal=True, maintain_order="left")
    stamp = pl.lit(moment, dtype=TIMESTAMP)
    return pl.concat([new, anew.with_columns(event_timestamp=stamp, created_timestamp=stamp)])


def category_path(columns: Sequence[str]) -> pl.Expr:
    """Up to three levels out of one or more columns; `>` and `|` inside a column separate levels too."""
    joined = pl.concat_str([pl.col(name).cast(pl.String) for name in columns], separator=">", ignore_nulls=True)
    levels = joined.str.replace_all("|", ">", literal=True).str.split(">").list.eval(pl.element().str.strip_chars())
    kept = levels.list.eval(pl.element().filter(pl.element() != "")).list.head(3)
    return pl.when(kept.list.len() > 0).then(kept.list.join(CATEGORY_SEPARATOR)).alias("category_path")


def as_json(columns: Sequence[str]) -> pl.Expr:
    """The columns as one JSON object a row, named `attributes`."""
    if not columns:
        return pl.lit("{}").alias("attributes")
    return pl.struct(columns).struct.json_encode().alias("attributes")


def keep_order(events: Frame) -> Frame:
    """The k-th of a user's events of one moment is stamped k µs later, so that their file's order survives.

    `events` are those of one file: counted over several, a new file would give the events of the others new times.
    """
    place = pl.int_range(pl.len()).over("user_id", "event_timestamp")
    return events.with_columns(event_timestamp=pl.col("event_timestamp") + pl.duration(microseconds=place))


def _first(events: Frame, key: str) -> Frame:
    known = events.filter(pl.col(key).is_not_null() & pl.col("event_timestamp").is_not_null())
    known = known.sort(
        key, pl.max_horizontal("created_timestamp", "event_timestamp"), "event_timestamp", maintain_order=True
    )
    return known.unique(key, keep="first", maintain_order=True)


def _described(events: Frame) -> Frame:
    absent = {"title": pl.String, "category_path": pl.String, "price": pl.Float64, "image_uri": pl.String}
    events = events.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in absent.items() if name not in events.columns
    )
    return events.with_columns(title=pl.coalesce("title", "item_id"))
