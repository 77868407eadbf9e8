"""The simulated world itself, before anything is sold in it: items, users, tastes and arrivals as functions of the
config.

Nothing here depends on what the shop shows: the same config gives the same world whatever the policy. Every random draw
comes from a stream named by its purpose and its day, so no draw depends on how often or in what order days are asked
for.

Axes: U users, I items, L shelves, D latent dimensions, E = D + 1 (the last one is price), F favourite shelves,
S sessions, R requests. Times inside are int64 microseconds since the epoch, UTC.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, fields
from datetime import datetime, time, timedelta
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from evensong.data.simulator import words
from evensong.data.simulator.config import ShopConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Generator = np.random.Generator
Names = NDArray[np.object_]

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR

#: Visits by weekday, Monday first, and by hour for people of the day and people of the evening.
WEEKDAY_FACTORS = np.array([0.90, 0.86, 0.90, 0.94, 1.04, 1.22, 1.14])
DAY_HOURS = np.array([1, 1, 1, 1, 1, 2, 5, 9, 12, 13, 13, 14, 17, 14, 12, 12, 12, 12, 11, 9, 7, 5, 3, 2], dtype=float)
EVENING_HOURS = np.array([6, 3, 2, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 7, 7, 8, 9, 11, 14, 19, 23, 23, 18, 11], dtype=float)


@dataclass(frozen=True)
class Items:
    """Everything fixed about the items, in order of their number; arrays of one length I."""

    shelf: Ints
    vector: NDArray[np.float32]
    """(I, E): the latent vector scaled by the strength of taste, then the price rank in the shelf, scaled."""
    appeal: Floats
    """Logits that an item gains with everybody."""
    price: Floats
    arrival: Ints
    stock: Ints
    """Pieces at arrival, and after every restock."""
    brand: Ints
    quality: Ints
    colour: Ints

    def __len__(self) -> int:
        return len(self.shelf)


@dataclass(frozen=True)
class Users:
    """Everything fixed about the users, in order of their number; arrays of one length U."""

    segment: Ints
    weight: Floats
    """(U, F): how much each favourite shelf counts."""
    wander: Floats
    """(U, 2, D): the plane in which the rest of a taste turns."""
    phase: Floats
    budget: Floats
    rate: Floats
    """Sessions on an average day."""
    evening: Floats
    """Share of visits that follow the evening's rhythm."""
    signup: Ints
    age: Ints
    gender: Ints
    city: Ints
    level: Ints

    def __len__(self) -> int:
        return len(self.segment)


@dataclass(frozen=True)
class Schedule:
    """The requests of one day in order of time."""

    user: Ints
    moment: Ints
    session: Ints
    """Number of the session in the day."""

    def __len__(self) -> int:
        return len(self.user)


