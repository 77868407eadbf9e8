"""The slow count agrees with every view of a shop whose rows come late, early and never, and with nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.variants import first_daily

from evensong.data.lake import Lake
from evensong.features.columns import load_columns
from evensong.features.refresh import refresh
from evensong.features.shadow import rows_of
from evensong.features.views import BUILT_IN, entity_of, schemas
from evensong.monitoring.feature_truth import STAMPS, Near, Ranking, Truth, agrees, untrue
from evensong.monitoring.raw_plants import EARLIER, LATER, RawWorld, raw_world
from evensong.settings import Settings
from evensong.types import Frame

AS_OF = datetime(2026, 3, 11, 13, 20, tzinfo=UTC)
#: Columns of the attributes, so that the views that are computed on demand are computed, and statistics of every kind.
COLUMNS = """
users: [{kind: categorical, name: club, source: attributes.membership_level}]
items: [{kind: categorical, name: colour, source: attributes.colour}]
statistics:
  - {name: spend_3d, entity: user, kind: window, window_days: 3, column: value, event_types: [purchase]}
  - {name: usual_price, entity: user, kind: decay, half_life_days: 5, column: item.price, function: mean}
  - {name: heard, entity: user, kind: decay, half_life_days: 2, event_types: [impression]}
  - {name: weight_14d, entity: item, kind: window, window_days: 14, column: item.attributes.size.weight}
  - {name: age_of_fans, entity: item, kind: window, window_days: 9.5, column: user.attributes.age, function: mean}
  - {name: priced, entity: item, kind: decay, half_life_days: 4, column: item.price, function: count}
"""
SCHEMAS = [*(view.name for view in BUILT_IN), "user_statistics", "item_statistics"]


@dataclasses.dataclass(frozen=True)
class Planted:
    settings: Settings
    raw: RawWorld

    def truth(self) -> Truth:
        tables = self.raw.tables
        return Truth(
            tables["interactions"], tables["items"], tables["users"], self.settings.features, self.settings.split
        )

    def keys(self, view: str) -> list[str]:
        entity = entity_of(view)
        return sorted({key for rows in self.raw.tables.values() if entity in rows for key in rows[entity]})

    def problems(self, view: str, rows: Frame, until: datetime = AS_OF + LATER) -> list[Any]:
        return list(untrue(self.truth(), view, rows, self.keys(view), until))


def planted(home: Path, seed: int = 7, **options: Any) -> Planted:
    """The shop's views after two nights, of which the second has late rows and an import of old ones."""
    path = home / "columns.yaml"
    path.write_text(COLUMNS)
    features = {"columns_path": str(path), "groups": ("profile", "dynamics", "sequence", "price", "conversion")}
    settings = Settings(home=home, features=features | options.get("features", {}), split=options.get("split", {}))
    raw = raw_world(AS_OF, settings.split, seed, load_columns(path).statistics)
    lake = Lake(settings.lake)
    for moment, tables in ((AS_OF - EARLIER, raw.earlier), (AS_OF + LATER, raw.tables)):
        for name, rows in tables.items():
            lake.replace(name, rows)
        refresh(settings, moment)
    return Planted(settings, raw)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("view", SCHEMAS)
def test_every_view_says_what_is_true_in_every_feature(shop: Planted, view: str) -> None:
    rows = rows_of(shop.settings, view).collect()
    assert len(rows) > 20
    assert shop.problems(view, rows) == []
    row = rows.row(0, named=True)
    counted = shop.truth().at(view, row[entity_of(view)], row["event_timestamp"])
    assert counted is not None
    assert counted.keys() == set(schemas(shop.settings.features)[view]) - {entity_of(view), *STAMPS}


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {}),
        (
            2,
            {
                "split": {"positive_event_types": ["rating", "purchase"], "min_value": {"rating": 4}},
                "features": {"history_length": 3, "sequence_length": 4, "num_top_categories": 2, "seen_length": 4},
            },
        ),
        (3, {"features": {"half_life_days": 1.75}}),
    ],
)
def test_other_rows_and_other_settings_are_counted_right_too(tmp_path: Path, seed: int, options: Any) -> None:
    made = planted(tmp_path, seed, **options)
    for view in SCHEMAS:
        assert made.problems(view, rows_of(made.settings, view).collect()) == []


def test_every_moment_is_planted_in_every_table(shop: Planted) -> None:
    kinds = {kind.partition(",")[0] for kind in shop.raw.planted}
    assert {"late-arriving", "future-dated and known already", "late past the windows", "corrected later"} <= kinds
    for kind in kinds - {"slate of one moment", "repeated", "of a user not known yet"}:
        assert {kind, f"{kind}, items", f"{kind}, users"} <= shop.raw.planted.keys()
    for name in ("items", "users"):
        assert shop.raw.earlier[name].height < shop.raw.tables[name].height


Spoil = Callable[[Frame, str], Frame]


def features_of(rows: Frame, entity: str) -> list[str]:
    return [name for name in rows.columns if name not in (entity, *STAMPS)]


def earlier(by: timedelta, *stamps: str) -> Spoil:
    return lambda rows, entity: rows.with_columns(pl.col(name) - by for name in stamps or STAMPS)


