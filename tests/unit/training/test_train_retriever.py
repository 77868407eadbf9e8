"""The retriever learns two tastes, repeats itself exactly, knows new items by content, continues from a champion."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.taste_world import TasteWorld, make

from evensong.errors import NothingToLearnError
from evensong.features.model_columns import ModelColumns
from evensong.features.shop_columns import declared
from evensong.models.inputs import Vocabularies, encode_items, encode_users
from evensong.models.saved import TowerWeights
from evensong.settings import FeatureSettings, RetrieverSettings
from evensong.training import retriever
from evensong.training.checkpoints import Checkpoints
from evensong.training.retriever import RetrieverData

SMALL = RetrieverSettings(dimension=16, epochs=12, batch_size=64, learning_rate=0.01, num_uniform_negatives=16)


@pytest.fixture(scope="module")
def world() -> TasteWorld:
    return make()


@pytest.fixture(scope="module")
def examples(world: TasteWorld) -> pl.DataFrame:
    return world.examples()


def prepared(
    world: TasteWorld, examples: pl.DataFrame, columns: ModelColumns | None = None
) -> tuple[RetrieverData, Vocabularies]:
    items = world.catalogue(world.cutoff)
    vocabularies = Vocabularies.fit(
        items, examples["item_id"], history_length=10, num_top_categories=2, columns=columns
    )
    return retriever.prepare(examples, items, vocabularies), vocabularies


def trained(data: RetrieverData, vocabularies: Vocabularies, **keywords: object) -> TowerWeights:
    return retriever.train(data, vocabularies, SMALL, seed=3, num_threads=1, **keywords)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(world: TasteWorld, examples: pl.DataFrame) -> TowerWeights:
    return trained(*prepared(world, examples.filter(pl.col("part") != "holdout")))


def test_users_are_nearest_to_their_own_shelf(world: TasteWorld, weights: TowerWeights) -> None:
    users, _ = world.holdout()
    items = world.catalogue(world.cutoff)
    forward = weights.forward()
    scores = (
        forward.users(encode_users(users, weights.vocabularies, world.cutoff))
        @ forward.items(encode_items(items, weights.vocabularies)).T
    )
    best = np.argsort(-scores, axis=1)[:, :15]
    shelves = np.array([item_id[0] for item_id in items["item_id"].to_list()])
    own = np.array(["ab"[int(user_id[1:]) % 2] for user_id in users["user_id"].to_list()])
    assert (shelves[best] == own[:, None]).mean() > 0.97


def test_a_new_item_lands_on_its_shelf_by_content(world: TasteWorld, weights: TowerWeights) -> None:
    users, _ = world.holdout()
    new = world.items.filter(pl.col("item_id").is_in(["a03", "b03"])).with_columns(
        item_id=pl.Series(["new-a", "new-b"]), title=pl.Series(["apple thing 77", "brick thing 77"])
    )
    forward = weights.forward()
    scores = (
        forward.users(encode_users(users, weights.vocabularies, world.cutoff))
        @ forward.items(encode_items(new, weights.vocabularies)).T
    )
    own = np.array([int(user_id[1:]) % 2 for user_id in users["user_id"].to_list()])
    assert (scores.argmax(1) == own).mean() > 0.95


def test_the_same_seed_gives_the_same_bytes(world: TasteWorld, examples: pl.DataFrame, weights: TowerWeights) -> None:
    again = trained(*prepared(world, examples.filter(pl.col("part") != "holdout")))
    assert all(np.array_equal(again.tensors[name], value) for name, value in weights.tensors.items())


def test_two_threads_repeat_themselves(world: TasteWorld, examples: pl.DataFrame) -> None:
    data, vocabularies = prepared(world, examples)
    first, second = (retriever.train(data, vocabularies, SMALL, seed=3, num_threads=2, num_epochs=2) for _ in range(2))
    assert all(np.array_equal(first.tensors[name], value) for name, value in second.tensors.items())


def test_a_killed_training_ends_with_the_same_weights(
    world: TasteWorld, examples: pl.DataFrame, weights: TowerWeights, tmp_path: Path
) -> None:
    data, vocabularies = prepared(world, examples.filter(pl.col("part") != "holdout"))
    checkpoints = Checkpoints(str(tmp_path / "r.safetensors"), "same")
    whole = trained(data, vocabularies, checkpoints=checkpoints)
    # the state after the last epoch is there; training again ends at once with it
    again = trained(data, vocabularies, checkpoints=checkpoints)
    for name, value in weights.tensors.items():
        assert np.array_equal(whole.tensors[name], value)
        assert np.array_equal(again.tensors[name], value)


def test_labels_without_history_and_labels_that_the_filter_hides_are_left_out(
    world: TasteWorld, examples: pl.DataFrame
) -> None:
    items = world.catalogue(world.cutoff)
    vocabularies = Vocabularies.fit(items, examples["item_id"], 10, 2)
    repeated = examples.with_columns(
        item_id=pl.coalesce(pl.col("recent_item_ids").list.last(), pl.col("item_id")),
    )
    firsts = examples.filter(pl.col("recent_item_ids").is_null()).height
    assert firsts == 40
    assert len(retriever.prepare(examples, items, vocabularies)) == len(examples) - firsts
    assert len(retriever.prepare(repeated, items, vocabularies, hide_seen=True)) == 0
    assert len(retriever.prepare(repeated, items, vocabularies, hide_seen=False)) == len(examples) - firsts


def test_nobody_with_a_history_is_nothing_to_learn_from(world: TasteWorld, examples: pl.DataFrame) -> None:
    with pytest.raises(NothingToLearnError, match="later as_of"):
        trained(*prepared(world, examples.filter(pl.col("recent_item_ids").is_null())))


def test_a_warm_start_maps_weights_by_token(world: TasteWorld, examples: pl.DataFrame, weights: TowerWeights) -> None:
    data, vocabularies = prepared(world, examples.filter(pl.col("item_id") != "a00"))
    assert "a00" not in vocabularies.items.tokens
    started = trained(data, vocabularies, start=weights, num_epochs=0)
    old, new = weights.vocabularies.items.index, vocabularies.items.index
    for item_id in ("a01", "b19"):
        row, source = started.tensors["item_id.weight"][new(item_id)], weights.tensors["item_id.weight"][old(item_id)]
        assert np.array_equal(row, source)
    assert np.array_equal(started.tensors["user_in.weight"], weights.tensors["user_in.weight"])


def test_an_item_that_the_champion_did_not_know_begins_as_new_items_do(
    world: TasteWorld, examples: pl.DataFrame, weights: TowerWeights
) -> None:
    known = [item_id for item_id in weights.vocabularies.items.tokens if item_id != "a00"]
    data, vocabularies = prepared(world, examples.filter(pl.col("item_id").is_in(known)))
    without = trained(data, vocabularies, num_epochs=1)
    data, vocabularies = prepared(world, examples)
    started = trained(data, vocabularies, start=without, num_epochs=0)
    shared = without.tensors["item_id.weight"][1]
    assert np.array_equal(started.tensors["item_id.weight"][vocabularies.items.index("a00")], shared)


def test_a_warm_start_takes_what_reads_columns_from_the_same_fitted_ones_alone(
    world: TasteWorld, examples: pl.DataFrame
) -> None:
    text = declared(FeatureSettings(groups=("text",)))
    first, second = (ModelColumns.fit(text, examples, world.catalogue(world.cutoff)) for _ in range(2))
    assert first.same_as(text)
    data, vocabularies = prepared(world, examples, first)
    champion = trained(data, vocabularies, num_epochs=1)
    assert champion.tensors["content_in.weight"][:, -32:].any()
    same = trained(data, vocabularies, start=champion, num_epochs=0)
    assert np.array_equal(same.tensors["content_in.weight"], champion.tensors["content_in.weight"])
    other = trained(*prepared(world, examples, second), start=champion, num_epochs=0)
    assert not other.tensors["content_in.weight"][:, -32:].any()
    assert np.array_equal(other.tensors["item_id.weight"], champion.tensors["item_id.weight"])


def test_a_user_column_alone_tells_two_tastes_apart(world: TasteWorld, examples: pl.DataFrame) -> None:
    """Histories hold nothing here: the item everybody met, and an age that says the taste."""
    shelf = pl.when(pl.col("user_id").str.slice(1).cast(pl.Int64) % 2 == 0).then(pl.lit("f")).otherwise(pl.lit("m"))
    nothing = pl.lit(["a00"], pl.List(pl.String))
    plain = examples.with_columns(
        recent_item_ids=nothing, top_categories=pl.lit([], pl.List(pl.String)), gender=shelf,
        top_category_shares=pl.lit([], pl.List(pl.Float32)),
    )  # fmt: skip
    profile = declared(FeatureSettings(groups=("profile",)))
    columns = ModelColumns.fit(profile, plain, world.catalogue(world.cutoff))
    weights = trained(*prepared(world, plain, columns))
    asked = plain.unique("user_id", keep="last", maintain_order=True)
    forward = weights.forward()
    scores = (
        forward.users(encode_users(asked, weights.vocabularies, world.cutoff))
        @ forward.items(encode_items(world.catalogue(world.cutoff), weights.vocabularies)).T
    )
    best = np.argsort(-scores, axis=1)[:, :10]
    shelves = np.array([item_id[0] for item_id in world.catalogue(world.cutoff)["item_id"].to_list()])
    own = np.array(["ab"[int(user_id[1:]) % 2] for user_id in asked["user_id"].to_list()])
    assert (shelves[best] == own[:, None]).mean() > 0.9
