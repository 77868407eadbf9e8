"""Features of items beside those of `recommender_v1`: category levels, price and its rank, age, and what views lead to.

Conversion rates of items with few views are mostly chance, so each is drawn towards what items in general do: with a
Beta(a, b) prior fitted to all items, `(conversions + a) / (views + a + b)` is the rate's posterior mean (empirical
Bayes, Casella, The American Statistician 39(2), 1985).
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl

from evensong.features.declarations import FeatureDeclaration, ViewDeclaration
from evensong.features.time_statistics import (
    StatisticsState,
    TimeStatistic,
    WindowStatistic,
    empty_state,
    moments_of_change,
    read_at,
    update,
)
from evensong.types import CATEGORY_SEPARATOR, TIMESTAMP, Frame, Value

LEVELS = 3
DAYS = (1, 7, 30)
#: Event types that show interest, and what they may lead to.
TRIALS, CONVERSIONS = ("view", "click"), {"cart": ("cart",), "purchase": ("purchase",)}
_STRONGEST = 1e6


class BetaPrior(Value):
    """What a rate is believed to be before anything is seen: Beta(a, b), worth `a + b` trials."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        """The expected rate."""
        return self.a / (self.a + self.b)


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


def ages(items: Frame, at: datetime) -> Frame:
    """The frame with `age_days`, from `arrival_seconds` (Unix time of the item's first known row) to the moment."""
    seconds = pl.lit(at.timestamp()) - pl.col("arrival_seconds")
    return items.with_columns((seconds / 86_400).clip(0).alias("age_days"))


def catalogue(content: Frame, at: datetime) -> Frame:
    """What a moment's catalogue says of each item: `item_id`, category levels, price, its rank, age.

    Args:
        content: `item_id, category_path, price, arrival_seconds`, one row an item, as the view `item_content` has it at
            the moment.
    """
    rows = ages(price_ranks(category_levels(content)), at)
    levels = [f"category_{level}" for level in range(1, LEVELS + 1)]
    return rows.select("item_id", *levels, "price", "price_rank", "age_days")


def item_statistics() -> list[TimeStatistic]:
    """The counts that `item_conversion` keeps of an item's events."""
    kinds = {"views": TRIALS, **{f"{name}s": types for name, types in CONVERSIONS.items()}}
    return [
        WindowStatistic(name=f"item_{name}_{days}d", days=days, event_types=types)
        for name, types in kinds.items()
        for days in DAYS
    ]


def item_conversion(
    interactions: Frame,
    *,
    priors: dict[str, BetaPrior],
    state: StatisticsState | None = None,
    until: datetime,
) -> tuple[Frame, StatisticsState]:
    """How often each item was met, put into the cart and bought, and the smoothed rates; and the state to go on from.

    Args:
        interactions: at least those that became known after the state, of one partition of the items.
        priors: by conversion (`cart`, `purchase`), from `fit_priors` over all items.

    Returns:
        `item_id, item_views_<days>d, item_carts_<days>d, item_purchases_<days>d, item_cart_rate, item_purchase_rate`
        and stamps, at each midnight (UTC) that ends a day in which a count changed. The state is that of the last
        midnight: events since then are to come again with the next call.
    """
    state = state or empty_state()
    statistics = item_statistics()
    until = max(state.until, until.replace(hour=0, minute=0, second=0, microsecond=0))
    moments = moments_of_change(interactions, statistics, entity="item_id", state=state, until=until)
    moments = moments.select("item_id", _day_end(pl.col("moment"))).unique().sort("item_id", "moment")
    counts = read_at(state, interactions, statistics, entity="item_id", moments=moments)
    for name in CONVERSIONS:
        rates = smoothed_rates(counts[f"item_{name}s_30d"], counts["item_views_30d"], priors[name])
        counts = counts.with_columns(rates.alias(f"item_{name}_rate"))
    names = [name for name in counts.columns if name not in ("item_id", "moment")]
    stamps = [pl.col("moment").cast(TIMESTAMP).alias(name) for name in ("event_timestamp", "created_timestamp")]
    whole = [pl.col(statistic.name).cast(pl.Int64) for statistic in statistics]
    rows = counts.with_columns(whole).select("item_id", *names, *stamps)
    return rows, update(state, interactions, statistics, entity="item_id", until=until)


def fit_priors(counts: Frame, strength: float = 0.0) -> dict[str, BetaPrior]:
    """The prior of each conversion from the 30-day counts of all items, one row an item; see `fit_prior`."""
    return {name: fit_prior(counts[f"item_{name}s_30d"], counts["item_views_30d"], strength) for name in CONVERSIONS}


def smoothed_rates(conversions: pl.Series, trials: pl.Series, prior: BetaPrior) -> pl.Series:
    """The posterior mean of each rate, between 0 and 1. A conversion without a trial of its own counts as one."""
    seen = pl.select(pl.max_horizontal(conversions.cast(pl.Float64), trials.cast(pl.Float64))).to_series()
    return ((conversions.cast(pl.Float64) + prior.a) / (seen + prior.a + prior.b)).alias("rate")


def fit_prior(conversions: pl.Series, trials: pl.Series, strength: float = 0.0) -> BetaPrior:
    """The Beta prior of many rates by the method of moments (beta-binomial: Kleinman, JASA 68, 1973).

    Args:
        strength: trials that the prior is worth; 0: as the spread of the rates says. Rates that differ no more than
            chance alone would make them give the strongest prior, so that all are pulled to the common mean.

    Raises:
        ValueError: conversions and trials are not of one length.
    """
    if len(conversions) != len(trials):
        raise ValueError(f"expected as many conversions as trials, got {len(conversions)} and {len(trials)}")
    successes = conversions.cast(pl.Float64).to_numpy()
    sizes = np.maximum(trials.cast(pl.Float64).to_numpy(), successes)
    successes, sizes = successes[sizes > 0], sizes[sizes > 0]
    total = sizes.sum()
    # Half a conversion among one trial more (Jeffreys): no item has converted yet does not mean that none ever will.
    mean = float((successes.sum() + 0.5) / (total + 1))
    if strength <= 0:
        strength = _strength(successes, sizes, mean)
    return BetaPrior(a=mean * strength, b=(1 - mean) * strength)


def _strength(successes: np.ndarray, sizes: np.ndarray, mean: float) -> float:
    """`a + b` such that the weighted spread of the observed rates is the expected one."""
    if len(sizes) < 2:
        return 1.0
    total = sizes.sum()
    spread = float((sizes * (successes / sizes - mean) ** 2).sum())
    by_chance = mean * (1 - mean) * (len(sizes) - 1)
    beyond = spread - by_chance
    # E[spread] = mean (1 - mean) [ (k - 1) + rho (total - sum(n^2) / total - (k - 1)) ], rho = 1 / (a + b + 1).
    room = mean * (1 - mean) * (total - float((sizes**2).sum()) / total - (len(sizes) - 1))
    if beyond <= 0 or room <= 0:
        return _STRONGEST if room > 0 else 1.0
    rho = min(beyond / room, 0.999)
    return float(np.clip(1 / rho - 1, 1e-3, _STRONGEST))


def _day_end(moment: pl.Expr) -> pl.Expr:
    return (moment - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(days=1)


def views(prior_strength: float = 0.0) -> list[ViewDeclaration]:
    """What this module computes, for the dictionary."""
    here = "evensong.features.item_features"
    content = [
        *(
            FeatureDeclaration(name=f"category_{n}", type="String", description=f"The category down to level {n}.")
            for n in range(1, LEVELS + 1)
        ),
        FeatureDeclaration(name="price", type="Float64", description="In the shop's currency."),
        FeatureDeclaration(name="price_rank", type="Float64", description="Share of cheaper items in its category."),
        FeatureDeclaration(name="age_days", type="Float64", description="Days since the item was first known."),
    ]
    said = {"views": "Views and clicks.", "carts": "Times put into the cart.", "purchases": "Times bought."}
    counted = [
        FeatureDeclaration(name=f"item_{name}_{d}d", type="Int64", description=text, window=f"{d} days")
        for name, text in said.items()
        for d in DAYS
    ]
    rates = [
        FeatureDeclaration(
            name=f"item_{name}_rate",
            type="Float64",
            description=f"Share of views that lead to a {name}, smoothed by a prior over all items.",
            window="30 days",
        )
        for name in CONVERSIONS
    ]
    return [
        ViewDeclaration(
            name="item_catalogue",
            entity="item_id",
            source="items",
            function=f"{here}:catalogue",
            features=tuple(content),
        ),
        ViewDeclaration(
            name="item_conversion",
            entity="item_id",
            source="interactions",
            function=f"{here}:item_conversion",
            features=(*counted, *rates),
            parameters={"prior_strength": f"{prior_strength:g}"},
        ),
    ]
