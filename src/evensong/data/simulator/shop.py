"""The simulated shop: its days one after the other, and the truth about them.

Axes: B requests, K slots, I items, N events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.data.simulator import words
from evensong.data.simulator.behaviour import Behaviour, Reactions
from evensong.data.simulator.config import ShopConfig
from evensong.data.simulator.memory import CART, CLICK, PURCHASE, Memory
from evensong.data.simulator.policies import Policy, Slates, liking, midnight_of, popularity_policy
from evensong.data.simulator.world import DAY, HOUR, SECOND, Floats, Generator, Ints, Schedule, World, to_micros
from evensong.types import INTERACTIONS, ITEMS, USERS, Frame

EVENT_TYPES = ("impression", "click", "cart", "purchase", "dwell")
_IMPRESSION, _CLICK, _CART, _PURCHASE, _DWELL = range(5)
_KIND_OF_EVENT = {"click": CLICK, "cart": CART, "purchase": PURCHASE}
#: The shop closes its books half a minute before midnight.
CLOSING = DAY - 30 * SECOND
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
    """A shop whose truth is known. Its days must be lived in order, by `day` or, from a log written before, by `replay`."""

    def __init__(self, config: ShopConfig) -> None:
        self.config = config
        self.world = World(config)
        self.memory = Memory()
        self.behaviour = Behaviour(self.world, self.memory)
        self._num_days = 0
        self._stock: list[Ints] = [self.world.items.stock.copy()]
        self._popularity: tuple[int, Ints] | None = None

    # ------------------------------------------------------------ days

    @property
    def today(self) -> date:
        """The next day to live."""
        return self.config.start + timedelta(days=self._num_days)

    def day(self, day: date, policy: Policy) -> DayLog:
        """Live through the next day, with slates from `policy`.

        The policy is asked once an hour for that hour's requests, and once more for the rest of the hour when an item sells
        out in it, so that nothing is shown after its last piece is gone.

        Raises:
            ValueError: `day` is not the next day, or the policy returned something other than k distinct items on offer.
        """
        number = self._expect_today(day)
        schedule, stock = self.world.schedule(number), self._stock[number].copy()
        blocks: list[_Block] = []
        for hour in range(24):
            rows = _rows_of_hour(schedule, self.world.midnight(number), hour)
            step = 0
            while len(rows):
                block = self._serve(policy, schedule, rows, number, hour, step, stock)
                if block is None:
                    break
                blocks.append(block)
                rows, step = rows[len(block.user) :], step + 1
        events = _Events.of(blocks, self.world.price(number), schedule, self.world.stream("arrival", number), self.config)
        interactions = self._interactions(events, schedule, day)
        sold = np.bincount(events.item[events.kind == _PURCHASE], minlength=len(stock))
        items, users = self._close(number, sold)
        return DayLog(interactions, items, users, self._summary(day, number, schedule, blocks, events, stock))

    def replay(self, day: date, interactions: Frame) -> None:
        """Live through the next day as its log tells it; afterwards the shop is as `day` left it.

        `interactions` needs the day's clicks, carts and purchases; other events change nothing.
        """
        number = self._expect_today(day)
        events = interactions.filter(pl.col("event_type").is_in(list(_KIND_OF_EVENT)))
        item = self.item_numbers(events["item_id"].to_list())
        kind = np.array([_KIND_OF_EVENT[name] for name in events["event_type"].to_list()], dtype=np.int64)
        moment = events["event_timestamp"].cast(pl.Int64).to_numpy()
        self.memory.add(self.user_numbers(events["user_id"].to_list()), item, moment, kind)
        self._close(number, np.bincount(item[kind == PURCHASE], minlength=len(self._stock[number])))

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
            raise ValueError(f"user {user_ids[int(user_B.argmax())]} has not signed up by {at}")
        look = self.behaviour.look_probability(position + 1)[position]
        return self.behaviour.attraction(user_B, item_B[:, None], moment)[:, 0] * look

    def true_value(self, policy_or_lists: Policy | Mapping[str, Sequence[str]], day: date) -> float:
        """The expected clicks per shown item of a policy, or of one list a user, on the requests of a day: no noise of clicks.

        The day is one that was lived or the next one; what is on offer is what was in stock in the morning, and users
        remember what they had clicked and bought by each hour of the day's log. Of lists, the first `slate_size` items are shown, and the
        day's other users are left out.

        Raises:
            ValueError: a later day, or lists for none of the day's users.
        """
        number = (day - self.config.start).days
        if not 0 <= number <= self._num_days:
            raise ValueError(f"expected a day from {self.config.start} to {self.today}, got {day}")
        schedule = self.world.schedule(number)
        expected, shown = 0.0, 0
        for hour in range(24):
            rows = _rows_of_hour(schedule, self.world.midnight(number), hour)
            moment = self.world.midnight(number) + hour * HOUR
            if callable(policy_or_lists):
                user_B = schedule.user[rows]
                offered = self._offered(moment, self._opening_stock(number))
                slates = self._ask(policy_or_lists, user_B, offered, moment, self.world.stream("value", number, hour))
                item_BK, user_of_slate = [slates[0]], [user_B]
            else:
                asked = [self.world.user_ids[user] for user in schedule.user[rows]]
                lists = [policy_or_lists[user_id][: self.config.slate_size] for user_id in asked if user_id in policy_or_lists]
                user_of_slate = [self.user_numbers([u]) for u in asked if u in policy_or_lists]
                item_BK = [self.item_numbers(items)[None, :] for items in lists]
            for users, items in zip(user_of_slate, item_BK, strict=True):
                expected += self._expected_clicks(users, items, moment)
                shown += items.size
        if not shown:
            raise ValueError(f"expected a list for at least one user who visits on {day}, got none")
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
        return _numbers(user_ids, "u", len(self.world.users))

    def item_numbers(self, item_ids: Sequence[str]) -> Ints:
        """Ids to numbers."""
        return _numbers(item_ids, "i", len(self.world.items))

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
        self.world.grow(self._num_days)
        self._opening_stock(self._num_days)
        return self._num_days

    def _opening_stock(self, number: int) -> Ints:
        if not 0 <= number < len(self._stock):
            raise ValueError(f"expected a day from {self.config.start} to {self.today}, got day {number}")
        return self._stock[number]

    def _offered(self, moment: int, stock_I: Ints) -> Ints:
        """Numbers of the items that have arrived and are in stock."""
        return np.flatnonzero((self.world.items.arrival[: len(stock_I)] <= moment) & (stock_I > 0))

    def _ask(
        self, policy: Policy, user_B: Ints, offered: Ints, moment: int, rng: Generator
    ) -> tuple[Ints, Floats]:
        """(B, K) items and propensities from a policy, checked."""
        num_slots = min(self.config.slate_size, len(offered))
        if not len(user_B) or not num_slots:
            return np.empty((len(user_B), 0), dtype=np.int64), np.empty((len(user_B), 0))
        slates = policy(
            self.world.user_ids[user_B].tolist(), self.world.item_ids[offered].tolist(), num_slots, to_datetime(moment), rng
        )
        return self._checked(slates, len(user_B), num_slots, offered)

    def _checked(self, slates: Slates, num_requests: int, num_slots: int, offered: Ints) -> tuple[Ints, Floats]:
        ids, propensities = slates.item_ids_BK, slates.propensities_BK
        if ids.shape != (num_requests, num_slots) or propensities.shape != ids.shape:
            raise ValueError(
                f"policy: expected {num_requests} slates of {num_slots} items, got {ids.shape} and {propensities.shape}"
            )
        item_BK = self.item_numbers(ids.ravel().tolist()).reshape(ids.shape)
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

    def _serve(
        self, policy: Policy, schedule: Schedule, rows: Ints, number: int, hour: int, step: int, stock_I: Ints
    ) -> _Block | None:
        """Serve an hour's requests up to the first sell-out, lower the stock, remember what users did."""
        moment = self.world.midnight(number) + hour * HOUR
        offered, user_B = self._offered(moment, stock_I), schedule.user[rows]
        if not len(offered):
            return None
        item_BK, propensity_BK = self._ask(
            policy, user_B, offered, moment, self.world.stream("policy", number, hour, step)
        )
        reactions = self.behaviour.react(self.world.stream("reaction", number, hour, step), user_B, item_BK, moment)
        num = _requests_until_sold_out(reactions.purchased, item_BK, stock_I)
        block = _Block(
            rows[:num], user_B[:num], item_BK[:num], propensity_BK[:num], _first(reactions, num), schedule.moment[rows[:num]]
        )
        np.subtract.at(stock_I, block.item[block.reactions.purchased], 1)
        block.expected = self._expected_clicks(block.user, block.item, moment)
        popular, _ = self._ask(popularity_policy(self), block.user, offered, moment, self.world.stream("unused"))
        block.popular = self._expected_clicks(block.user, popular, moment)
        self._remember(block)
        return block

    def _remember(self, block: _Block) -> None:
        for kind, mask, after in (
            (CLICK, block.reactions.clicked, block.reactions.click_after),
            (CART, block.reactions.carted, block.reactions.cart_after),
            (PURCHASE, block.reactions.purchased, block.reactions.purchase_after),
        ):
            row, slot = np.nonzero(mask)
            moment = block.moment[row] + after[row, slot]
            self.memory.add(block.user[row], block.item[row, slot], moment, np.full(len(row), kind))

    def _expected_clicks(self, user_B: Ints, item_BK: Ints, moment: int) -> float:
        if not item_BK.size:
            return 0.0
        chance_BK = self.behaviour.attraction(user_B, item_BK, moment)
        return float((chance_BK * self.behaviour.look_probability(item_BK.shape[1])).sum())

    def _close(self, number: int, sold_I: Ints) -> tuple[Frame, Frame]:
        """Close a day: next morning's stock, and the day's rows of items and users."""
        left_I = self._stock[number] - sold_I
        self.world.grow(number + 1)
        restocked_I = self.world.restocked(number + 1)[: len(left_I)] & (left_I <= 0)
        arrived = self.world.items.stock[len(left_I) :]
        self._stock.append(np.concatenate([np.where(restocked_I, self.world.items.stock[: len(left_I)], left_I), arrived]))
        items, users = self._item_rows(number), self._user_rows(number)
        self._num_days += 1
        return items, users

    # ------------------------------------------------------------ rows

    def _item_rows(self, number: int) -> Frame:
        """The day's new items as they arrive, and at closing those whose stock or price will be another tomorrow."""
        world, midnight = self.world, self.world.midnight(number)
        num = world.num_items(number)
        arrival, price = world.items.arrival[:num], (world.price(number)[:num], world.price(number + 1)[:num])
        discount = (world.discount(number)[:num], world.discount(number + 1)[:num])
        stock = (self._stock[number], self._stock[number + 1][:num])
        is_new = np.ones(num, dtype=bool) if number == 0 else arrival >= midnight
        new = np.flatnonzero(is_new)
        changed = np.flatnonzero((stock[0] != stock[1]) | (price[0] != price[1]))
        item = np.concatenate([new, changed])
        morning = np.concatenate([np.zeros(len(new), dtype=int), np.ones(len(changed), dtype=int)])
        moment = np.concatenate([arrival[new], np.full(len(changed), midnight + CLOSING)])
        rows = list(zip(item.tolist(), morning.tolist(), strict=True))
        frame = pl.DataFrame(
            {
                "item_id": world.item_ids[item].tolist(),
                "title": [world.title(i) for i in item.tolist()],
                "category_path": [words.PATHS[shelf] for shelf in world.items.shelf[item].tolist()],
                "price": [float(price[m][i]) for i, m in rows],
                "image_uri": [None] * len(item),
                "attributes": [world.item_attributes(i, int(stock[m][i]), bool(discount[m][i])) for i, m in rows],
                "event_timestamp": moment,
                "created_timestamp": moment + 5 * SECOND,
            }
        )
        return frame.select([pl.col(name).cast(kind) for name, kind in ITEMS.items()]).sort("event_timestamp", "item_id")

    def _user_rows(self, number: int) -> Frame:
        """The day's new users as they sign up, and at closing those whose membership level rose."""
        world, midnight = self.world, self.world.midnight(number)
        num = world.num_users(number)
        signup = world.users.signup[:num]
        new = np.flatnonzero(np.ones(num, dtype=bool) if number == 0 else signup >= midnight)
        level = (self._levels(midnight, num), self._levels(midnight + DAY, num))
        risen = np.flatnonzero(level[1] > level[0])
        user = np.concatenate([new, risen])
        level_U = np.concatenate([level[0][new], level[1][risen]])
        moment = np.concatenate([signup[new], np.full(len(risen), midnight + CLOSING)])
        frame = pl.DataFrame(
            {
                "user_id": world.user_ids[user].tolist(),
                "attributes": [world.user_attributes(u, v) for u, v in zip(user.tolist(), level_U.tolist(), strict=True)],
                "event_timestamp": moment,
                "created_timestamp": moment + 5 * SECOND,
            }
        )
        return frame.select([pl.col(name).cast(kind) for name, kind in USERS.items()]).sort("event_timestamp", "user_id")

    def _levels(self, moment: int, num_users: int) -> Ints:
        """(U,): membership levels before a moment: the one a user came with, or what their purchases earned."""
        earned_U = np.searchsorted(LEVEL_PURCHASES, self.memory.purchases(moment, num_users), side="right")
        return np.maximum(self.world.users.level[:num_users], earned_U)

    def _interactions(self, events: _Events, schedule: Schedule, day: date) -> Frame:
        world = self.world
        frame = pl.DataFrame(
            {
                "user": events.user,
                "item": events.item,
                "kind": events.kind,
                "event_timestamp": events.moment,
                "value": events.value,
                "session": schedule.session[events.request],
                "request": events.request,
                "position": events.position,
                "propensity": events.propensity,
                "created_timestamp": events.created,
            }
        ).sort("event_timestamp", "request", "position", "kind")
        sessions = [f"s{day:%Y%m%d}-{n:06d}" for n in range(int(schedule.session.max(initial=-1)) + 1)]
        requests = [f"r{day:%Y%m%d}-{n:07d}" for n in range(len(schedule))]
        names = {
            "user_id": (world.user_ids.tolist(), "user"),
            "item_id": (world.item_ids.tolist(), "item"),
            "event_type": (list(EVENT_TYPES), "kind"),
            "session_id": (sessions, "session"),
            "request_id": (requests, "request"),
        }
        frame = frame.with_columns(
            [pl.Series(name, ids, dtype=pl.String).gather(frame[number]) for name, (ids, number) in names.items()]
        )
        return frame.select(
            [
                (pl.col(name).fill_nan(None) if name == "value" else pl.col(name)).cast(kind)
                for name, kind in INTERACTIONS.items()
            ]
        )

    def _summary(
        self, day: date, number: int, schedule: Schedule, blocks: list[_Block], events: _Events, stock_I: Ints
    ) -> dict[str, Any]:
        count = np.bincount(events.kind, minlength=len(EVENT_TYPES)).tolist()
        shown = max(count[_IMPRESSION], 1)
        return {
            "date": day.isoformat(),
            "users": len(np.unique(schedule.user)),
            "sessions": len(np.unique(schedule.session)),
            "requests": len(schedule),
            "events": len(events.kind),
            "impressions": count[_IMPRESSION],
            "clicks": count[_CLICK],
            "carts": count[_CART],
            "purchases": count[_PURCHASE],
            "new_users": self.config.new_users_per_day,
            "new_items": self.config.new_items_per_day,
            "sold_out": int(((self._stock[number] > 0) & (stock_I <= 0)).sum()),
            "click_rate": count[_CLICK] / shown,
            "expected_click_rate": sum(block.expected for block in blocks) / shown,
            "popularity_click_rate": sum(block.popular for block in blocks) / shown,
        }


