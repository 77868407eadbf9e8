"""What a simulated shop has seen so far: its clicks, carts and purchases, and what follows from them at any moment.

All of the shop's state that depends on its policy follows from these events, so it is never saved: a shop that is
started again reads the days it has written. A question about a moment is answered from the events before that moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evensong.data.simulator.world import DAY, Ints

#: What happens in a shop; a kind is a place in it.
EVENT_TYPES = ("impression", "click", "cart", "purchase", "dwell")
IMPRESSION, CLICK, CART, PURCHASE, DWELL = range(5)


@dataclass(frozen=True)
class Seen:
    """Which users have clicked or bought which items before a moment: P distinct pairs, sorted by user, then item."""

    key: Ints
    purchased: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def of(self, user_B: Ints) -> tuple[Ints, Ints, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        """Row in `user_B`, item and whether it was bought, for every pair of these users."""
        first_B = np.searchsorted(self.key, user_B << 32)
        num_B = np.searchsorted(self.key, (user_B + 1) << 32) - first_B
        row = np.repeat(np.arange(len(user_B)), num_B)
        place = np.arange(len(row)) - np.repeat(np.cumsum(num_B) - num_B, num_B) + first_B[row]
        return row, self.key[place] & 0xFFFFFFFF, self.purchased[place]


class Memory:
    """The positive events of a shop in order of time."""

    def __init__(self) -> None:
        self.user: Ints = np.empty(0, dtype=np.int64)
        self.item: Ints = np.empty(0, dtype=np.int64)
        self.moment: Ints = np.empty(0, dtype=np.int64)
        self.kind: Ints = np.empty(0, dtype=np.int64)
        self._seen: dict[int, tuple[int, Seen]] = {}

    def add(self, user: Ints, item: Ints, moment: Ints, kind: Ints) -> None:
        """Take in events; they may come in any order."""
        if not len(user):
            return
        # what was answered about moments up to the first of these events still holds
        first = int(moment.min())
        self._seen = {at: known for at, known in self._seen.items() if at <= first}
        start = int(np.searchsorted(self.moment, first))  # only the tail can be out of order
        columns = [
            np.concatenate([old[start:], new])
            for old, new in ((self.moment, moment), (self.user, user), (self.item, item), (self.kind, kind))
        ]
        order = np.lexsort(tuple(reversed(columns)))
        tail = [column[order] for column in columns]
        self.moment = np.concatenate([self.moment[:start], tail[0]])
        self.user = np.concatenate([self.user[:start], tail[1]])
        self.item = np.concatenate([self.item[:start], tail[2]])
        self.kind = np.concatenate([self.kind[:start], tail[3]])

    def num_before(self, moment: int) -> int:
        """Events strictly before a moment."""
        return int(np.searchsorted(self.moment, moment))

    def popularity(self, moment: int, days: int, num_items: int) -> Ints:
        """(I,): events of each item in the days before a moment."""
        window = slice(self.num_before(moment - days * DAY), self.num_before(moment))
        return np.bincount(self.item[window], minlength=num_items)[:num_items]

    def shelf_counts(self, moment: int, user_B: Ints, shelf_of_item: Ints, num_shelves: int) -> Ints:
        """(B, L): items on each shelf that each of these users has clicked or bought before a moment."""
        row, item, _ = self.seen(moment).of(user_B)
        flat = np.bincount(row * num_shelves + shelf_of_item[item], minlength=len(user_B) * num_shelves)
        return flat.reshape(len(user_B), num_shelves)

    def count(self, kind: int, moment: int, num_users: int) -> Ints:
        """(U,): each user's events of a kind before a moment."""
        end = self.num_before(moment)
        return np.bincount(self.user[:end][self.kind[:end] == kind], minlength=num_users)[:num_users]

    def seen(self, moment: int) -> Seen:
        """The pairs of users and items with an event before a moment."""
        if moment in self._seen:
            self._seen[moment] = self._seen.pop(moment)  # the least recently asked for goes first
            return self._seen[moment][1]
        earlier = [at for at in self._seen if at < moment]
        start, known = self._seen[max(earlier)] if earlier else (0, None)
        end = self.num_before(moment)
        key = (self.user[start:end] << 32) | self.item[start:end]
        purchased = self.kind[start:end] == PURCHASE
        if known is not None:
            key, purchased = np.concatenate([known.key, key]), np.concatenate([known.purchased, purchased])
        order = np.argsort(key, kind="stable")
        key, purchased = key[order], purchased[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        answer = Seen(key[first], np.logical_or.reduceat(purchased, first) if len(first) else purchased)
        if len(self._seen) >= 4:
            self._seen.pop(next(iter(self._seen)))
        self._seen[moment] = (end, answer)
        return answer
