"""How the users of a simulated shop react to a slate, and the truth that this is drawn from.

A user looks at the slot at position p with probability (1 + p) ** -position_decay, whatever it holds. An item that is
looked at is clicked with probability sigmoid(base + taste · item + price + appeal + newness + discount), lowered once
the user has clicked or bought it. The product is the true click probability; this is the position-based model of
Richardson et al., Predicting Clicks (WWW 2007, section 3). Tastes are those of the day, satiation that of the hour's
start.

Axes: B requests, K slots, N items, E latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evensong.data.simulator.memory import Memory
from evensong.data.simulator.world import DAY, HOUR, SECOND, Floats, Generator, Ints, World

DISCOUNT_LOGIT = 0.3
NEWNESS_DAYS = 7.0


@dataclass(frozen=True)
class Reactions:
    """What a block of slates led to. Masks and times are (B, K); times count from the request, in microseconds."""

    clicked: NDArray[np.bool_]
    carted: NDArray[np.bool_]
    purchased: NDArray[np.bool_]
    click_after: Ints
    dwell_seconds: Floats
    cart_after: Ints
    purchase_after: Ints


class Behaviour:
    """The users of one world, with the memory of what they have already clicked and bought."""

    def __init__(self, world: World, memory: Memory) -> None:
        self.world, self.memory = world, memory

    def look_probability(self, num_slots: int) -> Floats:
        """(K,): the chance that a slot is looked at; 1 at the first."""
        return np.power(1.0 + np.arange(num_slots, dtype=np.float64), -self.world.config.position_decay)

    def attraction(self, user_B: Ints, item_BK: Ints, moment: int) -> Floats:
        """(B, K): the click probability of an item that is looked at."""
        taste_BE = self._tastes(user_B, moment)
        affinity_BK = np.einsum("be,bke->bk", taste_BE, self.world.items.vector[item_BK])
        chance_BK = _sigmoid(affinity_BK + self._item_logits(moment)[item_BK])
        return chance_BK * self._freshness(user_B, item_BK, moment)

    def attraction_to_all(self, user_B: Ints, item_N: Ints, moment: int) -> Floats:
        """(B, N): the same for every pair."""
        affinity_BN = self._tastes(user_B, moment) @ self.world.items.vector[item_N].T
        chance_BN = _sigmoid(affinity_BN + self._item_logits(moment)[item_N])
        column_I = np.full(len(self.world.items), -1)
        column_I[item_N] = np.arange(len(item_N))
        row, item, purchased = self.memory.seen(_hour(moment)).of(user_B)
        column = column_I[item]
        row, column, purchased = row[column >= 0], column[column >= 0], purchased[column >= 0]
        chance_BN[row, column] *= self._satiation(purchased)
        return chance_BN

    def react(self, rng: Generator, user_B: Ints, item_BK: Ints, moment: int) -> Reactions:
        """Draw what these users do with these slates."""
        shape = item_BK.shape
        attraction_BK = self.attraction(user_B, item_BK, moment)
        clicked = rng.random(shape) < attraction_BK * self.look_probability(shape[1])
        # a click on something that is really wanted leads further, and is read for longer
        eagerness_BK = np.sqrt(attraction_BK)
        carted = clicked & (rng.random(shape) < 0.08 + 0.45 * eagerness_BK)
        purchased = carted & (rng.random(shape) < 0.25 + 0.35 * eagerness_BK)
        place_K = np.arange(shape[1]) / max(shape[1], 20)
        click_after = (2 + 90 * place_K + rng.exponential(3, shape).clip(max=30)) * SECOND
        dwell_seconds = np.round(np.exp(rng.normal(2.9 + 1.6 * eagerness_BK, 0.7)).clip(1, 600), 1)
        cart_after = click_after + (1 + rng.random(shape) * dwell_seconds) * SECOND
        purchase_after = cart_after + (20 + rng.random(shape) * 300) * SECOND
        return Reactions(
            clicked,
            carted,
            purchased,
            click_after.astype(np.int64),
            dwell_seconds,
            cart_after.astype(np.int64),
            purchase_after.astype(np.int64),
        )

    def _tastes(self, user_B: Ints, moment: int) -> NDArray[np.float32]:
        return self.world.tastes((moment - self.world.opening) // DAY)[user_B]

    def _item_logits(self, moment: int) -> Floats:
        """(I,): what an item gains with everybody at a moment."""
        world, items = self.world, self.world.items
        discount_I = world.discount((moment - world.opening) // DAY)
        age_days_I = np.maximum(_hour(moment) - items.arrival, 0) / DAY
        newness_I = world.config.newness_boost * np.exp(-age_days_I / NEWNESS_DAYS)
        return world.config.base_logit + items.appeal + newness_I + DISCOUNT_LOGIT * discount_I

    def _freshness(self, user_B: Ints, item_BK: Ints, moment: int) -> Floats:
        """(B, K): 1 for what is new to the user, less for what they have clicked or bought."""
        seen = self.memory.seen(_hour(moment))
        if not len(seen.key):
            return np.ones(item_BK.shape)
        key_BK = (user_B[:, None] << 32) | item_BK
        place_BK = np.minimum(np.searchsorted(seen.key, key_BK), len(seen.key) - 1)
        return np.where(seen.key[place_BK] == key_BK, self._satiation(seen.purchased[place_BK]), 1.0)

    def _satiation(self, purchased: NDArray[np.bool_]) -> Floats:
        config = self.world.config
        return np.where(purchased, config.purchased_satiation, config.clicked_satiation)


def _hour(moment: int) -> int:
    return moment - moment % HOUR


def _sigmoid(logits: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logits, dtype=np.float64))
