"""Three consecutive nights on real data, through Airflow: a champion, and better than popularity on every one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from evensong.data import storage
from evensong.launch import components
from evensong.launch.airflow_api import AirflowApi
from evensong.launch.prepare import prepare
from evensong.launch.supervisor import Supervisor
from evensong.pipelines import imports
from evensong.registry import aliases, versions
from evensong.settings import Settings, load_settings
from evensong.types import EvaluationReport, Night

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(3600)]

NIGHT_SECONDS = 1200
DAG = "nightly_retraining"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def settings_for(home: Path, **options: Any) -> Settings:
    return load_settings(
        home=home, airflow={"port": free_port(), "schedule": "0 0 1 1 *"}, mlflow_port=free_port(), **options
    )


@contextmanager
def airflow(settings: Settings) -> Iterator[AirflowApi]:
    prepare(settings)
    with Supervisor(settings, components.airflow_components(settings)) as running, AirflowApi(settings) as api:
        running.wait_ready(240)
        api.wait_ready(180)
        yield api


def run_nights(settings: Settings, first: date, count: int) -> list[EvaluationReport]:
    """The reports of consecutive nights, each run through Airflow to its green end."""
    reports = []
    with airflow(settings) as api:
        for number in range(count):
            night = Night.model_validate({"as_of": (first + timedelta(days=number)).isoformat()})
            api.start(night, f"test__{night.run_id}")
            api.follow(f"test__{night.run_id}", NIGHT_SECONDS)
            reports.append(report_of(settings, night.as_of.date()))
    return reports


def report_of(settings: Settings, day: date) -> EvaluationReport:
    night = Night.model_validate({"as_of": day.isoformat()})
    return EvaluationReport.model_validate(storage.read_json(settings.run_uri(night.run_id, "evaluation.json")))


def assert_above_popularity(settings: Settings, reports: list[EvaluationReport]) -> None:
    champion = aliases.champion(settings)
    assert champion is not None
    for report in reports:
        judged = report.champion or report.challenger
        popularity = report.baselines["popularity"]
        for metric in ("recall_at_20", "ndcg_at_10"):
            # for docs/benchmarks.md: shown with `pytest -s`
            figures = f"{judged.model} {judged.metrics[metric]:.4f}, popularity {popularity.metrics[metric]:.4f}"
            print(f"{report.as_of:%Y-%m-%d} {metric} on {report.num_users} users: {figures}")
            assert judged.metrics[metric] > popularity.metrics[metric], (report.as_of, metric)
    # the numbers are in MLflow, on every night's version
    for version in versions.listed(settings):
        metrics = versions.get(settings, version.version).metrics
        assert {"challenger.recall_at_20", "popularity.recall_at_20", "challenger.ndcg_at_10"} <= metrics.keys()


def test_a_night_on_ml_100k(shared_data: Path, tmp_path: Path) -> None:
    """By `airflow dags test`, all tasks in one process, and with less training; the scheduler has the nights below."""
    settings = settings_for(
        tmp_path,
        split={"holdout_days": 7},
        retriever={"epochs": 2},
        ranker={"epochs": 2},
        quality={"report_users": 0},
    )
    imports.movielens(settings, str(shared_data / "ml-100k"))
    prepare(settings)
    conf = {"as_of": "1998-03-10T00:00:00Z", "refit": False}
    command = [str(Path(sys.executable).with_name("airflow")), "dags", "test", DAG, "--conf", json.dumps(conf)]
    variables = components.common_variables(settings)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert_above_popularity(settings, [report_of(settings, date(1998, 3, 10))])


@pytest.mark.slow
def test_three_nights_on_ml_100k(shared_data: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, split={"holdout_days": 7})
    imports.movielens(settings, str(shared_data / "ml-100k"))
    assert_above_popularity(settings, run_nights(settings, date(1998, 3, 10), 3))


@pytest.mark.slow
def test_three_nights_on_online_retail(shared_data: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, split={"holdout_days": 7})
    imports.online_retail(settings, str(shared_data / "online-retail" / "online_retail.parquet"))
    assert_above_popularity(settings, run_nights(settings, date(2011, 11, 15), 3))
