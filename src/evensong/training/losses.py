"""Owns the losses: the softmax over a sampled pool, corrected for how it was sampled.

Legend: B rows of the batch, U distinct items of the pool.
"""

from __future__ import annotations

import torch
from torch import Tensor


def corrected_softmax(
    logits_BU: Tensor, positive_B: Tensor, log_inclusion_U: Tensor, masked_BU: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the full softmax, estimated from a pool of sampled items.

    The full softmax needs `Z = exp(s_pos) + sum over every other item j of exp(s_j)`. The pool holds item j with
    probability `pi_j`, so `exp(s_j - log pi_j)`, summed over the pool, estimates that sum without bias (Horvitz and
    Thompson 1952; with `pi_j` for in-batch items this is the logQ correction of Yi et al., RecSys 2019, with uniform
    items mixed in that of Yang et al., WWW 2020). The sign: a popular item is sampled often, hence its logit is
    **lowered** by a large `log pi` less than a rare one's is raised. The positive itself is in the pool with
    certainty, not by chance, so it is not corrected (Khrylchenko et al., RecSys 2025).

    Args:
        logits_BU: scores over the temperature.
        positive_B: the column of each row's positive.
        log_inclusion_U: log probability that the item is in the pool, at most 0.
        masked_BU: true where an item must not count as a negative: the user's own positives, items not yet there.

    Returns:
        The loss of each row, (B,).
    """
    rows = torch.arange(len(positive_B))
    corrected_BU = logits_BU - log_inclusion_U
    if masked_BU is not None:
        corrected_BU = corrected_BU.masked_fill(masked_BU, float("-inf"))
    positive_logit_B = logits_BU[rows, positive_B]
    corrected_BU = corrected_BU.index_put((rows, positive_B), positive_logit_B)
    return corrected_BU.logsumexp(1) - positive_logit_B


def listwise_softmax(scores_BK: Tensor, log_inclusion_BK: Tensor, absent_BK: Tensor) -> Tensor:
    """Cross-entropy of the positive (column 0) against the sampled candidates of its slate (ListNet, Cao et al. 2007).

    Args:
        scores_BK: the ranker's scores; the positive stands in column 0 of its slate.
        log_inclusion_BK: log probability that the candidate was drawn into the slate, 0 for the positive.
        absent_BK: true where the slate is shorter than the widest.

    Returns:
        The loss of each slate, (B,).
    """
    corrected_BK = (scores_BK - log_inclusion_BK).masked_fill(absent_BK, float("-inf"))
    return corrected_BK.logsumexp(1) - scores_BK[:, 0]
