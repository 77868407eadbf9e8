"""A home with a history of promotions, made by the last steps of its nights, and the Airflow that `make up` starts."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml
from tests.unit.registry.conftest import make_bundle, night, write_materialized
from tests.unit.registry.test_promotion_steps import evaluate

from evensong.launch import components, secrets
from evensong.launch.airflow_api import DAG, AirflowApi
from evensong.launch.prepare import prepare
from evensong.launch.supervisor import Supervisor
from evensong.settings import Settings, load_settings

#: Far from now, so that no night falls due while the tests run.
DUE_HOUR = (datetime.now(UTC).hour + 12) % 24
#: What the last steps of a night need; the tests set the others to success.
LAST_STEPS = ("gate", "review", "promote")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def make_settings(home: Path, *, auth: str = "everyone", **review: Any) -> Settings:
    """A home with the repository's policy, less the guardrails of what these bundles do not hold."""
    home.mkdir(parents=True, exist_ok=True)
    settings = load_settings(
        home=home,
        airflow={"port": free_port(), "auth": auth, "schedule": f"0 {DUE_HOUR} * * *"},
        mlflow_port=free_port(),
        registry={"policy_path": str(home / "policy.yaml")},
    )
    set_policy(settings, "auto", **review)
    return settings


def set_policy(settings: Settings, mode: str, **review: Any) -> None:
    policy = yaml.safe_load(Path("mlflow/promotion_policy.yaml").read_text())
    policy["guardrails"] = {name: policy["guardrails"][name] for name in ("index_recall", "coverage")}
    policy |= {"mode": mode, "review": policy["review"] | review}
    settings.registry.policy_path.write_text(yaml.safe_dump(policy))


def easy_policy(home: Path, mode: str = "auto") -> str:
    """The repository's policy for models that learn for seconds: nothing is asked of them beside popularity."""
    policy = yaml.safe_load(Path("mlflow/promotion_policy.yaml").read_text())
    policy |= {"mode": mode, "baselines": {"names": [], "metrics": []}}
    path = home / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    return str(path)


def small_shop(home: Path, *, mode: str = "auto", **options: Any) -> Settings:
    """Eight days of a shop of 300 users, and settings with which a night of it trains in seconds."""
    from evensong.data.simulator import ShopConfig
    from evensong.pipelines import simulate

    home.mkdir(parents=True, exist_ok=True)
    airflow = {"port": free_port(), "schedule": f"0 {DUE_HOUR} * * *"} | options.pop("airflow", {})
    settings = load_settings(
        home=home,
        airflow=airflow,
        mlflow_port=free_port(),
        serving={"port": free_port()},
        registry={"policy_path": easy_policy(home, mode)},
        retriever={"dimension": 16, "epochs": 2, "batch_size": 256, "num_candidates": 50, "num_popular_candidates": 20},
        ranker={"epochs": 1, "max_slates": 500},
        # a bundle's digest holds the commit, and a file may be edited while the tests run
        code_commit="tested",
        quality={"report_users": 0},
        **options,
    )
    config = ShopConfig(num_users=300, num_items=150, start=date(2026, 1, 1))
    simulate.run(settings, days=8, policy="warmup", config=config)
    return settings


@contextmanager
def everything_on(settings: Settings) -> Iterator[Supervisor]:
    """What `make up` starts."""
    prepare(settings)
    with Supervisor(settings, components.all_components(settings)) as running:
        running.wait_ready(300)
        yield running


def register_night(settings: Settings, day: int, gain: float) -> tuple[str, str]:
    """What a night has made before its gate: the version's number and the evaluation's URI."""
    from evensong.pipelines import register

    folder = Path(settings.place("made", str(day)))
    if not folder.exists():
        make_bundle(folder, day, f"night {day}")
    write_materialized(settings.home, day)
    evaluation = evaluate(settings, day, gain)
    return register.run(settings, night(day), str(folder), evaluation), evaluation


def live(settings: Settings, day: int, gain: float) -> str:
    """A night's last steps, in this process; the version that it made."""
    from evensong.pipelines import gate, promote

    version, evaluation = register_night(settings, day, gain)
    gate.run(settings, night(day), version, evaluation)
    promote.run(settings, night(day), version)
    return version


@contextmanager
def airflow_on(settings: Settings) -> Iterator[AirflowApi]:
    prepare(settings)
    with Supervisor(settings, components.airflow_components(settings)) as running, AirflowApi(settings) as api:
        running.wait_ready(240)
        api.wait_ready(180)
        yield api


@contextmanager
def server_on(settings: Settings, users: Mapping[str, str] | None = None) -> Iterator[str]:
    """Airflow's API server alone, with users of these roles besides admin, whose passwords are their names."""
    prepare(settings)
    server = components.airflow_components(settings)[0]
    if users:
        passwords = secrets.passwords_file(settings)
        secrets.write_private(passwords, json.dumps({"admin": "admin"} | {name: name for name in users}))
        roles = ",".join(f"{name}:{role}" for name, role in {"admin": "admin", **users}.items())
        server = dataclasses.replace(server, variables={"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": roles})
    with Supervisor(settings, [server]) as running:
        running.wait_ready(240)
        assert server.address is not None
        yield server.address


def start_at_the_gate(settings: Settings, api: AirflowApi, day: int, gain: float) -> tuple[str, str]:
    """A run of the nightly DAG whose steps before the gate are said to be done; its id and its version.

    Training is not what these tests are about: the version and the evaluation are real, and so is each task from the
    gate on.
    """
    version, evaluation = register_night(settings, day, gain)
    run_id = f"test__{night(day).run_id}"
    dag = f"/api/v2/dags/{DAG}"
    api._call("PATCH", dag, {"is_paused": True})
    conf = night(day).model_dump(mode="json")
    api._call("POST", f"{dag}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf})
    run = f"{dag}/dagRuns/{run_id}"
    for task_id, value in (("plan", conf), ("register", version), ("evaluate", evaluation)):
        body = {"key": "return_value", "value": value}
        api._call("POST", f"{run}/taskInstances/{task_id}/xcomEntries", body)
    for task_id in api.tasks(run_id):
        if task_id not in LAST_STEPS:
            api._call("PATCH", f"{run}/taskInstances/{task_id}", {"new_state": "success"})
    api._call("PATCH", dag, {"is_paused": False})
    return run_id, version


def eventually(claim: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found
