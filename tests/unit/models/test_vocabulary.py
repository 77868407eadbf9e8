"""Tokens meet the same row everywhere; unknown ones share hashed rows."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.models.vocabulary import Vocabulary, words


def test_known_tokens_have_rows_of_their_own_and_nothing_is_row_zero() -> None:
    vocabulary = Vocabulary(["a", "b"], num_hashed=3)
    assert [vocabulary.index(token) for token in ("a", "b", None, "")] == [4, 5, 0, 0]
    assert len(vocabulary) == 6


@settings(deadline=None)
@given(st.text(min_size=1))
def test_unknown_tokens_always_meet_the_same_hashed_row(token: str) -> None:
    row = Vocabulary([], num_hashed=4).index(token)
    assert 1 <= row <= 4
    assert row == Vocabulary([], num_hashed=4).index(token)


def test_fit_keeps_the_most_frequent_tokens() -> None:
    vocabulary = Vocabulary.fit(["x", "y", "y", "z", "z", "z", None], num_hashed=1, min_count=2, max_size=1)
    assert vocabulary.tokens == ["z"]


def test_known_gives_the_same_rows_for_a_few_tokens_and_for_many() -> None:
    vocabulary = Vocabulary([f"i{n}" for n in range(50)], num_hashed=1)
    tokens = ["i3", "stranger", None, "i49"] * 5_000
    few = vocabulary.known(pl.Series(tokens[:4])).tolist()
    assert few == [5, 0, 0, 51]
    assert vocabulary.known(pl.Series(tokens)).tolist() == few * 5_000


def test_rows_that_mean_the_same_are_paired() -> None:
    old, new = Vocabulary(["a", "c"], 1), Vocabulary(["b", "c"], 1)
    here, there = new.rows_of(old)
    assert dict(zip(here.tolist(), there.tolist(), strict=True)) == {0: 0, 1: 1, 3: 3}


def test_round_trip_through_json_values() -> None:
    vocabulary = Vocabulary(["ä", "b"], 2)
    assert Vocabulary.from_dict(vocabulary.to_dict()).index("ä") == vocabulary.index("ä")


def test_tokens_that_repeat_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Vocabulary(["a", "a"], 1)


def test_words_are_lower_case_and_free_of_punctuation() -> None:
    assert words("Toy Story (1995), l'été") == ["toy", "story", "1995", "l", "été"]
