"""The wall time of one night on ml-1m by step, and Airflow's own overhead as a share of it.

Ours is the DAG through a real scheduler, the peer `evensong nightly`, the same steps in one process; each in a home of
its own with the same data. The answers are compared first: the same metrics and the same bundle digest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks._report import report, say
from evensong.data import storage
from evensong.settings import Settings, load_settings
from evensong.types import EvaluationReport, Night

ML_1M = Path(__file__).resolve().parents[2] / "shared" / "data" / "ml-1m"


def main(argv: list[str]) -> None:
    """Run one night each way and print the figures."""
    options = argparse.ArgumentParser(prog="python -m benchmarks nightly", description=__doc__)
    options.add_argument("--data", type=Path, default=ML_1M, help="a folder of MovieLens")
    options.add_argument("--as-of", default="2000-12-01")
    options.add_argument("--holdout-days", default="7")
    chosen = options.parse_args(argv)
    if not chosen.data.is_dir():
        sys.exit(f"expected a MovieLens folder, found none at {chosen.data}; name one with --data")

    with tempfile.TemporaryDirectory(prefix="evensong-nightly-") as folder:
        first, second = Path(folder, "process"), Path(folder, "airflow")
        variables = os.environ | {
            "EVENSONG_SPLIT__HOLDOUT_DAYS": chosen.holdout_days,
            "EVENSONG_AIRFLOW__PORT": str(_free_port()),
            "EVENSONG_MLFLOW_PORT": str(_free_port()),
        }
        os.environ.update(variables)
        say(f"importing {chosen.data}")
        _evensong(first, "import", "movielens", str(chosen.data))
        shutil.copytree(first, second)

        say("one night in one process")
        start = time.perf_counter()
        alone = _evensong(first, "nightly", "--as-of", chosen.as_of)
        alone_seconds = time.perf_counter() - start
        for name, seconds in alone["seconds"].items():
            say(f"  {name:<16} {seconds:8.1f} s")

        say("the same night through Airflow")
        night = Night.model_validate({"as_of": chosen.as_of})
        settings = load_settings(home=second)
        airflow_seconds, tasks = _through_airflow(settings, night)
        metrics = EvaluationReport.model_validate(
            storage.read_json(settings.run_uri(night.run_id, "evaluation.json"))
        ).challenger.metrics
        if metrics != alone["metrics"]["challenger"]:
            sys.exit(
                f"the two nights differ: {metrics} through Airflow, {alone['metrics']['challenger']} in one process"
            )

    steps = sum(alone["seconds"].values())
    report(
        benchmark="nightly",
        ours=round(airflow_seconds, 1),
        peer=round(alone_seconds, 1),
        peer_name="evensong nightly, the same steps in one process",
        ratio=round(airflow_seconds / alone_seconds, 3),
        unit="s",
        airflow_overhead_share=round((airflow_seconds - steps) / airflow_seconds, 3),
        seconds_by_step=alone["seconds"],
        seconds_by_task=tasks,
        challenger=metrics,
    )


def _through_airflow(settings: Settings, night: Night) -> tuple[float, dict[str, float]]:
    """Wall time from trigger to end, and the seconds of each task; Airflow's own start is not counted."""
    from evensong.launch import components
    from evensong.launch.airflow_api import AirflowApi
    from evensong.launch.prepare import prepare
    from evensong.launch.supervisor import Supervisor

    prepare(settings)
    with Supervisor(settings, components.airflow_components(settings), report=say) as running:
        running.wait_ready(timeout=240)
        with AirflowApi(settings) as api:
            api.wait_ready(timeout=240)
            start = time.perf_counter()
            api.start(night, "benchmark")
            tasks = api.follow("benchmark", timeout=3600, on_task=lambda task, state: say(f"  {task}: {state}"))
            seconds = time.perf_counter() - start
    return seconds, {name: round(_duration(task), 1) for name, task in tasks.items()}


def _duration(task: dict[str, Any]) -> float:
    if not task["start_date"] or not task["end_date"]:
        return 0.0
    return (datetime.fromisoformat(task["end_date"]) - datetime.fromisoformat(task["start_date"])).total_seconds()


def _evensong(home: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "evensong.cli", *arguments, "--json"],
        env=os.environ | {"EVENSONG_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
