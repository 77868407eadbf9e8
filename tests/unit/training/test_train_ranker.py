"""Slates are what the funnel would have offered; the ranker begins as popularity and learns what beats it."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from tests.taste_world import START, TasteWorld, make

from evensong.models.inputs import Vocabularies
from evensong.models.rank_features import FEATURES
from evensong.models.saved import TowerWeights
from evensong.settings import Settings, load_settings
from evensong.training import ranker, retriever
from evensong.training.slates import DailyPopularity, Slates


@pytest.fixture(scope="module")
def world() -> TasteWorld:
    return make()


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(
        retriever={"dimension": 16, "epochs": 10, "learning_rate": 0.01, "num_uniform_negatives": 16}
        | {"num_candidates": 20, "num_popular_candidates": 10},
        ranker={"hidden": (8,), "num_negatives": 8, "epochs": 4},
    )


@pytest.fixture(scope="module")
def base(world: TasteWorld, settings: Settings) -> TowerWeights:
    labels = world.examples().filter(pl.col("part") == "retriever")
    items = world.catalogue(world.cutoff)
    vocabularies = Vocabularies.fit(items, labels["item_id"], 10, 2)
    data = retriever.prepare(labels, items, vocabularies)
    return retriever.train(data, vocabularies, settings.retriever, seed=1, num_threads=1)


@pytest.fixture(scope="module")
def slates(world: TasteWorld, settings: Settings, base: TowerWeights) -> Slates:
    labels = world.examples().filter(pl.col("part") != "holdout")
    start = world.cutoff - timedelta(days=3)
    return ranker.slates_of(labels, world.catalogue(world.cutoff), base, world.join, start, settings, seed=1)


def test_a_slate_holds_the_positive_and_distinct_candidates(slates: Slates, settings: Settings) -> None:
    assert 60 < len(slates) <= 120
    assert not slates.absent_SK[:, 0].any()
    assert slates.features_SKF.shape == (len(slates), 1 + settings.ranker.num_negatives, len(FEATURES))
    # no candidate is the positive again: their features differ
    same = (slates.features_SKF[:, 1:] == slates.features_SKF[:, :1]).all(2)
    assert not (same & ~slates.absent_SK[:, 1:]).any()


def test_a_draw_carries_its_probability(slates: Slates) -> None:
    drawn = np.exp(slates.log_inclusion_SK[:, 1:])
    assert (slates.log_inclusion_SK[:, 0] == 0).all()
    assert (drawn <= 1).all()
    assert (drawn >= 8 / 30 - 1e-6).all()


def test_item_features_are_those_of_the_labels_moment(world: TasteWorld, slates: Slates) -> None:
    total = slates.features_SKF[..., FEATURES.index("log_item_events_total")][~slates.absent_SK]
    # the last label's midnight saw 11 of the 14 days; nothing after it may count
    known = world.events.filter(pl.col("event_timestamp") < START + timedelta(days=11))
    assert np.expm1(total.max()) <= known["item_id"].value_counts()["count"].max() + 1e-3


def test_the_ranker_beats_popularity_on_users_it_has_not_seen(slates: Slates, settings: Settings) -> None:
    weights, losses = ranker.train(slates, settings, seed=1)
    assert min(losses) < losses[0] - 0.3
    assert weights.config.num_candidates == 20


def test_the_ranker_repeats_itself(slates: Slates, settings: Settings) -> None:
    first, second = (ranker.train(slates, settings, seed=1)[0] for _ in range(2))
    assert all(np.array_equal(first.tensors[name], value) for name, value in second.tensors.items())


def test_without_any_slate_the_ranker_is_popularity(slates: Slates, settings: Settings) -> None:
    arrays = ("features_SKF", "log_inclusion_SK", "absent_SK", "group_S")
    nothing = Slates(*(getattr(slates, name)[:0] for name in arrays), features=slates.features)
    weights, _ = ranker.train(nothing, settings, seed=1)
    linear = weights.tensors["linear.weight"][0]
    assert FEATURES[int(np.argmax(np.abs(linear)))] == "log_item_events_30d"
    assert not weights.tensors["out.weight"].any()


def test_the_ranker_learns_what_a_pair_means(settings: Settings) -> None:
    """Who is in group g wants what stands on shelf g; nothing else tells a candidate from another."""
    draw = np.random.default_rng(4)
    group_S, shelf_SK = draw.integers(0, 6, 600), draw.integers(0, 6, (600, 6))
    shelf_SK[:, 0] = group_S
    shelf_SK[:, 1:] += shelf_SK[:, 1:] == group_S[:, None]
    features = np.zeros((600, 6, len(FEATURES) + 1), np.float32)
    features[..., -1] = group_S[:, None] * 10 + shelf_SK
    lessons = Slates(
        *(features, np.zeros((600, 6), np.float32), np.zeros((600, 6), bool), np.arange(600)),
        crosses=("group_x_shelf",),
        num_buckets=(100,),
    )
    lessons.features_SKF[..., : len(FEATURES)] = draw.normal(size=(600, 6, len(FEATURES)))
    several = settings.model_copy(update={"ranker": settings.ranker.model_copy(update={"epochs": 40})})
    weights, losses = ranker.train(lessons, several, seed=1)
    assert min(losses) < losses[0] - 0.5
    wanted, unwanted = weights.tensors["pairs.0.weight"][[0, 11, 22], 0], weights.tensors["pairs.0.weight"][[1, 12], 0]
    assert wanted.min() > unwanted.max()


def test_popularity_of_a_moment_counts_whole_days_before_it(world: TasteWorld) -> None:
    item_ids = sorted(world.items["item_id"])
    popular = DailyPopularity(world.events, item_ids, days=30)
    moment = START + timedelta(days=5, hours=13)
    counts = world.events.filter(pl.col("event_timestamp") < START + timedelta(days=5))["item_id"].to_list()
    expected = sorted(item_ids, key=lambda item_id: (-counts.count(item_id), item_id))
    assert [item_ids[row] for row in popular(moment.timestamp())] == expected
