"""Hashed crosses are stable, spread evenly, and keep their columns apart."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evensong.errors import ConfigurationError
from evensong.features.columns import ColumnsFile, parse
from evensong.features.crosses import add_crosses, cross, cross64, hash64
from evensong.features.model_columns import ModelColumns
from evensong.features.pair_crosses import PairCrosses
from evensong.features.shop_columns import active_views, declared
from evensong.settings import FeatureSettings

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


FILE = """
users:
  - {kind: categorical, name: loyal, source: num_interactions, bins: [5, 20]}
crosses:
  - {name: gender_x_shelf, columns: [users.gender, items.category_1], num_buckets: 1000}
  - {name: three, columns: [items.category_2, users.loyal, users.gender], num_buckets: 64}
"""
SHELVES = pl.DataFrame({"category_path": ["Food > Tea", "Food", "Toys > Cars > Red", None]})


@pytest.fixture
def own(tmp_path: Path) -> FeatureSettings:
    path = tmp_path / "columns.yaml"
    path.write_text(FILE)
    return FeatureSettings(groups=(), columns_path=path)


def test_the_bucket_of_a_pair_is_that_of_the_joined_row(own: FeatureSettings) -> None:
    users = pl.DataFrame({"gender": ["f", None, "m"], "num_interactions": [3, 30, None]})
    pairs = declared(own).pairs
    columns = ModelColumns.none()
    columns.pairs = pairs
    user_hashes = columns.user_hashes(users)
    found = pairs.buckets(user_hashes, np.repeat(columns.item_hashes(SHELVES)[None], 3, axis=0))
    assert found.shape == (3, 4, 2)
    joined = users.join(SHELVES, how="cross").with_columns(
        category_1=pl.col("category_path").str.split(" > ").list.first(),
        category_2=pl.when(pl.col("category_path").str.contains(" > ")).then(
            pl.col("category_path").str.split(" > ").list.head(2).list.join(" > ")
        ),
        loyal=pl.Series(["under 5"] * 4 + ["20 and over"] * 4 + [None] * 4),
    )
    assert found[..., 0].ravel().tolist() == cross(joined, ["gender", "category_1"], 1000).tolist()
    assert found[..., 1].ravel().tolist() == cross(joined, ["category_2", "loyal", "gender"], 64).tolist()
    # one request's row gives the very bits
    assert all((columns.user_hashes(users[n]) == user_hashes[n]).all() for n in range(3))


def test_what_a_pair_reads_is_computed_and_served(own: FeatureSettings) -> None:
    assert active_views(own) == {"user_profile"}
    assert [column.name for column in declared(own).pairs.users.root] == ["gender", "loyal"]


def test_pairs_travel_with_the_columns(own: FeatureSettings, tmp_path: Path) -> None:
    users = pl.DataFrame({"gender": ["f", "m"], "num_interactions": [3, 30]})
    fitted = ModelColumns.fit(declared(own), users, SHELVES)
    back = ModelColumns.load(fitted.save(tmp_path / "columns"))
    assert back.pairs == declared(own).pairs
    assert back.same_as(declared(own))
    assert not ModelColumns.none().same_as(declared(own))
    (tmp_path / "columns" / "pairs.json").unlink()
    assert ModelColumns.load(tmp_path / "columns").pairs == PairCrosses()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["users.gender", "users.age_bucket"], "takes users.NAME and items.NAME.*declare `kind: cross`"),
        (["users.gender", "shops.name"], "takes users.NAME and items.NAME"),
        (["users.gender", "items.category_1", "users.gender"], "a cross takes different columns"),
        (["users.gender"], "at least 2 items"),
    ],
)
def test_a_wrong_pair_says_what_is_wrong(columns: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(ColumnsFile, {"crosses": [{"name": "x", "columns": columns, "num_buckets": 9}]}, "here")


def test_a_pair_of_a_column_that_is_none_meets_the_nearest_one(own: FeatureSettings) -> None:
    path = own.columns_path
    assert path is not None
    path.write_text(FILE.replace("users.gender", "users.gendr"))
    with pytest.raises(ConfigurationError, match=r"users\.gendr is neither a categorical.*did you mean gender"):
        declared(own)
    path.write_text(
        FILE.replace(
            "kind: categorical, name: loyal, source: num_interactions, bins: [5, 20]", "kind: numeric, name: gender"
        )
    )
    with pytest.raises(ConfigurationError, match=r"users\.gender is numeric, expected a categorical column"):
        declared(own)
