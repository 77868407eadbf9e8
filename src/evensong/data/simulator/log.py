"""What a simulated day writes: its events, items and users as rows of the lake's tables.

Axes: B requests, K slots, N events, I items, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.data.simulator import words
from evensong.data.simulator.behaviour import Reactions
from evensong.data.simulator.memory import CART, CLICK, DWELL, EVENT_TYPES, IMPRESSION, PURCHASE
from evensong.data.simulator.world import DAY, SECOND, Floats, Generator, Ints, Schedule, World
from evensong.types import INTERACTIONS, ITEMS, USERS, Frame

#: The shop closes its books half a minute before midnight; what changed is known five seconds later.
CLOSING = DAY - 30 * SECOND
KNOWN_AFTER = 5 * SECOND


@dataclass(frozen=True)
class Block:
    """Requests that were served together: who was shown what, and what they did."""

    request: Ints
    """(B,): the request's number in the day."""
    user: Ints
    moment: Ints
    item: Ints
    """(B, K), and so are the propensities and the reactions."""
    propensity: Floats
    reactions: Reactions

    def first(self, num: int) -> Block:
        """The first requests of the block."""
        reactions = Reactions(**{name: values[:num] for name, values in vars(self.reactions).items()})
        columns = {name: getattr(self, name)[:num] for name in ("request", "user", "moment", "item", "propensity")}
        return replace(self, reactions=reactions, **columns)


@dataclass(frozen=True)
class Events:
    """Events in no particular order; arrays of one length N."""

    user: Ints
    item: Ints
    kind: Ints
    moment: Ints
    value: Floats
    request: Ints
    position: Ints
    propensity: Floats

    def __len__(self) -> int:
        return len(self.user)


def events_of(blocks: list[Block], price_I: Floats) -> Events:
    """Everything that was shown and done."""
    blocks = blocks or [_nothing()]
    parts = [
        part
        for block in blocks
        for part in (
            _events(
                block, IMPRESSION, np.ones(block.item.shape, dtype=bool), np.zeros(block.item.shape, dtype=np.int64)
            ),
            _events(block, CLICK, block.reactions.clicked, block.reactions.click_after),
            _events(block, CART, block.reactions.carted, block.reactions.cart_after),
            _events(block, PURCHASE, block.reactions.purchased, block.reactions.purchase_after, price_I[block.item]),
            _events(
                block,
                DWELL,
                block.reactions.clicked,
                block.reactions.click_after + (block.reactions.dwell_seconds * SECOND).astype(np.int64),
                block.reactions.dwell_seconds,
            ),
        )
    ]
    return _concatenated(parts)


