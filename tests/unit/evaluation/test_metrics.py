"""Every metric agrees with its definition worked out by hand, user by user."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.evaluation import metrics

ITEMS = [f"i{n}" for n in range(8)]


@st.composite
def judged(draw: st.DrawFn) -> tuple[dict[str, list[str]], dict[str, set[str]], int]:
    """Lists of distinct items (some shorter than k, some missing), targets of at least one item, and k."""
    users = [f"u{n}" for n in range(draw(st.integers(1, 5)))]
    lists = {user: draw(st.permutations(ITEMS))[: draw(st.integers(0, 8))] for user in users}
    targets = {user: draw(st.sets(st.sampled_from(ITEMS), min_size=1)) for user in users}
    return lists, targets, draw(st.integers(1, 10))


def laid_out(
    lists: dict[str, list[str]], targets: dict[str, set[str]], k: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rows = [(user, rank, item) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    wanted = [(user, item) for user, items in targets.items() for item in sorted(items)]
    frame = pl.DataFrame(rows, schema={"user_id": pl.String, "rank": pl.Int64, "item_id": pl.String}, orient="row")
    users = list(targets)
    # a target that stands there twice counts once
    pairs = pl.DataFrame(wanted + wanted[:1], schema=["user_id", "item_id"], orient="row")
    return *metrics.hits(frame, pairs, users, k), users


@settings(deadline=None, max_examples=60)
@given(judged())
def test_metrics_agree_with_their_definitions(world: tuple[dict[str, list[str]], dict[str, set[str]], int]) -> None:
    lists, targets, k = world
    hits, counts, users = laid_out(lists, targets, k)
    for row, user in enumerate(users):
        shown, wanted = lists[user][:k], targets[user]
        places = [place for place, item in enumerate(shown) if item in wanted]
        gained = sum(1 / math.log2(place + 2) for place in places)
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
        assert counts[row] == len(wanted)
        assert metrics.recall_at_k(hits, counts, k)[row] == pytest.approx(len(places) / len(wanted))
        assert metrics.ndcg_at_k(hits, counts, k)[row] == pytest.approx(gained / ideal)
        assert metrics.hit_rate_at_k(hits, k)[row] == float(bool(places))
        assert metrics.mrr(hits)[row] == pytest.approx(1 / (places[0] + 1) if places else 0)


def test_a_smaller_k_looks_at_the_head_of_the_list_alone() -> None:
    hits = np.array([[False, False, True]])
    assert metrics.recall_at_k(hits, np.array([2]), 2).tolist() == [0.0]
    assert metrics.recall_at_k(hits, np.array([2]), 3).tolist() == [0.5]
    assert metrics.ndcg_at_k(hits, np.array([1]), 3)[0] == pytest.approx(1 / math.log2(4))


def test_a_perfect_list_has_ndcg_one_however_many_targets() -> None:
    hits = np.array([[True, True, False], [True, True, True]])
    assert metrics.ndcg_at_k(hits, np.array([2, 9]), 3) == pytest.approx([1.0, 1.0])


def test_novelty_is_the_mean_surprise_in_bits() -> None:
    shares = np.array([[0.5, 0.125], [0.25, np.nan], [np.nan, np.nan]])
    assert metrics.novelty(shares).tolist() == [2.0, 2.0, 0.0]


def test_a_list_far_from_the_taste_is_miscalibrated() -> None:
    taste = np.array([[2.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])
    shown = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    found = metrics.miscalibration(taste, shown)
    assert found == pytest.approx([0, 0, -math.log(0.01), 0], abs=1e-9)


def test_coverage_counts_distinct_items() -> None:
    assert metrics.coverage(["a", "a", "b"], 8) == 0.25
    assert metrics.coverage([], 0) == 0.0


def test_users_without_a_list_have_no_hits() -> None:
    hits, counts, _ = laid_out({"u0": []}, {"u0": {"i1"}}, 3)
    assert not hits.any()
    assert counts.tolist() == [1]
