"""The demo's own decisions; the demo itself runs in tests/integration."""

from datetime import UTC, datetime

import pytest

from evensong.launch.demo import _half_a_day_away
from evensong.settings import load_settings


@pytest.mark.parametrize(("hour", "schedule"), [(1, "55 13 * * *"), (13, "55 1 * * *"), (12, "55 0 * * *")])
def test_no_scheduled_night_falls_due_while_the_demo_runs(hour: int, schedule: str) -> None:
    settings = load_settings()
    calm = _half_a_day_away(settings, datetime(2026, 1, 1, hour, 55, tzinfo=UTC))
    assert calm.airflow.schedule == schedule
    assert calm.model_copy(update={"airflow": settings.airflow}) == settings
