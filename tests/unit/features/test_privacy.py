"""Releases are noisy as promised, counted against a budget, written down, and off by default."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from evensong.errors import ConfigurationError, RefusedError, StorageError
from evensong.features.privacy import PrivacyLedger, release_counts, release_sums
from evensong.settings import PrivacySettings, Settings
from evensong.types import Frame

ROWS = pl.DataFrame({"user_id": [f"u{i}" for i in range(100)], "kind": ["a"] * 70 + ["b"] * 30, "paid": [2.0] * 100})


@pytest.fixture
def ledger(tmp_path: Path) -> PrivacyLedger:
    return PrivacyLedger(tmp_path / "privacy" / "ledger.jsonl")


def on(epsilon: float = 1.0, budget: float = 1.0, max_contributions: int = 1) -> PrivacySettings:
    return PrivacySettings(epsilon=epsilon, budget=budget, max_contributions=max_contributions)


def counts(settings: PrivacySettings, ledger: PrivacyLedger, name: str, rows: Frame = ROWS) -> dict[str, float]:
    return release_counts(rows, "kind", ["a", "b"], name=name, settings=settings, ledger=ledger).values


def sums(
    settings: PrivacySettings, ledger: PrivacyLedger, name: str, rows: Frame = ROWS, largest: float = 5.0
) -> dict[str, float]:
    asked = {"name": name, "settings": settings, "ledger": ledger}
    return release_sums(rows, "paid", largest, "kind", ["a", "b"], **asked).values  # type: ignore[arg-type]


def test_nothing_is_released_unless_somebody_asked(ledger: PrivacyLedger) -> None:
    with pytest.raises(RefusedError, match=r"set privacy\.epsilon"):
        counts(Settings().privacy, ledger, "n")
    assert not ledger.path.exists()


def test_with_a_vast_epsilon_the_truth_comes_out(ledger: PrivacyLedger) -> None:
    open_handed = on(epsilon=1000, budget=9000)
    assert counts(open_handed, ledger, "n") == {"a": 70, "b": 30}
    assert sums(open_handed, ledger, "s") == {"a": pytest.approx(140, abs=0.1), "b": pytest.approx(60, abs=0.1)}
    # values are cut at both ends
    odd = ROWS.with_columns(paid=pl.Series([-3.0, 1000.0, None, float("nan")] * 25))
    assert sum(sums(open_handed, ledger, "odd", odd).values()) == pytest.approx(25 * 5, abs=0.1)


@pytest.mark.parametrize(("epsilon", "contributions"), [(1.0, 1), (0.25, 1), (0.5, 4)])
def test_noise_has_the_spread_of_the_discrete_laplace_law(
    epsilon: float, contributions: int, ledger: PrivacyLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    settings = on(epsilon, budget=1e9, max_contributions=contributions)
    categories = [f"k{i}" for i in range(4000)]
    release = release_counts(ROWS, "kind", categories, name="n", settings=settings, ledger=ledger)
    noise = np.array(list(release.values.values()))
    share = math.exp(-epsilon / contributions)
    deviation = math.sqrt(2 * share) / (1 - share)
    # 4000 independent draws: their mean and deviation stay within five standard errors
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(4000)
    assert noise.std() == pytest.approx(deviation, rel=5 * math.sqrt(5 / 4 / 4000))
    assert (noise == 0).mean() == pytest.approx((1 - share) / (1 + share), abs=0.04)


@pytest.mark.parametrize(("largest", "epsilon", "contributions"), [(2.0, 1.0, 1), (200.0, 1.0, 1), (5.0, 0.5, 3)])
def test_noise_of_sums_has_the_spread_of_the_laplace_law(
    largest: float, epsilon: float, contributions: int, ledger: PrivacyLedger
) -> None:
    """A user may move all sums together by `contributions * largest`: so much over ε is the scale."""
    settings = on(epsilon, budget=1e9, max_contributions=contributions)
    categories = ["a", *(f"k{i}" for i in range(3000))]
    made = release_sums(ROWS, "paid", largest, "kind", categories, name="n", settings=settings, ledger=ledger)
    noise = np.array([value for name, value in made.values.items() if name != "a"])
    assert made.scale == pytest.approx(contributions * largest / epsilon)
    deviation = math.sqrt(2) * made.scale
    # 3000 independent draws: their mean and deviation stay within five standard errors
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(3000)
    assert noise.std() == pytest.approx(deviation, rel=5 * math.sqrt(5 / 4 / 3000))


def test_one_user_counts_at_most_so_often(ledger: PrivacyLedger) -> None:
    glutton = pl.DataFrame({"user_id": ["u"] * 1000 + ["v"], "kind": ["a"] * 1001})
    settings = on(epsilon=2000, budget=1e9, max_contributions=3)
    assert counts(settings, ledger, "n", glutton)["a"] == 4


def test_which_rows_of_a_user_are_kept_does_not_depend_on_their_order(ledger: PrivacyLedger) -> None:
    rows = pl.DataFrame({"user_id": ["u"] * 9, "kind": ["a", "b", "b"] * 3, "paid": [float(i) for i in range(9)]})
    settings = on(epsilon=1e6, budget=1e12, max_contributions=2)
    found = [
        sums(settings, ledger, str(i), part, 10.0)
        for i, part in enumerate((rows, rows.reverse(), rows.sample(fraction=1, shuffle=True, seed=1)))
    ]
    for one in found[1:]:
        assert one == {name: pytest.approx(value, abs=0.01) for name, value in found[0].items()}


def test_rows_of_a_mixed_user_are_drawn_in_proportion(ledger: PrivacyLedger) -> None:
    """Of 90 of one kind and 10 of another, a tenth is drawn: about 9 and 1, not all of one kind."""
    rows = pl.DataFrame({"user_id": [f"u{i}" for i in range(200)] * 100, "kind": ["a"] * 18_000 + ["b"] * 2_000})
    settings = on(epsilon=1e6, budget=1e12, max_contributions=10)
    assert counts(settings, ledger, "n", rows)["b"] == pytest.approx(200, abs=5 * math.sqrt(200 * 0.9))
    few = [counts(settings, ledger, f"u{i}", rows.filter(pl.col("user_id") == f"u{i}"))["b"] for i in range(40)]
    assert max(few) <= 5
    assert 0 < sum(few) < 100


def test_the_budget_is_spent_to_the_last_tenth_and_no_further(ledger: PrivacyLedger) -> None:
    settings = on(epsilon=0.1, budget=1.0)
    for i in range(10):
        counts(settings, ledger, f"night {i}")
    assert ledger.spent() == 1.0
    before = ledger.path.read_bytes()
    with pytest.raises(RefusedError, match=r"0 of 1 is left"):
        counts(settings, ledger, "night 10")
    assert ledger.path.read_bytes() == before


def test_asking_again_gives_the_same_numbers_and_spends_nothing(ledger: PrivacyLedger) -> None:
    first = counts(on(), ledger, "night 1")
    assert counts(on(), PrivacyLedger(ledger.path), "night 1") == first
    assert ledger.spent() == 1.0
    with pytest.raises(ConfigurationError, match="another query"):
        release_counts(ROWS, "kind", ["a"], name="night 1", settings=on(), ledger=ledger)


def test_a_ledger_that_was_touched_is_refused(ledger: PrivacyLedger) -> None:
    for name in ("one", "two", "three"):
        counts(on(budget=9), ledger, name)
    lines = ledger.path.read_text().splitlines(keepends=True)
    for harmed in ([lines[0], lines[2]], [lines[0].replace("one", "eno"), *lines[1:]], [*lines[:2], lines[2][:30]]):
        ledger.path.write_text("".join(harmed))
        with pytest.raises(StorageError, match="restore the file"):
            counts(on(budget=9), ledger, "four")


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_ledger_whose_last_lines_were_cut_off_is_refused(ledger: PrivacyLedger, left: int) -> None:
    for name in ("one", "two", "three"):
        counts(on(budget=9), ledger, name)
    lines = ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text("".join(lines[:left]))
    with pytest.raises(StorageError, match=f"3 releases were made, and {left} stand in it"):
        counts(on(budget=9), ledger, "four")
    ledger.path.write_text("".join(lines))
    assert counts(on(budget=9), ledger, "four")


def test_a_release_that_was_killed_before_the_head_knew_of_it_counts(
    ledger: PrivacyLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts(on(budget=9), ledger, "one")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PrivacyLedger, "_keep_head", killed)
        with pytest.raises(KeyboardInterrupt):
            counts(on(budget=9), ledger, "two")
    assert ledger.spent() == 2
    counts(on(budget=9), ledger, "two")
    assert ledger.spent() == 2
    ledger.path.write_text(ledger.path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(StorageError, match="2 releases were made"):
        ledger.spent()


def test_two_processes_cannot_spend_the_same_budget_twice(ledger: PrivacyLedger) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def spend(i: int) -> bool:
        try:
            counts(on(epsilon=0.25, budget=1.0), PrivacyLedger(ledger.path), f"n{i}")
        except RefusedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spend, range(12))) == 4


def test_nothing_there_is_released_as_noise_around_nothing(ledger: PrivacyLedger) -> None:
    assert set(counts(on(), ledger, "n", ROWS.clear())) == {"a", "b"}
    assert set(sums(on(budget=2), ledger, "s", ROWS.clear())) == {"a", "b"}