@dataclass
class _Block:
    """Requests that were served together."""

    request: Ints
    user: Ints
    item: Ints
    propensity: Floats
    reactions: Reactions
    moment: Ints
    expected: float = 0.0
    popular: float = 0.0


@dataclass(frozen=True)
class _Events:
    """The events of a day, unsorted; arrays of one length N."""

    user: Ints
    item: Ints
    kind: Ints
    moment: Ints
    value: Floats
    request: Ints
    position: Ints
    propensity: Floats
    created: Ints

    @staticmethod
    def of(
        blocks: list[_Block], price_I: Floats, schedule: Schedule, rng: Generator, config: ShopConfig
    ) -> _Events:
        parts: list[tuple[NDArray[Any], ...]] = []
        for block in blocks:
            r = block.reactions
            for kind, mask, after in (
                (_IMPRESSION, np.ones(block.item.shape, dtype=bool), None),
                (_CLICK, r.clicked, r.click_after),
                (_CART, r.carted, r.cart_after),
                (_PURCHASE, r.purchased, r.purchase_after),
                (_DWELL, r.clicked, r.click_after + (r.dwell_seconds * SECOND).astype(np.int64)),
            ):
                row, slot = np.nonzero(mask)
                item = block.item[row, slot]
                moment = block.moment[row] + (0 if after is None else after[row, slot])
                value = np.full(len(row), np.nan)
                if kind == _PURCHASE:
                    value = price_I[item]
                elif kind == _DWELL:
                    value = r.dwell_seconds[row, slot]
                parts.append(
                    (
                        block.user[row],
                        item,
                        np.full(len(row), kind),
                        moment,
                        value,
                        block.request[row],
                        slot,
                        block.propensity[row, slot],
                    )
                )
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, int)] * 8
        return _Events(*columns, created=columns[3] + _delays(rng, columns[2], config.late_share))


