"""Every process gets the settings that the launcher has, and secrets stay where they belong."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from evensong.errors import ConfigurationError
from evensong.launch import components, secrets
from evensong.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


def test_a_child_reads_the_very_settings_of_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENSONG_SERVING__PORT", "9999")
    given = load_settings(
        home=tmp_path / "a home with spaces",
        split={"holdout_days": 2.5, "min_value": {"rating": 4.0}, "positive_event_types": ["rating"]},
        ranker={"hidden": [8, 4]},
        validation={"max_staleness_days": 30.0},
        online_store_uri="redis://127.0.0.1:1/0",
    )
    monkeypatch.setenv("EVENSONG_SERVING__PORT", "1111")
    code = "from evensong.settings import load_settings; print(load_settings().model_dump_json())"
    variables = components.common_variables(given)
    words = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    read = json.loads(words.stdout)
    assert read == json.loads(given.model_dump_json())
    assert read["serving"]["port"] == 9999


def test_secrets_are_made_once_and_only_their_owner_reads_them(settings: Settings, tmp_path: Path) -> None:
    first, second = secrets.airflow_secrets(settings), secrets.airflow_secrets(settings)
    assert first == second
    other = secrets.airflow_secrets(load_settings(home=tmp_path / "other"))
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET"):
        assert len(first[name]) >= 44
        assert first[name] != other[name]
    secrets.ensure_password(settings)
    for name in ("secrets.json", "passwords.json"):
        assert stat.S_IMODE(Path(settings.place("airflow", name)).stat().st_mode) == 0o600


def test_secrets_of_the_environment_win(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "given")
    monkeypatch.setenv("AIRFLOW_ADMIN_PASSWORD", "chosen")
    assert components.common_variables(settings)["AIRFLOW__API_AUTH__JWT_SECRET"] == "given"
    secrets.ensure_password(settings)
    assert secrets.admin_password(settings) == "chosen"


def test_variables_of_airflow_reach_it_where_no_setting_decides(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "AIRFLOW__SMTP__SMTP_HOST": "mail.example",
        "AIRFLOW_CONN_SHOP": "postgresql://shop",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__DAGS_FOLDER": "/somewhere/else",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////elsewhere.db",
        "AIRFLOW__API__PORT": "8080",
        "AIRFLOW_HOME": "/another",
        "AIRFLOW_CONFIG": "/another/airflow.cfg",
        "AIRFLOW_ADMIN_PASSWORD": "secret",
        "AIRFLOW_CTX_DAG_RUN_ID": "of another run",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    variables = components.common_variables(settings)
    for name in ("AIRFLOW__SMTP__SMTP_HOST", "AIRFLOW_CONN_SHOP", "AIRFLOW__CORE__PARALLELISM"):
        assert variables[name] == given[name]
    assert variables["AIRFLOW_HOME"] == settings.place("airflow")
    assert variables["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{settings.place('airflow', 'airflow.db')}"
    assert not {"AIRFLOW_CONFIG", "AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_CTX_DAG_RUN_ID"} & variables.keys()
    # and whoever set one in vain is told
    assert components.ignored_variables(settings) == [
        "AIRFLOW_CONFIG",
        "AIRFLOW_HOME",
        "AIRFLOW__CORE__DAGS_FOLDER",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    ]


def test_people_open_airflow_where_the_setting_says_and_we_where_it_listens(tmp_path: Path) -> None:
    settings = load_settings(
        home=tmp_path, airflow={"url": "https://airflow.example/"}, mlflow_url="https://ml.example"
    )
    variables = components.airflow_variables(settings)
    assert variables["AIRFLOW__API__BASE_URL"] == "https://airflow.example"
    assert variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"
    parts = {part.name: part for part in components.all_components(settings)}
    assert parts["airflow-api-server"].address == "https://airflow.example"
    assert parts["airflow-api-server"].health_url == "http://127.0.0.1:8080/api/v2/version"
    assert parts["mlflow"].address == "https://ml.example"


def test_behind_a_proxy_mlflow_answers_to_the_name_that_people_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server import security_utils as mlflow_rules

    for name, value in components.mlflow_variables(load_settings(home=tmp_path)).items():
        monkeypatch.setenv(name, value)
    assert mlflow_rules.get_allowed_hosts_from_env() is None, "without a proxy MLflow's own rule holds"
    settings = load_settings(home=tmp_path, mlflow_url="https://mlflow.example/")
    for name, value in components.mlflow_variables(settings).items():
        monkeypatch.setenv(name, value)
    hosts, origins = mlflow_rules.get_allowed_hosts_from_env(), mlflow_rules.get_allowed_origins_from_env()
    assert hosts is not None
    ours = ("mlflow.example", "mlflow.example:8443", "127.0.0.1:5000", "localhost:5000", "10.0.0.7:5000", "172.20.0.2")
    for host in ours:
        assert mlflow_rules.is_allowed_host_header(hosts, host), host
    for host in ("evil.example", "mlflow.example.evil", "172.32.0.1"):
        assert not mlflow_rules.is_allowed_host_header(hosts, host), host
    assert not mlflow_rules.should_block_cors_request("https://mlflow.example", "POST", origins)
    assert mlflow_rules.should_block_cors_request("https://evil.example", "POST", origins)
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "other.example")
    assert components.mlflow_variables(settings)["MLFLOW_SERVER_ALLOWED_HOSTS"] == "other.example"


def test_no_command_line_carries_a_secret(tmp_path: Path) -> None:
    url = "postgresql://user:hidden@db/mlflow"
    settings = load_settings(home=tmp_path, mlflow_tracking_uri=url, airflow={"database_url": url})
    words = [word for part in components.all_components(settings) for word in part.command]
    made = secrets.airflow_secrets(settings).values()
    assert not [word for word in words if "hidden" in word or word in made]
    assert "hidden" not in repr(components.all_components(settings))


def test_airflow_beyond_loopback_asks_for_a_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="EVENSONG_AIRFLOW__AUTH=password"):
        components.airflow_variables(load_settings(home=tmp_path, airflow={"host": "0.0.0.0"}))
    settings = load_settings(home=tmp_path, airflow={"host": "0.0.0.0", "auth": "password"})
    variables = components.airflow_variables(settings)
    assert variables["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"
    assert variables["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"


def test_a_tracking_server_that_runs_elsewhere_is_not_started(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, mlflow_tracking_uri="http://mlflow.example:5000")
    assert "mlflow" not in [part.name for part in components.all_components(settings)]


def test_every_server_listens_on_loopback_unless_asked(settings: Settings) -> None:
    assert {part.port.host for part in components.all_components(settings) if part.port} == {"127.0.0.1"}
