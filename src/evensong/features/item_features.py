"""Features of items beside those of old: the rest of their row, where their price stands, what they lead to.

As everywhere, a row is stamped with the moment at which what it says became known. Conversions are kept as counts; the
rates and their prior are fitted state (`rates`). An item's age needs no table: models count it from `arrival_seconds`.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from evensong.features.declarations import STAMPS, Feature, schema_of
from evensong.features.newest import said_at_each_moment
from evensong.features.state import ViewState, day_end
from evensong.features.time_statistics import DecayStatistic, TimeStatistic, WindowStatistic
from evensong.features.time_views import at_midnights
from evensong.types import CATEGORY_SEPARATOR, TIMESTAMP, Frame

LEVELS = 3
DAYS = (1, 7, 30)
#: Event types that show interest, and what they may lead to.
TRIALS, CONVERSIONS = ("view", "click"), {"cart": ("cart",), "purchase": ("purchase",)}
_COUNTED = {"views": "Views and clicks.", "carts": "Times put into the cart.", "purchases": "Times bought."}

DETAILS = (
    Feature("item_attributes", pl.String(), "The row's JSON as it stands, for people's own columns."),
    Feature("item_image_uri", pl.String(), "Where its picture is."),
)
STANDING = (
    Feature("price_rank", pl.Float64(), "Share of cheaper items in its level-one category, 0 to 1, ties shared."),
)
CONVERSION = (
    *(
        Feature(f"item_{name}_{d}d", pl.Int64(), said, window=f"{d} day{'s' * (d > 1)}")
        for name, said in _COUNTED.items()
        for d in DAYS
    ),
    Feature(
        "item_decayed_events", pl.Float64(), "Positive events, decayed.", window="half-life {half_life_days:g} days"
    ),
)
ITEM_DETAILS = schema_of("item_id", *DETAILS)
ITEM_STANDING = schema_of("item_id", *STANDING)
ITEM_CONVERSION = schema_of("item_id", *CONVERSION)

#: What `item_conversion` reads of events.
_CONVERTED = {"event_type": pl.String(), "event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP}


def item_details(items: Frame, *, since: datetime | None = None, until: datetime) -> Frame:
    """The rest of what the items table said of each item (ITEM_DETAILS), one row a moment at which that changed."""
    said = {"item_attributes": "attributes", "item_image_uri": "image_uri"}
    return said_at_each_moment(
        items,
        lambda rows: rows.select(pl.col(old).cast(pl.String).alias(new) for new, old in said.items()),
        entity="item_id",
        since=since,
        until=until,
    ).cast(pl.Schema(ITEM_DETAILS))


def item_standing(items: Frame, *, since: datetime | None = None, until: datetime) -> Frame:
    """Where each item's price stands in its category (ITEM_STANDING), at each midnight (UTC) at which that changed.

    An item's own row or another one of its category may have changed it. All items are needed, not a partition.
    """
    said = said_at_each_moment(
        items, lambda rows: rows.select("category_path", "price"), entity="item_id", since=None, until=until
    )
    said = category_levels(said).with_columns(day_end(pl.col("event_timestamp")).alias("moment"))
    said = said.filter(pl.col("moment") <= until).unique(["item_id", "moment"], keep="last", maintain_order=True)
    said = said.select("item_id", "category_1", "price", "moment")
    before = pl.lit(False) if since is None else pl.col("moment") <= since
    catalogue = said.filter(before).unique("item_id", keep="last", maintain_order=True)
    found = [pl.DataFrame(schema=ITEM_STANDING)]
    for (moment,), changed in said.filter(~before).sort("moment").partition_by("moment", as_dict=True).items():
        was = catalogue.join(changed.select("item_id"), on="item_id", how="semi")
        now = pl.concat([catalogue, changed]).unique("item_id", keep="last", maintain_order=True)
        # where nothing of a category has changed, no rank in it has
        shelves = pl.concat([was["category_1"], changed["category_1"]]).unique().to_frame()
        ranks = [
            price_ranks(table.join(shelves, on="category_1", how="semi", nulls_equal=True))
            for table in (catalogue, now)
        ]
        old = ranks[0].select("item_id", pl.col("price_rank").alias("before"), pl.lit(True).alias("known"))
        differs = pl.col("price_rank").ne_missing(pl.col("before")) | pl.col("known").is_null()
        rows = ranks[1].join(old, on="item_id", how="left").filter(differs).sort("item_id")
        stamps = [pl.lit(moment, TIMESTAMP).alias(name) for name in STAMPS]
        found.append(rows.select("item_id", "price_rank", *stamps))
        catalogue = now
    return pl.concat(found)


def category_levels(items: Frame) -> Frame:
    """The frame with `category_1`, `category_2`, `category_3`: each the path down to its level, null below its end.

    `Home > Kitchen` gives `Home`, `Home > Kitchen` and null, so like names in different places stay apart.
    """
    parts = pl.col("category_path").replace("", None).str.split(CATEGORY_SEPARATOR)
    return items.with_columns(
        pl.when(parts.list.len() >= level)
        .then(parts.list.head(level).list.join(CATEGORY_SEPARATOR))
        .alias(f"category_{level}")
        for level in range(1, LEVELS + 1)
    )


def price_ranks(items: Frame, by: str = "category_1") -> Frame:
    """The frame with `price_rank`: the share of the category's priced items that are cheaper, ties shared, 0 to 1.

    An item alone in its category stands in the middle; one without a price has none. A partition is a category.
    """
    price = pl.col("price").fill_nan(None)
    place = price.rank("average").over(by) - 1
    others = price.count().over(by) - 1
    rank = pl.when(price.is_null()).then(None).when(others == 0).then(0.5).otherwise(place / others)
    return items.with_columns(rank.cast(pl.Float64).alias("price_rank"))


def item_statistics(half_life_days: float) -> list[TimeStatistic]:
    """What `item_conversion` keeps of an item's events."""
    kinds = {"views": TRIALS, **{f"{name}s": types for name, types in CONVERSIONS.items()}}
    counts: list[TimeStatistic] = [
        WindowStatistic(name=f"item_{name}_{days}d", days=days, event_types=types)
        for name, types in kinds.items()
        for days in DAYS
    ]
    return [*counts, DecayStatistic(name="item_decayed_events", half_life_days=half_life_days)]


def item_conversion(
    events: Frame,
    *,
    state: ViewState | None = None,
    since: datetime | None = None,
    until: datetime,
    half_life_days: float,
) -> tuple[Frame, ViewState]:
    """How often each item was met, put into the cart and bought, and its decayed events (ITEM_CONVERSION).

    Rows stand at each midnight (UTC) that ends a day in which a value changed.

    Args:
        events: at least those that became known after the state, of one partition of the items.
    """
    values, new = at_midnights(
        events,
        item_statistics(half_life_days),
        _CONVERTED,
        entity="item_id",
        state=state,
        since=since,
        until=until,
    )
    rows = values.with_columns(_stamps("moment")).select(list(ITEM_CONVERSION)).cast(pl.Schema(ITEM_CONVERSION))
    return rows, new


def _stamps(moment: str) -> list[pl.Expr]:
    return [pl.col(moment).cast(TIMESTAMP).alias(name) for name in STAMPS]
