"""The fitted columns of users and items as the models read them: arrays of indices and of numbers side by side.

They are fitted once a training, travel in the bundle beside the towers (`retriever/columns/`, JSON and safetensors),
and are applied by the same function in training, evaluation, the simulator's loop and the service.

Legend: N rows, I indices, F numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.errors import BundleError
from evensong.features.columns import ColumnSet, CrossColumn, heads_of, places_of
from evensong.features.fitted_columns import FORMAT, FittedColumns, Output, Transformed
from evensong.features.pair_crosses import PairCrosses
from evensong.features.shop_columns import ALIASES, Declared, read_features
from evensong.features.views import ITEM_FEATURES, USER_FEATURES
from evensong.types import Frame

log = logging.getLogger(__name__)

_PAIRS = "pairs.json"
_TABLES = ("users", "items", "moving")


@dataclass(frozen=True)
class ColumnArrays:
    """What columns say of some rows."""

    index_NI: NDArray[np.int32]
    """Rows of embedding tables: one column an `index`, `length` columns an `indices`."""
    value_NF: NDArray[np.float32]
    """Numbers, then vectors; vectors are scaled so that their entries are as large as numbers'."""


class ModelColumns:
    """Fitted columns of the user tower, the item tower, and of candidates at the moment of the question."""

    def __init__(
        self, users: FittedColumns, items: FittedColumns, moving: FittedColumns, *, pairs: PairCrosses | None = None
    ) -> None:
        self.users, self.items, self.moving = users, items, moving
        self.pairs = pairs or PairCrosses()
        # the ranker reads numbers, so no text is read for it
        self._of_candidates = (items.of_kinds(("numeric", "rate")), moving)

    @classmethod
    def none(cls) -> ModelColumns:
        """No columns at all."""
        empty = FittedColumns(ColumnSet(()), {})
        return cls(empty, empty, empty)

    @classmethod
    def fit(
        cls, declared: Declared, users: Frame, items: Frame, *, cache: str | None = None, device: str = "cpu"
    ) -> ModelColumns:
        """Learn vocabularies, scales and vectors.

        Args:
            declared: which columns there are; a built-in one without any value is left out, and one line says so.
            users: features of users at the moments of the labels that may be learned from.
            items: the catalogue with its features.
            cache: URI of a folder in which encoders keep the vectors of what they have seen.
            device: where encoders run.

        Raises:
            SourceError: the data lacks one of people's own columns, or it is of another type.
            ConfigurationError: an encoder is not to be had.
        """
        frames = {"users": _prepared("users", users), "items": _prepared("items", items)}
        frames["moving"] = frames["items"]
        chosen = {name: _with_values(getattr(declared, name), frames[name], declared.built_in) for name in _TABLES}
        absent = [c.name for name in _TABLES for c in getattr(declared, name).root if c not in chosen[name].root]
        if absent:
            log.info("columns left out, for the data has no value of theirs: %s", ", ".join(sorted(absent)))
        declared.pairs.check(frames["users"], frames["items"])
        fitted = (chosen[name].fit(frames[name], cache=cache, device=device) for name in _TABLES)
        return cls(*fitted, pairs=declared.pairs)

    @property
    def has_any(self) -> bool:
        """Whether there are columns at all."""
        return any(getattr(self, name).outputs for name in _TABLES)

    def user_arrays(self, users: Frame) -> ColumnArrays:
        """What the user tower reads; features that the frame lacks count as null."""
        return _arrays(self.users.transform(_complete("users", users, self.users)))

    def item_arrays(self, items: Frame) -> ColumnArrays:
        """What the item tower reads; features that the frame lacks count as null."""
        return _arrays(self.items.transform(_complete("items", items, self.items)))

    def item_numbers(self, items: Frame) -> NDArray[np.float32]:
        """What the ranker reads of items at the moment of each row, `[N, len(item_number_names)]`."""
        parts = [np.zeros((len(items), 0), np.float32)]
        for fitted in self._of_candidates:
            found = fitted.transform(_complete("items", items, fitted))
            parts += [found[output.name].reshape(-1, 1) for output in found.outputs if output.kind == "number"]
        return np.concatenate(parts, axis=1)

    def transformed(self, table: str, frame: Frame) -> Transformed:
        """One table's columns (`users`, `items` or `moving`) by name; features that the frame lacks count as null."""
        fitted: FittedColumns = getattr(self, table)
        return fitted.transform(_complete("users" if table == "users" else "items", frame, fitted))

    def user_hashes(self, users: Frame) -> NDArray[np.int64]:
        """What crosses with items read of users."""
        columns = self.pairs.users
        return self.pairs.user_hashes(_with(users, "users", columns)) if columns.root else _no_hashes(users)

    def item_hashes(self, items: Frame) -> NDArray[np.int64]:
        """What crosses with users read of items."""
        columns = self.pairs.items
        return self.pairs.item_hashes(_with(items, "items", columns)) if columns.root else _no_hashes(items)

    @property
    def reads(self) -> dict[str, frozenset[str]]:
        """The features that the columns read, by table, by the views' names."""
        pairs = self.pairs
        found = {
            "users": read_features("users", self.users.columns, pairs.users),
            "items": read_features("items", self.items.columns, self.moving.columns, pairs.items),
        }
        return {table: frozenset(names - {"user_id", "item_id"}) for table, names in found.items()}

    @property
    def item_number_names(self) -> tuple[str, ...]:
        """The columns of `item_numbers`."""
        return tuple(o.name for fitted in self._of_candidates for o in fitted.outputs if o.kind == "number")

    @property
    def user_number_names(self) -> tuple[str, ...]:
        """The first columns of the users' `value_NF`: its numbers."""
        return tuple(output.name for output in self.users.outputs if output.kind == "number")

    def save(self, directory: Path) -> Path:
        """Write a folder a table (see `FittedColumns.save`), and the crosses of both where there are any."""
        for name in _TABLES:
            getattr(self, name).save(directory / name)
        if self.pairs.crosses:
            (directory / _PAIRS).write_text(self.pairs.model_dump_json(indent=1) + "\n")
        return directory

    @classmethod
    def load(cls, directory: Path, *, cache: str | None = None, device: str = "cpu") -> ModelColumns:
        """Read what `save` wrote; encoders run where `fit` says, and read from its cache.

        Raises:
            BundleError: a file is missing, or is not what `save` writes.
        """
        path = directory / _PAIRS
        try:
            pairs = PairCrosses.model_validate_json(path.read_text()) if path.exists() else PairCrosses()
        except ValueError as error:
            raise BundleError(f"{path}: is not what fitted columns write: {error}") from error
        return cls(*(FittedColumns.load(directory / name, cache=cache, device=device) for name in _TABLES), pairs=pairs)

    def same_as(self, declared: Declared) -> bool:
        """Whether these columns are declared so, but for those left out for want of values."""
        return self.pairs == declared.pairs and all(
            getattr(self, name).form == FORMAT
            and set(getattr(self, name).columns.root) <= set(getattr(declared, name).root)
            and {c.name for c in getattr(declared, name).root} - {c.name for c in getattr(self, name).columns.root}
            <= declared.built_in
            for name in _TABLES
        )


