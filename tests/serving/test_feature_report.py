"""The night's feature report says what is there, what moved and what the champion needs, and MLflow shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from evensong.data import storage
from evensong.errors import StorageError
from evensong.monitoring.feature_page import render
from evensong.pipelines import feature_report
from evensong.registry import tracking
from evensong.settings import Settings
from evensong.types import Night

NIGHT = Night(as_of=datetime(2026, 1, 16, tzinfo=UTC), seed=2)


SKEW = {
    "success": False,
    "message": "item_events_7d served otherwise than offline",
    "largest": [
        {
            "name": "item_events_7d",
            "num_values": 40,
            "num_different": 3,
            "max_difference": 0.25,
            "request_id": "3ec4e28d79e3",
            "served": "3.0",
            "offline": "4.0",
        },
        {"name": "price", "num_values": 40, "num_different": 0, "max_difference": 0.0},
    ],
}


@pytest.fixture(scope="module")
def folder(world: Any) -> Path:
    world.promote(world.second)
    storage.write_json(world.settings.run_uri(NIGHT.run_id, "skew.json"), SKEW)
    return Path(feature_report.run(world.settings, NIGHT))


def test_report_tells_what_the_champion_needs(world: Any, folder: Path) -> None:
    report = storage.read_json(str(folder / feature_report.DATA))
    losses = {one["name"]: one["loss"] for one in report["importance"]}
    assert {"top_categories + top_category_shares", "item_events_total", "category_path"} <= losses.keys()
    assert not losses.keys() & {"seen_item_ids", "item_id", "part", "value"}
    # each group wants its own items: without the user's history there is little else to tell the groups by
    assert max(losses, key=losses.__getitem__).startswith("recent_item_ids")
    assert report["metric"] > 0.3
    assert report["model"] == f"version {world.second}"
    assert report["notes"] == []
    # the models read the items of the history, not what was done with them
    assert "recent_event_types" in report["unread"]
    assert any(one["deviation"] > 0 for one in report["importance"])


def test_what_the_item_tower_reads_is_shuffled_before_it_reads_it(world: Any, folder: Path) -> None:
    from evensong.pipelines import train
    from evensong.registry import bundle

    report = storage.read_json(str(folder / feature_report.DATA))
    assert {"title", "category_path", "price", "price_rank"} <= {one["name"] for one in report["importance"]}
    judge = feature_report._Judge(world.settings, bundle.fetch(world.settings, world.second))
    items = train.read_items(world.settings.run_uri(NIGHT.run_id, "training_set"), final=False)
    plain = judge.with_items(items)._vectors_ND
    assert np.allclose(plain, judge._index.vectors(), atol=1e-5)
    for name in ("title", "category_path", "price", "price_rank"):
        assert name in judge.of_tower
        other = judge.with_items(items.with_columns(pl.col(name).reverse()))._vectors_ND
        assert np.abs(other - plain).max() > 0.01, name
    assert "item_events_7d" not in judge.of_tower


def test_lists_that_belong_together_are_shuffled_together() -> None:
    names = [
        "taste_categories",
        "recent_item_ids",
        "price",
        "sequence_categories",
        "sequence_gap_seconds",
        "taste_shares",
    ]
    assert feature_report._together(names) == [
        ("recent_item_ids",),
        ("taste_categories", "taste_shares"),
        ("sequence_categories", "sequence_gap_seconds"),
        "price",
    ]


def test_columns_that_the_models_read_are_in_the_report(folder: Path) -> None:
    report = storage.read_json(str(folder / feature_report.DATA))
    names = {one["name"] for one in report["summaries"]}
    assert {"title_tfidf (norm)", "cart_rate", "purchase_rate"} <= names
    assert any(name.startswith("title_tfidf [") for name in names)
    assert {"title_tfidf (norm)", "purchase_rate"} <= {one["name"] for one in report["drift"]}
    # what only passes a feature on is there already
    assert not names & {"decayed_events (column)", "price_rank (column)"}


def test_importance_is_that_of_the_champion_as_the_night_left_it(world: Any) -> None:
    world.promote(world.first)
    try:
        champion = feature_report._champion(world.settings, NIGHT)
        assert champion is not None
        assert champion.version == world.first
        # a report on an older night does not ask a model that came after it
        world.promote(world.second)
        older = feature_report._champion(world.settings, Night(as_of=datetime(2026, 1, 15, tzinfo=UTC)))
        assert older is not None
        assert older.version == world.first
    finally:
        world.promote(world.second)


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


def test_page_and_run_show_the_largest_difference_of_each_served_feature(world: Any, folder: Path) -> None:
    report = storage.read_json(str(folder / feature_report.DATA))
    assert [(one["name"], one["max_difference"]) for one in report["served"]] == [
        ("item_events_7d", 0.25),
        ("price", 0),
    ]
    page = (folder / "index.html").read_text()
    assert "item_events_7d served otherwise than offline" in page
    assert (
        '<th scope="row">item_events_7d</th><td class="much">0.25</td><td>3 of 40</td><td>3.0</td><td>4.0</td>' in page
    )
    assert '<th scope="row">price</th><td class="">0</td><td>0 of 40</td>' in page
    metrics = tracking.client(world.settings).get_run(tracking.night_run(world.settings, NIGHT)).data.metrics
    assert (metrics["skew.max_difference"], metrics["skew.num_different"]) == (0.25, 1)


def test_report_says_what_it_lacks_and_why(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {"quality": world.settings.quality.model_copy(update={"report_users": 0})}
    monkeypatch.setattr(feature_report.skew, "RESULT", "nowhere.json")
    report = feature_report.build(world.settings.model_copy(update=lost), NIGHT)
    assert report.importance == ()
    skew, importance = report.notes
    assert skew.startswith("How far served features were from the offline ones is not in the report: ")
    assert "nowhere.json" in skew
    assert importance == "Importance is not in the report: quality.report_users is 0."
    assert "<h2>Importance" not in render(report)
    assert importance in render(report)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("_champion", None, "there is no champion."),
        ("_asked", (pl.DataFrame({"user_id": []}), {}), "nobody was held out who wanted something."),
    ],
)
def test_importance_that_cannot_be_asked_is_a_note(
    world: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: object, why: str
) -> None:
    monkeypatch.setattr(feature_report, name, lambda *_: value)
    found = feature_report.importance(world.settings, NIGHT, world.settings.run_uri(NIGHT.run_id, "training_set"))
    assert found == {"notes": (f"Importance is not in the report: {why}",)}


def test_night_without_a_training_set_is_told_what_to_run(world: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"run `evensong nightly --as-of 2026-01-16T00:00:00Z` first"):
        feature_report.run(Settings(home=tmp_path), NIGHT)
