"""Retention: what a rollback or a reviewer may need stays, the rest goes only when asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.registry.conftest import Prepared, Register, make_bundle, night, register_bundle

from evensong.data import storage
from evensong.errors import BundleError, PromotionRefusedError, RegistryError
from evensong.registry import aliases, bundle, commands, retention, review, tracking, versions
from evensong.settings import Settings
from evensong.types import PromotionDecision


@pytest.fixture
def seven(settings: Settings, prepared: Prepared) -> Settings:
    """Seven nights; 1, 2, 3 and 5 became champion, 2 and 5 were rolled back; a rule keeps two versions."""
    prepared(settings, live_seven_nights)
    return keeping_two(settings)


def keeping_two(settings: Settings) -> Settings:
    return settings.model_copy(update={"registry": settings.registry.model_copy(update={"keep_versions": 2})})


def live_seven_nights(settings: Settings, register: Register) -> None:
    kept = keeping_two(settings)
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


def test_everything_of_a_collected_bundle_goes_and_its_manifest_stays(
    settings: Settings, tmp_path: Path, register: Register
) -> None:
    kept = settings.model_copy(update={"registry": settings.registry.model_copy(update={"keep_versions": 1})})
    first = refit(kept, tmp_path, 1)
    register(day=2)
    assert bundle.fetch_judged(kept, first.version)
    bundle.fetch(kept, first.version)
    storage.write_json(kept.run_uri(night(1).run_id, "judged", "x.json"), {})
    retention.collect(kept, dry_run=False)
    model = Path(tracking.artifact_location(kept, first.model_id or ""))
    assert not (model / "data").exists()
    assert not (model / "judged").exists()
    assert not Path(kept.place("judged", "v1")).exists()
    assert not Path(kept.place("serving", "bundles", "v1")).exists()
    assert not storage.exists(kept.run_uri(night(1).run_id, "judged"))
    manifest = retention.manifest_of(kept, versions.get(kept, "1"))
    assert manifest is not None
    assert set(manifest["files"]) == {"popularity.json", "retriever/config.json"}


def refit(settings: Settings, folder: Path, day: int) -> versions.ModelVersion:
    """A version whose bundle was refit after its models were judged."""
    judged = make_bundle(folder / f"judged{day}", day, "judged")
    made = make_bundle(folder / f"refit{day}", day, "refit")
    digest = bundle.digest(judged)
    (made / "manifest.json").unlink()
    bundle.write_manifest(made, as_of=night(day).as_of, code_commit="then", seed=7, judged_digest=digest)
    return register_bundle(settings, day, made, judged=judged, tags={"judged_digest": digest})


def collected(settings: Settings, tmp_path: Path, register: Register) -> Settings:
    """Version 1, refit, was collected."""
    kept = settings.model_copy(update={"registry": settings.registry.model_copy(update={"keep_versions": 1})})
    refit(kept, tmp_path, 1)
    register(day=2)
    retention.collect(kept, dry_run=False)
    return kept


def made_anew(folder: Path, content: str = "refit") -> Path:
    """The same night's bundle by other code, from a copy of the lake."""
    made = make_bundle(folder / "anew", 1, content)
    (made / "manifest.json").unlink()
    bundle.write_manifest(made, as_of=night(1).as_of, code_commit="now", lake_versions={"items": 0}, seed=7)
    return made


def test_bundle_that_came_out_the_same_is_put_back(settings: Settings, tmp_path: Path, register: Register) -> None:
    kept = collected(settings, tmp_path, register)
    version = versions.get(kept, "1")
    with pytest.raises(RegistryError, match="`evensong reproduce 1` makes it anew and puts it back"):
        bundle.fetch(kept, "1")
    assert retention.restore(kept, version, made_anew(tmp_path), tmp_path / "judged1")
    assert bundle.digest(bundle.fetch(kept, "1")) == version.digest
    assert bundle.fetch_judged(kept, "1")
    aliases.move(kept, "1", actor="person:ada", reason="it was better")
    with pytest.raises(RegistryError, match="its bundle is there"):
        retention.restore(kept, version, made_anew(tmp_path / "again"), None)


