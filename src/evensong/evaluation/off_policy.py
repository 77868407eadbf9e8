"""What a challenger would have earned online, estimated from slates that another policy showed with known propensities.

Legend: R logged rows (one shown item each), U users, K positions.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from evensong.evaluation.bootstrap import Floats
from evensong.evaluation.evidence import OffPolicyEstimate
from evensong.types import Frame

#: Pseudo-impressions with which an item's rate is drawn to its position's.
PRIOR_IMPRESSIONS = 20.0


def estimates(
    log: Frame, slates: Frame, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[OffPolicyEstimate, ...]:
    """SNIPS and doubly robust estimates of the reward a request that the challenger's slates would have earned.

    The item-position model: the reward of an item at a position does not depend on the rest of the slate, so a row
    counts when the challenger shows the same item at the same position, weighted by one over its propensity (Li et al.,
    KDD 2018, section 3). SNIPS divides by the weights' sum instead of their expectation (Swaminathan and Joachims,
    NIPS 2015); doubly robust adds the weighted error of a reward model to what the model expects of the challenger's
    slate (Dudík et al., ICML 2011). The model, item rates drawn to position rates, is fitted on the other half of the
    users, so that no user's reward is predicted from itself. Intervals come from a bootstrap over users.

    Args:
        log: `request_id, user_id, item_id, position` (from 0), `propensity` and `reward`, one row a shown item; rows
            without a propensity are left out.
        slates: `user_id, item_id, position`: what the challenger shows each user.
        confidence: of the intervals, two-sided.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Two estimates; none when no logged row has a propensity or no user has a slate.
    """
    rows = _rows(log, slates)
    if rows.is_empty():
        return ()
    generator = np.random.default_rng(seed)
    users = rows["user_id"].unique().sort()
    user_R = users.search_sorted(rows["user_id"]).to_numpy().astype(np.int64)
    weight_R, reward_R = _floats(rows, "weight"), _floats(rows, "reward")
    requests_U = _requests(rows, users)
    expected_R, planned_U = _model(rows, slates, users, requests_U)
    depth = len(rows) / float(requests_U.sum())

    weights_U = _sum(user_R, weight_R, len(users))
    earned_U = _sum(user_R, weight_R * reward_R, len(users))
    corrections_U = _sum(user_R, weight_R * (reward_R - expected_R), len(users))
    logged_U = _sum(user_R, reward_R, len(users))
    counts_BU = generator.multinomial(len(users), np.full(len(users), 1 / len(users)), size=resamples).astype(float)
    everyone = np.ones((1, len(users)))

    def snips(counts: Floats) -> Floats:
        total = counts @ weights_U
        return np.divide(counts @ earned_U * depth, total, out=np.zeros(len(counts)), where=total > 0)

    def doubly_robust(counts: Floats) -> Floats:
        return np.asarray((counts @ planned_U + counts @ corrections_U) / (counts @ requests_U))

    size = float(weight_R.sum() ** 2 / (weight_R**2).sum()) if weight_R.any() else 0.0
    tail = (1 - confidence) / 2
    logged = float(logged_U.sum() / requests_U.sum())
    found = []
    for name, estimate in (("snips", snips), ("doubly_robust", doubly_robust)):
        low, high = np.quantile(estimate(counts_BU), [tail, 1 - tail])
        found.append(
            OffPolicyEstimate(
                method=name,
                value=float(estimate(everyone)[0]),
                lower=float(low),
                upper=float(high),
                logged_value=logged,
                effective_sample_size=size,
                num_rows=len(rows),
            )
        )
    return tuple(found)


def _rows(log: Frame, slates: Frame) -> Frame:
    """Logged rows of users with a slate, in a fixed order, each with its importance weight."""
    places = slates.select("user_id", "item_id", pl.col("position").cast(pl.Int64), pl.lit(1.0).alias("shows"))
    return (
        log.filter(pl.col("propensity").is_not_null() & (pl.col("propensity") > 0) & pl.col("position").is_not_null())
        .with_columns(pl.col("position").cast(pl.Int64), pl.col("reward").cast(pl.Float64))
        .join(slates.select("user_id").unique(), on="user_id", how="semi")
        .join(places, on=["user_id", "item_id", "position"], how="left")
        .with_columns(weight=pl.col("shows").fill_null(0.0) / pl.col("propensity"))
        .sort("user_id", "request_id", "position", "item_id")
    )


def _requests(rows: Frame, users: pl.Series) -> Floats:
    counted = rows.group_by("user_id").agg(pl.col("request_id").n_unique()).sort("user_id")
    assert counted["user_id"].equals(users)
    return _floats(counted, "request_id")


def _model(rows: Frame, slates: Frame, users: pl.Series, requests_U: Floats) -> tuple[Floats, Floats]:
    """What the reward model expects of each logged row, and of each user's requests with the challenger's slate."""
    half_U = np.arange(len(users)) % 2
    halves = pl.DataFrame({"user_id": users, "half": half_U, "requests": requests_U})
    rows = rows.join(halves, on="user_id", how="left", maintain_order="left")
    planned = (
        slates.select("user_id", "item_id", pl.col("position").cast(pl.Int64))
        .join(halves, on="user_id", how="inner", maintain_order="left")
        .sort("user_id", "position", "item_id")
    )
    expected_R, expected_S = np.zeros(len(rows)), np.zeros(len(planned))
    for half in (0, 1):
        other = rows.filter(pl.col("half") != half)
        for frame, target in ((rows, expected_R), (planned, expected_S)):
            inside = frame["half"].to_numpy() == half
            target[inside] = _rates(other, frame.filter(pl.col("half") == half))
    user_S = users.search_sorted(planned["user_id"]).to_numpy().astype(np.int64)
    return expected_R, _sum(user_S, expected_S * _floats(planned, "requests"), len(users))


def _rates(seen: Frame, asked: Frame) -> Floats:
    """The position's rate times how much more the item earns than its positions would let expect."""
    overall = float(seen["reward"].mean() or 0.0) if len(seen) else 0.0  # type: ignore[arg-type]
    by_position = seen.group_by("position").agg(rate=pl.col("reward").mean())
    lifts = (
        seen.join(by_position, on="position", how="left", maintain_order="left")
        .group_by("item_id")
        .agg(
            lift=(pl.col("reward").sum() + PRIOR_IMPRESSIONS * overall)
            / (pl.col("rate").sum() + PRIOR_IMPRESSIONS * overall)
        )
    )
    joined = asked.select("position", "item_id").join(by_position, on="position", how="left", maintain_order="left")
    joined = joined.join(lifts, on="item_id", how="left", maintain_order="left")
    rate = joined["rate"].fill_null(overall)
    return np.asarray((rate * joined["lift"].fill_null(1.0).fill_nan(1.0)).to_numpy(), dtype=np.float64)


def _sum(group_R: np.ndarray[tuple[int, ...], np.dtype[np.int64]], value_R: Floats, size: int) -> Floats:
    return np.bincount(group_R, weights=value_R, minlength=size).astype(np.float64)


def _floats(frame: Frame, column: str) -> Floats:
    return frame[column].cast(pl.Float64).to_numpy().astype(np.float64)
