"""One home on SQLite, and small bundles whose content nobody reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml

from evensong.data import storage
from evensong.features.dictionary import build_dictionary, for_manifest
from evensong.registry import bundle, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import Night

Register = Callable[..., ModelVersion]


@pytest.fixture
def settings(tmp_path: Path, empty_store: Path) -> Settings:
    """A home with the repository's policy, less the guardrails of what these bundles do not hold."""
    home = tmp_path / "home"
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store, home / "mlflow" / "mlflow.db")
    policy = yaml.safe_load(Path("mlflow/promotion_policy.yaml").read_text())
    policy["guardrails"] = {name: policy["guardrails"][name] for name in ("index_recall", "coverage")}
    (home / "policy.yaml").write_text(yaml.safe_dump(policy))
    write_materialized(home)
    return Settings(home=home, registry={"policy_path": home / "policy.yaml"})  # type: ignore[arg-type]


def write_materialized(home: Path, day: int = 31, **changes: object) -> None:
    """What the online store says that it holds: this code's features, as of a day in March."""
    features = for_manifest(build_dictionary(Settings()), "recommender_v1")
    said = {"as_of": night(day).as_of.isoformat(), "rows": {}, "versions": {}, "features": features} | changes
    storage.write_json(str(home / "lake" / "materialized.json"), said)


def night(day: int, seed: int = 7) -> Night:
    return Night(as_of=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day - 1), seed=seed)


def make_bundle(folder: Path, day: int = 1, content: str = "weights") -> Path:
    """A bundle of two small files, made by the night of March `day`."""
    (folder / "retriever").mkdir(parents=True)
    (folder / "retriever" / "config.json").write_text('{"dimension": 4}')
    (folder / "popularity.json").write_text(content)
    bundle.write_manifest(
        folder,
        as_of=night(day).as_of,
        lake_versions={"interactions": day},
        features=for_manifest(build_dictionary(Settings()), "recommender_v1"),
        seed=7,
    )
    return folder


def register_bundle(settings: Settings, day: int, directory: Path, **changes: object) -> ModelVersion:
    values = {
        "loader_module": "evensong.registry.bundle",
        "input_example": pl.DataFrame({"user_id": ["u1"]}),
        "output_example": pl.DataFrame({"user_id": ["u1"], "item_id": ["i1"], "score": [0.5]}),
        "metrics": {"challenger.recall_at_20": 0.1 * day},
        "tags": {"lake_versions": '{"interactions": 1}'},
        "description": f"night {day}",
    } | changes
    return versions.register(settings, night(day), directory, **values)  # type: ignore[arg-type]


@pytest.fixture
def register(settings: Settings, tmp_path: Path) -> Register:
    """Register the bundle of a night; another content is another bundle."""

    def call(day: int = 1, content: str | None = None, **changes: object) -> ModelVersion:
        folder = tmp_path / "bundles" / f"{day}-{content}"
        if not folder.exists():
            make_bundle(folder, day, content or f"night {day}")
        return register_bundle(settings, day, folder, **changes)

    return call
