"""The feature store's configuration, and that the declarations say what the tables hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from evensong.errors import ConfigurationError
from evensong.features import store as store_module
from evensong.features.declarations import STAMPS
from evensong.features.materialization_engine import _polars_type
from evensong.features.store import open_store, redis_connection, repository
from evensong.features.views import BUILT_IN
from evensong.settings import FeatureSettings, Settings

SCHEMAS = {view.name: view.schema for view in BUILT_IN}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_the_declarations_name_the_columns_and_types_of_the_tables(settings: Settings) -> None:
    views = {view.name: view for view in open_store(settings).list_feature_views()}
    assert set(views) == set(SCHEMAS)
    for name, schema in SCHEMAS.items():
        declared = {
            field.name: _polars_type(field.dtype) for field in [*views[name].entity_columns, *views[name].features]
        }
        assert declared == {column: dtype for column, dtype in schema.items() if column not in STAMPS}


def test_every_feature_says_what_it_is(settings: Settings) -> None:
    for view in open_store(settings).list_feature_views():
        assert view.description
        assert view.owner
        assert all(feature.description for feature in view.features)


def test_the_services_hold_their_views(settings: Settings) -> None:
    store = open_store(settings)

    def views(service: str) -> list[str]:
        return [projection.name for projection in store.get_feature_service(service).feature_view_projections]

    assert set(views("recommender_v1")) == set(SCHEMAS) - {"user_seen"}
    assert views("serving_filters_v1") == ["user_seen"]


def test_the_working_folder_does_not_matter(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = {source.name: source.path for source in open_store(settings).list_data_sources()}
    assert sources["user_history"] == f"{settings.lake}/features/user_history"


def test_the_declarations_are_applied_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(settings)
    written = Path(settings.feast_registry).stat().st_mtime_ns
    monkeypatch.setattr(store_module, "_stores", {})
    open_store(settings)
    assert Path(settings.feast_registry).stat().st_mtime_ns == written


def test_a_lake_that_moved_is_followed(settings: Settings, tmp_path: Path) -> None:
    open_store(settings)
    moved = settings.model_copy(update={"lake_uri": str(tmp_path / "elsewhere")})
    paths = {source.path for source in open_store(moved).list_data_sources()}
    assert all(path.startswith(str(tmp_path / "elsewhere")) for path in paths)


def test_the_modules_of_the_repository_leave_no_trace(settings: Settings) -> None:
    open_store(settings)
    assert not {"entities", "feature_views", "feature_services"} & set(sys.modules)
    assert str(repository()) not in sys.path


def test_a_place_without_declarations_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store_module, "__file__", str(tmp_path / "a" / "b" / "c" / "store.py"))
    with pytest.raises(ConfigurationError, match="run from the project's folder"):
        repository()


@pytest.mark.parametrize(
    ("uri", "connection"),
    [
        ("redis://localhost", "localhost:6379,db=0"),
        ("redis://cache:7000/3", "cache:7000,db=3"),
        ("rediss://me:s%40fe@cache/1", "cache:6379,db=1,username=me,password=s@fe,ssl=true"),
    ],
)
def test_a_redis_url_becomes_feasts_connection_string(uri: str, connection: str) -> None:
    assert redis_connection(uri) == connection


@pytest.mark.slow
def test_feasts_own_command_line_applies_the_repository(tmp_path: Path) -> None:
    environment = {**os.environ, "EVENSONG_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    (tmp_path / "feast").mkdir()
    feast = str(Path(sys.executable).with_name("feast"))

    for command in ("plan", "apply"):
        line = [feast, "-c", str(repository()), command, "--skip-source-validation"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "user_history" in done.stdout
    from feast import FeatureStore, RepoConfig

    registry = str(tmp_path / "feast" / "registry.db")
    store = FeatureStore(config=RepoConfig(project="evensong", provider="local", registry=registry))
    assert {service.name for service in store.list_feature_services()} == {"recommender_v1", "serving_filters_v1"}
    assert {source.path for source in store.list_data_sources()} == {
        f"{tmp_path}/lake/features/{view}" for view in SCHEMAS
    }


def test_declared_statistics_come_and_go_with_the_columns_file(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "columns.yaml"
    path.write_text("statistics: [{name: spend_14d, entity: user, kind: window, window_days: 14, column: value}]")
    own = settings.model_copy(update={"features": FeatureSettings(columns_path=path)})
    store = open_store(own)
    view = store.get_feature_view("user_statistics")
    assert [(field.name, field.description) for field in view.features] == [
        ("spend_14d", "Sum of value over positive events.")
    ]
    names = [projection.name for projection in store.get_feature_service("recommender_v1").feature_view_projections]
    assert "user_statistics" in names
    assert "user_statistics" not in {view.name for view in open_store(settings).list_feature_views()}


def test_a_step_that_reads_features_does_without_torch(tmp_path: Path) -> None:
    asked = """
import sys
from evensong.features.store import open_store
from evensong.settings import Settings
open_store(Settings(home=sys.argv[1]))
assert "torch" not in sys.modules
import torch
print(torch.ones(2).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", asked, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout == "2.0\n", done.stderr


def test_polars_types_of_the_declarations_are_known() -> None:
    from feast.types import Array, Float32, Json, String

    assert _polars_type(Array(Float32)) == pl.List(pl.Float32())
    assert _polars_type(String) == pl.String()
    assert _polars_type(Json) is None
