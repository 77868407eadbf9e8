"""The rollback's DAG: two light steps, a form that asks why, nothing that waits for a night."""

from __future__ import annotations

from typing import Any

import pytest
from tests.dags.conftest import Probe

#: What the tests ask about.
QUESTIONS = """{
    "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
    "params": {name: dict(dag.params.get_param(name).schema) for name in dag.params},
    "schedule": str(dag.schedule),
}"""


@pytest.fixture(scope="module")
def dag(probe: Probe) -> dict[str, Any]:
    return probe("rollback_champion.py", "rollback_champion", QUESTIONS)


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
