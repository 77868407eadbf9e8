"""Views whose rows follow from a state and the events since: computed by partitions, the state kept between nights.

A state is a frame (see `time_statistics` and `user_features.SequenceState`) that says all that must be remembered of
the events known at a midnight. It lies at `features/states/<token>/<view>.parquet`; the token names everything that it
was computed from, so a state can never be taken for another one, and `features/state.json` says which one holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from evensong.data import storage
from evensong.features.item_features import item_conversion
from evensong.features.time_statistics import MARKS, StatisticsState
from evensong.features.transformations import with_known
from evensong.features.user_features import SequenceState, user_dynamics, user_sequence
from evensong.settings import FeatureSettings
from evensong.types import Frame

BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
FOLDER = "states"

#: From events, a state and a moment to the rows up to it, and the state at it.
Step = Callable[[Frame, Frame | None, datetime, datetime], tuple[Frame, Frame]]


@dataclass(frozen=True)
class Held:
    """A view's state at a moment; no frame before the first event."""

    state: Frame | None
    until: datetime


@dataclass(frozen=True)
class StatefulView:
    """How one view goes on."""

    name: str
    entity: str
    state_key: str
    """The state's column that names the entity."""
    step: Step

    def rows(
        self, events: Frame, held: Held, *, since: datetime | None, until: datetime, partition_events: int
    ) -> Iterator[tuple[Frame, Frame]]:
        """Rows stamped after `since` and up to `until`, and the state at the last midnight, a partition at a time.

        Args:
            events: at least those that became known after the state; the view's function picks its own.
            held: the state to go on from, not later than `since`.
            partition_events: bounds the events, or the entries of the state, of one partition.
        """
        events = with_known(events).filter((pl.col("known") > held.until) & (pl.col("known") <= until)).drop("known")
        midnight = max(_midnight(until), held.until)
        for entities in self._partitions(events, held.state, partition_events):
            part = events.join(entities, on=self.entity, how="semi", maintain_order="left")
            before = held.state
            if before is not None:
                names = entities[self.entity].implode()
                before = before.filter(pl.col(self.state_key).is_in(names))
            rows, state = self.step(part, before, held.until, midnight)
            if midnight < until:
                later, _ = self.step(part, state, midnight, until)
                rows = pl.concat([rows, later])
            if since is not None:
                rows = rows.filter(pl.col("event_timestamp") > since)
            yield rows.sort("event_timestamp", self.entity), state

    def _partitions(self, events: Frame, state: Frame | None, size: int) -> Iterator[Frame]:
        named = [events.select(self.entity)]
        if state is not None:
            named.append(state.select(pl.col(self.state_key).alias(self.entity)))
        sizes = pl.concat(named).group_by(self.entity).len().sort(self.entity)
        sizes = sizes.with_columns((pl.col("len").cum_sum() // size).alias("partition"))
        yield from (part.select(self.entity) for part in sizes.partition_by("partition", maintain_order=True))


def stateful_views(items: Frame, settings: FeatureSettings) -> list[StatefulView]:
    """The views that carry a state, over this items table."""

    def dynamics(events: Frame, state: Frame | None, at: datetime, until: datetime) -> tuple[Frame, Frame]:
        rows, new = user_dynamics(
            events,
            items,
            state=_statistics(state, at),
            half_life_days=settings.half_life_days,
            num_top_categories=settings.num_top_categories,
            until=until,
        )
        return rows, new.marks

    def sequence(events: Frame, state: Frame | None, at: datetime, until: datetime) -> tuple[Frame, Frame]:
        before = None if state is None else SequenceState(state, at)
        rows, new = user_sequence(events, items, state=before, length=settings.sequence_length, until=until)
        return rows, new.events

    def conversion(events: Frame, state: Frame | None, at: datetime, until: datetime) -> tuple[Frame, Frame]:
        before = _statistics(state, at)
        rows, new = item_conversion(events, state=before, half_life_days=settings.half_life_days, until=until)
        return rows, new.marks

    return [
        StatefulView("user_dynamics", "user_id", "entity", dynamics),
        StatefulView("user_sequence", "user_id", "user_id", sequence),
        StatefulView("item_conversion", "item_id", "entity", conversion),
    ]


def load(lake_uri: str, token: str, view: str) -> Frame | None:
    """A state that was kept; None where it was not."""
    uri = _place(lake_uri, token, view)
    return storage.read_frame(uri) if storage.exists(uri) else None


def keep(lake_uri: str, token: str, view: str, states: list[Frame]) -> None:
    """Keep the state of all partitions, whole or not at all."""
    if states:
        storage.write_frame(_place(lake_uri, token, view), pl.concat(states))


def forget_others(lake_uri: str, token: str) -> None:
    """Remove the states of other tokens."""
    folder = storage.join(lake_uri, "features", FOLDER)
    for uri in storage.list_files(folder):
        if f"/{FOLDER}/{token}/" not in uri:
            storage.remove(uri)


def _statistics(marks: Frame | None, at: datetime) -> StatisticsState | None:
    if marks is None:
        return None
    return StatisticsState(marks.select(MARKS.keys()), at)


def _place(lake_uri: str, token: str, view: str) -> str:
    return storage.join(lake_uri, "features", FOLDER, token, f"{view}.parquet")


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
