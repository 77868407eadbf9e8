"""Owns item-kNN: the neighbourhood baseline, which a trained model has to beat to be worth its trouble.

Legend: U users, I items, B asked users, N neighbours of an item.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.models.popularity import Popularity
from evensong.types import Frame

#: Neighbours that an item keeps.
NUM_NEIGHBOURS = 100
#: Added to each denominator, so that two items that met once are not alike.
SHRINKAGE = 10.0
#: The newest items of a user that count, which bounds the work for the busiest.
MAX_HISTORY = 200
#: Rows of the similarity that are computed at once.
CHUNK = 2_000


class ItemKnn:
    """Cosine similarity of items by the users who wanted both (Deshpande & Karypis, TOIS 2004), shrunk."""

    def __init__(self, item_ids: Sequence[str], similarity_II: Any, history_UI: Any, user_ids: Sequence[str]) -> None:
        self._item_ids = list(item_ids)
        self._similarity_II = similarity_II
        self._history_UI = history_UI
        self._row_of = {user_id: row for row, user_id in enumerate(user_ids)}

    @classmethod
    def fit(cls, positives: Frame, item_ids: Collection[str]) -> ItemKnn:
        """Learn from `user_id, item_id`, one row a positive event, oldest first; only `item_ids` are recommended."""
        items = sorted(item_ids)
        pairs = (
            positives.select("user_id", "item_id")
            .with_row_index("time")
            .group_by("user_id", "item_id")
            .agg(pl.col("time").max())
            .join(pl.DataFrame({"item_id": items}).with_row_index("column"), on="item_id")
            .filter(pl.col("time").rank("ordinal", descending=True).over("user_id") <= MAX_HISTORY)
            .sort("user_id", "column")
        )
        users = pairs["user_id"].unique().sort()
        rows = pairs["user_id"].replace_strict(users, pl.int_range(len(users), eager=True), return_dtype=pl.Int64)
        history_UI = _matrix(rows.to_numpy(), pairs["column"].to_numpy().astype(np.int64), (len(users), len(items)))
        return cls(items, _similarity(history_UI), history_UI, users.to_list())

    def lists(
        self, user_ids: Sequence[str], k: int, hidden: Mapping[str, Collection[str]], fallback: Popularity
    ) -> list[tuple[str, int, str, float]]:
        """`user_id, rank, item_id, score` of each user's `k` best items that are not hidden from them, ties by item id.

        Where nothing like a user's items is left, the list goes on with the popular ones.
        """
        rows: list[tuple[str, int, str, float]] = []
        for user_id in user_ids:
            best = self._best(user_id, k, hidden[user_id])
            if len(best) < k:
                shown = {*hidden[user_id], *(item_id for item_id, _ in best)}
                best += [(item_id, 0.0) for item_id, _ in fallback.top(k - len(best), shown)]
            rows += [(user_id, rank, item_id, score) for rank, (item_id, score) in enumerate(best, 1)]
        return rows

    def _best(self, user_id: str, k: int, hidden: Collection[str]) -> list[tuple[str, float]]:
        row = self._row_of.get(user_id)
        if row is None:
            return []
        scores_1I = (self._history_UI[row] @ self._similarity_II).tocsr()
        order = np.lexsort((scores_1I.indices, -scores_1I.data))
        found: list[tuple[str, float]] = []
        for place in order:
            item_id = self._item_ids[scores_1I.indices[place]]
            if len(found) == k:
                break
            if item_id not in hidden:
                found.append((item_id, float(scores_1I.data[place])))
        return found


def _matrix(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix((np.ones(len(rows), np.float64), (rows, columns)), shape=shape)


def _similarity(history_UI: Any) -> Any:
    """Each item's most similar items, `common / (sqrt(users of one * users of the other) + shrinkage)`, as a matrix."""
    from scipy.sparse import csr_matrix, vstack

    count_I = np.asarray(history_UI.sum(0)).ravel()
    by_item_IU = history_UI.T.tocsr()
    parts = []
    for start in range(0, by_item_IU.shape[0], CHUNK):
        common = (by_item_IU[start : start + CHUNK] @ history_UI).tocoo()
        other = common.row + start != common.col
        row, column = common.row[other], common.col[other]
        value = common.data[other] / (np.sqrt(count_I[row + start] * count_I[column]) + SHRINKAGE)
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        first = np.searchsorted(row, row)
        kept = np.arange(len(row)) - first < NUM_NEIGHBOURS
        parts.append(csr_matrix((value[kept], (row[kept], column[kept])), shape=common.shape))
    return vstack(parts, format="csr") if parts else csr_matrix((0, 0))
