"""Events a second of the simulated shop, against the same shop lived one event at a time in plain Python.

The peer does the day's core the obvious way: for each request it draws a slate from the same mixture with its
propensities, for each slot it works out the click probability from its definition, draws, and builds the rows; it is
handed the day's visits and keeps no stock. No public simulator of a shop is installed here to stand in its place.
Before anything is timed, the peer answers the very slates that ours showed, and its expected clicks must equal ours.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from benchmarks._report import report, say
from evensong.data.simulator import DayLog, Shop, ShopConfig, warmup_policy
from evensong.data.simulator.behaviour import DISCOUNT_LOGIT, NEWNESS_DAYS
from evensong.data.simulator.memory import PURCHASE
from evensong.data.simulator.policies import liking
from evensong.data.simulator.words import SHELVES
from evensong.data.simulator.world import DAY, HOUR

PEER_DAY = 2
POPULAR, PERSONAL, UNIFORM = 0.30, 0.45, 0.25
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    """Time a million events of the default shop, and one day of it in plain Python."""
    parser = argparse.ArgumentParser(prog="benchmarks simulator")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)

    shop, day = _lived()
    _compare(shop, day)
    ours, peer, seconds = 0.0, 0.0, math.inf
    for number in range(options.rounds):
        began = time.perf_counter()
        num_events, num_days = _live(options.events)
        took = time.perf_counter() - began
        ours, seconds = max(ours, num_events / took), min(seconds, took)
        began = time.perf_counter()
        _, frame = _Peer(shop).answer(_Peer(shop).slates(day))
        peer = max(peer, frame.height / (time.perf_counter() - began))
        say(f"round {number + 1}: {num_events} events of {num_days} days in {took:.1f} s; peer {peer:,.0f} events/s")
    report(
        benchmark="simulator",
        ours=round(ours),
        peer=round(peer),
        peer_name="one event at a time in plain Python",
        ratio=round(ours / peer, 2),
        unit="events/s",
        seconds=round(seconds, 2),
        num_events=num_events,
    )


def _compare(shop: Shop, day: DayLog) -> None:
    ours = day.summary["expected_click_rate"] * day.summary["impressions"]
    shown = day.interactions.filter(pl.col("event_type") == "impression")
    same, frame = _Peer(shop).answer(shown.iter_rows(named=True))
    own, _ = _Peer(shop).answer(_Peer(shop).slates(day))
    clicks = frame.filter(pl.col("event_type") == "click").height
    say(f"expected clicks on the same slates {ours:.3f} and {same:.3f}, on the peer's own {own:.0f}; drawn {clicks}")
    if not math.isclose(ours, same, rel_tol=1e-4):
        raise SystemExit(f"answers differ: expected clicks {ours} here, {same} one event at a time")
    if abs(own - ours) > 0.08 * ours or abs(clicks - ours) > 5 * math.sqrt(ours):
        raise SystemExit(f"answers differ: {ours} expected clicks, the peer's slates give {own}, its draws {clicks}")


class _Peer:
    """One day of a shop, one event at a time."""

    def __init__(self, shop: Shop) -> None:
        world, memory = shop.world, shop.memory
        self.config, self.draw = shop.config, random.Random(1)
        self.midnight = world.midnight(PEER_DAY)
        self.taste, self.vector = world.tastes(PEER_DAY).tolist(), world.items.vector.tolist()
        self.appeal, self.arrival = world.items.appeal.tolist(), world.items.arrival.tolist()
        self.discounted, self.shelf = world.discount(PEER_DAY).tolist(), world.items.shelf.tolist()
        self.stock = shop.stock(shop.config.start + timedelta(days=PEER_DAY))
        self.popularity = memory.popularity(self.midnight, shop.config.popularity_days, shop.num_items).tolist()
        self.history: dict[tuple[str, str], list[tuple[int, bool]]] = {}
        self.clicked: dict[str, set[int]] = {}
        columns = [column.tolist() for column in (memory.user, memory.item, memory.moment, memory.kind)]
        for user, item, moment, kind in zip(*columns, strict=True):
            self.history.setdefault((f"u{user:06d}", f"i{item:06d}"), []).append((moment, kind == PURCHASE))
            if moment < self.midnight:
                self.clicked.setdefault(f"u{user:06d}", set()).add(item)
        self.related = liking(np.eye(len(SHELVES), dtype=np.int64)).tolist()

    def slates(self, day: DayLog) -> Iterator[Row]:
        """A slate for each request of the day, slot by slot."""
        k, requests = self.config.slate_size, day.interactions.unique("request_id", keep="first", maintain_order=True)
        strata_of_hour: dict[int, list[list[int]]] = {}
        for request in requests.iter_rows(named=True):
            hour = _micros(request["event_timestamp"]) // HOUR * HOUR
            if hour not in strata_of_hour:
                strata_of_hour[hour] = self._strata(hour, k)
            likes = [0.0] * len(SHELVES)
            for item in self.clicked.get(request["user_id"], ()):
                for shelf, share in enumerate(self.related[self.shelf[item]]):
                    likes[shelf] += share
            order = self.draw.sample(strata_of_hour[hour], k)
            for position, stratum in enumerate(order):
                popular = [(self.popularity[item] + 1) ** 0.8 for item in stratum]
                liked = [likes[self.shelf[item]] for item in stratum]
                if not any(liked):
                    liked = popular
                all_popular, all_liked = sum(popular), sum(liked)
                chance = [
                    POPULAR * p / all_popular + PERSONAL * q / all_liked + UNIFORM / len(stratum)
                    for p, q in zip(popular, liked, strict=True)
                ]
                place = self.draw.choices(range(len(stratum)), chance)[0]
                item_id, propensity = f"i{stratum[place]:06d}", chance[place] / k
                yield request | {"item_id": item_id, "position": position, "propensity": propensity}

    def answer(self, shown: Iterable[Row]) -> tuple[float, pl.DataFrame]:
        """Expected clicks on these slots, and the rows of what happened."""
        expected, rows, draw = 0.0, [], self.draw
        for row in shown:
            chance = self._click_probability(row)
            expected += chance
            rows.append(_row(row, "impression", 0.0, draw))
            if draw.random() < chance:
                rows.append(_row(row, "click", 2 + draw.expovariate(1 / 3), draw))
                rows.append(_row(row, "dwell", 2 + draw.lognormvariate(3, 0.7), draw))
                if draw.random() < 0.3:
                    rows.append(_row(row, "cart", 40, draw))
                    if draw.random() < 0.4:
                        rows.append(_row(row, "purchase", 200, draw))
        return expected, pl.DataFrame(rows).sort("event_timestamp", "request_id", "position")

    def _click_probability(self, row: Row) -> float:
        config, item = self.config, int(row["item_id"][1:])
        moment = _micros(row["event_timestamp"])
        hour = moment - moment % HOUR
        taste, vector = self.taste[int(row["user_id"][1:])], self.vector[item]
        logit = config.base_logit + self.appeal[item] + DISCOUNT_LOGIT * self.discounted[item]
        logit += sum(a * b for a, b in zip(taste, vector, strict=True))
        logit += config.newness_boost * math.exp(-max(hour - self.arrival[item], 0) / DAY / NEWNESS_DAYS)
        chance = (1 + row["position"]) ** -config.position_decay / (1 + math.exp(-logit))
        before = [bought for at, bought in self.history.get((row["user_id"], row["item_id"]), []) if at < hour]
        if before:
            chance *= config.purchased_satiation if any(before) else config.clicked_satiation
        return chance

    def _strata(self, hour: int, k: int) -> list[list[int]]:
        offered = [n for n, item in enumerate(self.stock) if self.stock[item] and self.arrival[n] <= hour]
        offered.sort(key=lambda item: -self.popularity[item])
        strata: list[list[int]] = [[] for _ in range(k)]
        for rank, item in enumerate(offered):
            place = rank % k
            strata[place if rank // k % 2 == 0 else k - 1 - place].append(item)
        return strata


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _row(shown: Row, event_type: str, after: float, draw: random.Random) -> Row:
    moment = shown["event_timestamp"] + timedelta(seconds=after)
    known = moment + timedelta(seconds=draw.expovariate(1 / 3))
    return shown | {"event_type": event_type, "event_timestamp": moment, "created_timestamp": known}


def _lived() -> tuple[Shop, DayLog]:
    shop = Shop(ShopConfig())
    policy = warmup_policy(shop, POPULAR, PERSONAL)
    return shop, [shop.day(shop.today, policy) for _ in range(PEER_DAY + 1)][-1]


def _live(num_events: int) -> tuple[int, int]:
    shop = Shop(ShopConfig())
    policy, lived, days = warmup_policy(shop, POPULAR, PERSONAL), 0, 0
    while lived < num_events:
        lived += shop.day(shop.today, policy).interactions.height
        days += 1
    return lived, days
