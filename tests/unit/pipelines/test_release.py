"""Releases for people outside: off by default, counted against one budget, repeated at no cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from evensong.data.lake import Lake
from evensong.errors import ConfigurationError, RefusedError, StorageError
from evensong.pipelines import release
from evensong.settings import Settings
from evensong.types import Night

NIGHT = Night(as_of=datetime(2026, 1, 15, tzinfo=UTC))


def shop(home: Path, **privacy: float) -> Settings:
    settings = Settings(home=home, privacy=privacy)  # type: ignore[arg-type]
    lake, moment = Lake(settings.lake), datetime(2026, 1, 10, tzinfo=UTC)
    items = pl.DataFrame({"item_id": ["a", "b"], "category_path": ["Food > Bread", "Tools"]})
    lake.append_new("items", items.with_columns(event_timestamp=pl.lit(moment)))
    rows = [(f"u{i}", "a" if i < 30 else "b", "click") for i in range(40)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "event_type"], orient="row")
    lake.append_new("interactions", events.with_columns(event_timestamp=pl.lit(moment)))
    return settings


def test_nothing_leaves_until_epsilon_is_set(tmp_path: Path) -> None:
    settings = shop(tmp_path)
    with pytest.raises(RefusedError, match=r"set privacy\.epsilon"):
        release.run(settings, NIGHT, "events", "category")
    assert not release.ledger(settings).path.exists()


def test_release_counts_by_category_and_says_where_the_ledger_lies(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=500, budget=1000)
    answer = release.run(settings, NIGHT, "events", "category")
    assert answer["values"] == {"Food": pytest.approx(30, abs=2), "Tools": pytest.approx(10, abs=2)}
    assert (answer["spent"], answer["budget"]) == (500, 1000)
    assert answer["ledger"] == str(tmp_path / "privacy" / "ledger.jsonl")
    assert release.run(settings, NIGHT, "events", "category") == answer
    assert release.run(settings, NIGHT, "events", "event_type")["spent"] == 1000


def test_spent_budget_refuses(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=1, budget=1.5)
    release.run(settings, NIGHT, "events", "category")
    with pytest.raises(RefusedError, match=r"0\.5 of 1\.5 is left"):
        release.run(settings, NIGHT, "events", "event_type")


def test_another_machine_on_the_same_lake_does_not_spend_the_budget_again(tmp_path: Path) -> None:
    settings = shop(tmp_path / "one", epsilon=1, budget=1.5)
    release.run(settings, NIGHT, "events", "category")
    other = settings.model_copy(update={"home": tmp_path / "other", "lake_uri": settings.lake})
    with pytest.raises(StorageError, match="1 releases were made, and 0 stand in it"):
        release.run(other, NIGHT, "events", "event_type")


def test_noise_is_scaled_by_contributions_over_epsilon(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=0.5, budget=1, max_contributions=3)
    assert release.run(settings, NIGHT, "events", "category")["scale"] == 6


def test_spend_is_released_by_category_within_the_bounds_of_the_settings(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=500, budget=1000, max_value=20)
    moment = datetime(2026, 1, 11, tzinfo=UTC)
    rows = [(f"u{i}", "a" if i < 8 else "b", "purchase", 5.0 if i else 1000.0) for i in range(12)]
    bought = pl.DataFrame(rows, schema=["user_id", "item_id", "event_type", "value"], orient="row")
    Lake(settings.lake).append_new("interactions", bought.with_columns(event_timestamp=pl.lit(moment)))
    answer = release.run(settings, NIGHT, "spend", "category")
    # clicks have no price, and the purchase of 1000 counts as one of 20
    assert answer["values"] == {"Food": pytest.approx(20 + 7 * 5, abs=10), "Tools": pytest.approx(20, abs=10)}
    assert answer["scale"] == 20 * 20 / 500
    assert answer["name"] == "spend by category at 2026-01-15T00:00:00+00:00"
    assert release.run(settings, NIGHT, "spend", "category") == answer
    assert release.run(settings, NIGHT, "events", "category")["spent"] == 1000


def test_command_releases_and_tells_the_budget(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=1, budget=2)
    home = {"EVENSONG_HOME": str(settings.home), "EVENSONG_PRIVACY__EPSILON": "1", "EVENSONG_PRIVACY__BUDGET": "2"}
    ask = [sys.executable, "-m", "evensong.cli", "features", "release"]
    for what, by in (("events", "category"), ("spend", "category")):
        words = subprocess.run(
            [*ask, what, "--by", by, "--as-of", "2026-01-15"],
            env=os.environ | home,
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"{what} by {by}" in words.stdout
        assert "Food" in words.stdout
    assert "spent 2 of 2" in words.stdout
    refused = subprocess.run(
        [*ask, "events", "--by", "event_type", "--as-of", "2026-01-15", "--json"],
        env=os.environ | home,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert "0 of 2 is left" in json.loads(refused.stdout)["error"]


@pytest.mark.parametrize(
    ("statistic", "by", "said"),
    [
        ("events", "user_id", "expected event_type or category to release events by, got user_id"),
        ("spend", "event_type", "expected category to release spend by"),
        ("views", "category", "expected one of events, spend to release, got views"),
    ],
)
def test_other_questions_are_refused(tmp_path: Path, statistic: str, by: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        release.run(shop(tmp_path, epsilon=1), NIGHT, statistic, by)
