"""Views of events, computed by partitions of their entities, each going on from the state that it was left with.

The states of a view lie at `features/states/<view>/<token>/`: a file a partition and part, and `index.json`, which is
written last. A token names everything that the states were computed from, so none can be taken for another one;
`features/state.json` says which one holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.features.declarations import View
from evensong.features.state import BEGINNING, ViewState, arriving, midnight_before
from evensong.types import Frame

FOLDER, INDEX = "states", "index.json"


@dataclass(frozen=True)
class Kept:
    """The states of one view at a midnight, or none before the first event."""

    folder: str | None = None
    until: datetime = BEGINNING
    firsts: tuple[str, ...] = ()
    """Of each partition: its first entity; it reaches up to the next one's. The first partition begins before all."""
    parts: tuple[str, ...] = ()

    @classmethod
    def find(cls, lake_uri: str, view: str, token: str | None, until: datetime) -> Kept | None:
        """What was kept under the token; none where it is not there, or stands for another moment."""
        if token is None:
            return None
        folder = place(lake_uri, view, token)
        index = storage.join(folder, INDEX)
        if not storage.exists(index):
            return None
        said = storage.read_json(index)
        if datetime.fromisoformat(said["until"]) != until:
            return None
        return cls(folder, until, tuple(said["firsts"]), tuple(said["parts"]))

    def state(self, number: int) -> ViewState | None:
        """The state of one partition."""
        if self.folder is None:
            return None
        uris = {part: _file(self.folder, number, part) for part in self.parts}
        return ViewState({part: storage.read_frame(uri) for part, uri in uris.items()}, self.until)


@dataclass
class Keeper:
    """Writes the states of one view as they come, in partitions of about so many rows."""

    folder: str
    until: datetime
    entity: str
    num_rows: int
    firsts: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    _waiting: list[tuple[str, ViewState]] = field(default_factory=list)

    def add(self, first: str, state: ViewState) -> None:
        """Keep the state of the next partition."""
        self._waiting.append((first, state))
        if sum(rows.height for _, state in self._waiting for rows in state.parts.values()) >= self.num_rows:
            self._write()

    def finish(self) -> None:
        """Let them count."""
        self._write()
        said = {"until": self.until.isoformat(), "firsts": self.firsts, "parts": self.parts}
        storage.write_json(storage.join(self.folder, INDEX), said)

    def _write(self) -> None:
        if not self._waiting:
            return
        first, states = self._waiting[0][0], [state for _, state in self._waiting]
        self._waiting = []
        whole = {part: pl.concat([state.parts[part] for state in states]) for part in states[0].parts}
        self.parts = list(whole)
        for begin, parts in _cut(first, whole, self.entity, self.num_rows):
            for part, rows in parts.items():
                storage.write_frame(_file(self.folder, len(self.firsts), part), rows)
            self.firsts.append(begin)


def advance(
    view: View,
    events: Frame,
    kept: Kept,
    keeper: Keeper | None,
    arguments: Mapping[str, Any],
    *,
    since: datetime | None,
    until: datetime,
    partition_events: int,
) -> Iterator[Frame]:
    """The view's rows stamped after `since` and up to `until`, a partition at a time; a keeper gets the states.

    Args:
        events: the view's input, at least the events that became known after what is kept.
        kept: the states to go on from, not later than `since`.
    """
    events = arriving(events, kept.until, until).drop("known")
    midnight = max(midnight_before(until), kept.until)
    firsts = kept.firsts or tuple(_firsts(events[view.entity], partition_events))
    numbers = _numbers(events[view.entity], firsts)
    for number, first in enumerate(firsts):
        part = events.filter(numbers == number)
        state = kept.state(number)
        rows, state = view.function(part, state=state, since=since, until=midnight, **arguments)
        if midnight < until:
            later, _ = view.function(part, state=state, since=since, until=until, **arguments)
            rows = pl.concat([rows, later])
        if keeper:
            keeper.add(first, state)
        yield rows.sort("event_timestamp", view.entity)
    if keeper:
        keeper.finish()


def place(lake_uri: str, view: str, token: str) -> str:
    """The folder of a view's states."""
    return storage.join(lake_uri, "features", FOLDER, view, token)


def forget_others(lake_uri: str, tokens: Mapping[str, str]) -> None:
    """Remove all states but those of each view's token."""
    held = {place(lake_uri, view, token) for view, token in tokens.items()}
    whole = storage.join(lake_uri, "features", FOLDER)
    folders = {uri.rpartition("/")[0] for uri in storage.list_files(whole)}
    for folder in folders - held - {whole}:
        storage.remove_folder(folder)


def _file(folder: str, number: int, part: str) -> str:
    return storage.join(folder, f"{number:04}-{part}.parquet")


def _firsts(entities: pl.Series, size: int) -> list[str]:
    """The first entity of each partition of about so many rows; the first of all begins before any."""
    sizes = entities.alias("entity").to_frame().group_by("entity").len().sort("entity")
    number = sizes["len"].cum_sum() // size
    return ["", *sizes.filter((number != number.shift(1)).fill_null(False))["entity"]]


def _numbers(entities: pl.Series, firsts: Sequence[str]) -> pl.Series:
    """The partition of each row."""
    rows = entities.alias("entity").to_frame()
    distinct = rows.unique().sort("entity")
    number = pl.Series("number", firsts[1:], dtype=pl.String).search_sorted(distinct["entity"], side="right")
    places = distinct.with_columns(number.cast(pl.UInt32).alias("number"))
    return rows.join(places, on="entity", how="left", maintain_order="left")["number"]


def _cut(first: str, parts: Mapping[str, Frame], entity: str, size: int) -> Iterator[tuple[str, Mapping[str, Frame]]]:
    if sum(rows.height for rows in parts.values()) <= 2 * size:
        yield first, parts
        return
    firsts = _firsts(pl.concat([rows[entity] for rows in parts.values()]), size)
    numbers = {part: _numbers(rows[entity], firsts) for part, rows in parts.items()}
    for number, begin in enumerate(firsts):
        yield begin or first, {part: rows.filter(numbers[part] == number) for part, rows in parts.items()}
