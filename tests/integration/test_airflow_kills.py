"""A task of the DAG that is killed in the middle of its step is tried again, and the night ends as if it was not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from tests.integration import airflow_world as world
from tests.integration.night_state import assert_same, registry

from evensong.data import storage
from evensong.launch import components
from evensong.launch.airflow_api import AirflowApi
from evensong.launch.prepare import prepare
from evensong.launch.supervisor import Supervisor
from evensong.pipelines.night import run_night
from evensong.types import EvaluationReport, Night

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.timeout(2400)]

NIGHT = Night.model_validate({"as_of": "2026-01-09"})
RUN = "killed"
NIGHT_SECONDS = 1800
#: Steps that write a table, the online store, a run's folder, the registry, the alias.
KILLED = (
    *("ingest", "validate", "build_features", "materialize", "build_training_set", "train_retriever"),
    *("evaluate", "bundle", "register", "gate", "promote"),
)


def process_of(scheduler: int, ti_id: str) -> psutil.Process | None:
    """The process that runs the task instance, among those of our own scheduler."""
    for process in psutil.Process(scheduler).children(recursive=True):
        try:
            if f"airflow worker -- {ti_id}" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def kill_each_once(api: AirflowApi, scheduler: int, seconds: dict[str, float]) -> list[str]:
    """Follow the run to its end; each step of KILLED loses its first process halfway, by the time it took in calm."""
    killed: dict[str, float] = {}
    begun: dict[str, float] = {}
    deadline = time.monotonic() + NIGHT_SECONDS
    while (api.run(RUN) or {})["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, api.tasks(RUN)
        for name, task in api.tasks(RUN).items():
            if name not in KILLED or name in killed or task["state"] != "running":
                continue
            process = process_of(scheduler, task["id"])
            if process is None:
                continue
            now = time.monotonic()
            # a run that waits for its turn or the lock is no step at work yet: the step's own time counts
            if now - begun.setdefault(name, now) >= min(seconds[name] / 2, 20):
                os.kill(process.pid, signal.SIGKILL)
                killed[name] = now
        time.sleep(0.02)
    return list(killed)


def test_tasks_killed_in_the_middle_are_tried_again_and_the_night_ends_the_same(tmp_path: Path) -> None:
    calm, disturbed = (world.small_shop(tmp_path / name) for name in ("calm", "disturbed"))
    expected = run_night(calm, NIGHT)
    assert expected.champion is not None

    prepare(disturbed)
    with Supervisor(disturbed, components.airflow_components(disturbed)) as running, AirflowApi(disturbed) as api:
        running.wait_ready(240)
        api.wait_ready(180)
        api.start(NIGHT, RUN)
        killed = kill_each_once(api, running.pids()["airflow-scheduler"], expected.seconds)
        tasks = api.tasks(RUN)
        assert (api.run(RUN) or {})["state"] == "success", {name: task["state"] for name, task in tasks.items()}
        # a step may end between the look and the kill; most do not
        assert len(killed) >= 8
        assert {name: tasks[name]["try_number"] for name in killed} == dict.fromkeys(killed, 2)
        champion = api.returned(RUN, "promote")["champion"]

    report = EvaluationReport.model_validate(storage.read_json(disturbed.run_uri(NIGHT.run_id, "evaluation.json")))
    assert report.challenger.metrics == expected.metrics["challenger"]
    assert report.baselines["popularity"].metrics == expected.metrics["popularity"]
    assert champion == expected.champion
    assert registry(disturbed) == registry(calm)
    assert_same(calm.home, disturbed.home)