def _delays(rng: Generator, kind_N: Ints, late_share: float) -> Ints:
    """(N,): microseconds until an event is known: a moment for what the server writes, seconds for what a device sends, hours
    for a device that was offline."""
    server = 0.05 + rng.exponential(0.3, len(kind_N))
    device = 0.2 + rng.exponential(3.0, len(kind_N))
    late = 3600 * (1 + 11 * rng.random(len(kind_N)))
    is_late = rng.random(len(kind_N)) < late_share
    seconds = np.where(kind_N == _IMPRESSION, server, np.where(is_late, late, device))
    return (seconds * SECOND).astype(np.int64)


def _rows_of_hour(schedule: Schedule, midnight: int, hour: int) -> Ints:
    bounds = np.searchsorted(schedule.moment, [midnight + hour * HOUR, midnight + (hour + 1) * HOUR])
    return np.arange(bounds[0], bounds[1])


def _requests_until_sold_out(purchased_BK: NDArray[np.bool_], item_BK: Ints, stock_I: Ints) -> int:
    """Requests up to and with the first whose purchase takes an item's last piece; a buyer's piece is theirs from the request on."""
    row, slot = np.nonzero(purchased_BK)  # in order of rows
    item = item_BK[row, slot]
    order = np.argsort(item, kind="stable")
    sorted_item = item[order]
    first = np.searchsorted(sorted_item, sorted_item)
    is_last_piece = np.arange(len(item)) - first == stock_I[sorted_item] - 1
    return int(row[order][is_last_piece].min(initial=len(item_BK) - 1)) + 1


def _first(reactions: Reactions, num: int) -> Reactions:
    return Reactions(**{name: values[:num] for name, values in vars(reactions).items()})


def _numbers(ids: Sequence[str], letter: str, known: int) -> Ints:
    try:
        numbers = np.array([int(name[1:]) for name in ids], dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"expected ids such as {letter}000042: {error}") from error
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= known):
        wrong = ids[int(np.flatnonzero((numbers < 0) | (numbers >= known))[0])]
        raise ValueError(f"{wrong}: no such id; this shop knows {letter}000000 to {letter}{known - 1:06d}")
    return numbers


def to_datetime(moment: int) -> datetime:
    """A moment in microseconds as a UTC time."""
    from datetime import UTC

    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=moment)
