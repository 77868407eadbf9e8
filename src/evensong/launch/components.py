"""Names every process of the system, its command, variables and health address; `docker-compose.yml` agrees with it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evensong.errors import ConfigurationError, LaunchError
from evensong.launch import secrets
from evensong.settings import ENV_PREFIX, OTHER_VARIABLES, Settings, reachable

#: Quiet and offline: no component reports its use to anybody.
PRIVACY = {
    "FEAST_TELEMETRY": "False",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}

#: What Airflow is told on a laptop and on a server alike, unless the environment says otherwise.
AIRFLOW = {
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__PARALLELISM": "2",
    "AIRFLOW__CORE__DAG_DISCOVERY_SAFE_MODE": "False",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__API__EXPOSE_CONFIG": "False",
    "AIRFLOW__API__INSTANCE_NAME": "Evensong",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
    # A killed scheduler's tasks are taken over soon, not after five minutes.
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "60",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "120",
    # Tasks are forked from a process that has imported what takes longest: seconds a task. Nothing that starts threads
    # which a fork would lose (polars), and nothing of ours, so that a change of the code reaches the next task.
    "AIRFLOW__SCHEDULER__MP_START_METHOD": "forkserver",
    "AIRFLOW__SCHEDULER__MP_FORKSERVER_PRELOAD": "airflow.executors.local_executor,"
    "airflow.sdk.execution_time.task_runner,feast,great_expectations",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
}

#: Variables of Airflow that never reach a component: they lead to another Airflow, or are meant for the launcher alone.
_KEPT_BACK = ("AIRFLOW_HOME", "AIRFLOW_CONFIG", "AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_CTX_")

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
#: What MLflow answers as long as nobody names its hosts.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1")
PRIVATE_HOSTS = ("192.168.*", "10.*", *(f"172.{second}.*" for second in range(16, 32)))


@dataclass(frozen=True)
class Port:
    """Where a component listens, and the variable that moves it elsewhere."""

    host: str
    number: int
    variable: str


@dataclass(frozen=True)
class Component:
    """One process to start."""

    name: str
    command: tuple[str, ...]
    """The first word is an executable of this environment."""
    health_url: str | None = None
    """Answers 200 when the component is ready; none: it is ready as long as it lives."""
    address: str | None = None
    """What a person opens."""
    port: Port | None = None
    """What must be free before it starts."""
    variables: dict[str, str] = field(default_factory=dict, repr=False)
    """Beyond the common ones; may hold secrets."""


def all_components(settings: Settings) -> list[Component]:
    """Everything that `make up` starts, in the order of starting."""
    return [*mlflow_components(settings), *airflow_components(settings), service_component(settings)]


def airflow_components(settings: Settings) -> list[Component]:
    """Airflow's four processes."""
    airflow = settings.airflow
    url = f"http://{reachable(airflow.host)}:{airflow.port}"
    return [
        Component(
            "airflow-api-server",
            ("airflow", "api-server", "--host", airflow.host, "--port", str(airflow.port)),
            health_url=f"{url}/api/v2/version",
            address=settings.airflow_address,
            port=Port(airflow.host, airflow.port, "EVENSONG_AIRFLOW__PORT"),
        ),
        Component("airflow-scheduler", ("airflow", "scheduler", "--skip-serve-logs")),
        Component("airflow-dag-processor", ("airflow", "dag-processor")),
        Component("airflow-triggerer", ("airflow", "triggerer", "--skip-serve-logs")),
    ]


def mlflow_components(settings: Settings) -> list[Component]:
    """The tracking server, unless the setting names one that runs elsewhere."""
    if settings.tracking.startswith("http"):
        return []
    host, port = settings.mlflow_host, settings.mlflow_port
    url = f"http://{reachable(host)}:{port}"
    return [
        Component(
            "mlflow",
            ("mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"),
            health_url=f"{url}/health",
            address=settings.mlflow_address,
            port=Port(host, port, "EVENSONG_MLFLOW_PORT"),
            variables=mlflow_variables(settings),
        )
    ]


def service_component(settings: Settings) -> Component:
    """The recommendation service. It lives before there is a champion, and becomes ready with the first."""
    serving = settings.serving
    url = f"http://{reachable(serving.host)}:{serving.port}"
    return Component(
        "service",
        ("evensong", "serve"),
        health_url=f"{url}/healthz",
        address=url,
        port=Port(serving.host, serving.port, "EVENSONG_SERVING__PORT"),
    )


def migrate_command() -> tuple[str, ...]:
    """What brings Airflow's metadata database to this version."""
    return ("airflow", "db", "migrate")


def mlflow_variables(settings: Settings) -> dict[str, str]:
    """Where the tracking server reads, by variable and not by argument, since a URL may hold a password.

    What else it is told stands in `mlflow/server.env`.
    """
    return {
        "MLFLOW_BACKEND_STORE_URI": settings.tracking,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": settings.model_artifacts,
        **_answered(settings),
        **_read_variables(project_root() / "mlflow" / "server.env"),
    }


