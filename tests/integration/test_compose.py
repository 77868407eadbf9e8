"""docker-compose.yml and `make up` describe the same system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from evensong.launch import components
from evensong.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: What both name, and a server must say otherwise: places, and who may come.
DIFFERENT = {
    "AIRFLOW_HOME",
    "AIRFLOW__CORE__DAGS_FOLDER",
    "AIRFLOW__CORE__PLUGINS_FOLDER",
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the service's container reads them."""
    for name, value in SERVICES["service"]["environment"].items():
        if name.startswith("EVENSONG_"):
            monkeypatch.setenv(name, re.sub(r"\$\{[^}]*\}", "secret", value))
    return load_settings()


def test_every_component_runs_the_command_of_make_up(settings: Settings) -> None:
    assert {part.name: list(part.command) for part in components.all_components(settings)} == {
        name: service["command"]
        for name, service in SERVICES.items()
        if service.get("image", "").startswith("evensong:") and name != "prepare"
    }


def from_file(service: dict[str, Any]) -> dict[str, str]:
    """What Compose reads from the files that the service names, where .env names no other."""
    paths = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", path) for path in service["env_file"]]
    return dict(re.findall(r"(?m)^([A-Z_]+)=(.*)$", "\n".join((ROOT / path).read_text() for path in paths)))


def test_every_component_has_the_variables_of_make_up(settings: Settings) -> None:
    common = components.PRIVACY | components.airflow_variables(settings)
    for part in components.all_components(settings):
        given = from_file(SERVICES[part.name]) | SERVICES[part.name]["environment"]
        wanted = common | part.variables
        assert wanted.keys() <= given.keys()
        for name in wanted.keys() - DIFFERENT:
            assert re.sub(r"\$\{[^}]*\}", "secret", given[name]) == wanted[name], name
    secrets = {"AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET"}
    assert secrets <= SERVICES["airflow-scheduler"]["environment"].keys()


def test_components_wait_until_the_place_is_prepared(settings: Settings) -> None:
    for part in components.all_components(settings):
        assert SERVICES[part.name]["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    assert set(SERVICES["prepare"]["depends_on"]) == {"postgres", "redis", "s3"}


def test_every_piece_of_state_is_moved_off_the_machine(settings: Settings) -> None:
    assert settings.lake.startswith("s3://")
    assert settings.artifacts.startswith("s3://")
    assert settings.model_artifacts.startswith("s3://")
    assert settings.online_store.startswith("redis://")
    for url in (settings.tracking, settings.feast_registry, settings.airflow.database_url):
        assert url
        assert url.startswith("postgresql")
    # three schemas with migrations of their own
    assert len({settings.tracking, settings.feast_registry, settings.airflow.database_url}) == 3


def test_links_lead_where_people_open_things_and_never_to_every_interface(settings: Settings) -> None:
    from evensong.registry import tracking

    given = SERVICES["airflow-scheduler"]["environment"]
    assert given["EVENSONG_MLFLOW_URL"] == "${MLFLOW_URL:-http://127.0.0.1:5000}"
    assert given["EVENSONG_AIRFLOW__URL"] == given["AIRFLOW__API__BASE_URL"] == "${AIRFLOW_URL:-http://127.0.0.1:8080}"
    without = settings.model_copy(update={"mlflow_url": None})
    assert without.mlflow_host == "0.0.0.0"
    assert tracking.ui(without) == "http://127.0.0.1:5000"


def test_every_service_has_a_health_check() -> None:
    without = [name for name, service in SERVICES.items() if "healthcheck" not in service]
    assert without == []


def test_nothing_is_published_beyond_loopback_unless_asked() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:") for port in published)


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    example = (ROOT / ".env.example").read_text()
    asked = re.findall(r"\$\{([A-Z0-9_]+)", TEXT)
    required = set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    for name in set(asked):
        if re.search("PASSWORD|SECRET|KEY", name):
            assert name in required
            assert re.search(rf"(?m)^{name}=$", example), f".env.example names {name}, without a value"
            assert not re.search(rf"\$\{{{name}(?!:\?)", TEXT)


def test_the_image_runs_as_nobody_special_and_holds_no_secret() -> None:
    lines = (ROOT / "Dockerfile").read_text()
    assert re.search(r"(?m)^USER evensong$", lines)
    assert re.search(r"(?m)^HEALTHCHECK ", lines)
    assert not re.search(r"(?m)^(?:ENV|ARG) .*(PASSWORD|SECRET|KEY|TOKEN)", lines)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", ".env", "settings.env", "var"} <= set(ignored)


def _docker_compose(folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("no docker-compose on this machine: install the package docker-compose to run this test")
    # alone in its folder, so that no .env answers
    for name in ("docker-compose.yml", "settings.env.example"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "mlflow", folder / "mlflow")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)} | variables
    return subprocess.run([command, "config"], cwd=folder, env=environment, capture_output=True, text=True)


