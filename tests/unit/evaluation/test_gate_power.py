"""Simulated nights: the gate seldom promotes the same model, and sees the gain that it says it can see."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.variants import first_daily

from evensong.evaluation.policy import PromotionPolicy, load_policy
from evensong.evaluation.power import Population, simulate, smallest_detectable

NIGHTS = 300


@pytest.fixture(scope="module")
def policy() -> PromotionPolicy:
    """The repository's own, with fewer resamples: the bound is Student's or wider whatever their number."""
    read = load_policy(Path("mlflow/promotion_policy.yaml").read_text())
    return read.model_copy(update={"primary": read.primary.model_copy(update={"resamples": 1000})})


USERS = [
    pytest.param(False, id="usual users"),
    pytest.param(True, id="heavy-tailed users", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("heavy_tailed", USERS)
@pytest.mark.parametrize("num_users", first_daily([200, 50]))
def test_same_model_with_another_seed_is_promoted_in_at_most_one_night_of_a_hundred(
    policy: PromotionPolicy, heavy_tailed: bool, num_users: int
) -> None:
    population = Population(heavy_tailed=heavy_tailed)
    outcome = simulate(policy, population, nights=NIGHTS, num_users=num_users, gain=0.0, seed=11)
    assert outcome.rate <= 0.01
    assert outcome.mean_gain == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("heavy_tailed", USERS)
def test_stated_smallest_gain_is_promoted_in_eighty_nights_of_a_hundred(
    policy: PromotionPolicy, heavy_tailed: bool
) -> None:
    population = Population(heavy_tailed=heavy_tailed)
    gain = smallest_detectable(policy, population, num_users=200, seed=12)
    outcome = simulate(policy, population, nights=NIGHTS, num_users=200, gain=gain, seed=13)
    assert outcome.mean_gain == pytest.approx(gain, rel=0.1)
    assert 0.74 <= outcome.rate <= 0.92


@pytest.mark.parametrize("heavy_tailed", USERS)
def test_night_tried_until_it_passes_is_promoted_hardly_more_often(policy: PromotionPolicy, heavy_tailed: bool) -> None:
    population = Population(heavy_tailed=heavy_tailed)
    outcome = simulate(policy, population, nights=NIGHTS // 2, num_users=100, gain=0.0, seed=15, tries=4)
    assert outcome.rate <= 0.02


@pytest.mark.parametrize("heavy_tailed", USERS)
def test_challenger_that_finds_half_for_forty_new_users_is_seldom_promoted_though_better_for_all_others(
    policy: PromotionPolicy, heavy_tailed: bool
) -> None:
    ruins = Population(heavy_tailed=heavy_tailed, share_new=40 / 300, left_for_new=0.5)
    outcome = simulate(policy, ruins, nights=100, num_users=300, gain=0.12, seed=16)
    assert outcome.rate <= 0.06
    assert outcome.reasons["slice.new_users"] >= 90
    # what proves nothing would let it through
    proven = policy.model_copy(update={"slices": policy.slices.model_copy(update={"when_inconclusive": "pass"})})
    assert simulate(proven, ruins, nights=50, num_users=300, gain=0.12, seed=16).rate >= 0.4


def test_more_users_show_smaller_gains(policy: PromotionPolicy) -> None:
    stated = [smallest_detectable(policy, Population(), num_users=n, seed=14, nights=5) for n in (50, 200, 800)]
    assert stated[0] > 1.5 * stated[1] > 2.25 * stated[2]
