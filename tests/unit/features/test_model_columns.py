"""The columns that the models read: fitted once, the same for one row and for many, left out where nothing is said."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evensong.errors import ConfigurationError, SourceError
from evensong.features.model_columns import ModelColumns, user_sources
from evensong.features.shop_columns import Declared, active_views, declared
from evensong.features.views import BUILT_IN, ITEM_FEATURES, USER_FEATURES
from evensong.models.forward import dense_width
from evensong.settings import FeatureSettings
from evensong.types import Frame

ALL = ("profile", "crosses", "dynamics", "hours", "sequence", "text", "price", "conversion")
ROWS = 40


def random_value(kind: pl.DataType, draw: np.random.Generator) -> object:
    if draw.random() < 0.2:
        return None
    if isinstance(kind, pl.List):
        return [random_value(kind.inner, draw) or type_zero(kind.inner) for _ in range(int(draw.integers(0, 30)))]
    if kind == pl.String:
        return str(draw.choice(["a", "b", "", "long winded title", "f", "18 to 25"]))
    if kind.is_integer():
        return int(draw.integers(0, 50))
    return float(draw.choice([0.0, draw.lognormal(), np.nan]))


def type_zero(kind: pl.DataType) -> object:
    return "a" if kind == pl.String else 0.5


def some(features: dict[str, pl.DataType], seed: int = 1) -> Frame:
    draw = np.random.default_rng(seed)
    rows = [{name: random_value(kind, draw) for name, kind in features.items()} for _ in range(ROWS)]
    return pl.DataFrame(rows, schema=features)


def users(**columns: object) -> Frame:
    frame = some(USER_FEATURES)
    attributes = [f'{{"age": {20 + i}, "city": "town {i % 3}", "likes": ["x", "y"]}}' for i in range(ROWS)]
    return frame.with_columns(user_attributes=pl.Series([None, *attributes[1:]]), **columns)  # type: ignore[arg-type]


def items() -> Frame:
    return some(ITEM_FEATURES, seed=2)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "columns.yaml"
    path.write_text(
        """
users:
  - {kind: categorical, name: city, source: attributes.city}
  - {kind: numeric, name: age, source: attributes.age}
  - {kind: sequence, name: likes, source: attributes.likes, length: 3}
  - {kind: categorical, name: loyal, source: num_interactions, bins: [5, 20]}
  - {kind: sequence, name: newest, source: recent_item_ids, length: 4}
items:
  - {kind: numeric, name: price, normalise: log}
  - {kind: numeric, name: week, source: item_events_7d, normalise: quantile}
  - {kind: vector, name: price_rank, source: price_rank, length: 2}
