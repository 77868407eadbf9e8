"""Off-policy estimates: the truth within their interval where the log explores, and no conclusion where it does not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from evensong.evaluation.off_policy import estimates
from evensong.types import Frame

ITEMS, POSITIONS = 6, 2
#: A click's chance for each item, and how much of it each position lets through.
APPEAL = np.array([0.8, 0.6, 0.4, 0.3, 0.2, 0.1])
ATTENTION = np.array([1.0, 0.5])


def logged(num_users: int = 3000, seed: int = 0, favourite: float = 1 / ITEMS) -> Frame:
    """One request a user; each position shows item 5 with `favourite` chance and the others alike."""
    generator = np.random.default_rng(seed)
    chances = np.full(ITEMS, (1 - favourite) / (ITEMS - 1))
    chances[5] = favourite
    item = generator.choice(ITEMS, p=chances, size=(num_users, POSITIONS))
    clicked = generator.random(item.shape) < APPEAL[item] * ATTENTION
    users = np.repeat(np.arange(num_users), POSITIONS)
    return pl.DataFrame(
        {
            "request_id": [f"r{user}" for user in users],
            "user_id": [f"u{user:05}" for user in users],
            "item_id": [f"i{number}" for number in item.ravel()],
            "position": np.tile(np.arange(POSITIONS), num_users),
            "propensity": chances[item.ravel()],
            "reward": clicked.ravel().astype(float),
        }
    )


def always(log: Frame, *numbers: int) -> Frame:
    """A challenger that shows everyone the same items."""
    users = log["user_id"].unique().sort()
    return pl.concat(
        pl.DataFrame({"user_id": users, "item_id": f"i{number}", "position": place})
        for place, number in enumerate(numbers)
    )


@pytest.mark.parametrize("numbers", [(0, 1), (5, 4), (2, 0)])
def test_both_estimates_find_the_true_value(numbers: tuple[int, int]) -> None:
    truth = float((APPEAL[list(numbers)] * ATTENTION).sum())
    log = logged()
    found = estimates(log, always(log, *numbers))
    assert [estimate.method for estimate in found] == ["snips", "doubly_robust"]
    for estimate in found:
        assert estimate.lower <= truth <= estimate.upper
        assert estimate.value == pytest.approx(truth, abs=0.06)


def test_logged_value_is_what_was_earned_a_request() -> None:
    log = logged()
    assert estimates(log, always(log, 0, 1))[0].logged_value == pytest.approx(log["reward"].sum() / 3000)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    truth = float((APPEAL[[0, 1]] * ATTENTION).sum())
    covered = np.zeros(2)
    for seed in range(100):
        log = logged(num_users=400, seed=seed)
        for number, estimate in enumerate(estimates(log, always(log, 0, 1), resamples=300)):
            covered[number] += estimate.lower <= truth <= estimate.upper
    assert (covered >= 88).all()


def test_doubly_robust_is_surer_than_snips() -> None:
    log = logged()
    snips, robust = estimates(log, always(log, 0, 1))
    assert robust.upper - robust.lower < snips.upper - snips.lower


def test_effective_sample_size_falls_where_the_log_seldom_did_what_the_challenger_does() -> None:
    even, skewed = logged(), logged(favourite=0.99)
    assert estimates(even, always(even, 0, 1))[0].effective_sample_size == pytest.approx(1000, rel=0.1)
    assert estimates(skewed, always(skewed, 0, 1))[0].effective_sample_size < 30


def test_log_without_propensities_gives_no_estimate() -> None:
    log = logged(10).with_columns(propensity=pl.lit(None, pl.Float64))
    assert estimates(log, always(log, 0, 1)) == ()
    assert estimates(logged(10), always(logged(10), 0, 1).clear()) == ()


def test_challenger_that_shows_nothing_that_was_shown_has_no_sample() -> None:
    log = logged(50)
    other = always(log, 0, 1).with_columns(item_id=pl.lit("elsewhere"))
    snips, _ = estimates(log, other)
    assert (snips.effective_sample_size, snips.value) == (0.0, 0.0)


def short(log: Frame, share: float = 0.5) -> Frame:
    """The log of a shop that shows some of its users, by chance, a slate of one item."""
    one = np.random.default_rng(1).random(log["user_id"].n_unique()) < share
    users = log["user_id"].unique().sort().to_frame().with_columns(one=pl.Series(one))
    return log.join(users, on="user_id", maintain_order="left").filter(~pl.col("one") | (pl.col("position") == 0))


def test_slates_of_different_length_earn_what_was_shown_of_them_alone() -> None:
    log = short(logged())
    truth = APPEAL[0] * ATTENTION[0] + 0.5 * APPEAL[1] * ATTENTION[1]
    for estimate in estimates(log, always(log, 0, 1)):
        assert estimate.lower <= truth <= estimate.upper
        assert estimate.value == pytest.approx(truth, abs=0.06)


@pytest.mark.parametrize("spoiled", [None, float("nan"), 0.0, -0.1, 1.5, float("inf")])
def test_positions_without_a_sound_propensity_count_for_neither_side(spoiled: float | None) -> None:
    log = logged()
    first = pl.col("position") == 0
    half = log.with_columns(propensity=pl.when(first).then(pl.lit(spoiled)).otherwise(pl.col("propensity")))
    truth = APPEAL[1] * ATTENTION[1]
    for estimate in estimates(half, always(log, 0, 1)):
        assert estimate.value == pytest.approx(truth, abs=0.04)
        assert estimate.logged_value == pytest.approx(log.filter(~first)["reward"].sum() / 3000)
        assert estimate.num_rows == 3000


def test_position_that_the_challenger_leaves_empty_earns_nothing() -> None:
    log = logged()
    for estimate in estimates(log, always(log, 0)):
        assert estimate.value == pytest.approx(APPEAL[0] * ATTENTION[0], abs=0.05)


def test_log_that_could_not_have_shown_what_the_challenger_shows_says_so() -> None:
    log = logged()
    assert estimates(log, always(log, 0, 1))[0].mean_weight == pytest.approx(1.0, abs=0.1)
    # a policy that is certain of itself: it agrees with the challenger for a third of the users, and never explored
    third = pl.col("user_id").str.slice(1).cast(pl.Int64) % 3 == 0
    item = pl.when(third).then(pl.format("i{}", "position")).otherwise(pl.format("i{}", 5 - pl.col("position")))
    certain = log.with_columns(item_id=item, propensity=pl.lit(1.0))
    snips, _ = estimates(certain, always(log, 0, 1))
    assert snips.effective_sample_size == pytest.approx(2000)
    assert snips.mean_weight == pytest.approx(1 / 3)


def test_order_of_rows_changes_nothing() -> None:
    log = logged(200)
    shuffled = log.sample(fraction=1, shuffle=True, seed=3)
    assert estimates(shuffled, always(log, 0, 1)) == estimates(log, always(log, 0, 1))
