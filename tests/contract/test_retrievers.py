"""What everything that recommends must do: the trained funnel and the popularity baseline alike."""

from collections.abc import Callable, Collection, Mapping

import polars as pl
import pytest
from tests.taste_world import TasteWorld, make
from tests.unit.recommender.trained import write_bundle

from evensong.pipelines.evaluate import popular_lists
from evensong.recommender.funnel import Recommender

Retrieve = Callable[[pl.DataFrame, int, Mapping[str, Collection[str]]], pl.DataFrame]


@pytest.fixture(scope="module")
def world() -> TasteWorld:
    return make()


@pytest.fixture(scope="module")
def recommender(world: TasteWorld, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return Recommender.load(write_bundle(tmp_path_factory.mktemp("bundle"), world))


@pytest.fixture(params=["funnel", "popularity"])
def retrieve(request: pytest.FixtureRequest, world: TasteWorld, recommender: Recommender) -> Retrieve:
    items = recommender.prepare_items(world.catalogue(world.cutoff))

    def funnel(users: pl.DataFrame, k: int, hidden: Mapping[str, Collection[str]]) -> pl.DataFrame:
        return recommender.recommend(users, items, now=world.cutoff, k=k, exclude=hidden)

    def popularity(users: pl.DataFrame, k: int, hidden: Mapping[str, Collection[str]]) -> pl.DataFrame:
        ids = users["user_id"].to_list()
        return popular_lists(recommender.popularity, ids, k, {user_id: hidden.get(user_id, ()) for user_id in ids})

    return {"funnel": funnel, "popularity": popularity}[request.param]


def test_lists_have_k_distinct_items_of_the_catalogue(
    retrieve: Retrieve, world: TasteWorld, recommender: Recommender
) -> None:
    users, _ = world.holdout()
    for _, rows in retrieve(users, 10, {}).group_by("user_id"):
        assert rows["item_id"].n_unique() == 10
        assert rows["rank"].sort().to_list() == list(range(1, 11))
        assert set(rows["item_id"]) <= set(recommender.item_ids)


def test_nothing_hidden_comes_back(retrieve: Retrieve, world: TasteWorld) -> None:
    users, _ = world.holdout()
    hidden = dict(users.select("user_id", "seen_item_ids").iter_rows())
    lists = retrieve(users, 20, hidden)
    assert not any(item_id in hidden[user_id] for user_id, item_id in lists.select("user_id", "item_id").iter_rows())
    assert lists.group_by("user_id").len()["len"].unique().to_list() == [20]


def test_asking_again_gives_the_same_answer(retrieve: Retrieve, world: TasteWorld) -> None:
    users, _ = world.holdout()
    assert retrieve(users, 10, {}).equals(retrieve(users, 10, {}))


def test_a_longer_list_begins_with_the_shorter_one(retrieve: Retrieve, world: TasteWorld) -> None:
    users, _ = world.holdout()
    longer = retrieve(users, 12, {}).filter(pl.col("rank") <= 5)
    assert longer.equals(retrieve(users, 5, {}))


def test_the_order_of_users_does_not_matter(retrieve: Retrieve, world: TasteWorld) -> None:
    users, _ = world.holdout()
    there, back = retrieve(users, 5, {}), retrieve(users.reverse(), 5, {})
    assert there.sort("user_id", "rank").equals(back.sort("user_id", "rank"))


def test_one_form_for_all(retrieve: Retrieve, world: TasteWorld) -> None:
    users, _ = world.holdout()
    assert retrieve(users, 3, {}).schema == {
        "user_id": pl.String,
        "rank": pl.Int64,
        "item_id": pl.String,
        "score": pl.Float64,
        "source": pl.String,
    }
