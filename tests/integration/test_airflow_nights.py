"""The DAG in a real Airflow, started as `make up` starts it, on a small simulated shop."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from evensong.data import storage
from evensong.errors import LaunchError
from evensong.launch import components
from evensong.launch.airflow_api import DAG, AirflowApi
from evensong.launch.prepare import prepare
from evensong.launch.supervisor import Supervisor
from evensong.settings import Settings, load_settings
from evensong.types import Night, PromotionDecision

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(1200)]

NIGHT_SECONDS = 900
#: Far from now, so that no night falls due while the tests run.
DUE_HOUR = (datetime.now(UTC).hour + 12) % 24
OPENING = date(2026, 1, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def run_id(night: Night) -> str:
    return f"test__{night.run_id}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A shop of eight days."""
    from evensong.data.simulator import ShopConfig
    from evensong.pipelines import simulate

    settings = load_settings(
        home=tmp_path_factory.mktemp("airflow-home"),
        airflow={"port": free_port(), "auth": "password", "schedule": f"0 {DUE_HOUR} * * *"},
        mlflow_port=free_port(),
        retriever={"dimension": 16, "epochs": 2, "batch_size": 256, "num_candidates": 50, "num_popular_candidates": 20},
        ranker={"epochs": 1, "max_slates": 500},
    )
    config = ShopConfig(num_users=300, num_items=150, start=OPENING)
    simulate.run(settings, days=8, policy="warmup", config=config)
    return settings


@pytest.fixture(scope="module")
def airflow(settings: Settings) -> Iterator[AirflowApi]:
    prepare(settings)
    with Supervisor(settings, components.airflow_components(settings)) as running, AirflowApi(settings) as api:
        running.wait_ready(240)
        api.wait_ready(180)
        yield api


@pytest.fixture(scope="module")
def first_night(settings: Settings, airflow: AirflowApi) -> Night:
    """A night that has gone through every step."""
    night = Night.model_validate({"as_of": "2026-01-09"})
    airflow.start(night, run_id(night))
    airflow.follow(run_id(night), NIGHT_SECONDS)
    return night


def test_a_night_ends_green_and_its_tasks_hand_on_uris_and_small_results(
    settings: Settings, airflow: AirflowApi, first_night: Night
) -> None:
    tasks = airflow.tasks(run_id(first_night))
    # the policy decides alone: nobody is asked, and no task is started for it
    assert tasks.pop("review")["state"] == "skipped"
    assert {task["state"] for task in tasks.values()} == {"success"}
    returned = {task_id: airflow.returned(run_id(first_night), task_id) for task_id in tasks}
    assert Night.model_validate(returned["plan"]) == first_night
    for task_id in (
        "validate",
        "build_training_set",
        "train_retriever",
        "train_ranker",
        "build_index",
        "evaluate",
        "bundle",
    ):
        assert storage.exists(returned[task_id])
        assert returned[task_id].startswith(settings.run_uri(first_night.run_id))
    assert max(len(str(value)) for task_id, value in returned.items() if task_id != "gate") < 1000


def test_the_gate_s_decision_is_the_version_s_and_the_alias_follows_it(
    settings: Settings, airflow: AirflowApi, first_night: Night
) -> None:
    from evensong.registry import versions

    decision = PromotionDecision.model_validate(airflow.returned(run_id(first_night), "gate"))
    version = airflow.returned(run_id(first_night), "register")
    moved = airflow.returned(run_id(first_night), "promote")
    assert decision.reasons
    assert moved["moved"] == decision.promote
    champion = versions.champion(settings)
    assert (champion and champion.version) == (str(version) if decision.promote else None)


def test_tasks_link_to_what_they_made(settings: Settings, airflow: AirflowApi, first_night: Night) -> None:
    docs = airflow.returned(run_id(first_night), "validate", "data_docs")
    assert Path(docs.removeprefix("file://")).exists()
    version = airflow.returned(run_id(first_night), "register")
    link = airflow.returned(run_id(first_night), "register", "link_mlflow_version")
    assert link == f"http://127.0.0.1:{settings.mlflow_port}/#/models/recommender/versions/{version}"
    dossier = airflow.returned(run_id(first_night), "gate", "link_dossier")
    assert dossier.startswith(f"http://127.0.0.1:{settings.mlflow_port}/#/experiments/")
    assert dossier.endswith("/artifacts")
    gate_log = "\n".join(airflow.log(run_id(first_night), "gate", 1))
    assert "Decision: " in gate_log


