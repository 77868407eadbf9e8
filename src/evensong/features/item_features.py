"""Features of items beside those of old: the rest of their row, where their price stands, what they lead to.

As everywhere, a row is stamped with the moment at which what it says became known. Conversions are kept as counts; the
rates and their prior are fitted state (`rates`). An item's age needs no table: models count it from `arrival_seconds`.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from evensong.features.declarations import FeatureDeclaration, ViewDeclaration
from evensong.features.newest import said_at_each_moment
from evensong.features.time_statistics import (
    DecayStatistic,
    StatisticsState,
    TimeStatistic,
    WindowStatistic,
    empty_state,
    moments_of_change,
    read_at,
    update,
)
from evensong.types import CATEGORY_SEPARATOR, TIMESTAMP, Frame

LEVELS = 3
DAYS = (1, 7, 30)
#: Event types that show interest, and what they may lead to.
TRIALS, CONVERSIONS = ("view", "click"), {"cart": ("cart",), "purchase": ("purchase",)}
STAMPS: dict[str, pl.DataType] = {"event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP}

ITEM_DETAILS: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "item_attributes": pl.String(),
    "item_image_uri": pl.String(),
    **STAMPS,
}
ITEM_STANDING: dict[str, pl.DataType] = {"item_id": pl.String(), "price_rank": pl.Float64(), **STAMPS}
ITEM_CONVERSION: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    **{f"item_{name}_{days}d": pl.Int64() for name in ("views", "carts", "purchases") for days in DAYS},
    "item_decayed_events": pl.Float64(),
    **STAMPS,
}


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
    said = category_levels(said).with_columns(_day_end(pl.col("event_timestamp")).alias("moment"))
    said = said.filter(pl.col("moment") <= until).unique(["item_id", "moment"], keep="last", maintain_order=True)
    said = said.select("item_id", "category_1", "price", "moment")
    before = pl.lit(False) if since is None else pl.col("moment") <= since
    catalogue = said.filter(before).unique("item_id", keep="last", maintain_order=True)
    found = [pl.DataFrame(schema=ITEM_STANDING)]
    ranked = price_ranks(catalogue)
    for (moment,), changed in said.filter(~before).sort("moment").partition_by("moment", as_dict=True).items():
        catalogue = pl.concat([catalogue, changed]).unique("item_id", keep="last", maintain_order=True)
        now = price_ranks(catalogue)
        differs = pl.col("price_rank").ne_missing(pl.col("before")) | pl.col("known").is_null()
        old = ranked.select("item_id", pl.col("price_rank").alias("before"), pl.lit(True).alias("known"))
        rows = now.join(old, on="item_id", how="left").filter(differs).sort("item_id")
        stamps = [pl.lit(moment, TIMESTAMP).alias(name) for name in STAMPS]
        found.append(rows.select("item_id", "price_rank", *stamps))
        ranked = now
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
    interactions: Frame, *, state: StatisticsState | None = None, half_life_days: float = 7.0, until: datetime
) -> tuple[Frame, StatisticsState]:
    """How often each item was met, put into the cart and bought, and its decayed events; and the state to go on from.

    Args:
        interactions: at least those that became known after the state, of one partition of the items.

    Returns:
        ITEM_CONVERSION at each midnight (UTC) that ends a day in which a value changed. The state is that of the last
        midnight: events since then are to come again with the next call.
    """
    state = state or empty_state()
    statistics = item_statistics(half_life_days)
    until = max(state.until, until.replace(hour=0, minute=0, second=0, microsecond=0))
    moments = moments_of_change(interactions, statistics, entity="item_id", state=state, until=until)
    moments = moments.select("item_id", _day_end(pl.col("moment"))).unique().sort("item_id", "moment")
    values = read_at(state, interactions, statistics, entity="item_id", moments=moments)
    rows = values.select(*(name for name in ITEM_CONVERSION if name not in STAMPS), *_stamps("moment"))
    new = update(state, interactions, statistics, entity="item_id", until=until)
    return rows.cast(pl.Schema(ITEM_CONVERSION)), new


def _day_end(moment: pl.Expr) -> pl.Expr:
    return (moment - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(days=1)


def _stamps(moment: str) -> list[pl.Expr]:
    return [pl.col(moment).cast(TIMESTAMP).alias(name) for name in STAMPS]


def views(half_life_days: float = 7.0) -> list[ViewDeclaration]:
    """What this module computes, for the dictionary."""
    here = "evensong.features.item_features"
    said = {"views": "Views and clicks.", "carts": "Times put into the cart.", "purchases": "Times bought."}
    counted = [
        FeatureDeclaration(name=f"item_{name}_{d}d", type="Int64", description=text, window=f"{d} days")
        for name, text in said.items()
        for d in DAYS
    ]
    decayed = FeatureDeclaration(
        name="item_decayed_events",
        type="Float64",
        description="Positive events, decayed.",
        window=f"half-life {half_life_days:g} days",
    )
    return [
        ViewDeclaration(
            name="item_details",
            entity="item_id",
            source="items",
            function=f"{here}:item_details",
            features=(
                FeatureDeclaration(name="item_attributes", type="String", description="The row's JSON, for columns."),
                FeatureDeclaration(name="item_image_uri", type="String", description="Where its picture is."),
            ),
        ),
        ViewDeclaration(
            name="item_standing",
            entity="item_id",
            source="items",
            function=f"{here}:item_standing",
            features=(
                FeatureDeclaration(
                    name="price_rank", type="Float64", description="Share of cheaper items in its level-one category."
                ),
            ),
        ),
        ViewDeclaration(
            name="item_conversion",
            entity="item_id",
            source="interactions",
            function=f"{here}:item_conversion",
            features=(*counted, decayed),
            parameters={"half_life_days": f"{half_life_days:g}"},
        ),
    ]
