"""Who fills the slates: logging policies with exactly known propensities.

A propensity is the probability, under the policy and given the user, the moment and what was on offer, that this item
stands at this position. At each position the propensities of all items on offer sum to 1.

Axes: B requests, N items on offer, K slots, G strata, M items a stratum, L shelves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evensong.data.simulator import words
from evensong.data.simulator.world import Floats, Generator, Ints, Names, to_micros

if TYPE_CHECKING:
    from evensong.data.simulator.shop import Shop


@dataclass(frozen=True)
class Slates:
    """What each request is shown, best slot first, and the propensity of every slot."""

    item_ids_BK: Names
    propensities_BK: Floats


Policy = Callable[[Sequence[str], Sequence[str], int, datetime, Generator], Slates]
"""`(user_ids, available_item_ids, k, at, rng) -> Slates`: one slate of k distinct items for each entry of `user_ids`,
which may name a user twice. A policy that draws, draws from `rng` alone."""

#: How much of a click on one shelf says about the other shelves of the aisle, and of the department.
AISLE_SHARE, DEPARTMENT_SHARE = 0.30, 0.08


def random_policy(
    user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
) -> Slates:
    """Slates drawn uniformly without repetition; every item has propensity 1 / N at every position."""
    draw_BN = rng.random((len(user_ids), len(available_item_ids)))
    chosen_BK = np.argsort(draw_BN, axis=1, kind="stable")[:, :k]
    return Slates(_array(available_item_ids)[chosen_BK], np.full(chosen_BK.shape, 1 / len(available_item_ids)))


def popularity_policy(shop: Shop, hide_seen: bool = True) -> Policy:
    """The items with most clicks, carts and purchases in the trailing window up to midnight, ties by id.

    With `hide_seen`, what a user had clicked or bought by midnight is left out, as the service does; it stays only
    where too little else is on offer.
    """

    def policy(
        user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
    ) -> Slates:
        user_B, item_N = shop.user_numbers(user_ids), shop.item_numbers(available_item_ids)
        order_N = np.argsort(-shop.popularity(at)[item_N], kind="stable")
        if not hide_seen:
            return _certain(np.tile(_array(available_item_ids)[order_N[:k]], (len(user_B), 1)))
        rank_I = np.full(shop.num_items, -1)
        rank_I[item_N[order_N]] = np.arange(len(item_N))
        row, item, _ = shop.seen_by(user_B, at)
        rank = rank_I[item]
        row, rank = row[rank >= 0], rank[rank >= 0]
        # the first k + (pairs seen) of the order are enough to find k that were not
        depth = min(len(item_N), k + int(np.bincount(row, minlength=1).max()))
        seen_BM = np.zeros((len(user_B), depth), dtype=bool)
        seen_BM[row[rank < depth], rank[rank < depth]] = True
        chosen_BK = np.argsort(seen_BM, axis=1, kind="stable")[:, :k]
        return _certain(_array(available_item_ids)[order_N][chosen_BK])

    return policy


def category_policy(shop: Shop) -> Policy:
    """A simple taste-aware policy that sees only the log: popular items from the shelves that a user has clicked,
    unseen ones."""

    def policy(
        user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
    ) -> Slates:
        user_B, item_N = shop.user_numbers(user_ids), shop.item_numbers(available_item_ids)
        liking_BN = shop.shelf_liking(user_B, at)[:, shop.shelves[item_N]]
        score_BN = (liking_BN + 0.02) * np.sqrt(shop.popularity(at)[item_N] + 1.0)
        score_BN = np.where(_seen_mask(shop, user_B, item_N, at), -1.0, score_BN)
        return _certain(_array(available_item_ids)[_top(score_BN, k)])

    return policy


def oracle_policy(shop: Shop) -> Policy:
    """The items with the highest true click probability: nobody can do better on clicks, and nobody real can do
    this."""

    def policy(
        user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
    ) -> Slates:
        user_B, item_N = shop.user_numbers(user_ids), shop.item_numbers(available_item_ids)
        score_BN = shop.behaviour.attraction_to_all(user_B, item_N, to_micros(at))
        return _certain(_array(available_item_ids)[_top(score_BN, k)])

    return policy


def warmup_policy(shop: Shop, popular: float = 0.30, personal: float = 0.45) -> Policy:
    """Wide logging for the days before any champion: popular, personal and uniform items, mixed in every slot.

    The items on offer are dealt into K strata by popularity, so that each holds its part of the popular and of the rare
    ones; a request's slots take the strata in random order, and each draws one item of its stratum. With q(i | u) =
    popular · popularity share + personal · share of the user's liked shelves + the rest · uniform, all within the
    stratum, the propensity of item i at any position is exactly q(i | u) / K: strata are disjoint, so no item can stand
    twice, and the order is uniform. A user without clicks gets popular items in the personal part, and so does a
    stratum that holds nothing from their shelves.
    """

    def policy(
        user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
    ) -> Slates:
        user_B, item_N = shop.user_numbers(user_ids), shop.item_numbers(available_item_ids)
        mixture = _mixture(shop, user_B, item_N, at, min(k, len(item_N)), popular, personal)
        place_BK = mixture.drawn(rng)
        return Slates(_array(available_item_ids)[place_BK], mixture.propensity(place_BK))

    return policy


def widen(policy: Policy, shop: Shop, share: float, popular: float = 0.30, personal: float = 0.45) -> Policy:
    """Answer a share of the requests, drawn by chance, with a whole slate of the warm-up policy.

    Before that draw, item i stands at position p with propensity (1 - share) · [the policy puts i at p] + share · q(i
    | u) / K, q as in `warmup_policy`: everything has a chance everywhere. Beside that, the widened requests are a fair
    sample to judge models on, for nothing was shown there because `policy` had chosen it. (Slots that `explore` has
    filled are none: by construction they show what the policy would not have.)

    Raises:
        ValueError: share is not in [0, 1], or the policy below is itself uncertain.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1, got {share}")

    def widened(
        user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
    ) -> Slates:
        chosen_BK = _certain_places(policy, user_ids, available_item_ids, k, at, rng)
        user_B, item_N = shop.user_numbers(user_ids), shop.item_numbers(available_item_ids)
        mixture = _mixture(shop, user_B, item_N, at, chosen_BK.shape[1], popular, personal)
        is_wide_B1 = rng.random((len(user_B), 1)) < share
        place_BK = np.where(is_wide_B1, mixture.drawn(rng), chosen_BK)
        propensity_BK = (1 - share) * (place_BK == chosen_BK) + share * mixture.propensity(place_BK)
        return Slates(_array(available_item_ids)[place_BK], propensity_BK)

    return widened