def test_compose_accepts_the_file(tmp_path: Path) -> None:
    names = set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    answer = _docker_compose(tmp_path, dict.fromkeys(names, "given"))
    assert answer.returncode == 0, answer.stderr
    services = yaml.safe_load(answer.stdout)["services"]
    assert services.keys() == SERVICES.keys()
    assert "given@postgres" in services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]


def test_settings_and_passwords_of_a_file_reach_every_container_of_ours(tmp_path: Path) -> None:
    names = set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    given = {
        "EVENSONG_SPLIT__HOLDOUT_DAYS": "2",
        "SOURCE_ORDERS_PASSWORD": "hidden",
        "SHOP_DATABASE": "mysql://shop/db",
    }
    lines = [f"{name}={value}" for name, value in given.items()]
    (tmp_path / "settings.env").write_text("\n".join([*lines, "EVENSONG_HOME=/elsewhere"]))
    answer = _docker_compose(tmp_path, dict.fromkeys(names, "given") | {"SETTINGS_ENV_FILE": "settings.env"})
    assert answer.returncode == 0, answer.stderr
    services = yaml.safe_load(answer.stdout)["services"]
    ours = [name for name, service in services.items() if service["image"].startswith("evensong:")]
    assert len(ours) == 7
    for name in ours:
        assert given.items() <= services[name]["environment"].items()
        assert services[name]["environment"]["EVENSONG_HOME"] == "/var/lib/evensong", (
            "the file does not move the volume"
        )
    for name in services.keys() - set(ours):
        assert not given.keys() & services[name].get("environment", {}).keys()
    assert services["mlflow"]["environment"]["MLFLOW_SERVE_ARTIFACTS"] == "false"


def test_behind_a_proxy_mlflow_answers_to_the_name_that_people_open(tmp_path: Path) -> None:
    names = set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    proxy = {"MLFLOW_URL": "https://mlflow.example", "MLFLOW_ALLOWED_HOSTS": "mlflow.example,127.0.0.1:*"}
    answer = _docker_compose(tmp_path, dict.fromkeys(names, "given") | proxy)
    given = yaml.safe_load(answer.stdout)["services"]["mlflow"]["environment"]
    assert given["MLFLOW_SERVER_ALLOWED_HOSTS"] == "mlflow.example,127.0.0.1:*"
    assert given["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "https://mlflow.example"


def test_a_file_of_settings_that_is_missing_is_named(tmp_path: Path) -> None:
    names = set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    answer = _docker_compose(tmp_path, dict.fromkeys(names, "given") | {"SETTINGS_ENV_FILE": "mistyped.env"})
    assert answer.returncode != 0
    assert "mistyped.env" in answer.stderr


def test_compose_refuses_to_start_without_a_secret(tmp_path: Path) -> None:
    answer = _docker_compose(tmp_path, {})
    assert answer.returncode != 0
    assert "set it in .env, see .env.example" in answer.stderr
