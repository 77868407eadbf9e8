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

    A request counts with the positions that it logged with a propensity, for the challenger and for the logged policy
    alike: slates of different length, and slots that were not drawn, favour neither.

    Args:
        log: `request_id, user_id, item_id, position` (from 0), `propensity` and `reward`, one row a shown item; rows
            whose propensity is no number above 0 and at most 1 are left out.
        slates: `user_id, item_id, position`: what the challenger shows each user; a position that it leaves empty
            earns nothing.
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
    shown_R, planned_R = _model(rows, users)

    filled_U = _sum(user_R, _floats(rows, "fills"), len(users))
    weights_U = _sum(user_R, weight_R, len(users))
    earned_U = _sum(user_R, weight_R * reward_R, len(users))
    robust_U = _sum(user_R, planned_R + weight_R * (reward_R - shown_R), len(users))
    logged_U = _sum(user_R, reward_R, len(users))
    counts_BU = generator.multinomial(len(users), np.full(len(users), 1 / len(users)), size=resamples).astype(float)
    everyone = np.ones((1, len(users)))

    def snips(counts: Floats) -> Floats:
        total, depth = counts @ weights_U, counts @ filled_U / (counts @ requests_U)
        return np.divide(counts @ earned_U * depth, total, out=np.zeros(len(counts)), where=total > 0)

    def doubly_robust(counts: Floats) -> Floats:
        return np.asarray((counts @ robust_U) / (counts @ requests_U))

    size = float(weight_R.sum() ** 2 / (weight_R**2).sum()) if weight_R.any() else 0.0
    num_filled = filled_U.sum()
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
                mean_weight=float(weight_R.sum() / num_filled) if num_filled else 0.0,
                num_rows=len(rows),
            )
        )
    return tuple(found)


def _rows(log: Frame, slates: Frame) -> Frame:
    """Logged rows of users with a slate, in a fixed order, each with what the challenger shows in its place and its
    importance weight."""
    planned = slates.select("user_id", pl.col("position").cast(pl.Int64), pl.col("item_id").alias("planned"))
    propensity = pl.col("propensity")
    drawn = propensity.is_finite() & (propensity > 0) & (propensity <= 1)
    agrees = (pl.col("planned") == pl.col("item_id")).fill_null(False)
    return (
        log.filter(drawn & pl.col("position").is_not_null())
        .with_columns(pl.col("position").cast(pl.Int64), pl.col("reward").cast(pl.Float64))
        .join(slates.select("user_id").unique(), on="user_id", how="semi")
        .join(planned, on=["user_id", "position"], how="left")
        .with_columns(weight=agrees / propensity, fills=pl.col("planned").is_not_null())
        .sort("user_id", "request_id", "position", "item_id")
    )


def _requests(rows: Frame, users: pl.Series) -> Floats:
    counted = rows.group_by("user_id").agg(pl.col("request_id").n_unique()).sort("user_id")
    assert counted["user_id"].equals(users)
    return _floats(counted, "request_id")


def _model(rows: Frame, users: pl.Series) -> tuple[Floats, Floats]:
    """What the reward model expects of each row's item, and of the one that the challenger puts in its place, 0 where
    it puts none."""
    halves = pl.DataFrame({"user_id": users, "half": np.arange(len(users)) % 2})
    rows = rows.join(halves, on="user_id", how="left", maintain_order="left")
    planned = rows.with_columns(item_id="planned")
    shown_R, planned_R = np.zeros(len(rows)), np.zeros(len(rows))
    for half in (0, 1):
        inside, other = rows["half"].to_numpy() == half, rows.filter(pl.col("half") != half)
        for frame, target in ((rows, shown_R), (planned, planned_R)):
            target[inside] = _rates(other, frame.filter(pl.col("half") == half))
    return shown_R, planned_R * _floats(rows, "fills")


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