"""
    )
    return path


def everything(own: Path) -> Declared:
    return declared(FeatureSettings(groups=ALL, columns_path=own))


def fit(wanted: Declared) -> ModelColumns:
    return ModelColumns.fit(wanted, users(), items())


@pytest.fixture
def columns(own: Path) -> ModelColumns:
    path = own
    path.write_text(
        path.read_text().replace("  - {kind: vector, name: price_rank, source: price_rank, length: 2}\n", "")
    )
    return fit(everything(path))


def test_one_row_and_many_rows_give_the_very_bits(columns: ModelColumns) -> None:
    asked, offered = users(), items()
    together = columns.user_arrays(asked)
    goods = columns.item_arrays(offered)
    numbers = columns.item_numbers(offered)
    assert together.index_NI.shape[1] > 10
    for row in range(ROWS):
        alone = columns.user_arrays(asked[row])
        assert alone.index_NI[0].tobytes() == together.index_NI[row].tobytes()
        assert alone.value_NF[0].tobytes() == together.value_NF[row].tobytes()
        assert columns.item_numbers(offered[row])[0].tobytes() == numbers[row].tobytes()
        assert columns.item_arrays(offered[row]).value_NF[0] == pytest.approx(goods.value_NF[row], abs=1e-6)
    assert np.isfinite(together.value_NF).all()
    assert np.isfinite(numbers).all()


def test_they_come_back_from_their_folder(columns: ModelColumns, tmp_path: Path) -> None:
    back = ModelColumns.load(columns.save(tmp_path / "columns"))
    assert back.user_arrays(users()).value_NF.tobytes() == columns.user_arrays(users()).value_NF.tobytes()
    assert back.item_numbers(items()).tobytes() == columns.item_numbers(items()).tobytes()
    assert back.item_number_names == columns.item_number_names
    assert {path.suffix for path in (tmp_path / "columns").rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_features_that_a_frame_lacks_count_as_null(columns: ModelColumns) -> None:
    nobody = pl.DataFrame({"user_id": ["u"]})
    nulls = nobody.with_columns(pl.lit(None, kind).alias(name) for name, kind in USER_FEATURES.items())
    assert columns.user_arrays(nobody).value_NF.tobytes() == columns.user_arrays(nulls).value_NF.tobytes()
    assert not columns.user_arrays(nobody).index_NI[:, :3].any()


def test_what_moves_with_each_event_is_for_the_ranker_alone(columns: ModelColumns) -> None:
    assert {"week", "cart_rate", "purchase_rate", "item_decayed_events"} <= {
        column.name for column in columns.moving.columns.root
    }
    before = items()
    after = before.with_columns(item_events_7d=pl.lit(9999, pl.Int64), item_views_30d=pl.lit(9999, pl.Int64))
    assert columns.item_arrays(before).value_NF.tobytes() == columns.item_arrays(after).value_NF.tobytes()
    assert columns.item_numbers(before).tobytes() != columns.item_numbers(after).tobytes()


def test_a_built_in_column_without_values_is_left_out_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    bare = users(age_bucket=pl.lit(None, pl.String), gender=pl.lit(None, pl.String))
    with caplog.at_level(logging.INFO):
        found = ModelColumns.fit(
            declared(FeatureSettings(groups=ALL)), bare, items().with_columns(price_rank=pl.lit(None, pl.Float64))
        )
    line = [record.message for record in caplog.records if "left out" in record.message]
    named = "age_bucket, age_x_gender, age_x_gender_x_level, gender, price_rank"
    assert line == [f"columns left out, for the data has no value of theirs: {named}"]
    assert "membership_level" in {column.name for column in found.users.columns.root}


def test_peoples_own_column_without_values_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "columns.yaml"
    path.write_text("users: [{kind: categorical, name: town, source: attributes.town}]")
    with pytest.raises(SourceError, match="no row of attributes has town"):
        fit(declared(FeatureSettings(groups=(), columns_path=path)))


def test_an_own_column_takes_the_place_of_a_built_in_one(own: Path) -> None:
    assert "price_rank" in {column.name for column in everything(own).items.root}
    assert "price_rank" not in everything(own).built_in
    assert "hours" in everything(own).built_in


def test_a_cross_of_a_replaced_column_must_still_fit(tmp_path: Path) -> None:
    path = tmp_path / "columns.yaml"
    path.write_text("users: [{kind: numeric, name: gender, source: attributes.gender}]")
    with pytest.raises(ConfigurationError, match="gender is no categorical column here"):
        declared(FeatureSettings(groups=ALL, columns_path=path))


def test_only_views_that_a_column_reads_are_computed(own: Path) -> None:
    assert active_views(FeatureSettings(groups=())) == frozenset()
    assert active_views(FeatureSettings(groups=("price",))) == {"item_standing"}
    assert active_views(FeatureSettings(groups=("text", "hours"))) == {"user_dynamics"}
    assert active_views(FeatureSettings(groups=(), columns_path=own)) == {"user_profile", "item_standing"}
    assert active_views(FeatureSettings(groups=ALL, image_encoder="/weights")) == {
        view.name for view in BUILT_IN if view.optional
    }


def test_a_training_set_must_hold_what_the_columns_read(own: Path) -> None:
    sources = user_sources(declared(FeatureSettings(groups=("hours",), columns_path=own)))
    assert sources == ["hour_shares", "num_interactions", "recent_item_ids", "user_attributes"]


def test_the_same_declaration_is_recognised(own: Path, columns: ModelColumns) -> None:
    wanted = declared(FeatureSettings(groups=ALL, columns_path=own))
    assert columns.same_as(wanted)
    assert not columns.same_as(declared(FeatureSettings(groups=ALL)))


def test_the_default_columns_are_the_mixed_vector_of_128_numbers() -> None:
    """docs/guides/models.md says how it is composed."""
    columns = ModelColumns.fit(declared(FeatureSettings()), users(), items())
    of_user = dense_width(columns.users.outputs)
    of_item = dense_width(columns.items.outputs)
    of_moment = dense_width(columns.moving.outputs)
    assert (of_user, of_item, of_moment) == (91, 34, 3)
    assert of_user + of_item + of_moment == 128
    assert columns.user_arrays(users()).value_NF.shape == (ROWS, 27)
    assert columns.item_arrays(items()).value_NF.shape == (ROWS, 34)
    assert columns.item_numbers(items()).shape == (ROWS, 5)
