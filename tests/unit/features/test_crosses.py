"""Hashed crosses are stable, spread evenly, and keep their columns apart."""

import numpy as np
import polars as pl
import pytest

from evensong.features.crosses import add_crosses, cross, cross64, hash64

PEOPLE = pl.DataFrame({"gender": ["f", "m", None], "level": ["gold", "gold", "free"], "city": ["x", "y", "x"]})


def test_a_hash_is_the_same_in_every_process() -> None:
    assert hash64(pl.Series(["gold", None, "gold"])).tolist() == [
        7752115091388462849,
        15039487664998171424,
        7752115091388462849,
    ]


def test_the_order_of_columns_and_the_place_of_a_null_count() -> None:
    assert not np.intersect1d(cross64(PEOPLE, ["gender", "level"]), cross64(PEOPLE, ["level", "gender"])).size
    nulls = pl.DataFrame({"a": [None, "x", "null"], "b": ["x", None, "x"]})
    assert len(np.unique(cross64(nulls, ["a", "b"]))) == 3


def test_joined_texts_are_not_confused() -> None:
    pairs = pl.DataFrame({"a": ["ab", "a", "abc"], "b": ["c", "bc", ""]})
    assert len(np.unique(cross64(pairs, ["a", "b"]))) == 3


def test_numbers_and_their_texts_meet() -> None:
    assert hash64(pl.Series([1, 2])).tolist() == hash64(pl.Series(["1", "2"])).tolist()


def test_a_product_of_a_hundred_by_a_hundred_fills_the_buckets_evenly() -> None:
    grid = pl.DataFrame({"a": [i // 100 for i in range(10_000)], "b": [i % 100 for i in range(10_000)]})
    assert len(np.unique(cross64(grid, ["a", "b"]))) == 10_000
    counts = np.bincount(cross(grid, ["a", "b"], 100), minlength=100)
    # 100 expected a bucket; the chi-square of 99 degrees stays below 150 for all but one world in a thousand.
    assert ((counts - 100) ** 2 / 100).sum() < 150


def test_all_pairs_and_triples() -> None:
    found = add_crosses(PEOPLE, ["gender", "level", "city"], 1000, sizes=(2, 3))
    assert found.columns[3:] == ["gender_x_level", "gender_x_city", "level_x_city", "gender_x_level_x_city"]


@pytest.mark.parametrize("columns", [["gender"], ["gender", "gender"], ["gender", "level", "city", "gender"]])
def test_other_than_two_or_three_columns_are_refused(columns: list[str]) -> None:
    with pytest.raises(ValueError, match="two or three"):
        cross(PEOPLE, columns, 10)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="lacks levl"):
        cross(PEOPLE, ["gender", "levl"], 10)


def test_an_empty_frame_gives_nothing() -> None:
    assert cross(PEOPLE.clear(), ["gender", "level"], 10).shape == (0,)
