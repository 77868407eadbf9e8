"""The simulated shop: its days one after the other, and the truth about them.

Axes: B requests, K slots, I items, U users, L shelves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.data.simulator import log, words
from evensong.data.simulator.behaviour import Behaviour
from evensong.data.simulator.config import ShopConfig
from evensong.data.simulator.log import Block, Events
from evensong.data.simulator.memory import CART, CLICK, EVENT_TYPES, IMPRESSION, PURCHASE, Memory
from evensong.data.simulator.policies import Policy, Slates, liking, midnight_of, popularity_policy
from evensong.data.simulator.world import DAY, HOUR, Floats, Generator, Ints, Schedule, World, to_micros
from evensong.types import Frame

#: Purchases that lift a member to silver, and to gold.
LEVEL_PURCHASES = (4, 10)


@dataclass(frozen=True)
class DayLog:
    """What one day wrote, in the columns of the lake's tables, and its figures."""

    interactions: Frame
    items: Frame
    users: Frame
    summary: dict[str, Any]


class Shop:
    """A shop whose truth is known. Its days are lived in order: by `day`, or by `replay` from a log of before."""

    def __init__(self, config: ShopConfig) -> None:
        self.config = config
        self.world = World(config)
        self.memory = Memory()
        self.behaviour = Behaviour(self.world, self.memory)
        self._stock: list[Ints] = [self.world.items.stock.copy()]
        """Of each item on the morning of each day, the next one included."""
        self._popularity: tuple[int, Ints] | None = None

    # ------------------------------------------------------------ days

    @property
    def today(self) -> date:
        """The next day to live."""
        return self.config.start + timedelta(days=len(self._stock) - 1)

    def day(self, day: date, policy: Policy) -> DayLog:
        """Live through the next day, with slates from `policy`.

        The policy is asked once an hour for that hour's requests, and once more for the rest of the hour when an item
        sells out in it, so that nothing is shown after its last piece is gone.

        Raises:
            ValueError: `day` is not the next day, or the policy gave something other than k distinct items on offer.
        """
        number = self._expect_today(day)
        schedule, stock_I = self.world.schedule(number), self._stock[number].copy()
        blocks: list[Block] = []
        expected = popular = 0.0
        for hour in range(24):
            moment = self.world.midnight(number) + hour * HOUR
            rows, step = _rows_of_hour(schedule, moment), 0
            while len(rows) and len(offered := self._offered(moment, stock_I)):
                block = self._served(policy, schedule, rows, offered, moment, step, stock_I)
                expected += self._expected_clicks(block.user, block.item, moment)
                popular += self._popular_clicks(block.user, offered, moment)
                self._take_in(block, stock_I)
                blocks.append(block)
                rows, step = rows[len(block.user) :], step + 1
        events = log.events_of(blocks, self.world.price(number))
        summary = self._summary(day, number, schedule, events, stock_I)
        shown = max(summary["impressions"], 1)
        summary |= {"expected_click_rate": expected / shown, "popularity_click_rate": popular / shown}
        rng = self.world.stream("arrival", number)
        interactions = log.interaction_rows(events, schedule, day, self.world, rng, self.config.late_share)
        items, users = self._close(number, stock_I)
        return DayLog(interactions, items, users, summary)

    def replay(self, day: date, interactions: Frame) -> None:
        """Live through the next day as its log tells it; afterwards the shop is as `day` left it.

        `interactions` needs the day's clicks, carts and purchases; other events change nothing.

        Raises:
            ValueError: `day` is not the next day, or the log names a user or an item that this shop has not.
        """
        number = self._expect_today(day)
        kind_of = {EVENT_TYPES[kind]: kind for kind in (CLICK, CART, PURCHASE)}
        events = interactions.filter(pl.col("event_type").is_in(list(kind_of)))
        item = self.item_numbers(events["item_id"].to_list())
        kind = np.array([kind_of[name] for name in events["event_type"].to_list()], dtype=np.int64)
        moment = events["event_timestamp"].cast(pl.Int64).to_numpy()
        self.memory.add(self.user_numbers(events["user_id"].to_list()), item, moment, kind)
        sold_I = np.bincount(item[kind == PURCHASE], minlength=len(self._stock[number]))
        self._close(number, self._stock[number] - sold_I)

    # ------------------------------------------------------------ the truth

    def true_click_probability(
        self, user_ids: Sequence[str], item_ids: Sequence[str], at: datetime, position: int = 0
    ) -> Floats:
        """The probability that each user clicks the item beside them when it is shown at `position` at the moment `at`.

        Position 0 is always looked at, so there it is how much the user wants the item.

        Raises:
            ValueError: an unknown user or item, lists of different length, or a day before the shop opened.
        """
        if len(user_ids) != len(item_ids):
            raise ValueError(f"expected as many items as users, got {len(user_ids)} users and {len(item_ids)} items")
        moment = to_micros(at)
        if moment < self.world.opening:
            raise ValueError(f"expected a moment from {self.config.start} on, got {at}")
        number = (moment - self.world.opening) // DAY
        self.world.grow(number)
        user_B, item_B = self.user_numbers(user_ids), self.item_numbers(item_ids)
        if len(user_B) and user_B.max() >= self.world.num_users(number):
            raise ValueError(f"{user_ids[int(user_B.argmax())]} has not signed up by {at}; ask about a later moment")
        looked_at = self.behaviour.look_probability(position + 1)[position]
        return self.behaviour.attraction(user_B, item_B[:, None], moment)[:, 0] * looked_at

    def true_value(self, policy_or_lists: Policy | Mapping[str, Sequence[str]], day: date) -> float:
        """The expected clicks per shown item of a policy, or of one list a user, on a day's requests; free of noise.

        The day is one that was lived or the next one. On offer is what was in stock in the morning; users remember what
        they had clicked and bought, by the hour, as the day's log has it. Of a list, the first `slate_size` items are
        shown, and users without one are left out.

        Raises:
            ValueError: a later day, or lists for none of the day's users.
        """
        number = (day - self.config.start).days
        stock_I = self._opening_stock(number)
        schedule = self.world.schedule(number)
        expected, shown = 0.0, 0
        for hour in range(24):
            moment = self.world.midnight(number) + hour * HOUR
            user_B = schedule.user[_rows_of_hour(schedule, moment)]
            if isinstance(policy_or_lists, Mapping):
                slates = self._slates_of_lists(policy_or_lists, user_B)
            else:
                rng = self.world.stream("value", number, hour)
                slates = [(user_B, self._ask(policy_or_lists, user_B, self._offered(moment, stock_I), moment, rng)[0])]
            for users, item_BK in slates:
                expected += self._expected_clicks(users, item_BK, moment)
                shown += item_BK.size
        if not shown:
            raise ValueError(f"expected slates for at least one user who visits on {day}, got none")
        return expected / shown

    # ------------------------------------------------------------ what the shop knows

    @property
    def num_items(self) -> int:
        """Items that exist so far."""
        return len(self.world.items)

    @property
    def shelves(self) -> Ints:
        """(I,): the shelf of every item, by number."""
        return self.world.items.shelf

    def user_numbers(self, user_ids: Sequence[str]) -> Ints:
        """Ids to numbers."""
        return _numbers(user_ids, self.world.user_numbers, "u000042")

    def item_numbers(self, item_ids: Sequence[str]) -> Ints:
        """Ids to numbers."""
        return _numbers(item_ids, self.world.item_numbers, "i000042")

    def popularity(self, at: datetime) -> Ints:
        """(I,): clicks, carts and purchases of each item in the trailing window, as counted at midnight."""
        midnight = midnight_of(at)
        if self._popularity is None or self._popularity[0] != midnight or len(self._popularity[1]) != self.num_items:
            counts = self.memory.popularity(midnight, self.config.popularity_days, self.num_items)
            self._popularity = (midnight, counts)
        return self._popularity[1]

    def seen_by(self, user_B: Ints, at: datetime) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Row, item and whether bought, for what these users had clicked or bought by midnight."""
        return self.memory.seen(midnight_of(at)).of(user_B)

    def shelf_liking(self, user_B: Ints, at: datetime) -> Floats:
        """(B, L): how much each user's clicks up to midnight say for each shelf."""
        return liking(self.memory.shelf_counts(midnight_of(at), user_B, self.shelves, len(words.SHELVES)))

    def stock(self, day: date) -> dict[str, int]:
        """Pieces of every item on a morning."""
        stock_I = self._opening_stock((day - self.config.start).days)
        return dict(zip(self.world.item_ids[: len(stock_I)].tolist(), stock_I.tolist(), strict=True))

    # ------------------------------------------------------------ one day, step by step

    def _expect_today(self, day: date) -> int:
        if day != self.today:
            raise ValueError(f"days are lived in order: expected {self.today}, got {day}")
        return len(self._stock) - 1

    def _opening_stock(self, number: int) -> Ints:
        if not 0 <= number < len(self._stock):
            raise ValueError(f"expected a day from {self.config.start} to {self.today}, got day {number}")
        return self._stock[number]

    def _offered(self, moment: int, stock_I: Ints) -> Ints:
        """Numbers of the items that have arrived and are in stock."""
        return np.flatnonzero((self.world.items.arrival[: len(stock_I)] <= moment) & (stock_I > 0))

    def _served(
        self, policy: Policy, schedule: Schedule, rows: Ints, offered: Ints, moment: int, step: int, stock_I: Ints
    ) -> Block:
        """Serve an hour's requests up to the first that takes an item's last piece."""
        draws = divmod((moment - self.world.opening) // HOUR, 24)
        user_B = schedule.user[rows]
        item_BK, propensity_BK = self._ask(policy, user_B, offered, moment, self.world.stream("policy", *draws, step))
        reactions = self.behaviour.react(self.world.stream("reaction", *draws, step), user_B, item_BK, moment)
        block = Block(rows, user_B, schedule.moment[rows], item_BK, propensity_BK, reactions)
        return block.first(_requests_until_sold_out(reactions.purchased, item_BK, stock_I))

    def _take_in(self, block: Block, stock_I: Ints) -> None:
        """Lower the stock and remember what users did."""
        done = block.reactions
        np.subtract.at(stock_I, block.item[done.purchased], 1)
        for kind, mask, after in (
            (CLICK, done.clicked, done.click_after),
            (CART, done.carted, done.cart_after),
            (PURCHASE, done.purchased, done.purchase_after),
        ):
            row, slot = np.nonzero(mask)
            moment = block.moment[row] + after[row, slot]
            self.memory.add(block.user[row], block.item[row, slot], moment, np.full(len(row), kind))

    def _close(self, number: int, left_I: Ints) -> tuple[Frame, Frame]:
        """Close a day: next morning's stock, and the day's rows of items and users."""
        world, midnight, num_users = self.world, self.world.midnight(number), self.world.num_users(number)
        world.grow(number + 1)
        filled_up = world.restocked(number + 1)[: len(left_I)] & (left_I <= 0)
        next_I = np.where(filled_up, world.items.stock[: len(left_I)], left_I)
        self._stock.append(np.concatenate([next_I, world.items.stock[len(left_I) :]]))
        levels = self._levels(midnight, num_users), self._levels(midnight + DAY, num_users)
        return (
            log.item_rows(world, number, (self._stock[number], self._stock[number + 1])),
            log.user_rows(world, number, levels),
        )

    def _levels(self, moment: int, num_users: int) -> Ints:
        """(U,): membership levels before a moment: the one a user came with, or what their purchases earned."""
        bought_U = self.memory.count(PURCHASE, moment, num_users)
        return np.maximum(self.world.users.level[:num_users], np.searchsorted(LEVEL_PURCHASES, bought_U, side="right"))

    def _summary(self, day: date, number: int, schedule: Schedule, events: Events, stock_I: Ints) -> dict[str, Any]:
        count = np.bincount(events.kind, minlength=len(EVENT_TYPES)).tolist()
        return {
            "date": day.isoformat(),
            "users": len(np.unique(schedule.user)),
            "sessions": len(np.unique(schedule.session)),
            "requests": len(schedule),
            "events": len(events),
            "impressions": count[IMPRESSION],
            "clicks": count[CLICK],
            "carts": count[CART],
            "purchases": count[PURCHASE],
            "new_users": self.config.new_users_per_day,
            "new_items": self.config.new_items_per_day,
            "sold_out": int(((self._stock[number] > 0) & (stock_I <= 0)).sum()),
            "click_rate": count[CLICK] / max(count[IMPRESSION], 1),
        }

    # ------------------------------------------------------------ slates

    def _ask(self, policy: Policy, user_B: Ints, offered: Ints, moment: int, rng: Generator) -> tuple[Ints, Floats]:
        """(B, K) items and propensities from a policy, checked."""
        num_slots = min(self.config.slate_size, len(offered))
        if not len(user_B) or not num_slots:
            return np.empty((len(user_B), 0), dtype=np.int64), np.empty((len(user_B), 0))
        user_ids, item_ids = self.world.user_ids[user_B].tolist(), self.world.item_ids[offered].tolist()
        at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=moment)
        return self._checked(policy(user_ids, item_ids, num_slots, at, rng), (len(user_B), num_slots), offered)

    def _checked(self, slates: Slates, shape: tuple[int, int], offered: Ints) -> tuple[Ints, Floats]:
        ids, propensities = slates.item_ids_BK, slates.propensities_BK
        if ids.shape != shape or propensities.shape != shape:
            raise ValueError(f"policy: expected {shape} items and propensities, got {ids.shape}, {propensities.shape}")
        item_BK = self.item_numbers(ids.ravel().tolist()).reshape(shape)
        is_offered = np.zeros(self.num_items, dtype=bool)
        is_offered[offered] = True
        if not is_offered[item_BK].all():
            raise ValueError(f"policy: item {ids[~is_offered[item_BK]][0]} is not on offer")
        in_order = np.sort(item_BK, axis=1)
        if (in_order[:, 1:] == in_order[:, :-1]).any():
            raise ValueError("policy: a slate shows an item twice; expected distinct items")
        if not ((propensities > 0) & (propensities <= 1 + 1e-9)).all():
            raise ValueError("policy: expected propensities above 0 and at most 1")
        return item_BK, propensities

    def _slates_of_lists(self, lists: Mapping[str, Sequence[str]], user_B: Ints) -> list[tuple[Ints, Ints]]:
        """One slate a request of a user who has a list."""
        slates = []
        for user in user_B:
            chosen = lists.get(self.world.user_ids[user])
            if chosen is not None:
                slates.append((np.array([user]), self.item_numbers(chosen[: self.config.slate_size])[None, :]))
        return slates

    def _expected_clicks(self, user_B: Ints, item_BK: Ints, moment: int) -> float:
        if not item_BK.size:
            return 0.0
        attraction_BK = self.behaviour.attraction(user_B, item_BK, moment)
        return float((attraction_BK * self.behaviour.look_probability(item_BK.shape[1])).sum())

    def _popular_clicks(self, user_B: Ints, offered: Ints, moment: int) -> float:
        """What these requests would have been expected to click had they been shown what is popular."""
        item_BK, _ = self._ask(popularity_policy(self), user_B, offered, moment, self.world.stream("popularity"))
        return self._expected_clicks(user_B, item_BK, moment)


def _rows_of_hour(schedule: Schedule, moment: int) -> Ints:
    first, end = np.searchsorted(schedule.moment, [moment, moment + HOUR])
    return np.arange(first, end)


def _requests_until_sold_out(purchased_BK: NDArray[np.bool_], item_BK: Ints, stock_I: Ints) -> int:
    """Requests up to and with the first that takes an item's last piece.

    A buyer's piece is theirs from the request on, so no later request is shown it.
    """
    row, slot = np.nonzero(purchased_BK)  # in order of rows
    item = item_BK[row, slot]
    order = np.argsort(item, kind="stable")
    item = item[order]
    nth_piece = np.arange(len(item)) - np.searchsorted(item, item) + 1
    return int(row[order][nth_piece == stock_I[item]].min(initial=len(item_BK) - 1)) + 1


def _numbers(ids: Sequence[str], numbers: dict[str, int], example: str) -> Ints:
    try:
        return np.fromiter(map(numbers.__getitem__, ids), dtype=np.int64, count=len(ids))
    except KeyError as error:
        raise ValueError(
            f"{error.args[0]}: no such id; this shop has {len(numbers)} of them so far, such as {example}"
        ) from error
