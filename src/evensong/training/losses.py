"""Owns the losses: the softmax over a sampled pool, corrected for how it was sampled.

Legend: B rows of the batch, U distinct items of the pool.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

#: What is added to a logit that must not count; finite, because infinities slow exp down, and still exp() of it is 0.
NEVER = -1e4


def corrected_softmax(
    logits_BU: Tensor, positive_B: Tensor, log_inclusion_U: Tensor, masked_BU: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the full softmax, estimated from a pool of sampled items.

    The full softmax needs `Z = exp(s_pos) + sum over every other item j of exp(s_j)`. The pool holds item j with
    probability `pi_j`, so the sum of `exp(s_j - log pi_j)` over the pool estimates that sum without bias (Horvitz &
    Thompson 1952; for in-batch items this is the logQ correction of Yi et al., RecSys 2019, and with uniform items
    mixed in that of Yang et al., WWW 2020). The sign: a rare item is seldom drawn, so when it is, it stands for many
    that were not, and its logit is raised; added the other way round, popular items would be punished twice. The
    positive is in its own row's sum with certainty, not by chance, so it is not corrected (Khrylchenko et al., RecSys
    2025).

    Args:
        logits_BU: scores over the temperature.
        positive_B: the column of each row's positive.
        log_inclusion_U: log probability that the item is in the pool, at most 0.
        masked_BU: true where an item must not count as a negative: the user's own positives, items not yet there.

    Returns:
        The loss of each row, (B,).
    """
    correction_BU = (-log_inclusion_U).expand(logits_BU.shape)
    if masked_BU is not None:
        correction_BU = correction_BU.masked_fill(masked_BU, NEVER)
    correction_BU = correction_BU.scatter(1, positive_B[:, None], 0.0)
    return functional.cross_entropy(logits_BU + correction_BU, positive_B, reduction="none")


def listwise_softmax(scores_BK: Tensor, log_inclusion_BK: Tensor, absent_BK: Tensor) -> Tensor:
    """Cross-entropy of the positive (column 0) against the sampled candidates of its slate (ListNet, Cao et al. 2007).

    Args:
        scores_BK: the ranker's scores; the positive stands in column 0 of its slate.
        log_inclusion_BK: log probability that the candidate was drawn into the slate, 0 for the positive.
        absent_BK: true where the slate is shorter than the widest.

    Returns:
        The loss of each slate, (B,).
    """
    corrected_BK = (scores_BK - log_inclusion_BK).masked_fill(absent_BK, NEVER)
    return corrected_BK.logsumexp(1) - scores_BK[:, 0]
