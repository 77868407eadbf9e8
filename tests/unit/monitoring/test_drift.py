"""PSI and KL of small worlds with known answers, and of populations that do and do not move."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from evensong.monitoring.drift import column_drift, drift, smoothed


def test_the_same_values_have_no_drift() -> None:
    values = pl.Series("x", [1.0, 2.0, 3.0, None] * 50)
    found = column_drift(values, values)
    assert (found.psi, found.kl, found.verdict) == (0, 0, "stable")


def test_the_formulas_by_hand() -> None:
    before = pl.Series("x", ["a"] * 60 + ["b"] * 40)
    after = pl.Series("x", ["a"] * 20 + ["b"] * 80)
    found = column_drift(before, after)
    # bins: a, b, other, missing; half a row more in each, 102 rows a side
    p, q = [60.5 / 102, 40.5 / 102], [20.5 / 102, 80.5 / 102]
    assert found.psi == pytest.approx(sum((y - x) * math.log(y / x) for x, y in zip(p, q, strict=True)))
    assert found.kl == pytest.approx(sum(y * math.log(y / x) for x, y in zip(p, q, strict=True)))
    assert found.verdict == "much"


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "stable"), (0.4, "some"), (1.0, "much")])
def test_a_shifted_normal_is_found_and_another_sample_of_the_same_is_not(shift: float, verdict: str) -> None:
    draw = np.random.default_rng(3)
    found = column_drift(pl.Series("x", draw.normal(size=5000)), pl.Series("x", draw.normal(shift, size=5000)))
    assert found.verdict == verdict
    # for two normals of one deviation KL is shift squared by two; bins can only lose some of it
    assert 0.8 * shift**2 / 2 < found.kl + 0.001 < shift**2 / 2 + 0.02


def test_going_missing_is_drift() -> None:
    before = pl.Series("x", np.arange(100.0))
    after = pl.Series("x", [None if i % 2 else float(i) for i in range(100)])
    found = column_drift(before, after)
    assert found.verdict == "much"
    assert found.histogram.labels[-1] == "missing"
    assert found.histogram.current[-1] == 0.5


def test_a_heap_of_one_value_has_a_bin_of_its_own() -> None:
    before = pl.Series("x", [0.0] * 80 + [1.0] * 10 + [-1.0] * 10)
    after = pl.Series("x", [-1.0] * 80 + [0.0] * 10 + [1.0] * 10)
    assert column_drift(before, after).verdict == "much"


def test_a_new_category_is_seen_and_a_new_number_outside_the_range_too() -> None:
    new = column_drift(pl.Series("x", ["a"] * 100), pl.Series("x", ["new"] * 100))
    assert "new" in new.histogram.labels
    assert new.verdict == "much"
    far = column_drift(pl.Series("x", np.arange(100.0)), pl.Series("x", np.arange(100.0) + 1e6))
    assert far.verdict == "much"


@pytest.mark.parametrize("values", [[], [None, None], [float("nan")], [5.0] * 9])
def test_hardly_any_values_give_numbers_all_the_same(values: list[float | None]) -> None:
    one = pl.Series("x", values, dtype=pl.Float64)
    for before, after in ((one, pl.Series("x", [1.0, 2.0])), (pl.Series("x", [1.0, 2.0]), one), (one, one)):
        found = column_drift(before, after)
        assert np.isfinite([found.psi, found.kl]).all()


def test_columns_are_those_that_both_have_and_can_be_binned() -> None:
    before = pl.DataFrame({"a": [1], "b": ["x"], "c": [[1]], "d": [True], "only": [1]})
    assert [found.name for found in drift(before, before.drop("only"))] == ["a", "b", "d"]
    with pytest.raises(ValueError, match="current frame lacks only"):
        drift(before, before.drop("only"), ["only"])
    with pytest.raises(ValueError, match="drift is of numbers"):
        drift(before, before, ["c"])


def test_smoothed_shares_sum_to_one() -> None:
    assert smoothed(np.array([0, 0, 10])).sum() == pytest.approx(1)