def of_the_next_row(rows: Frame, entity: str) -> Frame:
    names = features_of(rows, entity)
    return rows.with_columns(pl.col(name).shift(-1).over(entity) for name in names).filter(
        pl.int_range(pl.len()).over(entity) < pl.len().over(entity) - 1
    )


def of_the_row_before(rows: Frame, entity: str) -> Frame:
    names = features_of(rows, entity)
    return rows.with_columns(pl.col(name).shift(1).over(entity) for name in names).filter(
        pl.int_range(pl.len()).over(entity) > 0
    )


SPOILED: dict[str, Spoil] = {
    "values of the next row": of_the_next_row,
    "values of the row before": of_the_row_before,
    "stamped an instant early": earlier(timedelta(microseconds=1)),
    "stamped an hour early": earlier(timedelta(hours=1)),
    "stamped a day early": earlier(timedelta(days=1)),
    "known a day early": earlier(timedelta(days=1), "created_timestamp"),
    "known a day late": earlier(timedelta(days=-1), "created_timestamp"),
    "stamped a day late": earlier(timedelta(days=-1)),
    "last row of each key lost": lambda rows, entity: rows.filter(
        pl.int_range(pl.len()).over(entity) < pl.len().over(entity) - 1
    ),
    "every third row lost": lambda rows, entity: rows.filter(pl.int_range(pl.len()).over(entity) % 3 != 2),
    "a key lost": lambda rows, entity: rows.filter(pl.col(entity) != rows[entity][0]),
    "a row twice": lambda rows, entity: pl.concat([rows, rows.tail(1)]),
    "keys exchanged": lambda rows, entity: rows.with_columns(
        pl.col(entity).replace_strict(dict(zip(ids := rows[entity].unique().sort(), [*ids[1:], ids[0]], strict=True)))
    ),
    "nothing known": lambda rows, entity: rows.with_columns(
        pl.lit(None, rows.schema[name]).alias(name) for name in features_of(rows, entity)
    ),
    "a row of nobody's past": lambda rows, entity: pl.concat(
        [rows, rows.head(1).with_columns(pl.lit(datetime(2020, 1, 1, tzinfo=UTC)).alias(name) for name in STAMPS)],
        how="vertical_relaxed",
    ),
}


@pytest.mark.parametrize("how", first_daily(SPOILED, 3))
@pytest.mark.parametrize("view", SCHEMAS)
def test_a_view_that_says_more_or_less_than_was_known_is_found(shop: Planted, view: str, how: str) -> None:
    entity = entity_of(view)
    rows = rows_of(shop.settings, view).collect().sort(entity, "event_timestamp")
    assert shop.problems(view, SPOILED[how](rows, entity))


@pytest.mark.parametrize("view", SCHEMAS)
def test_one_wrong_value_of_any_feature_is_found(shop: Planted, view: str) -> None:
    entity = entity_of(view)
    rows = rows_of(shop.settings, view).collect().sort(entity, "event_timestamp")
    for name in features_of(rows, entity):
        values = rows[name].to_list()
        place = next(at for at, value in enumerate(values) if value is not None)
        values[place] = next(value for value in reversed(values) if is_far(value, values[place]))
        changed = rows.with_columns(pl.Series(name, values, rows.schema[name]))
        assert {one.name for one in shop.problems(view, changed)} == {name}


def is_far(value: Any, other: Any) -> bool:
    """Whether no rounding makes one of the other."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) != len(other) or any(is_far(*pair) for pair in zip(value, other, strict=True))
    if isinstance(value, float) and isinstance(other, float):
        return abs(value - other) > 0.01
    return bool(value != other)


def test_only_the_newest_rows_are_looked_at_when_that_is_asked(shop: Planted) -> None:
    rows = rows_of(shop.settings, "user_history").collect().sort("user_id", "event_timestamp")
    first = (pl.int_range(pl.len()).over("user_id") == 0) & (pl.len().over("user_id") > 5)
    spoiled = rows.with_columns(pl.when(first).then(99).otherwise("num_interactions").alias("num_interactions"))
    assert shop.problems("user_history", spoiled)
    keys = shop.keys("user_history")
    assert list(untrue(shop.truth(), "user_history", spoiled, keys, AS_OF + LATER, last=5)) == []


def test_ranks_that_rounding_may_exchange_are_no_leak() -> None:
    ranking = Ranking({"a": 0.4, "b": 0.3, "c": 0.3 - 1e-7, "d": 1e-7}, 2, 1e-5)
    assert agrees(["a", "b"], ranking)
    assert agrees(["a", "c"], ranking)
    assert not agrees(["a", "d"], ranking)
    assert not agrees(["b", "a"], ranking)
    assert not agrees(["a"], ranking)
    assert not agrees(None, ranking)
    assert not agrees(["c", "b"], Ranking({"b": 0.5, "c": 0.5}, 2))
    assert agrees([0.25, 0.75], Near([0.25, 0.7500001], 1e-5))
    assert not agrees([0.25], Near([0.25, 0.75], 1e-5))
