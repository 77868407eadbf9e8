"""Pools hold what was drawn, with the probability of its being there; masks hide what a user wanted."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.training.sampling import UserPositives, draw_pool


def test_inclusion_probabilities_are_those_that_happen() -> None:
    share = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)
    rounds, seen, stated = 4000, np.zeros(4), np.zeros(4)
    for _ in range(rounds):
        # the first row is the one whose negatives are counted: it is no draw, so its pool is that of the other rows
        others = rng.choice(4, 3, p=share)
        pool = draw_pool(np.concatenate([[0], others]), share, num_uniform=2, rng=rng)
        seen[pool.items_U] += 1
        stated[pool.items_U] = np.exp(pool.log_inclusion_U)
    # item 0 is always there as the first row's positive
    assert seen[0] == rounds
    assert np.abs(seen[1:] / rounds - stated[1:]).max() < 0.03


def test_pool_knows_the_column_of_each_item() -> None:
    pool = draw_pool(np.array([7, 2, 7]), np.full(10, 0.1), 4, np.random.default_rng(1))
    assert {2, 7} <= set(pool.items_U.tolist())
    assert (pool.items_U[pool.column_N[pool.items_U]] == pool.items_U).all()
    assert (pool.column_N >= 0).sum() == len(pool.items_U)


def test_same_generator_state_draws_the_same_pool() -> None:
    first, second = (draw_pool(np.array([1]), np.full(50, 0.02), 20, np.random.default_rng(5)) for _ in range(2))
    assert first.items_U.tolist() == second.items_U.tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40), st.lists(st.integers(0, 4), min_size=1))
def test_mask_is_true_exactly_for_the_users_own_positives(pairs: list[tuple[int, int]], users: list[int]) -> None:
    wanted = UserPositives(
        np.array([user for user, _ in pairs], np.int64), np.array([item for _, item in pairs], np.int64), 5
    )
    pool = draw_pool(np.array([0, 3, 9]), np.full(10, 0.1), 3, np.random.default_rng(2))
    masked = wanted.mask(np.array(users), pool)
    expected = [[(user, item) in set(pairs) for item in pool.items_U.tolist()] for user in users]
    assert masked.tolist() == expected