@pytest.mark.parametrize("other", ["a weight", "the judged models", "the manifest"])
def test_bundle_that_came_out_otherwise_is_not_put_back(
    settings: Settings, tmp_path: Path, register: Register, other: str
) -> None:
    kept = collected(settings, tmp_path, register)
    version = versions.get(kept, "1")
    judged = tmp_path / "judged1"
    if other == "the judged models":
        judged = make_bundle(tmp_path / "others", 1, "other")
    if other == "the manifest":
        Path(tracking.artifact_location(kept, version.model_id or ""), retention.MANIFEST).unlink()
    made = made_anew(tmp_path, "another" if other == "a weight" else "refit")
    assert retention.restore(kept, version, made, judged) is False
    assert "collected" in versions.get(kept, "1").tags
    with pytest.raises(PromotionRefusedError):
        aliases.move(kept, "1", actor="person:ada", reason="it was better")


def test_edited_manifest_of_a_collected_bundle_is_not_believed(
    settings: Settings, tmp_path: Path, register: Register
) -> None:
    kept = collected(settings, tmp_path, register)
    version = versions.get(kept, "1")
    place = Path(tracking.artifact_location(kept, version.model_id or ""), retention.MANIFEST)
    place.write_text(place.read_text().replace("then", "once"))
    with pytest.raises(BundleError, match="it was edited"):
        retention.manifest_of(kept, version)


def test_collecting_that_was_killed_is_finished_by_the_next(seven: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_folder", die)
        with pytest.raises(Killed):
            retention.collect(seven, dry_run=False)
    retention.collect(seven, dry_run=False)
    for version in ("2", "4"):
        model = Path(tracking.artifact_location(seven, versions.get(seven, version).model_id or ""))
        assert not (model / "data").exists()
        assert (model / retention.MANIFEST).exists()


def test_version_that_somebody_else_registered_is_not_ours_to_collect(seven: Settings) -> None:
    client = tracking.client(seven)
    client.create_model_version("recommender", "models:/recommender/1")
    for day in (8, 9):
        register_bundle(seven, day, make_bundle(seven.home / f"late{day}", day, f"night {day}"))
    plan = {one.version: one for one in retention.plan(seven)}
    assert (plan["8"].action, plan["8"].why) == ("keep", "was not registered by Evensong")
    assert plan["6"].action == "collect"


def test_another_server_s_disk_is_cleaned_by_itself(seven: Settings, tmp_path: Path) -> None:
    server = seven.model_copy(update={"home": tmp_path / "server", "mlflow_tracking_uri": seven.tracking})
    for version in ("1", "2", "4"):
        bundle.fetch(server, version)
    retention.collect(seven, dry_run=False)
    assert retention.forget(server, keep={"2"}) == ["4"]
    assert sorted(path.name for path in Path(server.place("serving", "bundles")).iterdir()) == ["v1", "v2"]


def test_a_run_of_the_rule_frees_the_bytes_and_any_of_the_last_champions_can_be_returned_to_without_the_artifacts(
    settings: Settings, tmp_path: Path
) -> None:
    kept = settings.model_copy(update={"registry": settings.registry.model_copy(update={"keep_versions": 2})})
    weights, champions = 500_000, ("2", "4", "5")
    for day in range(1, 9):
        register_bundle(kept, day, make_bundle(tmp_path / str(day), day, str(day) * weights))
        if str(day) in ("1", *champions):
            aliases.move(kept, str(day), actor="rule:gate", reason="better")
    retention.prefetch(kept)
    before = bundle.size_bytes(Path(kept.model_artifacts))
    gone = {one.version for one in retention.collect(kept, dry_run=False) if one.action == "collect"}
    assert gone == {"1", "3", "6"}
    freed = before - bundle.size_bytes(Path(kept.model_artifacts))
    assert len(gone) * weights < freed < len(gone) * weights * 1.1
    # nobody reaches the artifacts any more
    Path(kept.model_artifacts).rename(tmp_path / "away")
    for version in ("4", "2", "5"):
        aliases.rollback(kept, to=version, actor="person:ada", reason="clicks fell")
        now = aliases.champion(kept)
        assert now is not None
        served = bundle.fetch(kept, now.version)
        assert (served / "popularity.json").read_text() == version * weights


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
