"""One night in one process: it has the home for itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evensong.errors import BusyError
from evensong.pipelines.night import hold_home, run_night
from evensong.settings import Settings
from evensong.types import Night

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
