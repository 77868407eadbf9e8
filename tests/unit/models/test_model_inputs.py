"""Frames become arrays: newest last, unknown items left out, nulls harmless."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from tests.taste_world import USERS, make

from evensong.models.inputs import Vocabularies, encode_items, encode_users

NOW = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def vocabularies() -> Vocabularies:
    world = make()
    return Vocabularies.fit(world.items, pl.Series(["a00", "a01", "b00"]), history_length=4, num_top_categories=2)


def users(*histories: list[str] | None) -> pl.DataFrame:
    rows = [{"recent_item_ids": history} for history in histories]
    return pl.DataFrame(rows, schema=USERS)


def test_the_newest_item_stands_last(vocabularies: Vocabularies) -> None:
    encoded = encode_users(users(["a00", "b00"]), vocabularies, NOW)
    index = vocabularies.items.index
    assert encoded.history_BL.tolist() == [[0, 0, index("a00"), index("b00")]]


def test_a_long_history_keeps_its_newest_items(vocabularies: Vocabularies) -> None:
    encoded = encode_users(users(["a01"] * 9 + ["a00", "b00"]), vocabularies, NOW)
    index = vocabularies.items.index
    assert encoded.history_BL[0].tolist() == [index("a01"), index("a01"), index("a00"), index("b00")]


def test_unknown_items_leave_no_gap(vocabularies: Vocabularies) -> None:
    encoded = encode_users(users(["a00", "stranger", "b00"]), vocabularies, NOW)
    assert (encoded.history_BL[0] > 0).tolist() == [False, False, True, True]


def test_nobody_has_no_history_and_finite_numbers(vocabularies: Vocabularies) -> None:
    encoded = encode_users(users(None, [], ["stranger"]), vocabularies, NOW)
    assert not encoded.has_history_B.any()
    assert np.isfinite(encoded.numeric_BF).all()


def test_missing_columns_count_as_nulls(vocabularies: Vocabularies) -> None:
    whole = encode_users(users(None), vocabularies, NOW)
    bare = encode_users(pl.DataFrame({"user_id": ["u"]}), vocabularies, NOW)
    assert all(np.array_equal(getattr(whole, name), getattr(bare, name)) for name in ("history_BL", "numeric_BF"))


def test_days_since_the_last_interaction_count_to_now(vocabularies: Vocabularies) -> None:
    last = int((NOW - timedelta(days=3)).timestamp())
    frame = users(["a00"]).with_columns(last_interaction_seconds=pl.lit(last, pl.Int64))
    assert encode_users(frame, vocabularies, NOW).numeric_BF[0, -1] == pytest.approx(np.log1p(3))


def test_one_row_and_many_rows_encode_alike(vocabularies: Vocabularies) -> None:
    world = make()
    ids = sorted(world.events["user_id"].unique())
    frame = pl.DataFrame([world.user_features(user_id, world.cutoff) for user_id in ids], schema=USERS)
    odd = pl.DataFrame([{}, {"recent_item_ids": ["stranger", None, "a00"], "top_categories": ["a", "x"]}], schema=USERS)
    odd = odd.with_columns(top_category_shares=pl.Series([None, [0.7, 0.1]], dtype=pl.List(pl.Float32)))
    frame = pl.concat([frame, odd])
    together = encode_users(frame, vocabularies, NOW)
    for row in range(len(frame)):
        alone = encode_users(frame[row], vocabularies, NOW)
        assert np.array_equal(alone.history_BL[0], together.history_BL[row])
        assert np.array_equal(alone.numeric_BF[0], together.numeric_BF[row])
        assert np.array_equal(alone.category_BC[0], together.category_BC[row])
        assert np.array_equal(alone.share_BC[0], together.share_BC[row])


def test_an_item_nobody_wanted_gets_the_shared_row_and_its_own_content(vocabularies: Vocabularies) -> None:
    encoded = encode_items(make().items.filter(pl.col("item_id").is_in(["a00", "a05"])), vocabularies)
    assert encoded.id_N.tolist() == [vocabularies.items.index("a00"), 1]
    assert (encoded.category_N3[:, 0] == encoded.category_N3[0, 0]).all()
    assert (encoded.word_NW[1] > 0).sum() == 3


def test_items_without_any_content_encode(vocabularies: Vocabularies) -> None:
    bare = pl.DataFrame(
        {"item_id": ["new"], "title": [None], "category_path": [None], "price": [None]},
        schema={"item_id": pl.String, "title": pl.String, "category_path": pl.String, "price": pl.Float64},
    )
    encoded = encode_items(bare, vocabularies)
    assert encoded.price_N2.tolist() == [[0.0, 0.0]]
    assert not encoded.category_N3.any()
    assert not encoded.word_NW.any()


def test_the_same_name_below_two_parents_is_two_categories() -> None:
    items = make().items.with_columns(category_path=pl.Series(["x > new"] * 20 + ["y > new"] * 20))
    fitted = Vocabularies.fit(items, pl.Series(["a00"]), 4, 2)
    assert fitted.categories[1].tokens == ["x > new", "y > new"]
