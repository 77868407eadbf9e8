"""Owns the metrics: each gives one number a user, so that means, slices and intervals follow.

Legend: U users, K places of a list, best first. `hits_UK` is true where the item at that place is one of the user's
targets (false past the end of a shorter list); `num_targets_U` counts the user's targets and is at least 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.types import Frame

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def recall_at_k(hits_UK: Bools, num_targets_U: Ints, k: int) -> Floats:
    """The share of a user's targets among the first `k` (Manning, Raghavan & Schütze 2008, section 8.4)."""
    return hits_UK[:, :k].sum(1) / num_targets_U


def ndcg_at_k(hits_UK: Bools, num_targets_U: Ints, k: int) -> Floats:
    """Discounted gain of the first `k` over that of the best possible list (Järvelin & Kekäläinen, TOIS 2002).

    Gains are binary and the discount of rank r is `1 / log2(r + 1)`; the ideal list holds `min(k, targets)` hits.
    """
    discount_K = 1 / np.log2(np.arange(2, k + 2))
    width = min(k, hits_UK.shape[1])
    gained_U = hits_UK[:, :width] @ discount_K[:width]
    ideal_K = np.cumsum(discount_K)
    return cast("Floats", gained_U / ideal_K[np.minimum(num_targets_U, k) - 1])


def hit_rate_at_k(hits_UK: Bools, k: int) -> Floats:
    """1 when any of the first `k` is a target, else 0 (Deshpande & Karypis, TOIS 2004)."""
    return cast("Floats", hits_UK[:, :k].any(1).astype(np.float64))


def mrr(hits_UK: Bools) -> Floats:
    """One over the rank of the first hit, 0 without any (Voorhees, TREC-8 1999)."""
    if hits_UK.shape[1] == 0:
        return np.zeros(len(hits_UK))
    return np.where(hits_UK.any(1), 1 / (hits_UK.argmax(1) + 1.0), 0.0)


def novelty(share_UK: Floats) -> Floats:
    """Mean surprise of a list in bits, `-log2(share of all events that the item got)` (Zhou et al., PNAS 2010).

    Args:
        share_UK: the popularity share of each recommended item, NaN past the end of a list.
    """
    present_UK = np.isfinite(share_UK)
    surprise_UK = -np.log2(np.where(present_UK, share_UK, 1.0))
    return surprise_UK.sum(1) / np.maximum(present_UK.sum(1), 1)


def miscalibration(taste_UG: Floats, shown_UG: Floats, smoothing: float = 0.01) -> Floats:
    """How far a list's categories are from the user's taste, in nats, 0 when they agree (Steck, RecSys 2018).

    Args:
        taste_UG: each user's shares of G categories; a row of zeros, of a user whose taste nobody knows, gives 0.
        shown_UG: the categories' shares of the list.
        smoothing: how much of the taste is mixed into what was shown, so that a category that is missing is finite.
    """
    total_U1 = taste_UG.sum(1, keepdims=True)
    taste_UG = np.divide(taste_UG, total_U1, out=np.zeros_like(taste_UG), where=total_U1 > 0)
    mixed_UG = (1 - smoothing) * shown_UG + smoothing * taste_UG
    ratio_UG = np.divide(taste_UG, mixed_UG, out=np.ones_like(taste_UG), where=taste_UG > 0)
    return cast("Floats", np.maximum((taste_UG * np.log(ratio_UG)).sum(1), 0.0))


def coverage(item_ids: Sequence[str], catalogue_size: int) -> float:
    """The share of the catalogue that stands in any list (Herlocker et al., TOIS 2004); one number for all users."""
    return len(set(item_ids)) / catalogue_size if catalogue_size else 0.0


def hits(lists: Frame, targets: Frame, user_ids: Sequence[str], k: int) -> tuple[Bools, Ints]:
    """Lay lists and targets out for the metrics.

    Args:
        lists: `user_id, rank, item_id`; rows past `k` are ignored.
        targets: `user_id, item_id`; a pair counts once.
        user_ids: the users, in the order of the answer.
        k: the width.

    Returns:
        `hits_UK` and `num_targets_U`.
    """
    users = pl.DataFrame({"user_id": list(user_ids)}, schema={"user_id": pl.String}).with_row_index("row")
    wanted = targets.select("user_id", "item_id").unique().with_columns(hit=pl.lit(True))
    found = (
        lists.filter(pl.col("rank") <= k).join(users, on="user_id").join(wanted, on=["user_id", "item_id"], how="semi")
    )
    hits_UK = np.zeros((len(users), k), bool)
    hits_UK[found["row"].to_numpy(), found["rank"].to_numpy() - 1] = True
    counts = users.join(wanted.group_by("user_id").len(), on="user_id", how="left", maintain_order="left")
    return hits_UK, counts["len"].fill_null(0).to_numpy().astype(np.int64)