def user_sources(declared: Declared) -> list[str]:
    """The user features that a training set must hold for these columns."""
    return sorted(read_features("users", declared.users, declared.pairs.users))


def _arrays(found: Transformed) -> ColumnArrays:
    indices = [np.zeros((found.num_rows, 0), np.int32)]
    numbers, vectors = [np.zeros((found.num_rows, 0), np.float32)], []
    for output in found.outputs:
        values = found[output.name]
        if output.kind in ("index", "indices"):
            indices.append(values.reshape(found.num_rows, -1))
        elif output.kind == "number":
            numbers.append(values.reshape(-1, 1))
        else:
            vectors.append(values * np.float32(np.sqrt(output.size)))
    return ColumnArrays(np.concatenate(indices, axis=1), np.concatenate([*numbers, *vectors], axis=1))


def _with_values(columns: ColumnSet, frame: Frame, built_in: frozenset[str]) -> ColumnSet:
    """Without the built-in columns that would read nothing but nulls, and the crosses of those."""
    kept: list[str] = []
    for column in columns.root:
        if isinstance(column, CrossColumn):
            there = all(part in kept for part in column.columns)
        else:
            there = all(_says_something(frame, place) for place in places_of(column))
        if there or column.name not in built_in:
            kept.append(column.name)
    return ColumnSet(tuple(column for column in columns.root if column.name in kept))


def _says_something(frame: Frame, place: str) -> bool:
    if place not in frame.columns:
        return False
    values = frame[place]
    if isinstance(values.dtype, pl.List):
        return bool((values.list.len() > 0).any())
    return values.null_count() < len(values)


def _prepared(table: str, frame: Frame) -> Frame:
    """The frame with every feature of the table, nulls where it lacks one, by the names that columns use."""
    known: Mapping[str, pl.DataType] = USER_FEATURES if table == "users" else ITEM_FEATURES
    lacking = [pl.lit(None, kind).alias(name) for name, kind in known.items() if name not in frame.columns]
    return _named(table, frame.with_columns(*lacking) if lacking else frame)


def _named(table: str, frame: Frame) -> Frame:
    """The frame by the names that columns use."""
    named = {feature: alias for alias, feature in ALIASES[table].items()}
    return frame.rename({old: new for old, new in named.items() if old in frame.columns and new not in frame.columns})


def _complete(table: str, frame: Frame, fitted: FittedColumns) -> Frame:
    """The columns that the transform reads; nothing is copied or renamed that is not needed."""
    return _holding(table, frame, fitted.sources)


def _no_hashes(frame: Frame) -> NDArray[np.int64]:
    return np.zeros((len(frame), 0), np.int64)


def _with(frame: Frame, table: str, columns: ColumnSet) -> Frame:
    return _holding(table, frame, sorted({head for column in columns.root for head in heads_of(column)}))


def _holding(table: str, frame: Frame, wanted: list[str]) -> Frame:
    if any(name in ALIASES[table] for name in wanted):
        frame = _named(table, frame)
    lacking = [pl.lit(None).alias(name) for name in wanted if name not in frame.columns]
    frame = frame.with_columns(lacking) if lacking else frame
    return frame.select(wanted) if wanted else frame.select(frame.columns[:1])


__all__ = ["ColumnArrays", "ModelColumns", "Output", "user_sources"]
