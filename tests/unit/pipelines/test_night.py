"""One night in one process: it has the home for itself, and its time has come."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from evensong.data.simulator import ShopConfig
from evensong.errors import BusyError, ConfigurationError
from evensong.pipelines import simulate
from evensong.pipelines.night import hold_home, refuse_future, run_night
from evensong.settings import Settings
from evensong.types import Night

NOW = datetime(2026, 1, 15, 2, tzinfo=UTC)
NIGHT = Night.model_validate({"as_of": "2026-01-15"})


def test_a_night_in_a_home_where_another_runs_is_refused_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    begun: list[str] = []
    with (
        hold_home(settings),
        pytest.raises(BusyError, match=rf"a night is running here \(process {os.getpid()}\); wait until it ends"),
    ):
        run_night(settings, NIGHT, lambda step, seconds: begun.append(step))
    assert begun == []
    # neither a run's folder nor a failed run in MLflow, which the other night's may be
    assert [path.name for path in settings.home.iterdir()] == ["night.lock"]


def test_a_night_of_the_future_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    soon = datetime.now(UTC) + timedelta(hours=30)
    with pytest.raises(
        ConfigurationError, match=r"a moment of today at the latest, it is .* UTC; choose an earlier one"
    ):
        run_night(settings, Night(as_of=soon))
    assert not settings.home.exists()


@pytest.mark.parametrize(
    ("ahead", "refused"), [(-9999, False), (0, False), (79200, False), (79201, True), (86400, True)]
)
def test_the_coming_midnight_is_the_last_moment(tmp_path: Path, ahead: int, refused: bool) -> None:
    night = Night(as_of=NOW + timedelta(seconds=ahead))
    if refused:
        with pytest.raises(ConfigurationError, match="it is 2026-01-15 02:00 UTC"):
            refuse_future(Settings(home=tmp_path), night, NOW)
    else:
        refuse_future(Settings(home=tmp_path), night, NOW)


def test_a_simulated_shop_may_be_ahead_of_the_clock(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    shop = ShopConfig(num_users=150, num_items=120, new_users_per_day=2, new_items_per_day=2)
    simulate.run(settings, days=2, start=date(2026, 1, 20), policy="warmup", config=shop)
    refuse_future(settings, Night.model_validate({"as_of": "2026-01-22"}), NOW)
    with pytest.raises(ConfigurationError, match="the simulated shop has lived up to 2026-01-22 00:00; choose"):
        refuse_future(settings, Night.model_validate({"as_of": "2026-01-22T01:00:00Z"}), NOW)
    with pytest.raises(ConfigurationError, match="expected a moment of today"):
        refuse_future(settings, Night.model_validate({"as_of": "2026-01-22", "source": "orders"}), NOW)
