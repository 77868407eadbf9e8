"""The wall time of one night on ml-1m by step, and Airflow's own overhead as a share of it.

Ours is the DAG through a real scheduler, the peer `evensong nightly`, the same steps in one process; each in a home of
its own with the same data. The answers are compared first: the same metrics and the same bundle digest.

Two runs of the same steps never take the same time, so the overhead is given twice: against the steps of the run in one
process, and against what the very same steps took inside Airflow's tasks.
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
from evensong.pipelines.night import noted_seconds
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
        steps_in_airflow = noted_seconds(settings, night)
        if differences := _differences(load_settings(home=first), settings, night):
            sys.exit("the two nights differ, in one process and through Airflow: " + "; ".join(differences))
        made = _made(settings, night)

    report(
        benchmark="nightly",
        ours=round(airflow_seconds, 1),
        peer=round(alone_seconds, 1),
        peer_name="evensong nightly, the same steps in one process",
        ratio=round(airflow_seconds / alone_seconds, 3),
        unit="s",
        airflow_overhead_share=_overhead(airflow_seconds, alone["seconds"]),
        airflow_overhead_share_of_its_own_steps=_overhead(airflow_seconds, steps_in_airflow),
        seconds_by_step=alone["seconds"],
        seconds_by_task=tasks,
        seconds_by_step_in_airflow=steps_in_airflow,
        challenger=made["metrics"],
        digest=made["digest"],
    )


def _overhead(wall_seconds: float, steps: dict[str, float]) -> float:
    """The share of a night's wall time that is not in its steps, which run one after the other."""
    return round((wall_seconds - sum(steps.values())) / wall_seconds, 3)


def _made(settings: Settings, night: Night) -> dict[str, Any]:
    """What a night came to: the challenger's metrics, and the digest of the bundle that it registered."""
    from evensong.registry import versions

    report = EvaluationReport.model_validate(storage.read_json(settings.run_uri(night.run_id, "evaluation.json")))
    [digest] = [version.digest for version in versions.listed(settings) if version.as_of == night.as_of]
    return {"metrics": report.challenger.metrics, "digest": digest}


def _differences(first: Settings, second: Settings, night: Night) -> list[str]:
    """In what the same night differs in two homes; nothing where both came to the same."""
    one, other = _made(first, night), _made(second, night)
    return [f"{name} {one[name]} and {other[name]}" for name in one if one[name] != other[name]]


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