def explore(policy: Policy, epsilon: float) -> Policy:
    """Replace each slot of a certain policy, independently with probability epsilon, by an item outside its slate.

    The replacements are drawn uniformly without repetition from the N - K items that the policy did not choose. So at a
    position the chosen item has propensity 1 - epsilon, and every item outside the slate has epsilon / (N - K), by
    symmetry of the draw; these sum to 1. Where fewer than K items are left outside, only the last N - K slots
    explore.

    Raises:
        ValueError: epsilon is not in [0, 1], or the policy below is itself uncertain (a propensity other than 1).
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"expected an epsilon from 0 to 1, got {epsilon}")

    def exploring(
        user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
    ) -> Slates:
        shown_BK = _certain_places(policy, user_ids, available_item_ids, k, at, rng)
        num_requests, num_slots = shown_BK.shape
        num_outside = len(available_item_ids) - num_slots
        draw_BN = rng.random((num_requests, len(available_item_ids)))
        np.put_along_axis(draw_BN, shown_BK, 2.0, axis=1)
        others_BK = np.argsort(draw_BN, axis=1, kind="stable")[:, : min(num_slots, num_outside)]
        tail = slice(num_slots - others_BK.shape[1], num_slots)

        explores_BK = np.zeros(shown_BK.shape, dtype=bool)
        explores_BK[:, tail] = rng.random(others_BK.shape) < epsilon
        propensity_BK = np.ones(shown_BK.shape)
        propensity_BK[:, tail] = 1 - epsilon
        propensity_BK[explores_BK] = epsilon / max(num_outside, 1)
        item_BK = shown_BK.copy()
        item_BK[:, tail] = np.where(explores_BK[:, tail], others_BK, shown_BK[:, tail])
        return Slates(_array(available_item_ids)[item_BK], propensity_BK)

    return exploring


def midnight_of(at: datetime) -> int:
    """The day's first moment: what a shop that counts by night knows at `at` are the events before it."""
    return to_micros(datetime.combine(at.date(), time()))


def liking(counts_BL: Ints) -> Floats:
    """(B, L): how much a user's clicks on shelves say about every shelf: their own, their aisle's, their
    department's."""
    return counts_BL @ _RELATED_LL


@dataclass(frozen=True)
class _Mixture:
    """What the warm-up policy draws from. Places count the items on offer."""

    place_GM: Ints
    chance_BGM: Floats
    """Of each item in its stratum; 0 where a shorter stratum is padded."""
    stratum_N: Ints
    rank_N: Ints
    """Where each item on offer was dealt."""

    def drawn(self, rng: Generator) -> Ints:
        """(B, K): one item of each stratum, the strata in random order."""
        num_requests, num_strata, _ = self.chance_BGM.shape
        cumulative_BGM = np.cumsum(self.chance_BGM, axis=2)
        draw_BG1 = rng.random((num_requests, num_strata, 1)) * cumulative_BGM[:, :, -1:]
        rank_BG = (cumulative_BGM <= draw_BG1).sum(axis=2)
        order_BK = np.argsort(rng.random((num_requests, num_strata)), axis=1, kind="stable")
        return self.place_GM[order_BK, np.take_along_axis(rank_BG, order_BK, axis=1)]

    def propensity(self, place_BK: Ints) -> Floats:
        """(B, K): of these items at whatever position."""
        row_B1 = np.arange(len(place_BK))[:, None]
        chance_BK: Floats = self.chance_BGM[row_B1, self.stratum_N[place_BK], self.rank_N[place_BK]]
        return chance_BK / self.chance_BGM.shape[1]


