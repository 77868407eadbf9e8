"""The night's feature report says what is there, what moved and what the champion needs, and MLflow shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from evensong.data import storage
from evensong.errors import StorageError
from evensong.pipelines import feature_report
from evensong.registry import tracking
from evensong.settings import Settings
from evensong.types import Night

NIGHT = Night(as_of=datetime(2026, 1, 16, tzinfo=UTC), seed=2)


@pytest.fixture(scope="module")
def folder(world: Any) -> Path:
    world.promote(world.second)
    return Path(feature_report.run(world.settings, NIGHT))


def test_report_tells_what_the_champion_needs(folder: Path) -> None:
    report = storage.read_json(str(folder / feature_report.DATA))
    losses = {one["name"]: one["loss"] for one in report["importance"]}
    assert {"top_categories + top_category_shares", "item_events_total", "category_path"} <= losses.keys()
    assert not losses.keys() & {"seen_item_ids", "item_id", "part", "value"}
    # each group wants its own items: without the user's history there is little else to tell the groups by
    assert max(losses, key=losses.__getitem__) == "recent_item_ids + recent_event_types"
    assert report["metric"] > 0.3


def test_report_compares_the_held_out_days_with_those_before(folder: Path) -> None:
    report = storage.read_json(str(folder / feature_report.DATA))
    drifted = {one["name"]: one["verdict"] for one in report["drift"]}
    # everybody's history only grows
    assert drifted["num_interactions"] == "much"
    assert "last_interaction_days_ago" in drifted
    assert any({"item_events_30d", "item_events_total"} <= set(group) for group in report["redundant"])


def test_page_and_pictures_are_logged_on_the_nights_run(world: Any, folder: Path) -> None:
    client = tracking.client(world.settings)
    run = tracking.night_run(world.settings, NIGHT)
    names = {found.path for found in client.list_artifacts(run, "feature_report")}
    wanted = ("index.html", "report.json", "importance.svg", "correlation.svg", "distributions")
    assert names >= {f"feature_report/{name}" for name in wanted}
    assert client.get_run(run).data.metrics["features.max_psi"] > 0
    assert "<svg" in (folder / "index.html").read_text()
    for picture in folder.rglob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_night_without_a_training_set_is_told_what_to_run(world: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"run `evensong nightly --as-of 2026-01-16T00:00:00Z` first"):
        feature_report.run(Settings(home=tmp_path), NIGHT)
