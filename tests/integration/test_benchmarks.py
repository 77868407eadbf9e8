"""Every benchmark runs, in a small world, and ends with the line that people compare."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import nightly
from evensong.data import storage
from evensong.registry import versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import EvaluationReport, ModelReport, Night

SMALL: dict[str, list[str]] = {
    "gate": ["--nights", "4", "--users", "40"],
    "materialization": ["--keys", "2000", "--peer-shares", "0.1,0.3"],
    "online_features": [
        *("--users", "30", "--items", "60", "--events", "400"),
        *("--candidates", "20", "--requests", "20", "--peer-requests", "5"),
    ],
    "point_in_time_join": ["--scale", "0.002", "--runs", "1"],
    "serving": ["--requests", "40"],
    "simulator": ["--events", "2000", "--rounds", "1"],
}
#: Runs a night through Airflow over real data, and has a test of its own.
ELSEWHERE = {"nightly"}
SLOW = SMALL.keys() - {"simulator"}


#: What must stand beside the figure, whatever the machine.
EXPECTED: dict[str, dict[str, Any]] = {
    "materialization": {
        "keys": 2000,
        "peer_keys": [200, 600],
        "peer_is_estimated": True,
        "redis_next_night_keys": 20,
        "sqlite_next_night_keys": 20,
    },
    "online_features": {"candidates": 20, "items": 60},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sorted(SMALL)]
)
def test_a_benchmark_ends_with_the_line_that_is_compared(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, *SMALL[name]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert line["benchmark"] == name
    assert line["peer_name"]
    assert line["unit"]
    assert all(isinstance(line[figure], (int, float)) for figure in ("ours", "peer", "ratio"))
    assert line.items() >= EXPECTED.get(name, {}).items()


@pytest.mark.slow
@pytest.mark.airflow
def test_the_nightly_benchmark_ends_with_its_line(shared_data: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "nightly", "--data", str(shared_data / "ml-100k")]
    done = subprocess.run([*command, "--as-of", "1998-03-10"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["benchmark"] == "nightly"
    assert line["ratio"] > 0
    assert line["digest"]
    assert 0 < line["airflow_overhead_share_of_its_own_steps"] < 1
    assert line["seconds_by_step_in_airflow"].keys() == line["seconds_by_step"].keys()


def test_the_nightly_benchmark_compares_the_bundles_and_not_the_metrics_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night.model_validate({"as_of": "2026-01-15"})
    homes = [Settings(home=tmp_path / name) for name in ("process", "airflow")]
    digests = dict(zip([settings.home for settings in homes], ["abc", "abc"], strict=True))

    def listed(settings: Settings) -> list[ModelVersion]:
        known = {"version": "1", "as_of": night.as_of, "run_id": "r", "created_at": night.as_of}
        return [ModelVersion.model_validate(known | {"digest": digests[settings.home]})]

    monkeypatch.setattr(versions, "listed", listed)
    for settings in homes:
        write_evaluation(settings, night, recall=0.25)
    assert nightly._differences(*homes, night) == []
    digests[homes[1].home] = "other"
    assert nightly._differences(*homes, night) == ["digest abc and other"]
    digests[homes[1].home] = "abc"
    write_evaluation(homes[1], night, recall=0.5)
    assert nightly._differences(*homes, night) == ["metrics {'recall_at_20': 0.25} and {'recall_at_20': 0.5}"]


def write_evaluation(settings: Settings, night: Night, recall: float) -> None:
    challenger = ModelReport(model="challenger", metrics={"recall_at_20": recall})
    report = EvaluationReport(
        as_of=night.as_of,
        window_start=night.as_of,
        window_end=night.as_of,
        num_users=1,
        num_events=1,
        challenger=challenger,
    )
    storage.write_json(settings.run_uri(night.run_id, "evaluation.json"), report.model_dump(mode="json"))


def test_overhead_is_the_share_of_a_night_that_is_in_no_step() -> None:
    assert nightly._overhead(100.0, {"ingest": 20.0, "validate": 55.0}) == 0.25


def test_every_benchmark_is_run_small() -> None:
    names = {module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")}
    assert names == SMALL.keys() | ELSEWHERE


@pytest.mark.slow
def test_the_ratio_of_materialization_is_that_of_redis_in_whatever_order() -> None:
    command = [sys.executable, "-m", "benchmarks", "materialization", "--keys", "400", "--stores", "sqlite,redis"]
    done = subprocess.run([*command, "--peer-whole"], capture_output=True, text=True, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["ratio"] == line["redis_ratio"]
    assert line["sqlite_ratio"] > 0
    assert not line["peer_is_estimated"]


def test_an_unknown_benchmark_is_told_the_known_ones() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "point_in_time_join" in done.stderr