class World:
    """The world of one config. Grows by the day's new users and items as it is asked about later days."""

    def __init__(self, config: ShopConfig) -> None:
        self.config = config
        self.opening = to_micros(datetime.combine(config.start, time()))
        rng = self.stream("tree")
        self._shelf_vectors_LD = _tree_vectors(rng, config.dimension)
        self._brand_vectors_BD = _unit(rng.normal(size=(len(words.BRANDS), config.dimension)))
        self.shelf_popularity_L = np.exp(rng.normal(0, config.shelf_spread, size=len(words.SHELVES)))
        self._shelf_price_L = np.exp(rng.normal(3.3, 0.6, size=len(words.SHELVES)))
        self._favourites: list[Ints] = []
        self._tastes: dict[int, NDArray[np.float32]] = {}
        self._discounts: dict[int, NDArray[np.bool_]] = {}
        self.item_numbers: dict[str, int] = {}
        self.user_numbers: dict[str, int] = {}
        self.item_ids: Names = _names("i", 0)
        self.user_ids: Names = _names("u", 0)
        self.items, self.users = self._new_items(0), self._new_users(0)
        self._last_day = 0
        self._favourites.append(self._drifted(0))
        self.grow(0)

    def stream(self, purpose: str, *numbers: int) -> Generator:
        """The generator of one purpose: the same purpose and numbers give the same draws."""
        return np.random.default_rng([self.config.seed, zlib.crc32(purpose.encode()), *numbers])

    def midnight(self, day: int) -> int:
        """The first moment of a day, days counted from the shop's first."""
        return self.opening + day * DAY

    def grow(self, day: int) -> None:
        """Let the users and items of every day up to this one exist."""
        while self._last_day < day:
            self._last_day += 1
            items, users = self._new_items(self._last_day), self._new_users(self._last_day)
            self.items, self.users = _joined(self.items, items), _joined(self.users, users)
            self._favourites.append(self._drifted(self._last_day))
        if len(self.item_ids) != len(self.items):
            self.item_ids = _names("i", len(self.items))
            self.item_numbers = {name: number for number, name in enumerate(self.item_ids)}
        if len(self.user_ids) != len(self.users):
            self.user_ids = _names("u", len(self.users))
            self.user_numbers = {name: number for number, name in enumerate(self.user_ids)}

    def num_items(self, day: int) -> int:
        """Items that exist by the end of a day."""
        return self.config.num_items + (day + 1) * self.config.new_items_per_day

    def num_users(self, day: int) -> int:
        """Users who exist by the end of a day."""
        return self.config.num_users + (day + 1) * self.config.new_users_per_day

    def tastes(self, day: int) -> NDArray[np.float32]:
        """(U, E): what each user likes on a day; the last column is their budget, against the items' price ranks.

        A taste is a unit vector: the user's favourite shelves, weighted, and a part that turns once in 90 days.
        Favourites give way to other shelves by chance, `drift_per_day`.
        """
        if day not in self._tastes:
            if len(self._tastes) > 8:
                self._tastes.pop(next(iter(self._tastes)))
            self._tastes[day] = self._taste_on(day)
        return self._tastes[day]

    def discount(self, day: int) -> NDArray[np.bool_]:
        """(I,): which items are on discount; one begins on a morning and lasts a week."""
        self.grow(day)
        if day not in self._discounts or len(self._discounts[day]) != len(self.items):
            on = np.zeros(len(self.items), dtype=bool)
            for begun in range(max(0, day - 6), day + 1):
                on |= self.stream("discount", begun).random(len(self.items)) < self.config.discount_chance
            self._discounts = {at: known for at, known in self._discounts.items() if abs(at - day) < 8} | {day: on}
        return self._discounts[day]

    def price(self, day: int) -> Floats:
        """(I,): what each item costs on a day."""
        return np.where(self.discount(day), np.round(self.items.price * 0.8, 2), self.items.price)

    def restocked(self, day: int) -> NDArray[np.bool_]:
        """(I,): which items are filled up on a morning if they were sold out."""
        self.grow(day)
        return self.stream("restock", day).random(len(self.items)) < self.config.restock_chance

    def schedule(self, day: int) -> Schedule:
        """Who asks for a slate on a day, and when: by the weekday, the hours, and each user's own rate.

        The last session starts at half past eleven at the latest, so that everything it brings falls on the same day.
        """
        self.grow(day)
        rng = self.stream("schedule", day)
        users, midnight = self.users, self.midnight(day)
        weekday = (self.config.start + timedelta(days=day)).weekday()
        num_users = self.num_users(day)
        count_U = rng.poisson(users.rate[:num_users] * WEEKDAY_FACTORS[weekday])
        is_new_U = users.signup[:num_users] >= midnight
        count_U = np.where(is_new_U, 1, count_U)  # who signs up looks around at once
        user_S = np.repeat(np.arange(num_users), count_U)
        start_S = midnight + self._session_starts(rng, users.evening[user_S])
        start_S = np.where(is_new_U[user_S], users.signup[user_S] + 60 * SECOND, start_S)
        session_S = np.empty(len(user_S), dtype=np.int64)
        session_S[np.lexsort((user_S, start_S))] = np.arange(len(user_S))

        requests_S = 1 + rng.binomial(2, (self.config.requests_per_session - 1) / 2, size=len(user_S))
        row_R = np.repeat(np.arange(len(user_S)), requests_S)
        ordinal_R = np.arange(len(row_R)) - np.repeat(np.cumsum(requests_S) - requests_S, requests_S)
        gap_R = rng.integers(60 * SECOND, 240 * SECOND, size=len(row_R))
        moment_R = start_S[row_R] + ordinal_R * 240 * SECOND + gap_R
        order = np.lexsort((user_S[row_R], moment_R))
        return Schedule(user_S[row_R][order], moment_R[order], session_S[row_R][order])

    def title(self, item: int) -> str:
        """An item's title, made from its brand and its category's words."""
        items = self.items
        _, aisle, shelf = words.SHELVES[items.shelf[item]]
        return (
            f"{words.BRANDS[items.brand[item]]} {words.QUALITIES[items.quality[item]]} "
            f"{aisle} {shelf}, {words.COLOURS[items.colour[item]]}"
        )

    def item_attributes(self, item: int, stock: int, discounted: bool) -> str:
        """An item's attributes as a JSON object."""
        return json.dumps(
            {
                "brand": words.BRANDS[self.items.brand[item]],
                "colour": words.COLOURS[self.items.colour[item]],
                "discounted": discounted,
                "stock": stock,
            }
        )

    def user_attributes(self, user: int, level: int) -> str:
        """A user's attributes as a JSON object."""
        users = self.users
        return json.dumps(
            {
                "age": int(users.age[user]),
                "city": words.CITIES[users.city[user]],
                "gender": words.GENDERS[users.gender[user]],
                "membership_level": words.LEVELS[level],
            }
        )

    def _taste_on(self, day: int) -> NDArray[np.float32]:
        self.grow(day)
        favourite_UF = self._favourites[day]
        num_users = len(favourite_UF)
        angle_U = self.users.phase[:num_users] + 2 * np.pi * day / 90
        turn_U2 = np.stack([np.cos(angle_U), np.sin(angle_U)], axis=1)
        liked_UD = (self._shelf_vectors_LD[favourite_UF] * self.users.weight[:num_users, :, None]).sum(axis=1)
        wander_UD = (self.users.wander[:num_users] * turn_U2[:, :, None]).sum(axis=1)
        taste_UD = _unit(_unit(liked_UD) + 0.35 * wander_UD)
        return np.concatenate([taste_UD, self.users.budget[:num_users, None]], axis=1).astype(np.float32)

    def _drifted(self, day: int) -> Ints:
        """(U, F): the favourite shelves on a day, from those of the day before."""
        fresh_UF = self._favourite_draws(self.stream("favourites", day), self.users.segment)
        if day == 0:
            return fresh_UF
        before_UF = self._favourites[day - 1]
        rng = self.stream("drift", day)
        gives_way_UF = rng.random(before_UF.shape) < self.config.drift_per_day
        return np.concatenate(
            [np.where(gives_way_UF, fresh_UF[: len(before_UF)], before_UF), fresh_UF[len(before_UF) :]]
        )

    def _favourite_draws(self, rng: Generator, segment_U: Ints) -> Ints:
        """Shelves by popularity, three times likelier in the department that a user's segment leans to."""
        num_departments = len(words.DEPARTMENTS)
        department_L = np.array([words.DEPARTMENTS.index(department) for department, _, _ in words.SHELVES])
        lean_GD = 1 + 4 * np.eye(num_departments) + 2 * np.eye(num_departments, k=1)
        weight_GL = lean_GD[:, department_L] * self.shelf_popularity_L
        cdf_GL = np.cumsum(weight_GL / weight_GL.sum(axis=1, keepdims=True), axis=1)
        draw_UF = rng.random((len(segment_U), self.config.favourites_per_user))
        favourite_UF = np.empty(draw_UF.shape, dtype=np.int64)
        for segment in range(num_departments):
            mine = segment_U == segment
            favourite_UF[mine] = np.searchsorted(cdf_GL[segment], draw_UF[mine])
        return np.minimum(favourite_UF, len(words.SHELVES) - 1)

    def _session_starts(self, rng: Generator, evening_S: Floats) -> Ints:
        """Microseconds after midnight."""
        in_evening_S = rng.random(len(evening_S)) < evening_S
        draw_S = rng.random(len(evening_S))
        by_day = np.searchsorted(np.cumsum(DAY_HOURS / DAY_HOURS.sum()), draw_S)
        by_evening = np.searchsorted(np.cumsum(EVENING_HOURS / EVENING_HOURS.sum()), draw_S)
        hour_S = np.minimum(np.where(in_evening_S, by_evening, by_day), 23)
        within_S = rng.random(len(evening_S)) * np.where(hour_S == 23, 0.5, 1.0)
        return (hour_S * HOUR + within_S * HOUR).astype(np.int64)

    def _new_items(self, day: int) -> Items:
        rng, config = self.stream("items", day), self.config
        num = config.num_items + config.new_items_per_day if day == 0 else config.new_items_per_day
        weight_L = np.sqrt(self.shelf_popularity_L)
        shelf = rng.choice(len(words.SHELVES), size=num, p=weight_L / weight_L.sum())
        brand = rng.integers(len(words.BRANDS), size=num)
        own = _unit(rng.normal(size=(num, config.dimension)))
        vector = _unit(self._shelf_vectors_LD[shelf] + 0.35 * self._brand_vectors_BD[brand] + 0.30 * own)
        price_rank = rng.normal(size=num)
        appeal = rng.normal(0, config.appeal_spread, size=num)
        arrival = self.midnight(day) + (5 * HOUR + rng.random(num) * 4 * HOUR).astype(np.int64)
        if day == 0:
            old = self.opening - (rng.exponential(120, size=num) * DAY).astype(np.int64) - HOUR
            arrival = np.where(np.arange(num) < config.num_items, old, arrival)
        stock = 1 + rng.poisson(config.mean_stock * np.exp(0.5 * appeal))
        return Items(
            shelf=shelf,
            vector=np.concatenate(
                [config.taste_strength * vector, config.price_strength * price_rank[:, None]], axis=1
            ).astype(np.float32),
            appeal=appeal,
            price=np.round(np.maximum(self._shelf_price_L[shelf] * np.exp(0.35 * price_rank), 1.0), 2),
            arrival=arrival,
            stock=stock,
            brand=brand,
            quality=rng.integers(len(words.QUALITIES), size=num),
            colour=rng.integers(len(words.COLOURS), size=num),
        )

    def _new_users(self, day: int) -> Users:
        rng, config = self.stream("users", day), self.config
        num = config.num_users + config.new_users_per_day if day == 0 else config.new_users_per_day
        segment = rng.integers(len(words.DEPARTMENTS), size=num)
        signup = self.midnight(day) + (8 * HOUR + rng.random(num) * 12 * HOUR).astype(np.int64)
        if day == 0:
            old = self.opening - (rng.random(num) * 700 * DAY).astype(np.int64) - HOUR
            signup = np.where(np.arange(num) < config.num_users, old, signup)
        is_woman = rng.random(num) < 0.25 + 0.5 * (segment % 2)
        return Users(
            segment=segment,
            weight=rng.dirichlet(np.full(config.favourites_per_user, 4.0), size=num),
            wander=_unit(rng.normal(size=(num, 2, config.dimension))),
            phase=rng.random(num) * 2 * np.pi,
            budget=rng.normal(size=num),
            rate=rng.gamma(1.5, config.sessions_per_user_day / 1.5, size=num),
            evening=rng.beta(1.5, 1.5, size=num),
            signup=signup,
            age=np.clip(np.round(rng.normal(22 + 5 * segment, 6)), 16, 85).astype(np.int64),
            gender=np.where(rng.random(num) < 0.03, 2, np.where(is_woman, 0, 1)),
            city=rng.integers(len(words.CITIES), size=num),
            level=np.searchsorted([0.75, 0.94], rng.random(num)),
        )


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch; a time without a zone is UTC."""
    return int(np.datetime64(moment.replace(tzinfo=None) - (moment.utcoffset() or timedelta()), "us").astype(np.int64))


def _tree_vectors(rng: Generator, dimension: int) -> Floats:
    """(L, D): shelves of one aisle are alike, aisles of one department a little less."""
    department_D = {name: _unit(rng.normal(size=dimension)) for name in words.TREE}
    aisle_D = {(name, aisle): _unit(rng.normal(size=dimension)) for name in words.TREE for aisle in words.TREE[name]}
    own_LD = _unit(rng.normal(size=(len(words.SHELVES), dimension)))
    rows = [
        0.65 * department_D[department] + 0.55 * aisle_D[department, aisle] + 0.55 * own_D
        for (department, aisle, _), own_D in zip(words.SHELVES, own_LD, strict=True)
    ]
    return _unit(np.array(rows))


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


T = TypeVar("T", Items, Users)


def _joined(older: T, newer: T) -> T:
    return type(older)(
        **{f.name: np.concatenate([getattr(older, f.name), getattr(newer, f.name)]) for f in fields(older)}
    )


def _names(letter: str, number: int) -> Names:
    return np.array([f"{letter}{n:06d}" for n in range(number)], dtype=object)
