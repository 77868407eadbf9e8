"""The retention's DAG: every week it says what may go, and nothing goes unless a person asks for it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.dags.conftest import Probe

#: What the tests ask about.
QUESTIONS = """{
    "tasks": [task.task_id for task in dag.tasks],
    "documented": [task.task_id for task in dag.tasks if task.doc_md],
    "params": {name: dict(dag.params.get_param(name).schema) for name in dag.params},
    "defaults": {name: dag.params[name] for name in dag.params},
    "cron": dag.timetable.expression,
    "first_run_within": str(dag.timetable.run_immediately),
    "catchup": dag.catchup,
    "max_active_runs": dag.max_active_runs,
    "retries": [task.retries for task in dag.tasks],
}"""


@pytest.fixture(scope="module")
def dag(probe: Probe) -> dict[str, Any]:
    return probe("retention.py", "retention", QUESTIONS)


def test_nothing_is_removed_unless_the_form_says_so(dag: dict[str, Any]) -> None:
    assert dag["defaults"] == {"remove": False}
    assert dag["params"]["remove"]["type"] == "boolean"
    assert "Remove" in dag["doc_md"]


def test_it_runs_every_week_alone_and_makes_up_for_nothing(dag: dict[str, Any]) -> None:
    assert (dag["cron"], dag["catchup"], dag["max_active_runs"]) == ("0 5 * * 1", False, 1)
    assert dag["first_run_within"] == "0:00:00"
    # a night at work holds it up
    assert dag["retries"] == [6]


def test_it_imports_nothing_heavy_and_says_what_it_does(dag: dict[str, Any]) -> None:
    assert {"mlflow", "polars", "torch", "pandas", "fastapi"}.isdisjoint(dag["new_modules"])
    assert dag["documented"] == dag["tasks"] == ["collect"]
