"""The rollback's DAG: two light steps, a form that asks why, nothing that waits for a night."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import importlib.util, json, sys
import airflow.sdk
sys.path.insert(0, "plugins")
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("rollback", "dags/rollback_champion.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
new = sorted({name.split(".")[0] for name in set(sys.modules) - before})
dag = module.rollback_champion()
print(json.dumps({
    "new_modules": new,
    "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
    "params": {name: dict(dag.params.get_param(name).schema) for name in dag.params},
    "schedule": str(dag.schedule),
    "doc_md": dag.doc_md,
}))
"""


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow"))}
    words = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert words.returncode == 0, words.stderr
    probed: dict[str, Any] = json.loads(words.stdout.splitlines()[-1])
    return probed


def test_it_notes_the_champion_before_it_moves_so_that_a_retry_moves_once(dag: dict[str, Any]) -> None:
    assert dag["upstream"] == {"look": [], "roll_back": ["look"]}


def test_the_form_asks_for_a_reason_and_takes_the_champion_that_the_person_saw(dag: dict[str, Any]) -> None:
    params = dag["params"]
    assert params.keys() == {"reason", "expected"}
    assert (params["reason"]["type"], params["reason"]["minLength"]) == ("string", 3)
    assert params["expected"]["type"] == ["null", "string"]


def test_it_runs_by_hand_only_and_imports_nothing_heavy(dag: dict[str, Any]) -> None:
    assert dag["schedule"] == "None"
    assert {"mlflow", "polars", "torch", "pandas", "fastapi"}.isdisjoint(dag["new_modules"])
    assert "blocked" in dag["doc_md"]
