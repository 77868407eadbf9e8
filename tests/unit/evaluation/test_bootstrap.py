"""The interval: it covers what it says, shrinks by pairing and covariates, and is never surer than Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evensong.evaluation.bootstrap import Interval, adjust, paired_interval, smallest_gain


def interval(values: np.ndarray, confidence: float = 0.99, seed: int = 0, resamples: int = 4000) -> Interval:
    return paired_interval(values, confidence=confidence, resamples=resamples, generator=np.random.default_rng(seed))


def test_normal_differences_get_students_interval() -> None:
    values = np.random.default_rng(1).normal(0.1, 1.0, size=500)
    ours = interval(values, resamples=40_000)
    students = stats.t.interval(0.99, 499, loc=values.mean(), scale=stats.sem(values))
    assert ours.lower == pytest.approx(students[0], abs=0.02)
    assert ours.upper == pytest.approx(students[1], abs=0.02)


def test_bounds_are_never_closer_than_students() -> None:
    generator = np.random.default_rng(2)
    for values in (generator.exponential(size=40), -generator.exponential(size=40), generator.standard_t(2, size=40)):
        ours = interval(values)
        reach = float(stats.t.ppf(0.995, 39)) * float(stats.sem(values))
        assert ours.lower <= ours.mean - reach + 1e-12
        assert ours.upper >= ours.mean + reach - 1e-12


def test_skew_moves_the_bound_on_the_side_of_the_tail() -> None:
    values = np.random.default_rng(3).exponential(size=60)
    ours = interval(values)
    assert ours.upper - ours.mean > 1.1 * (ours.mean - ours.lower)


@pytest.mark.parametrize("draw", ["normal", "sparse", "heavy"])
def test_lower_bound_errs_in_at_most_its_share_of_samples(draw: str) -> None:
    generator = np.random.default_rng(4)
    makers = {
        "normal": lambda: generator.normal(size=50),
        "sparse": lambda: generator.choice([-1.0, 0.0, 1.0], p=[0.05, 0.9, 0.05], size=50),
        "heavy": lambda: generator.standard_t(2, size=50),
    }
    above = sum(interval(makers[draw](), confidence=0.9, resamples=500).lower > 0 for _ in range(1000))
    # 5 % nominal; three standard errors of the count above it.
    assert above <= 50 + 3 * math.sqrt(1000 * 0.05 * 0.95)


def test_same_seed_gives_the_same_interval_and_order_of_users_matters_not_for_the_mean() -> None:
    values = np.random.default_rng(5).normal(size=100)
    assert interval(values) == interval(values)


def test_users_who_all_agree_give_an_interval_of_no_width() -> None:
    ours = interval(np.zeros(50))
    assert (ours.lower, ours.mean, ours.upper) == (0.0, 0.0, 0.0)


def test_two_users_who_differ_among_many_prove_nothing() -> None:
    values = np.zeros(60)
    values[:2] = 1.0
    ours = interval(values)
    assert ours.lower < 0
    assert math.isfinite(ours.upper)


def detectable(ours: Interval, margin: float = 0.0) -> float:
    found = smallest_gain(lambda gain: ours.chance_above(margin, gain), 0.8)
    assert found is not None
    return found


def test_more_users_detect_less_and_a_margin_adds_up() -> None:
    values = np.random.default_rng(6).normal(size=4000)
    few, many = interval(values[:400]), interval(values)
    assert detectable(many) < detectable(few) / 2
    assert detectable(few, margin=0.1) == pytest.approx(detectable(few) + 0.1, abs=0.03)


def test_stated_gain_is_shown_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)

    def night(better: float, worse: float) -> Interval:
        differences = generator.choice([1.0, 0.0, -1.0], p=[better, 1 - better - worse, worse], size=400)
        return interval(differences, resamples=500)

    # one user in twenty differs; a gain comes from users who lose no more and from users who newly find
    gain = float(np.median([detectable(night(0.025, 0.025)) for _ in range(25)]))
    shown = [night(0.025 + gain / 2, 0.025 - gain / 2).lower > 0 for _ in range(300)]
    assert np.mean(shown) >= 0.74


def test_what_no_gain_can_reach_has_no_smallest_one() -> None:
    assert smallest_gain(lambda gain: 0.5, 0.8) is None


@pytest.mark.parametrize(("values", "message"), [([0.1], "at least 2 users"), ([0.1, math.nan], "finite differences")])
def test_what_cannot_be_concluded_is_refused(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interval(np.array(values))


def test_covariate_from_before_the_window_takes_its_share_of_the_variance_and_leaves_the_mean() -> None:
    generator = np.random.default_rng(7)
    past = generator.normal(size=(2000, 1))
    values = 0.1 + 0.5 * past[:, 0] + generator.normal(0, 0.1, size=2000)
    freed = adjust(values, past, past.mean(axis=0))
    assert freed.mean() == pytest.approx(values.mean())
    assert freed.std() == pytest.approx(0.1, abs=0.01)


def test_covariates_that_say_nothing_make_nobody_surer() -> None:
    generator = np.random.default_rng(10)
    errors = []
    for _ in range(300):
        values, past = generator.normal(size=12), generator.normal(size=(12, 4))
        errors.append(np.var(adjust(values, past, past.mean(axis=0)), ddof=1))
    # four slopes fitted to twelve users explain a third of pure noise; the stretch gives it back
    assert np.mean(errors) == pytest.approx(1.0, abs=0.1)


def test_sample_that_is_not_like_the_population_is_moved_to_it() -> None:
    generator = np.random.default_rng(8)
    past = generator.normal(1.0, 1.0, size=(5000, 1))
    values = 0.1 + 0.5 * past[:, 0] + generator.normal(0, 0.1, size=5000)
    assert adjust(values, past, np.array([0.0])).mean() == pytest.approx(0.1, abs=0.01)


def test_covariate_that_is_the_same_for_all_changes_nothing() -> None:
    values = np.random.default_rng(9).normal(size=30)
    assert adjust(values, np.ones((30, 1)), np.ones(1)) is values
