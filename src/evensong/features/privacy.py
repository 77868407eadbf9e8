"""Differentially private release of aggregated statistics, and the ledger of what it has cost.

The neighbours are data sets of which one has one user more, with all of that user's rows: each user's rows are cut to
`max_contributions`, so counts by category move by that much at most (L1), sums by that much times the largest value.
The noise is OpenDP's discrete Laplace mechanism (Ghosh, Roughgarden and Sundararajan, 2009), of scale sensitivity by ε,
drawn from the operating system's generator: a release cannot be repeated, so it is written down and handed out again.

Epsilons add up (sequential composition, Dwork and Roth, 2014, §3.5). A release is in the ledger before it is returned,
and is refused when the budget is spent. Off until `privacy.epsilon` is set.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from evensong.data import storage
from evensong.errors import ConfigurationError, RefusedError, StorageError
from evensong.settings import PrivacySettings
from evensong.types import Frame, Value

#: Sums are made of whole millionths, since a discrete mechanism has no gaps through which floats leak (Mironov, 2012).
_PER_UNIT = 1_000_000
_START = "0" * 64
#: Epsilons are added as billionths, so that ten tenths are one.
_PARTS = 1_000_000_000


class Release(Value):
    """One line of the ledger: what was let out, and what it cost."""

    name: str
    """What was asked, with the night: the same name is the same release."""
    query: dict[str, Any]
    epsilon: float = Field(gt=0)
    scale: float
    """Of the noise, in the unit of the values."""
    values: dict[str, float]
    previous: str
    """The hash of the line before; a line that is changed or taken out breaks the chain."""


class PrivacyLedger:
    """The releases of a file, one JSON document a line, only ever added to; one process at a time writes.

    Elsewhere the head remembers how many lines there are and the hash of the last: a file that has fewer by now, or is
    another machine's, is refused, since what it lacks would be spent twice.
    """

    def __init__(self, path: Path, head_uri: str | None = None) -> None:
        """`head_uri` is the head's place; without one it lies beside the file."""
        self.path = path
        self._head = head_uri or str(path.with_name(f"{path.stem}.head.json"))

    def releases(self) -> list[Release]:
        """What was released, oldest first.

        Raises:
            StorageError: a line was changed, taken out or cut off, or the head cannot be read.
        """
        # the head first: a line that another process adds meanwhile is one more, and never one too few
        head = self._read_head()
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found, previous = [], _START
        for number, line in enumerate(lines, start=1):
            try:
                release = Release.model_validate_json(line)
            except ValueError as error:
                raise StorageError(
                    f"{self.path}, line {number}: no entry of a ledger; restore the file: {error}"
                ) from error
            if release.previous != previous:
                raise StorageError(f"{self.path}, line {number}: does not follow the line before; restore the file")
            found.append(release)
            previous = _hash(line)
        if head is not None:
            self._check(lines, *head)
        return found

    def spent(self) -> float:
        """The epsilons so far, added up."""
        return sum(round(release.epsilon * _PARTS) for release in self.releases()) / _PARTS

    def released(
        self,
        name: str,
        query: dict[str, Any],
        epsilon: float,
        budget: float,
        draw: Callable[[], tuple[float, dict[str, float]]],
    ) -> Release:
        """The release of that name: the one in the ledger, or a new one from `draw` (scale, values) within the budget.

        Raises:
            RefusedError: it would spend more than the budget.
            ConfigurationError: the name stands for another query in the ledger.
        """
        with self._alone():
            before = self.releases()
            for release in before:
                if release.name == name:
                    if release.query != query or release.epsilon != epsilon:
                        raise ConfigurationError(
                            f"{name} was released for another query or ε; give this one another name"
                        )
                    self._keep_head()
                    return release
            spent = self.spent()
            if round(spent * _PARTS) + round(epsilon * _PARTS) > round(budget * _PARTS):
                raise RefusedError(
                    f"{name}: ε {epsilon:g} is asked, {max(0.0, budget - spent):g} of {budget:g} is left; release "
                    "fewer statistics, or decide on a larger privacy.budget"
                )
            scale, values = draw()
            previous = _hash(self.path.read_text().splitlines()[-1]) if before else _START
            release = Release(name=name, query=query, epsilon=epsilon, scale=scale, values=values, previous=previous)
            with self.path.open("a") as file:
                file.write(release.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._keep_head()
            return release

    def _keep_head(self) -> None:
        lines = self.path.read_text().splitlines()
        head = {"lines": len(lines), "hash": _hash(lines[-1])}
        if not storage.exists(self._head) or storage.read_json(self._head) != head:
            storage.write_json(self._head, head)

    def _read_head(self) -> tuple[int, str] | None:
        """How many lines there were, and the last one's hash; none before the first release."""
        if not storage.exists(self._head):
            return None
        try:
            head = storage.read_json(self._head)
            return int(head["lines"]), str(head["hash"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self._head}: no head of a ledger; restore the file: {error}") from error

    def _check(self, lines: Sequence[str], number: int, expected: str) -> None:
        """A run that was killed between line and head leaves more lines than the head knows, never fewer."""
        if len(lines) < number:
            raise StorageError(
                f"{self.path}: {number} releases were made, and {len(lines)} stand in it; restore the file, or release "
                "from the machine that holds it"
            )
        if number and _hash(lines[number - 1]) != expected:
            raise StorageError(f"{self.path}, line {number}: not what {self._head} remembers; restore the file")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def release_counts(
    rows: Frame, column: str, categories: Sequence[str], *, name: str, settings: PrivacySettings, ledger: PrivacyLedger
) -> Release:
    """How many rows each category has, with noise; rows of other categories are left out.

    Args:
        rows: `user_id` and the column.
        categories: named beforehand, not read off the data: that a category occurs may say who is there.

    Raises:
        RefusedError: releases are off, or the budget is spent.
    """
    epsilon = _epsilon(settings, name)
    names = sorted(set(categories))
    _require(rows, column)
    query = {"kind": "counts", "column": column, "categories": names, "max_contributions": settings.max_contributions}

    def draw() -> tuple[float, dict[str, float]]:
        dp = _opendp()
        kept = _bounded(rows.filter(pl.col(column).cast(pl.String).is_in(names)), settings.max_contributions)
        space = dp.vector_domain(dp.atom_domain(T=str)), dp.symmetric_distance()
        counting = dp.t.make_count_by_categories(*space, categories=names, null_category=False, TOA="i64")
        scale = settings.max_contributions / epsilon
        measurement = counting >> dp.m.then_laplace(scale=scale)
        _hold(measurement.map(settings.max_contributions), epsilon)
        noisy = measurement(kept[column].cast(pl.String).to_list())
        return scale, dict(zip(names, map(float, noisy), strict=True))

    return ledger.released(name, query, epsilon, settings.budget, draw)


def release_sums(
    rows: Frame,
    value: str,
    largest: float,
    column: str,
    categories: Sequence[str],
    *,
    name: str,
    settings: PrivacySettings,
    ledger: PrivacyLedger,
) -> Release:
    """The sum of a column in each category, with noise; values are cut to `0 … largest` first, nulls count nothing.

    Args:
        rows: `user_id`, the column of values and the column of categories.
        value: the column that is summed.
        largest: chosen beforehand, not read off the data.
        column: the column of categories.
        categories: named beforehand, not read off the data.

    Raises:
        RefusedError: releases are off, or the budget is spent.
    """
    epsilon = _epsilon(settings, name)
    names = sorted(set(categories))
    _require(rows, column, value)
    bound = round(largest * _PER_UNIT)
    if not (math.isfinite(largest) and 0 < bound < 2**50):
        raise ValueError(f"largest must be a positive number below a billion, got {largest}")
    query = {
        "kind": "sums",
        "value": value,
        "largest": largest,
        "column": column,
        "categories": names,
        "max_contributions": settings.max_contributions,
    }

    def draw() -> tuple[float, dict[str, float]]:
        dp = _opendp()
        there = pl.col(column).cast(pl.String).is_in(names) & pl.col(value).is_not_null()
        kept = _bounded(rows.filter(there), settings.max_contributions)
        whole = (pl.col(value).cast(pl.Float64).fill_nan(0.0).clip(0, largest) * _PER_UNIT).round().cast(pl.Int64)
        sums = dict(kept.group_by(pl.col(column).cast(pl.String)).agg(whole.sum()).iter_rows())
        most = settings.max_contributions * bound
        scale = most / epsilon
        # all rows of one user move the sums together by no more than this
        space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64")
        measurement = dp.m.make_laplace(*space, scale=scale)
        _hold(measurement.map(most), epsilon)
        noisy = measurement([sums.get(category, 0) for category in names])
        return scale / _PER_UNIT, {category: one / _PER_UNIT for category, one in zip(names, noisy, strict=True)}

    return ledger.released(name, query, epsilon, settings.budget, draw)


def _bounded(rows: Frame, max_contributions: int) -> Frame:
    """At most so many rows of each user, drawn by a hash, so that neither the order of rows decides nor what they say.

    Equal rows of a user are numbered: without that they would have one hash, and be drawn all or none.
    """
    names = rows.columns
    order = pl.struct(*names, pl.int_range(pl.len()).over(names)).hash(seed=0).alias("__order")
    kept = rows.with_columns(order).sort("user_id", "__order", *names).group_by("user_id", maintain_order=True)
    return kept.head(max_contributions).drop("__order")


def _epsilon(settings: PrivacySettings, name: str) -> float:
    if settings.epsilon is None:
        raise RefusedError(f"{name}: releases are off; set privacy.epsilon to what one release may cost")
    return settings.epsilon


def _require(rows: Frame, *columns: str) -> None:
    if missing := [wanted for wanted in ("user_id", *columns) if wanted not in rows.columns]:
        raise ValueError(f"the rows lack {', '.join(missing)}; they have {', '.join(rows.columns)}")


def _hold(loss: float, epsilon: float) -> None:
    """OpenDP's own word on the loss must be what is written down, but for the rounding up of its arithmetic."""
    assert loss <= epsilon * (1 + 1e-9), f"the mechanism loses {loss}, {epsilon} was promised"


def _opendp() -> Any:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    return dp


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
