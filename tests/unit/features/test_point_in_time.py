"""The point-in-time join against small worlds and against a brute-force oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.features import point_in_time
from evensong.features.point_in_time import match_rows, point_in_time_join
from evensong.types import TIMESTAMP, Frame

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def feature_rows(*rows: tuple[str, float, float, int]) -> Frame:
    return pl.DataFrame(
        [(key, at(event), at(created), value) for key, event, created, value in rows],
        schema={"k": pl.String, "event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP, "x": pl.Int64},
        orient="row",
    )


def entity_rows(*rows: tuple[str | None, float]) -> Frame:
    return pl.DataFrame(
        [(key, at(moment)) for key, moment in rows],
        schema={"k": pl.String, "event_timestamp": TIMESTAMP},
        orient="row",
    )


def values(entities: Frame, features: Frame, **options: object) -> list[int | None]:
    joined = point_in_time_join(entities, features, keys={"k": "k"}, columns={"x": "x"}, **options)  # type: ignore[arg-type]
    assert joined.drop("x").equals(entities)
    return joined["x"].to_list()


def test_takes_the_newest_row_at_or_before_the_moment() -> None:
    features = feature_rows(("a", 1, 1, 10), ("a", 3, 3, 30), ("b", 2, 2, 20))
    entities = entity_rows(("a", 0.5), ("a", 1), ("a", 2.9), ("a", 3), ("b", 9), ("c", 9))
    assert values(entities, features) == [None, 10, 10, 30, 20, None]


def test_an_older_row_stays_while_the_newest_is_not_known_yet() -> None:
    features = feature_rows(("a", 1, 1, 10), ("a", 2, 8, 20))
    assert values(entity_rows(("a", 5), ("a", 8)), features) == [10, 20]
    assert values(entity_rows(("a", 5)), features, known_only=False) == [20]


def test_a_late_older_row_never_displaces_a_newer_one() -> None:
    features = feature_rows(("a", 5, 5, 50), ("a", 1, 7, 10))
    assert values(entity_rows(("a", 6), ("a", 9)), features) == [50, 50]


def test_ties_go_to_the_row_created_last() -> None:
    features = feature_rows(("a", 1, 3, 13), ("a", 1, 2, 12))
    assert values(entity_rows(("a", 2), ("a", 3)), features) == [12, 13]


def test_time_to_live_is_inclusive_and_hides_what_is_older() -> None:
    features = feature_rows(("a", 1, 1, 10))
    entities = entity_rows(("a", 3), ("a", 3.01))
    assert values(entities, features, ttl=timedelta(hours=2)) == [10, None]


def test_an_expired_newest_row_does_not_bring_back_anything() -> None:
    features = feature_rows(("a", 1, 1, 10), ("a", 2, 2, 20))
    assert values(entity_rows(("a", 9)), features, ttl=timedelta(hours=1)) == [None]


def test_duplicate_entity_rows_and_a_slate_at_one_moment_keep_every_row() -> None:
    features = feature_rows(("a", 1, 1, 10))
    slate = entity_rows(*[("a", 2.0)] * 20)
    assert values(slate, features) == [10] * 20


def test_null_keys_match_nothing() -> None:
    features = pl.concat(
        [feature_rows(("a", 1, 1, 10)), feature_rows(("a", 1, 1, 99)).with_columns(k=pl.lit(None, pl.String))]
    )
    assert values(entity_rows((None, 2), ("a", 2)), features) == [None, 10]


def test_empty_sides() -> None:
    assert values(entity_rows(("a", 2)), feature_rows()) == [None]
    assert values(entity_rows(), feature_rows(("a", 1, 1, 10))) == []


def test_other_time_zones_and_naive_times_mean_the_same_moment() -> None:
    features = feature_rows(("a", 1, 1, 10))
    entities = entity_rows(("a", 1))
    elsewhere = entities.with_columns(pl.col("event_timestamp").dt.convert_time_zone("Asia/Tokyo"))
    naive = entities.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None))
    assert values(elsewhere, features) == values(naive, features) == [10]


def test_a_key_of_another_type_is_refused_with_the_way_out() -> None:
    features = feature_rows(("1", 1, 1, 10))
    entities = pl.DataFrame({"k": [1], "event_timestamp": [at(2)]})
    with pytest.raises(ValueError, match="convert the entity column to String"):
        values(entities, features)


def test_features_without_an_entity_match_every_row() -> None:
    features = feature_rows(("a", 1, 1, 10), ("b", 2, 2, 20))
    rows = match_rows(entity_rows(("z", 1), ("y", 3), (None, 0)), features, keys={})
    assert rows.to_list() == [0, 1, None]


def test_a_row_without_a_creation_loses_every_tie_before_1970_too() -> None:
    long_ago = datetime(1950, 1, 1, tzinfo=UTC)
    features = pl.DataFrame(
        {"k": ["a", "a"], "event_timestamp": [long_ago] * 2, "created_timestamp": [long_ago, None], "x": [1, 2]}
    )
    assert values(entity_rows(("a", 1)), features, known_only=False) == [1]


def test_a_float_key_of_pandas_with_a_gap_finds_its_integer() -> None:
    features = pl.DataFrame(
        {"k": [7, -1], "event_timestamp": [at(1)] * 2, "created_timestamp": [at(1)] * 2, "x": [1, 2]}
    )
    entities = pl.DataFrame({"k": [7.0, float("nan"), -1.0, None], "event_timestamp": [at(2)] * 4})
    rows = match_rows(entities, features, keys={"k": "k"})
    assert rows.to_list() == [0, None, 1, None]
    with pytest.raises(ValueError, match="convert the entity column to Int64"):
        match_rows(entities.with_columns(pl.col("k") + 0.5), features, keys={"k": "k"})


@pytest.mark.parametrize("key", ["number", "text"])
def test_many_rows_are_searched_in_parts_and_blocks_with_the_same_answer(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)

    def rows(size: int, keys: int) -> Frame:
        number = pl.Series(rng.integers(-5, keys, size)).set(pl.Series(rng.random(size) < 0.05), None)
        hours = pl.Series(rng.integers(0, 200, size))
        late = pl.Series(np.where(rng.random(size) < 0.3, rng.integers(0, 50, size), 0))
        named = number if key == "number" else number.cast(pl.String)
        return pl.DataFrame({"k": named, "hours": hours, "late": late}).select(
            "k",
            (pl.lit(T0) + pl.duration(hours=pl.col("hours"))).alias("event_timestamp"),
            (pl.lit(T0) + pl.duration(hours=pl.col("hours") + pl.col("late"))).alias("created_timestamp"),
        )

    features = pl.concat([rows(1_500, 40), rows(2_500, 40)], rechunk=False)
    entities = rows(2_000, 45)
    for options in ({}, {"known_only": False}, {"ttl": timedelta(hours=9)}):
        whole = match_rows(entities, features, keys={"k": "k"}, **options)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(point_in_time, "_PART_ROWS", 500)
            patch.setattr(point_in_time, "_BLOCK", 64)
            parts = match_rows(entities, features, keys={"k": "k"}, **options)  # type: ignore[arg-type]
        assert 0 < whole.null_count() < len(whole)
        assert parts.equals(whole)


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 16])
@pytest.mark.parametrize("share_late", [0.3, 1.0])
def test_long_runs_of_late_rows_agree_with_the_definition(block: int, share_late: float) -> None:
    rng = np.random.default_rng(5)
    event = rng.integers(0, 60, 400)
    late = event + np.where(rng.random(400) < share_late, rng.integers(1, 40, 400), 0)
    names = ["a", "b", "c"]
    rows = [(names[k], int(e), int(c)) for k, e, c in zip(rng.integers(0, 3, 400), event, late, strict=True)]
    asked = [(name, moment) for name in names for moment in range(100)]
    features = feature_rows(*[(*row, number) for number, row in enumerate(rows)])
    with mock.patch.object(point_in_time, "_BLOCK", block):
        found = match_rows(entity_rows(*asked), features, keys={"k": "k"})
    assert found.to_list() == [_oracle(one, rows, None, known_only=True) for one in asked]


moments = st.integers(0, 6)
keys = st.sampled_from(["a", "b", None])


@settings(max_examples=400, deadline=None)
@given(
    features=st.lists(st.tuples(keys, keys, moments, st.none() | moments), max_size=12),
    entities=st.lists(st.tuples(keys, keys, moments), max_size=8),
    ttl=st.none() | st.integers(0, 4),
    known_only=st.booleans(),
    bits=st.sampled_from([63, 4]),  # few bits: the times are packed as ranks
    one_sort=st.booleans(),
    block=st.sampled_from([1, 2, 3, 1 << 16]),
)
def test_agrees_with_the_definition_row_by_row(
    features: list[tuple[str | None, str | None, int, int | None]],
    entities: list[tuple[str | None, str | None, int]],
    ttl: int | None,
    known_only: bool,
    bits: int,
    one_sort: bool,
    block: int,
) -> None:
    feature_frame = pl.DataFrame(
        [(a, b, at(event), None if created is None else at(created)) for a, b, event, created in features],
        schema={"a": pl.String, "b": pl.String, "e": TIMESTAMP, "c": TIMESTAMP},
        orient="row",
    )
    entity_frame = pl.DataFrame(
        [(a, b, at(moment)) for a, b, moment in entities],
        schema={"left_a": pl.String, "left_b": pl.String, "t": TIMESTAMP},
        orient="row",
    )
    with mock.patch.multiple(point_in_time, _BITS=bits, _FEW=1 if one_sort else 10**9, _BLOCK=block):
        found = match_rows(
            entity_frame,
            feature_frame,
            keys={"left_a": "a", "left_b": "b"},
            moment="t",
            event_timestamp="e",
            created_timestamp="c",
            ttl=None if ttl is None else timedelta(hours=ttl),
            known_only=known_only,
        )
    assert found.to_list() == [_oracle(row, features, ttl, known_only) for row in entities]


#: Kinds of key: the values, the type of the feature's column, the types that the entity's column may have.
KEY_KINDS = {
    "text": (["a", "b", "ü"], pl.String(), [pl.String(), pl.Categorical()]),
    "small": ([-2, -1, 0, 3], pl.Int64(), [pl.Int64(), pl.Int32(), pl.Float64(), pl.Int8()]),
    "narrow": ([-128, 0, 127], pl.Int8(), [pl.Int64(), pl.Int8(), pl.Int16()]),
    "wide": ([-(2**62), -1, 5, 2**62], pl.Int64(), [pl.Int64()]),
    "unsigned": ([0, 1, 2**53], pl.UInt64(), [pl.UInt64(), pl.Int64(), pl.Float64()]),
    "huge": ([0, 2**63, 2**64 - 1], pl.UInt64(), [pl.UInt64()]),
    "flag": ([True, False], pl.Boolean(), [pl.Boolean()]),
}
ZONES = ["UTC", None, "Asia/Tokyo", "America/New_York"]
HOUR = 3_600_000_000_000


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, object]:
    """Frames over every kind of key and of timestamp, and their rows as the oracle reads them: keys, nanoseconds."""
    kinds = [KEY_KINDS[name] for name in draw(st.lists(st.sampled_from(sorted(KEY_KINDS)), min_size=1, max_size=3))]
    key = st.tuples(*[st.sampled_from([*values, None]) for values, _, _ in kinds])
    base = draw(st.sampled_from([0, -40 * 365 * 24, 56 * 365 * 24])) * HOUR
    units = draw(st.tuples(*[st.sampled_from(["ns", "us", "ms"])] * 3))
    zones = draw(st.tuples(*[st.sampled_from(ZONES)] * 3))

    def moment(unit: str) -> st.SearchStrategy[int]:
        return st.builds(lambda hours, more: base + hours * HOUR + more * (unit == "ns"), moments, st.integers(0, 1))

    rows = draw(st.lists(st.tuples(key, moment(units[1]), st.none() | moment(units[2])), max_size=12))
    asked = draw(st.lists(st.tuples(key, moment(units[0])), max_size=8))
    left_types = [draw(st.sampled_from(types)) for _, _, types in kinds]

    def column(name: str, times: list[int | None], place: int) -> pl.Series:
        found = pl.Series(name, times, pl.Int64).cast(pl.Datetime("ns", "UTC")).dt.cast_time_unit(units[place])  # type: ignore[arg-type]
        zone = zones[place]
        return found.dt.replace_time_zone(None) if zone is None else found.dt.convert_time_zone(zone)

    return {
        "features": pl.DataFrame(
            [
                *(pl.Series(f"k{n}", [row[0][n] for row in rows], kind[1]) for n, kind in enumerate(kinds)),
                column("e", [row[1] for row in rows], 1),
                column("c", [row[2] for row in rows], 2),
            ]
        ),
        "entities": pl.DataFrame(
            [
                *(
                    pl.Series(f"left{n}", [row[0][n] for row in asked], kinds[n][1]).cast(dtype, strict=False)
                    for n, dtype in enumerate(left_types)
                ),
                column("t", [row[1] for row in asked], 0),
            ]
        ),
        "rows": rows,
        "asked": asked,
        "left_types": left_types,
    }


@settings(max_examples=400, deadline=None)
@given(
    world=worlds(),
    ttl=st.none() | st.integers(0, 4),
    known_only=st.booleans(),
    bits=st.sampled_from([63, 8]),
    one_sort=st.booleans(),
    block=st.sampled_from([1, 2, 3, 1 << 16]),
)
def test_agrees_with_the_definition_over_every_kind_of_key_and_time(
    world: dict[str, Any], ttl: int | None, known_only: bool, bits: int, one_sort: bool, block: int
) -> None:
    features, entities = world["features"], world["entities"]
    width = features.width - 2
    with mock.patch.multiple(point_in_time, _BITS=bits, _FEW=1 if one_sort else 10**9, _BLOCK=block):
        found = match_rows(
            entities,
            features,
            keys={f"left{n}": f"k{n}" for n in range(width)},
            moment="t",
            event_timestamp="e",
            created_timestamp="c",
            ttl=None if ttl is None else timedelta(hours=ttl),
            known_only=known_only,
        )
    # what the entity's type cannot hold is no key
    held = entities.select(pl.all().exclude("t").is_not_null()).rows()
    rows = [(*key, event, created) for key, event, created in world["rows"]]
    wanted = []
    for (key, moment), present in zip(world["asked"], held, strict=True):
        key = tuple(part if there else None for part, there in zip(key, present, strict=True))
        wanted.append(_oracle((*key, moment), rows, None if ttl is None else ttl * HOUR, known_only))
    assert found.to_list() == wanted


def _oracle(
    entity: tuple[Any, ...],
    features: Sequence[tuple[Any, ...]],
    ttl: int | None,
    known_only: bool,
) -> int | None:
    *key, moment = entity
    best: tuple[tuple[int, float, int], int] | None = None
    for row, (*parts, event, created) in enumerate(features):
        if None in key or parts != key or event > moment:
            continue
        if known_only and (created is None or created > moment):
            continue
        order = (event, -math.inf if created is None else created, row)
        if best is None or order > best[0]:
            best = (order, row)
    if best is None or (ttl and best[0][0] < moment - ttl):
        return None
    return best[1]
