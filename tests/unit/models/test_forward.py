"""The numpy models that serve are the PyTorch models that were trained, and come back from their files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.taste_world import USERS, make

from evensong.errors import BundleError
from evensong.features.columns import CategoricalColumn, ColumnSet, NumericColumn, SequenceColumn, TextColumn
from evensong.features.model_columns import ModelColumns
from evensong.features.shop_columns import Declared
from evensong.models.config import RankerConfig, TwoTowerConfig
from evensong.models.forward import dense_width
from evensong.models.inputs import UserInputs, Vocabularies, encode_items, encode_users
from evensong.models.rank_features import FEATURES
from evensong.models.ranker import Ranker
from evensong.models.saved import RankerWeights, TowerWeights, load_ranker, load_towers, save_ranker, save_towers
from evensong.models.two_tower import TwoTower, item_tensors, user_tensors


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


DECLARED = Declared(
    users=ColumnSet(
        (
            CategoricalColumn(name="busy", source="num_events_7d", bins=(1, 3)),
            SequenceColumn(name="items", source="recent_item_ids", length=3),
            NumericColumn(name="week", source="num_events_7d"),
        )
    ),
    items=ColumnSet((TextColumn(name="words", source="title", dimension=4), NumericColumn(name="price"))),
    moving=ColumnSet(()),
    built_in=frozenset(),
)


@pytest.fixture(scope="module", params=["no columns", "columns"])
def towers(request: pytest.FixtureRequest) -> tuple[TwoTower, TowerWeights, UserInputs]:
    world = make()
    wanted = world.events["item_id"].filter(world.events["item_id"] != "a00")
    ids = sorted(world.events["user_id"].unique())
    rows = [world.user_features(user_id, world.cutoff) for user_id in ids] + [{}]
    frame = pl.DataFrame(rows, schema=USERS)
    columns = ModelColumns.fit(DECLARED, frame, world.items) if request.param == "columns" else None
    vocabularies = Vocabularies.fit(world.items, wanted, history_length=6, num_top_categories=2, columns=columns)
    users = encode_users(frame, vocabularies, world.cutoff)
    config = TwoTowerConfig(dimension=8, temperature=0.1)
    model = TwoTower(config, vocabularies, torch.Generator().manual_seed(3))
    model.fit_numeric(users)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.1)
        for table in (model.item_id, model.history, model.word, *model.category):
            table.weight[0].zero_()
    return model, TowerWeights(config, vocabularies, tensors_of(model)), users


def test_item_tower_in_numpy_equals_the_trained_one(towers: tuple[TwoTower, TowerWeights, UserInputs]) -> None:
    model, weights, _ = towers
    items = encode_items(make().items, weights.vocabularies)
    with torch.no_grad():
        expected = model.items(item_tensors(items)).numpy()
    found = weights.forward().items(items)
    assert np.abs(found - expected).max() < 1e-5
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


def test_user_tower_in_numpy_equals_the_trained_one(towers: tuple[TwoTower, TowerWeights, UserInputs]) -> None:
    model, weights, users = towers
    with torch.no_grad():
        expected = model.users(user_tensors(users)).numpy()
    found = weights.forward().users(users)
    assert np.abs(found - expected).max() < 1e-5


def test_columns_begin_unheard_and_are_then_heard(towers: tuple[TwoTower, TowerWeights, UserInputs]) -> None:
    _, weights, users = towers
    width = dense_width(weights.vocabularies.columns.users.outputs)
    if not width:
        return
    fresh = TwoTower(weights.config, weights.vocabularies, torch.Generator().manual_seed(3))
    assert not fresh.user_in.weight[:, -width:].any()
    other = replace(users, value_BV=users.value_BV + 1, index_BI=np.roll(users.index_BI, 1, axis=0))
    with torch.no_grad():
        assert torch.equal(fresh.users(user_tensors(users)), fresh.users(user_tensors(other)))
    assert np.abs(weights.forward().users(users) - weights.forward().users(other)).max() > 1e-3


def test_a_brand_new_item_has_an_embedding_near_its_shelf(towers: tuple[TwoTower, TowerWeights, UserInputs]) -> None:
    _, weights, _ = towers
    new = make().items.head(1).with_columns(item_id=pl.lit("never seen"))
    vector = weights.forward().items(encode_items(new, weights.vocabularies))
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_towers_come_back_from_their_folder(towers: tuple[TwoTower, TowerWeights, UserInputs], tmp_path: Path) -> None:
    _, weights, users = towers
    save_towers(tmp_path, weights)
    back = load_towers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "columns",
        "config.json",
        "towers.safetensors",
        "vocabulary.json",
    ]
    assert np.array_equal(back.forward().users(users), weights.forward().users(users))
    assert back.vocabularies.columns.users.outputs == weights.vocabularies.columns.users.outputs


def ranker(*crosses: str) -> tuple[Ranker, RankerWeights]:
    rng = np.random.default_rng(0)
    config = RankerConfig(
        hidden=(8, 4),
        mean=tuple(rng.normal(size=len(FEATURES)).tolist()),
        std=tuple(rng.uniform(0.5, 2, size=len(FEATURES)).tolist()),
        crosses=crosses,
        num_buckets=(50,) * len(crosses),
    )
    model = Ranker(config, torch.Generator().manual_seed(1))
    return model, RankerWeights(config, tensors_of(model))


def test_ranker_begins_as_popularity() -> None:
    model, _ = ranker()
    features = torch.randn(3, 5, len(FEATURES), generator=torch.Generator().manual_seed(2))
    popularity = features[..., FEATURES.index("log_item_events_30d")]
    with torch.no_grad():
        scores = model(features)
    differences = (scores - scores[:, :1]) - (popularity - popularity[:, :1])
    assert differences.abs().max() < 1e-4


@pytest.mark.parametrize("crosses", [(), ("gender_x_shelf", "age_x_shelf")])
def test_ranker_in_numpy_equals_the_trained_one(tmp_path: Path, crosses: tuple[str, ...]) -> None:
    model, _ = ranker(*crosses)
    with torch.no_grad():
        for weight in [model.out.weight, *(pair.weight for pair in model.pairs)]:
            weight.normal_(0, 1, generator=torch.Generator().manual_seed(5))
    save_ranker(tmp_path, RankerWeights(model.config, tensors_of(model)))
    weights = load_ranker(tmp_path)
    draw = np.random.default_rng(3)
    buckets = draw.integers(0, 50, (7, len(crosses)))
    features = np.concatenate([draw.normal(size=(7, len(FEATURES))), buckets], axis=1).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(features)[None])[0].numpy()
    assert np.abs(weights.forward()(features) - expected).max() < 1e-4
    assert weights.config.crosses == crosses


@pytest.mark.parametrize("name", ["config.json", "ranker.safetensors"])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    _, weights = ranker()
    save_ranker(tmp_path, weights)
    (tmp_path / name).write_bytes(b"\x00garbage")
    with pytest.raises(BundleError, match="train the night again"):
        load_ranker(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_ranker(tmp_path)


def test_a_ranker_of_other_features_is_refused(tmp_path: Path) -> None:
    _, weights = ranker()
    config = weights.config.model_copy(update={"features": ("something", *FEATURES[1:])})
    save_ranker(tmp_path, RankerWeights(config, weights.tensors))
    with pytest.raises(BundleError, match="something"):
        load_ranker(tmp_path)