def _answered(settings: Settings) -> dict[str, str]:
    """Whom the tracking server answers where people open it through a proxy, unless the environment says so itself.

    By itself it refuses every host but this machine and private networks, and what another origin would write.
    """
    address = urlsplit(settings.mlflow_url or "")
    if not address.hostname:
        return {}
    names = [address.hostname, *LOOPBACK_HOSTS]
    hosts = [*names, *(f"{name}:*" for name in names), *PRIVATE_HOSTS]
    found = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"{address.scheme}://{address.netloc}",
    }
    return found | {name: os.environ[name] for name in found if os.environ.get(name)}


def common_variables(settings: Settings) -> dict[str, str]:
    """The environment of every component, this process's own included; holds secrets.

    Variables of Airflow's own, such as `AIRFLOW__SMTP__SMTP_HOST` or `AIRFLOW__CORE__PARALLELISM`, are handed on,
    except those that the settings decide (`ignored_variables`).
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith((ENV_PREFIX, *_KEPT_BACK))}
    binaries = str(Path(sys.executable).parent)
    return (
        inherited
        | PRIVACY
        | {
            "PATH": os.pathsep.join([binaries, inherited.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": ",".join(filter(None, [inherited.get("NO_PROXY"), "127.0.0.1,localhost"])),
            "no_proxy": ",".join(filter(None, [inherited.get("no_proxy"), "127.0.0.1,localhost"])),
        }
        | evensong_variables(settings)
        | airflow_variables(settings)
        | secrets.airflow_secrets(settings)
    )


def ignored_variables(settings: Settings) -> list[str]:
    """Variables of Airflow in this environment that are not heeded, because a setting of Evensong decides."""
    ours = airflow_variables(settings) | secrets.airflow_secrets(settings)
    other = {name for name, value in os.environ.items() if name in ours and value != ours[name]}
    return sorted(other | {"AIRFLOW_CONFIG"} & os.environ.keys())


def evensong_variables(settings: Settings) -> dict[str, str]:
    """The settings as variables, so that every process reads the very values that the launcher has."""
    values: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and prefix.rpartition("__")[2] not in {"MIN_VALUE"}:
            for name, inner in value.items():
                add(f"{prefix}__{name.upper()}", inner)
        elif isinstance(value, str):
            values[prefix] = value
        elif value is not None:
            values[prefix] = json.dumps(value)

    for name, value in settings.model_dump(mode="json").items():
        add(f"{ENV_PREFIX}{name.upper()}", value)
    values[f"{ENV_PREFIX}HOME"] = str(settings.home.resolve())
    return {k: v for k, v in values.items() if k not in OTHER_VARIABLES}


def airflow_variables(settings: Settings) -> dict[str, str]:
    """Airflow's configuration without its secrets.

    Raises:
        ConfigurationError: Airflow would listen beyond loopback without asking who comes.
    """
    airflow = settings.airflow
    if airflow.auth == "everyone" and airflow.host not in LOOPBACK:
        raise ConfigurationError(
            f"airflow.host is {airflow.host}: beyond loopback Airflow must ask for a password; "
            "set EVENSONG_AIRFLOW__AUTH=password"
        )
    url = f"http://{reachable(airflow.host)}:{airflow.port}"
    root = project_root()
    asked = {name: os.environ[name] for name in AIRFLOW.keys() & os.environ.keys()}
    return (AIRFLOW | asked) | {
        "AIRFLOW_HOME": settings.place("airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(root / "plugins"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": str(airflow.auth == "everyone"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__API__BASE_URL": settings.airflow_address,
        "AIRFLOW__API__HOST": airflow.host,
        "AIRFLOW__API__PORT": str(airflow.port),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": settings.place("airflow", "logs"),
    }


def project_root() -> Path:
    """The folder that holds `dags/` and `plugins/`: the working folder, or the one that the package was installed from.

    Raises:
        ConfigurationError: neither holds them.
    """
    candidates = [Path.cwd(), Path(__file__).resolve().parents[3]]
    for root in candidates:
        if (root / "dags" / "nightly_retraining.py").is_file():
            return root
    raise ConfigurationError(
        f"expected dags/nightly_retraining.py in {' or '.join(map(str, candidates))}, found none; "
        "run from a checkout of Evensong"
    )


def _read_variables(path: Path) -> dict[str, str]:
    """The `NAME=value` lines of a file that Docker Compose reads too."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def executable(name: str) -> str:
    """The program of that name in the environment that runs this.

    Raises:
        LaunchError: the environment has none.
    """
    beside = Path(sys.executable).parent / name
    if not beside.is_file():
        raise LaunchError(f"expected {beside}, found none; run `make install`")
    return str(beside)


def airflow_version() -> str:
    """The installed version of Airflow, read without importing it."""
    return version("apache-airflow")
