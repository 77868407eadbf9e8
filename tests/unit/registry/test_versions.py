"""Versions: one bundle is one version, whatever happens on the way, and fetching it checks every byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.registry.conftest import Register

from evensong.errors import BundleError, RegistryError
from evensong.registry import bundle, tracking, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings


def test_registered_bundle_is_a_version_with_tags_metrics_and_description(register: Register) -> None:
    made = register(day=2)
    assert made.version == "1"
    assert made.as_of.isoformat() == "2026-03-02T00:00:00+00:00"
    assert made.metrics == {"challenger.recall_at_20": 0.2}
    assert made.tags["seed"] == "7"
    assert made.description == "night 2"


def test_same_bundle_again_is_the_same_version_with_the_newer_words(settings: Settings, register: Register) -> None:
    first = register(day=1)
    again = register(day=1, description="better words", tags={"airflow_run": "scheduled__1"})
    assert again.version == first.version
    assert (again.description, again.tags["airflow_run"]) == ("better words", "scheduled__1")
    assert len(versions.listed(settings)) == 1


def test_another_bundle_of_the_same_night_is_another_version(settings: Settings, register: Register) -> None:
    register(day=1, content="a")
    register(day=1, content="b")
    assert [version.version for version in versions.listed(settings)] == ["2", "1"]


@pytest.mark.parametrize("moment", ["finalize_logged_model", "create_model_version", "log_model_artifacts"])
def test_registration_killed_at_any_write_ends_with_one_version_and_one_model(
    settings: Settings, register: Register, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from mlflow import MlflowClient

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, moment, die)
        with pytest.raises(Killed):
            register(day=1)
    assert versions.listed(settings) == []
    made = register(day=1)
    models = tracking.client(settings).search_logged_models([tracking.experiment_id(settings)])
    assert [model.model_id for model in models] == [made.model_id]
    assert bundle.verify(bundle.fetch(settings, made.version))


def test_version_loads_as_pyfunc_without_pickle(settings: Settings, register: Register) -> None:
    made = register(day=1)
    folder = tracking.download(
        settings, f"models:/{settings.registry.model_name}/{made.version}", Path(settings.place("x"))
    )
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert "MLmodel" in names
    assert not any(name.endswith((".pkl", ".pickle")) for name in names)
    text = (folder / "MLmodel").read_text()
    assert "loader_module: evensong.registry.bundle" in text
    assert "signature" in text
    assert (folder / "input_example.json").is_file()


def test_fetched_bundle_is_verified_and_reused(settings: Settings, register: Register) -> None:
    made = register(day=1)
    place = bundle.fetch(settings, made.version)
    assert place == Path(settings.place("serving", "bundles", "v1"))
    before = (place / "popularity.json").stat().st_mtime_ns
    assert (bundle.fetch(settings, made.version) / "popularity.json").stat().st_mtime_ns == before
    assert bundle.cached(settings, made.version) == place


def test_damaged_file_in_the_cache_is_fetched_again(settings: Settings, register: Register) -> None:
    made = register(day=1)
    place = bundle.fetch(settings, made.version)
    (place / "popularity.json").write_text("damaged")
    with pytest.raises(BundleError, match="popularity"):
        bundle.cached(settings, made.version)
    assert (bundle.fetch(settings, made.version) / "popularity.json").read_text() == "night 1"


def test_damaged_file_in_the_registry_is_refused(settings: Settings, register: Register) -> None:
    made = register(day=1)
    stored = next(Path(settings.model_artifacts).rglob("data/bundle/popularity.json"))
    stored.write_text("damaged")
    with pytest.raises(BundleError, match=r"popularity\.json: expected SHA-256"):
        bundle.fetch(settings, made.version)
    assert not Path(settings.place("serving", "bundles", "v1")).exists()


def test_manifest_swapped_with_its_files_is_refused_by_the_registered_digest(
    settings: Settings, register: Register
) -> None:
    made = register(day=1)
    stored = next(Path(settings.model_artifacts).rglob("data/bundle"))
    (stored / "popularity.json").write_text("another model")
    bundle.write_manifest(stored)
    with pytest.raises(BundleError, match="expected the bundle"):
        bundle.fetch(settings, made.version)


def test_unknown_version_says_what_there_is_to_do(settings: Settings, register: Register) -> None:
    register(day=1)
    with pytest.raises(RegistryError, match=r"model version 9: .*evensong registry list"):
        versions.get(settings, "9")


def test_nothing_registered_is_an_empty_list_and_no_champion(settings: Settings) -> None:
    assert versions.listed(settings) == []
    assert versions.champion(settings) is None


def test_attached_file_is_read_back(settings: Settings, register: Register, tmp_path: Path) -> None:
    made: ModelVersion = register(day=1)
    (tmp_path / "decision.json").write_text("{}")
    versions.attach(settings, made, tmp_path / "decision.json")
    assert versions.read_attached(settings, made, "decision.json") == b"{}"
