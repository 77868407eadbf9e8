"""How a feature view is declared: one value from which its table, Feast's declarations, the dictionary, the online
reads and the nightly computation all follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import polars as pl

from evensong.settings import Settings
from evensong.types import TIMESTAMP, Frame

#: A row's moment: when what it says became known.
STAMPS: dict[str, pl.DataType] = {"event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP}
#: No age limit: a row holds until the next one of its key.
FOREVER = timedelta(0)

#: The feature services: what training and serving ask for, by name.
RECOMMENDER = "recommender_v1"
SERVING_FILTERS = "serving_filters_v1"
SERVICES = {
    RECOMMENDER: "What the retriever and the ranker read.",
    SERVING_FILTERS: "What the filters hide from a user.",
}


@dataclass(frozen=True)
class Feature:
    """One feature of a view."""

    name: str
    dtype: pl.DataType
    description: str
    window: str = ""
    """The stretch of time that it looks back on, with the view's arguments in braces; empty: everything known."""
    declared: str = ""
    """What else decides it, where one function computes features that people declare one by one."""


@dataclass(frozen=True)
class Input:
    """What a view's function is handed: a table of the lake, or what functions make of tables."""

    name: str
    tables: tuple[str, ...]
    """The first is the one whose rows are handed over; a change of any of them changes the view."""
    function: Callable[..., Frame] | None = None
    """Takes the rows of these tables, in their order; none: the rows of the first as they stand."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the function, by the path of the setting that gives each."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are no settings."""

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """What the function is called with, beside the tables."""
        return {name: setting(settings, path) for name, path in self.settings.items()} | dict(self.constants)


@dataclass(frozen=True)
class View:
    """One view: the rows of one entity that one function computes.

    A view of *events* goes on from a state: `function(events, state=, since=, until=, **arguments)` takes the events
    that became known since the state and gives rows and the next state (`state.ViewState`). A view of a *table*
    (`items`, `users`) takes the rows that still count: `function(rows, since=, until=, **arguments)` gives rows.
    """

    name: str
    entity: Literal["user_id", "item_id"]
    input: Input
    function: Callable[..., Any]
    features: tuple[Feature, ...]
    description: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the function, by the path of the setting that gives each: it sees no other setting."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are no settings."""
    service: str = RECOMMENDER
    needs_all: bool = False
    """Whether one entity's rows depend on those of others."""
    owner: str = "evensong"
    ttl: timedelta = FOREVER
    optional: bool = False
    """Whether it is computed only where a column reads it."""
    moving: bool = False
    """Whether its values move with each event: of the training's end they would tell the item tower what it is to
    foresee."""

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The columns of its table."""
        return {self.entity: pl.String(), **{f.name: f.dtype for f in self.features}, **STAMPS}

    @property
    def goes_on_from_a_state(self) -> bool:
        """Whether it is a view of events."""
        return self.input.tables[0] == "interactions"

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """What the function is called with, beside its input and the moments."""
        return {name: setting(settings, path) for name, path in self.settings.items()} | dict(self.constants)

    def parameters(self, settings: Settings) -> dict[str, str]:
        """Every setting that decides its values, by its path, as text."""
        paths = sorted({*self.settings.values(), *self.input.settings.values()})
        return {path: text(setting(settings, path)) for path in paths}

    def window(self, feature: Feature, settings: Settings) -> str:
        """The feature's window, in numbers."""
        return feature.window.format(**self.arguments(settings))


def setting(settings: Settings, path: str) -> Any:
    """The value at a path such as `features.half_life_days`."""
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def text(value: Any) -> str:
    """A value as text: itself, or as JSON with sorted keys."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def schema_of(entity: Literal["user_id", "item_id"], *features: Feature) -> dict[str, pl.DataType]:
    """The columns of a table with these features."""
    return {entity: pl.String(), **{f.name: f.dtype for f in features}, **STAMPS}
