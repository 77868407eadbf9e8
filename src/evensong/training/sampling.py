"""Owns the drawing of negatives: the pool of a retriever step with its inclusion probabilities, and its masks.

Legend: B rows of the batch, U distinct items of the pool, N items of the catalogue, P positives of all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Pool:
    """The items that one step scores."""

    items_U: Ints
    """Distinct catalogue rows, ascending."""
    log_inclusion_U: Floats
    column_N: Ints
    """The column of each catalogue row, -1 when it is not in the pool."""


def draw_pool(positives_B: Ints, share_N: NDArray[np.float64], num_uniform: int, rng: np.random.Generator) -> Pool:
    """Mix the batch's own positives with uniform draws (mixed negative sampling, Yang et al., WWW 2020).

    A row's negatives are the other B - 1 positives, drawn in proportion to `share_N`, and `num_uniform` draws with
    replacement from the N items. Item j is among them with probability `1 - (1 - share_j)^(B-1) (1 - 1/N)^num_uniform`.

    Args:
        positives_B: catalogue rows of the batch's positives.
        share_N: each item's share of all training positives.
        num_uniform: uniform draws.
        rng: where randomness comes from.
    """
    size = len(share_N)
    uniform = rng.integers(0, size, num_uniform)
    items_U = np.unique(np.concatenate([positives_B, uniform]))
    log_absent = (len(positives_B) - 1) * np.log1p(-np.minimum(share_N[items_U], 1 - 1e-9))
    log_absent += num_uniform * (np.log1p(-1 / size) if size > 1 else -np.inf if num_uniform else 0.0)
    inclusion = -np.expm1(log_absent)
    column_N = np.full(size, -1, np.int64)
    column_N[items_U] = np.arange(len(items_U))
    return Pool(items_U, np.log(np.maximum(inclusion, 1e-12)).astype(np.float32), column_N)


class UserPositives:
    """Which items each user is known to have wanted, so that none of them is taken for a negative."""

    def __init__(self, users: Ints, items: Ints, num_users: int) -> None:
        order = np.lexsort((items, users))
        self._items = items[order]
        self._offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num_users))]).astype(np.int64)

    def pairs(self, users_B: Ints) -> tuple[Ints, Ints]:
        """The positives of some users as (row of the batch, item) pairs, each (P,)."""
        starts = self._offsets[users_B]
        sizes = self._offsets[users_B + 1] - starts
        rows_P = np.repeat(np.arange(len(users_B)), sizes)
        within_P = np.arange(len(rows_P)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return rows_P, self._items[np.repeat(starts, sizes) + within_P]

    def mask(self, users_B: Ints, pool: Pool) -> Bools:
        """True (B, U) where the pool's item is one of the row's own user's positives."""
        rows_P, items_P = self.pairs(users_B)
        columns_P = pool.column_N[items_P]
        found = columns_P >= 0
        masked_BU = np.zeros((len(users_B), len(pool.items_U)), bool)
        masked_BU[rows_P[found], columns_P[found]] = True
        return masked_BU
