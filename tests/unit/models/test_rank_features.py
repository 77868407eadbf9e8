"""The ranker's features mean what their names say, for one slate as for many."""

import numpy as np
import polars as pl
import pytest
from tests.taste_world import START, make

from evensong.features.model_columns import ModelColumns
from evensong.models.inputs import UserInputs, Vocabularies
from evensong.models.rank_features import FEATURES, History, Item, assemble, item_columns

DAY = 86_400.0


def column(features: np.ndarray, name: str) -> np.ndarray:
    return features[..., FEATURES.index(name)]


@pytest.fixture
def slate() -> dict[str, object]:
    """Two candidates: one like the history (shelf 1, price as ever, three days old), one like nothing known."""
    users = UserInputs(
        history_BL=np.array([[0, 5, 6]], np.int32),
        numeric_BF=np.zeros((1, 5), np.float32),
        category_BC=np.array([[1, 2]], np.int32),
        share_BC=np.array([[0.75, 0.25]], np.float32),
        index_BI=np.zeros((1, 0), np.int32),
        value_BV=np.zeros((1, 0), np.float32),
        hash_BU=np.zeros((1, 0), np.int64),
    )
    history = History(
        embeddings_SLD=np.array([[[0, 0], [1, 0], [0, 1]]], np.float32),
        category_SL3=np.array([[[0, 0, 0], [1, 3, 0], [1, 4, 0]]], np.int32),
        log_price_SL=np.log1p(np.array([[np.nan, 10, 10]], np.float32)),
        present_SL=np.array([[False, True, True]]),
    )
    now = 100 * DAY
    candidates = Item(
        log_events=np.log1p(np.array([[[1, 7, 30, 40, 15], [0, 0, 0, 0, 0]]], np.float32)),
        arrival_seconds=np.array([[now - 3 * DAY, np.nan]]),
        category=np.array([[[1, 3, 0], [0, 0, 0]]], np.int32),
        log_price=np.log1p(np.array([[10, np.nan]], np.float32)),
        numbers=np.zeros((1, 2, 0), np.float32),
        hashes=np.zeros((1, 2, 0), np.int64),
    )
    vectors = np.array([[[0.0, 1.0], [-1.0, 0.0]]], np.float32)
    logits = np.array([[2.0, -2.0]], np.float32)
    return {
        "users": users,
        "history": history,
        "candidates": candidates,
        "embeddings_SKD": vectors,
        "logits_SK": logits,
        "now_S": np.array([now]),
        "columns": ModelColumns.none(),
    }


def test_features_say_what_they_are_named(slate: dict[str, object]) -> None:
    features = assemble(**slate)  # type: ignore[arg-type]
    first = {name: float(column(features, name)[0, 0]) for name in FEATURES}
    assert first["retriever_logit"] == 2.0
    assert first["similarity_newest"] == 1.0
    assert first["similarity_max"] == 1.0
    assert first["similarity_mean"] == 0.5
    assert first["log_item_events_30d"] == pytest.approx(np.log1p(30))
    assert first["trend_7d"] == pytest.approx(0, abs=1e-5)
    assert first["trend_1d"] == pytest.approx(0, abs=1e-5)
    assert first["events_per_user_30d"] == pytest.approx(np.log(31 / 16), abs=1e-5)
    assert first["log_age_days"] == pytest.approx(np.log1p(3))
    assert first["taste_share"] == 0.75
    assert first["history_share_level_1"] == 1.0
    assert first["history_share_level_2"] == 0.5
    assert first["history_share_level_3"] == 0.0
    assert first["price_difference"] == pytest.approx(0, abs=1e-6)


def test_an_item_of_which_nothing_is_known_has_finite_features(slate: dict[str, object]) -> None:
    features = assemble(**slate)  # type: ignore[arg-type]
    assert np.isfinite(features).all()
    assert column(features, "taste_share")[0, 1] == 0
    assert column(features, "price_distance")[0, 1] == 0


def test_padding_of_the_history_is_never_similar(slate: dict[str, object]) -> None:
    features = assemble(**slate)  # type: ignore[arg-type]
    # (-1, 0) against (1, 0) and (0, 1): the zero vector of the padding would have made the maximum 0 anyway, not -1
    assert column(features, "similarity_newest")[0, 1] == 0
    assert column(features, "similarity_mean")[0, 1] == -0.5


def test_nulls_of_the_feature_store_count_as_nothing() -> None:
    vocabularies = Vocabularies.fit(make().items, pl.Series(["a00"]), 4, 2)
    names = ["item_events_1d", "item_events_7d", "item_events_30d", "item_events_total", "item_users_30d"]
    frame = (
        make()
        .items.head(1)
        .with_columns(*(pl.lit(None, pl.Int64).alias(name) for name in names), price=pl.lit(None, pl.Float64))
    )
    found = item_columns(frame, vocabularies)
    assert not found.log_events.any()
    assert np.isnan(found.log_price).all()
    assert found.arrival_seconds[0] == START.timestamp()
