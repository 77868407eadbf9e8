"""The retention rule at work: never beside a night."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.registry.conftest import make_bundle, register_bundle

from evensong.errors import BusyError
from evensong.pipelines import retention
from evensong.pipelines.night import hold_home
from evensong.registry import aliases, tracking, versions
from evensong.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two versions, of which the rule keeps the champion, and one more."""
    settings = Settings(home=tmp_path / "home", registry={"keep_versions": 1})  # type: ignore[arg-type]
    tracking.client(settings)
    for day in (1, 2, 3):
        register_bundle(settings, day, make_bundle(tmp_path / str(day), day, f"night {day}"))
    aliases.move(settings, "1", actor="rule:gate", reason="the first")
    return settings


def test_a_look_removes_nothing_and_does_not_wait_for_a_night(settings: Settings) -> None:
    with hold_home(settings):
        plan = retention.run(settings, remove=False)
    assert retention.summary(plan, remove=False) == "would collect 1 of 3 bundles: version 2"
    assert versions.get(settings, "2").has_bundle


def test_nothing_is_removed_while_a_night_is_at_work(settings: Settings) -> None:
    with hold_home(settings), pytest.raises(BusyError, match="a night is running here"):
        retention.run(settings, remove=True)
    assert versions.get(settings, "2").has_bundle
    plan = retention.run(settings, remove=True)
    assert retention.summary(plan, remove=True) == "collected 1 of 3 bundles: version 2"
    assert not versions.get(settings, "2").has_bundle
    assert retention.summary(retention.run(settings, remove=True), remove=True) == "collected 0 of 3 bundles"
