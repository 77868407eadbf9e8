"""Retention: what a rollback or a reviewer may need stays, the rest goes only when asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.registry.conftest import Register, night

from evensong.data import storage
from evensong.errors import PromotionRefusedError, RegistryError
from evensong.registry import aliases, bundle, commands, retention, review, versions
from evensong.settings import Settings
from evensong.types import PromotionDecision


@pytest.fixture
def seven(settings: Settings, register: Register) -> Settings:
    """Seven nights; 1, 2, 3 and 5 became champion, 2 and 5 were rolled back; a rule keeps two versions."""
    kept = settings.model_copy(update={"registry": settings.registry.model_copy(update={"keep_versions": 2})})
    for day in range(1, 8):
        register(day=day)
        storage.write_json(kept.run_uri(night(day).run_id, "bundle", "x.json"), {})
        storage.write_json(kept.run_uri(night(day).run_id, "evaluation.json"), {})
    for version in ("1", "2"):
        aliases.move(kept, version, actor="rule:gate", reason="better")
    aliases.rollback(kept, actor="person:ada", reason="worse")
    for version in ("3", "5"):
        aliases.move(kept, version, actor="rule:gate", reason="better")
    aliases.rollback(kept, actor="person:ada", reason="worse")
    return kept


def actions(settings: Settings) -> dict[str, str]:
    return {one.version: one.action for one in retention.plan(settings)}


def test_last_champions_and_newest_versions_stay(seven: Settings) -> None:
    assert actions(seven) == {
        "7": "keep",
        "6": "keep",
        "5": "keep",
        "4": "collect",
        "3": "keep",
        "2": "collect",
        "1": "keep",
    }


def test_dry_run_removes_nothing(seven: Settings) -> None:
    commands.collect(seven)
    assert bundle.verify(bundle.fetch(seven, "4"))
    assert "collected" not in versions.get(seven, "4").tags


def test_collected_bundle_is_gone_everywhere_and_its_version_stays(seven: Settings) -> None:
    bundle.fetch(seven, "4")
    retention.collect(seven, dry_run=False)
    assert not Path(seven.place("serving", "bundles", "v4")).exists()
    with pytest.raises(RegistryError, match="its bundle was collected"):
        bundle.fetch(seven, "4")
    assert versions.get(seven, "4").metrics
    assert not storage.exists(seven.run_uri(night(4).run_id, "bundle"))
    assert storage.exists(seven.run_uri(night(4).run_id, "evaluation.json"))
    for kept in ("1", "3", "5", "6", "7"):
        assert bundle.verify(bundle.fetch(seven, kept))
        assert storage.exists(seven.run_uri(night(int(kept)).run_id, "bundle"))
    with pytest.raises(PromotionRefusedError, match="evensong reproduce 4"):
        commands.promote(seven, "4", reason="again", actor="person:ada")
    assert actions(seven)["4"] == "collected"


def test_version_that_waits_for_a_person_stays(seven: Settings) -> None:
    decision = PromotionDecision(promote=True, needs_review=True, reasons=[])
    review.ask(seven, versions.get(seven, "4"), decision, deadline_hours=1, default="keep")
    assert actions(seven)["4"] == "keep"


def test_rollback_works_after_collecting(seven: Settings) -> None:
    retention.collect(seven, dry_run=False)
    line = aliases.rollback(seven, actor="person:ada", reason="still worse")
    assert line.to_version == "1"
    assert bundle.verify(bundle.fetch(seven, "1"))


def test_prefetch_brings_the_last_champions_to_this_machine(seven: Settings) -> None:
    assert [place.name for place in retention.prefetch(seven)] == ["v3", "v1"]
