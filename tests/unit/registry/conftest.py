"""One home on SQLite, and small bundles whose content nobody reads."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml
from mlflow.tracking._tracking_service import utils as mlflow_utils

from evensong.data import storage
from evensong.features.dictionary import build_dictionary, for_manifest
from evensong.registry import bundle, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import Night

Register = Callable[..., ModelVersion]
Prepared = Callable[[Settings, Callable[[Settings, Register], None]], None]


@pytest.fixture
def settings(tmp_path: Path, empty_store: Path) -> Settings:
    """A home with the repository's policy, less the guardrails of what these bundles do not hold."""
    return make_home(tmp_path / "home", empty_store)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Prepared:
    """Puts into a new home what a function does to a home: done once, then copied, for registering takes a second."""
    made: dict[Callable[[Settings, Register], None], Path] = {}

    def call(settings: Settings, prepare: Callable[[Settings, Register], None]) -> None:
        if prepare not in made:
            place = tmp_path_factory.mktemp("prepared")
            first = make_home(place / "home", empty_store)
            prepare(first, registering(first, place))
            made[prepare] = first.home
        copy_home(made[prepare], settings.home)

    return call


def make_home(home: Path, empty_store: Path) -> Settings:
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store, home / "mlflow" / "mlflow.db")
    policy = yaml.safe_load(Path("mlflow/promotion_policy.yaml").read_text())
    policy["guardrails"] = {name: policy["guardrails"][name] for name in ("index_recall", "coverage")}
    (home / "policy.yaml").write_text(yaml.safe_dump(policy))
    write_materialized(home)
    return Settings(home=home, registry={"policy_path": home / "policy.yaml"})  # type: ignore[arg-type]


def copy_home(source: Path, target: Path) -> None:
    """The files, and the database of MLflow, which names the home's folders, with the new ones in their place."""
    mlflow_utils._artifact_repos_cache.clear()  # by the ids of runs and models, which are those of the source
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db*"))
    database = target / "mlflow" / "mlflow.db"
    database.unlink()
    with (
        closing(sqlite3.connect(source / "mlflow" / "mlflow.db")) as old,
        closing(sqlite3.connect(database)) as new,
    ):
        old.backup(new)
        for (table,) in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, kind, *_ in new.execute(f'PRAGMA table_info("{table}")').fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'  # noqa: S608
                    new.execute(change, (str(source), str(target), str(source)))
        new.commit()


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
    return registering(settings, tmp_path)


def registering(settings: Settings, place: Path) -> Register:
    def call(day: int = 1, content: str | None = None, **changes: object) -> ModelVersion:
        folder = place / "bundles" / f"{day}-{content}"
        if not folder.exists():
            make_bundle(folder, day, content or f"night {day}")
        return register_bundle(settings, day, folder, **changes)

    return call
