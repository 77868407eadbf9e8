"""Owns the exact search in plain numpy: the judge of every index.

Legend: Q queries, N items, D dimension, K results.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def search(queries_QD: Floats, items_ND: Floats, k: int) -> tuple[Floats, Ints]:
    """The `k` rows of `items_ND` with the largest inner product for each query, best first, ties by row.

    Returns:
        Scores (Q, K) and rows (Q, K), K the smaller of `k` and N.
    """
    scores_QN = queries_QD @ items_ND.T
    rows_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QN, rows_QK, 1), rows_QK


def index_recall(found_QK: Ints, exact_scores_QK: Floats, queries_QD: Floats, items_ND: Floats) -> float:
    """The share of the exact search's results that the index found, over all queries.

    A found item counts when its score reaches the last exact one (up to rounding), so that a tie at the end of the list
    is no error (the recall of ann-benchmarks, Aumüller et al., Information Systems 2020).
    """
    if exact_scores_QK.size == 0:
        return 1.0
    present_QK = found_QK >= 0
    vectors_QKD = items_ND[np.where(present_QK, found_QK, 0)]
    scores_QK = np.einsum("qd,qkd->qk", queries_QD, vectors_QKD)
    reached_QK = present_QK & (scores_QK >= exact_scores_QK[:, -1:] - 1e-5)
    return float(np.minimum(reached_QK.sum(1) / exact_scores_QK.shape[1], 1.0).mean())