def interaction_rows(
    events: Events, schedule: Schedule, day: date, world: World, rng: Generator, late_share: float
) -> Frame:
    """The events in order of time, request and position, with the moment at which each became known."""
    numbers = pl.DataFrame(
        {
            "user": events.user,
            "item": events.item,
            "kind": events.kind,
            "session": schedule.session[events.request],
            "request": events.request,
            "event_timestamp": events.moment,
            "value": pl.Series(events.value).fill_nan(None),
            "position": events.position,
            "propensity": events.propensity,
            "created_timestamp": events.moment + _delays(rng, events.kind, late_share),
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
    rows = numbers.with_columns(
        [pl.Series(name, ids, dtype=pl.String).gather(numbers[number]) for name, (ids, number) in names.items()]
    )
    return rows.select([pl.col(name).cast(dtype) for name, dtype in INTERACTIONS.items()])


def item_rows(world: World, day: int, stock: tuple[Ints, Ints]) -> Frame:
    """The day's new items as they arrive, and at closing those whose stock or price will be another tomorrow.

    Args:
        stock: pieces of each item in the morning, and the next morning.
    """
    num, midnight = world.num_items(day), world.midnight(day)
    arrival = world.items.arrival[:num]
    price = [world.price(d)[:num] for d in (day, day + 1)]
    discounted = [world.discount(d)[:num] for d in (day, day + 1)]
    new = np.flatnonzero((arrival >= midnight) | (day == 0))
    changed = np.flatnonzero((stock[0] != stock[1][:num]) | (price[0] != price[1]))
    item = np.concatenate([new, changed])
    morning = np.repeat([0, 1], [len(new), len(changed)])
    moment = np.concatenate([arrival[new], np.full(len(changed), midnight + CLOSING)])
    rows = list(zip(item.tolist(), morning.tolist(), strict=True))
    frame = pl.DataFrame(
        {
            "item_id": world.item_ids[item].tolist(),
            "title": [world.title(i) for i, _ in rows],
            "category_path": [words.PATHS[shelf] for shelf in world.items.shelf[item].tolist()],
            "price": [float(price[m][i]) for i, m in rows],
            "image_uri": [None] * len(rows),
            "attributes": [world.item_attributes(i, int(stock[m][i]), bool(discounted[m][i])) for i, m in rows],
            "event_timestamp": moment,
            "created_timestamp": moment + KNOWN_AFTER,
        }
    )
    return frame.select([pl.col(name).cast(dtype) for name, dtype in ITEMS.items()]).sort("event_timestamp", "item_id")


def user_rows(world: World, day: int, level: tuple[Ints, Ints]) -> Frame:
    """The day's new users as they sign up, and at closing those whose membership level rose.

    Args:
        level: of each user in the morning, and the next morning.
    """
    midnight = world.midnight(day)
    signup = world.users.signup[: world.num_users(day)]
    new = np.flatnonzero((signup >= midnight) | (day == 0))
    risen = np.flatnonzero(level[1] > level[0])
    user = np.concatenate([new, risen])
    level_of = np.concatenate([level[0][new], level[1][risen]])
    moment = np.concatenate([signup[new], np.full(len(risen), midnight + CLOSING)])
    frame = pl.DataFrame(
        {
            "user_id": world.user_ids[user].tolist(),
            "attributes": [world.user_attributes(u, n) for u, n in zip(user.tolist(), level_of.tolist(), strict=True)],
            "event_timestamp": moment,
            "created_timestamp": moment + KNOWN_AFTER,
        }
    )
    return frame.select([pl.col(name).cast(dtype) for name, dtype in USERS.items()]).sort("event_timestamp", "user_id")


def _events(
    block: Block, kind: int, mask_BK: NDArray[np.bool_], after_BK: Ints, value_BK: Floats | None = None
) -> Events:
    row, slot = np.nonzero(mask_BK)
    return Events(
        user=block.user[row],
        item=block.item[row, slot],
        kind=np.full(len(row), kind),
        moment=block.moment[row] + after_BK[row, slot],
        value=np.full(len(row), np.nan) if value_BK is None else value_BK[row, slot],
        request=block.request[row],
        position=slot,
        propensity=block.propensity[row, slot],
    )


def _concatenated(parts: list[Events]) -> Events:
    return Events(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _nothing() -> Block:
    none, none_BK = np.empty(0, dtype=np.int64), np.empty((0, 1), dtype=np.int64)
    never, nil = none_BK.astype(bool), none_BK.astype(float)
    reactions = Reactions(never, never, never, none_BK, nil, none_BK, none_BK)
    return Block(none, none, none, none_BK, nil, reactions)


def _delays(rng: Generator, kind_N: Ints, late_share: float) -> Ints:
    """(N,): microseconds until an event is known.

    A moment for what the server writes, seconds for what a device sends, hours for a device that was offline.
    """
    server = 0.05 + rng.exponential(0.3, len(kind_N))
    device = 0.2 + rng.exponential(3.0, len(kind_N))
    late = 3600 * (1 + 11 * rng.random(len(kind_N)))
    is_late = rng.random(len(kind_N)) < late_share
    seconds = np.where(kind_N == IMPRESSION, server, np.where(is_late, late, device))
    return (seconds * SECOND).astype(np.int64)
