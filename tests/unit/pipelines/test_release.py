"""Releases for people outside: off by default, counted against one budget, repeated at no cost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from evensong.data.lake import Lake
from evensong.errors import ConfigurationError, RefusedError
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
        release.run(settings, NIGHT, "category")
    assert not release.ledger(settings).path.exists()


def test_release_counts_by_category_and_says_where_the_ledger_lies(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=500, budget=1000)
    answer = release.run(settings, NIGHT, "category")
    assert answer["values"] == {"Food": pytest.approx(30, abs=2), "Tools": pytest.approx(10, abs=2)}
    assert (answer["spent"], answer["budget"]) == (500, 1000)
    assert answer["ledger"] == str(tmp_path / "privacy" / "ledger.jsonl")
    assert release.run(settings, NIGHT, "category") == answer
    assert release.run(settings, NIGHT, "event_type")["spent"] == 1000


def test_spent_budget_refuses(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=1, budget=1.5)
    release.run(settings, NIGHT, "category")
    with pytest.raises(RefusedError, match=r"0\.5 of 1\.5 is left"):
        release.run(settings, NIGHT, "event_type")


def test_noise_is_scaled_by_contributions_over_epsilon(tmp_path: Path) -> None:
    settings = shop(tmp_path, epsilon=0.5, budget=1, max_contributions=3)
    assert release.run(settings, NIGHT, "category")["scale"] == 6


def test_other_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected one of event_type, category"):
        release.run(shop(tmp_path, epsilon=1), NIGHT, "user_id")