def test_the_same_night_again_is_the_same_version(airflow: AirflowApi, first_night: Night) -> None:
    again = "again__" + first_night.run_id
    airflow.start(first_night, again)
    airflow.follow(again, NIGHT_SECONDS)
    for task_id in ("register", "gate"):
        assert airflow.returned(again, task_id) == airflow.returned(run_id(first_night), task_id)


def test_bad_data_ends_the_night_at_once_and_nothing_is_trained(settings: Settings, airflow: AirflowApi) -> None:
    # nothing has come in for eleven days
    night = Night.model_validate({"as_of": "2026-01-20"})
    airflow.start(night, run_id(night))
    with pytest.raises(LaunchError, match=r"failed in validate:(.|\n)*ValidationFailedError"):
        airflow.follow(run_id(night), NIGHT_SECONDS)
    tasks = airflow.tasks(run_id(night))
    # a rule's no is not asked again
    assert (tasks["validate"]["state"], tasks["validate"]["try_number"]) == ("failed", 1)
    assert tasks["train_retriever"]["state"] == tasks["promote"]["state"] == "upstream_failed"
    assert not storage.exists(settings.run_uri(night.run_id, "training_set"))
    # whoever is called at night finds a line that says what to do
    log = "\n".join(airflow.log(run_id(night), "validate", 1))
    assert "clear the task" in log


def test_the_form_refuses_what_a_night_cannot_be(airflow: AirflowApi) -> None:
    night = Night.model_validate({"as_of": "2026-01-09"})
    for wrong in ({"train_from": "nowhere"}, {"seed": -1}, {"refit": "perhaps"}, {"as_of": "yesterday"}):
        conf = night.model_dump(mode="json") | wrong
        with pytest.raises(LaunchError, match=r"answered 4\d\d"):
            airflow._call("POST", f"/api/v2/dags/{DAG}/dagRuns", {"logical_date": None, "conf": conf})


def test_the_schedule_starts_no_night_that_was_not_due(airflow: AirflowApi) -> None:
    scheduled = airflow._call("GET", f"/api/v2/dags/{DAG}/dagRuns?run_type=scheduled")
    assert scheduled["total_entries"] == 0
    dag = airflow._call("GET", f"/api/v2/dags/{DAG}")
    assert dag["is_paused"] is False
    assert dag["next_dagrun_run_after"].endswith(f"T{DUE_HOUR:02d}:00:00Z")


@pytest.mark.slow  # three more runs of the DAG
def test_a_backfill_gives_each_night_its_own_as_of_one_after_the_other(settings: Settings, airflow: AirflowApi) -> None:
    # before the shop opened, so that each night ends early: what counts here is which nights they are, and when
    command = ["backfill", "create", "--dag-id", DAG, "--from-date", "2025-11-03", "--to-date", "2025-11-05T23:59"]
    environment = {"PATH": os.environ["PATH"], "AIRFLOW_HOME": settings.place("airflow")}
    done = subprocess.run([components.executable("airflow"), *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs: list[dict[str, Any]] = []
    deadline = time.monotonic() + NIGHT_SECONDS
    while len(runs) < 3 or any(run["state"] in ("queued", "running") for run in runs):
        assert time.monotonic() < deadline, runs
        time.sleep(1)
        answer = airflow._call("GET", f"/api/v2/dags/{DAG}/dagRuns?run_type=backfill&order_by=logical_date")
        runs = answer["dag_runs"]
    as_of = [airflow.returned(run["dag_run_id"], "plan")["as_of"] for run in runs]
    assert as_of == ["2025-11-03T00:00:00Z", "2025-11-04T00:00:00Z", "2025-11-05T00:00:00Z"]
    tasks = [airflow.tasks(run["dag_run_id"]) for run in runs]
    assert [night["promote"]["state"] for night in tasks] == ["upstream_failed"] * 3
    # one night after the other: no step of a night has ended before the last of the night before
    ends = [
        [task["end_date"] for name, task in night.items() if task["state"] != "upstream_failed" and name != "plan"]
        for night in tasks
    ]
    for earlier, later in itertools.pairwise(ends):
        assert max(earlier) < min(later)


def test_a_stranger_is_turned_away(airflow: AirflowApi) -> None:
    answer = httpx.get(f"{airflow.address}/api/v2/dags", trust_env=False)
    assert answer.status_code == 401
    body = {"username": "admin", "password": "admin"}
    assert httpx.post(f"{airflow.address}/auth/token", json=body, trust_env=False).status_code == 401
