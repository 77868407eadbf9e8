"""The demo's own decisions; the demo itself runs in tests/integration."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evensong.data import storage
from evensong.features import online
from evensong.launch import demo
from evensong.launch.demo import _half_a_day_away
from evensong.settings import Settings, load_settings

REASON = "recall_at_20 0.0910 is not above popularity's 0.1020"


@pytest.mark.parametrize(("hour", "schedule"), [(1, "55 13 * * *"), (13, "55 1 * * *"), (12, "55 0 * * *")])
def test_no_scheduled_night_falls_due_while_the_demo_runs(hour: int, schedule: str) -> None:
    settings = load_settings()
    calm = _half_a_day_away(settings, datetime(2026, 1, 1, hour, 55, tzinfo=UTC))
    assert calm.airflow.schedule == schedule
    assert calm.model_copy(update={"airflow": settings.airflow}) == settings


class FewFeatures:
    """An online store of one user who wanted two items."""

    def __init__(self, settings: Settings) -> None:
        pass

    def users(self, user_ids: list[str]) -> pl.DataFrame:
        events = {"recent_item_ids": [["i1", "i2"]], "recent_event_types": [["click", "purchase"]]}
        return pl.DataFrame({"user_id": user_ids} | events)

    def items(self, item_ids: list[str]) -> pl.DataFrame:
        return pl.DataFrame({"item_id": item_ids, "title": [f"title of {item_id}" for item_id in item_ids]})


@pytest.fixture
def kept_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The home of a demo that is done, and whose every night the gate has kept back."""
    settings = load_settings(home=tmp_path)
    storage.write_json(settings.place("demo", "demo.json"), {"start": date(2026, 1, 1).isoformat()})
    day = {"policy": "warmup", "click_rate": 0.1, "expected_click_rate": 0.1, "popularity_click_rate": 0.1}
    days = [day | {"date": f"2026-01-{number:02d}"} for number in range(1, demo.WARM_UP_DAYS + demo.NUM_NIGHTS)]
    storage.write_json(settings.place("demo", "days.json"), days)
    for version, night in enumerate(demo._nights(date(2026, 1, 1)), start=1):
        record: dict[str, Any] = {
            "as_of": night.as_of.isoformat(),
            "version": str(version),
            "promoted": False,
            "reasons": [REASON],
            "champion": None,
            "seconds": dict.fromkeys(demo.STEPS, 1.5),
            "wall_seconds": 77.7,
        }
        storage.write_json(demo._record_uri(settings, night), record)
    monkeypatch.setattr(demo, "_well_known_user", lambda settings: "u000042")
    monkeypatch.setattr(online, "OnlineFeatures", FewFeatures)
    return settings


def test_a_demo_without_a_champion_still_shows_its_nights_and_says_why_nothing_is_recommended(
    kept_back: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    result = demo.run(kept_back)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("not promoted, there is no champion yet: " + REASON) == demo.NUM_NIGHTS
    assert shown.count("77.7") == demo.NUM_NIGHTS
    assert "Nothing is recommended to user u000042 yet: no model to answer with" in shown
    assert "evensong registry promote VERSION" in shown
    assert "make up" in shown
    user = result["user"]
    assert user["recommendations"] == []
    assert "no model to answer with" in user["missing"]
    assert [item["item_id"] for item in user["history"]] == ["i2", "i1"]


def test_what_was_lived_through_is_shown_even_when_the_online_store_is_away(
    kept_back: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(settings: Settings) -> str:
        raise ConnectionError("the store does not answer")

    monkeypatch.setattr(demo, "_well_known_user", away)
    with pytest.raises(ConnectionError):
        demo.run(kept_back)
    assert "not promoted" in capsys.readouterr().out