def _mixture(
    shop: Shop, user_B: Ints, item_N: Ints, at: datetime, num_slots: int, popular: float, personal: float
) -> _Mixture:
    place_GM, is_there_GM = _dealt(np.argsort(-shop.popularity(at)[item_N], kind="stable"), num_slots)
    item_GM = item_N[place_GM]
    stratum_N, rank_N = np.empty(len(item_N), dtype=np.int64), np.empty(len(item_N), dtype=np.int64)
    stratum_N[place_GM[is_there_GM]], rank_N[place_GM[is_there_GM]] = np.nonzero(is_there_GM)

    popular_GM = (shop.popularity(at)[item_GM] + 1.0) ** 0.8 * is_there_GM
    popular_GM /= popular_GM.sum(axis=1, keepdims=True)
    uniform_GM = is_there_GM / is_there_GM.sum(axis=1, keepdims=True)
    liked_BGM = shop.shelf_liking(user_B, at)[:, shop.shelves[item_GM]] * is_there_GM
    total_BG1 = liked_BGM.sum(axis=2, keepdims=True)
    liked_BGM /= np.where(total_BG1 > 0, total_BG1, 1)
    row, stratum = np.nonzero(total_BG1[:, :, 0] == 0)
    liked_BGM[row, stratum] = popular_GM[stratum]
    chance_BGM = personal * liked_BGM + (popular * popular_GM + (1 - popular - personal) * uniform_GM)
    return _Mixture(place_GM, chance_BGM, stratum_N, rank_N)


def _certain_places(
    policy: Policy, user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
) -> Ints:
    """(B, K): the slates of a certain policy, as places among the items on offer."""
    slates = policy(user_ids, available_item_ids, k, at, rng)
    if np.any(slates.propensities_BK != 1):
        raise ValueError("expected a policy whose slates are certain, got propensities other than 1")
    place = {item_id: number for number, item_id in enumerate(available_item_ids)}
    flat = np.fromiter(map(place.__getitem__, slates.item_ids_BK.ravel().tolist()), dtype=np.int64)
    return flat.reshape(slates.item_ids_BK.shape)


def _related() -> Floats:
    same_department = np.array([[a[0] == b[0] for b in words.SHELVES] for a in words.SHELVES])
    same_aisle = np.array([[a[:2] == b[:2] for b in words.SHELVES] for a in words.SHELVES])
    return np.where(
        np.eye(len(words.SHELVES), dtype=bool),
        1.0,
        np.where(same_aisle, AISLE_SHARE, np.where(same_department, DEPARTMENT_SHARE, 0.0)),
    )


_RELATED_LL = _related()


def _dealt(order_N: Ints, num_strata: int) -> tuple[Ints, NDArray[np.bool_]]:
    """(G, M) places dealt to strata back and forth, and which of them are real; the others pad the shorter strata."""
    num_rounds = -(-len(order_N) // num_strata)
    padded = np.concatenate([order_N, np.full(num_rounds * num_strata - len(order_N), -1)])
    dealt_MG = padded.reshape(num_rounds, num_strata)
    dealt_MG[1::2] = dealt_MG[1::2, ::-1]
    is_there_GM = dealt_MG.T >= 0
    return np.where(is_there_GM, dealt_MG.T, 0), is_there_GM


def _seen_mask(shop: Shop, user_B: Ints, item_N: Ints, at: datetime) -> NDArray[np.bool_]:
    column_I = np.full(shop.num_items, -1)
    column_I[item_N] = np.arange(len(item_N))
    row, item, _ = shop.seen_by(user_B, at)
    column = column_I[item]
    mask_BN = np.zeros((len(user_B), len(item_N)), dtype=bool)
    mask_BN[row[column >= 0], column[column >= 0]] = True
    return mask_BN


def _top(score_BN: Floats, k: int) -> Ints:
    """(B, K): columns of the highest scores, ties by column."""
    return np.argsort(-score_BN, axis=1, kind="stable")[:, :k]


def _certain(item_ids_BK: Names) -> Slates:
    return Slates(item_ids_BK, np.ones(item_ids_BK.shape))


def _array(ids: Sequence[str]) -> Names:
    return np.array(ids, dtype=object)
