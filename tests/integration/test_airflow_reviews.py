"""A real run of the nightly DAG waits for a person, and each of the places ends the wait; so does the deadline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration import airflow_world as world

from evensong.launch.airflow_api import DAG, AirflowApi
from evensong.launch.components import evensong_variables
from evensong.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.timeout(1200)]

RUN_SECONDS = 300
ROLLBACK = "rollback_champion"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two nights were promoted; from now on a person is asked."""
    settings = world.make_settings(tmp_path_factory.mktemp("reviews") / "home", auth="password")
    for day in (1, 2):
        world.live(settings, day, 0.05)
    return settings


@pytest.fixture(scope="module")
def airflow(settings: Settings) -> Iterator[AirflowApi]:
    with world.airflow_on(settings) as api:
        yield api


def waiting(settings: Settings, api: AirflowApi, day: int, **review: Any) -> tuple[str, str]:
    """A run that waits for a person, and its version."""
    world.set_policy(settings, "review", **review)
    run_id, version = world.start_at_the_gate(settings, api, day, 0.05)
    world.eventually(lambda: api.tasks(run_id)["review"]["state"] == "deferred", RUN_SECONDS)
    return run_id, version


def ended(api: AirflowApi, run_id: str) -> dict[str, Any]:
    """What the review returned, once the run has ended green."""
    tasks = api.follow(run_id, RUN_SECONDS)
    assert {task["state"] for task in tasks.values()} == {"success"}
    answer: dict[str, Any] = api.returned(run_id, "review")
    return answer


def champion(settings: Settings) -> str:
    from evensong.registry import versions

    now = versions.champion(settings)
    assert now is not None
    return now.version


def last_line(settings: Settings) -> tuple[str, str, str]:
    from evensong.registry import ledger

    line = ledger.read(settings)[-1]
    return line.to_version, line.actor, line.reason


def hitl(run_id: str) -> str:
    return f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/review/-1/hitlDetails"


def test_the_waiting_run_holds_no_slot_and_no_turn(settings: Settings, airflow: AirflowApi) -> None:
    waiting(settings, airflow, 3)
    pool = airflow._call("GET", "/api/v2/pools/default_pool")
    assert pool["occupied_slots"] == 0
    assert json.loads(Path(settings.place("turn.json")).read_text())["holder"] is None


def test_the_next_night_overtakes_the_review_and_both_runs_are_green(settings: Settings, airflow: AirflowApi) -> None:
    world.set_policy(settings, "auto")
    run_id, version = world.start_at_the_gate(settings, airflow, 4, 0.05)
    tasks = airflow.follow(run_id, RUN_SECONDS)
    # nobody was asked, and no task was started for it
    assert (tasks["review"]["state"], tasks["review"]["start_date"]) == ("skipped", tasks["review"]["end_date"])
    assert champion(settings) == version
    answer = ended(airflow, "test__2026-03-03T000000")
    assert (answer["outcome"], answer["via"], champion(settings)) == ("rejected", "overtaken", version)


def test_an_answer_in_airflow_moves_the_alias_in_the_person_s_name(settings: Settings, airflow: AirflowApi) -> None:
    run_id, version = waiting(settings, airflow, 5)
    asked = airflow._call("GET", hitl(run_id))
    assert asked["subject"] == f"Promote recommender version {version}, the night of 2026-03-05?"
    for words in (
        "The evidence says promote",
        "| recall_at_20 |",
        f"/evensong/dossier/{version}",
        "the champion stays",
    ):
        assert words in asked["body"]
    body = {"chosen_options": ["Approve"], "params_input": {"comment": "fine titles"}}
    airflow._call("PATCH", hitl(run_id), body)
    answer = ended(airflow, run_id)
    assert (answer["outcome"], answer["via"], answer["by"]) == ("approved", "airflow", "person:admin")
    assert last_line(settings) == (version, "person:admin", "review, airflow: fine titles")


def test_a_tag_in_mlflow_ends_the_wait_and_closes_the_request(settings: Settings, airflow: AirflowApi) -> None:
    from evensong.registry import tracking

    before = champion(settings)
    run_id, version = waiting(settings, airflow, 6)
    tracking.client(settings).set_model_version_tag("recommender", version, "review", "rejected: odd titles")
    answer = ended(airflow, run_id)
    assert (answer["outcome"], answer["via"], answer["comment"]) == ("rejected", "tag", "odd titles")
    assert champion(settings) == before
    closed = airflow._call("GET", hitl(run_id))
    assert (closed["response_received"], closed["chosen_options"]) == (True, ["Reject"])


def test_a_command_ends_the_wait(settings: Settings, airflow: AirflowApi) -> None:
    run_id, version = waiting(settings, airflow, 7)
    command = [sys.executable, "-m", "evensong.cli", "registry", "promote", version, "--reason", "looked at ten users"]
    environment = os.environ | evensong_variables(settings)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = ended(airflow, run_id)
    assert (answer["outcome"], answer["via"], champion(settings)) == ("approved", "command", version)


def test_the_page_ends_the_wait(settings: Settings, airflow: AirflowApi) -> None:
    run_id, version = waiting(settings, airflow, 8)
    body = {"outcome": "approved", "comment": "on the phone"}
    airflow._call("POST", f"/evensong/api/reviews/{version}", body)
    # at once, whenever the run hears of it
    assert last_line(settings) == (version, "person:admin", "review, page: on the phone")
    answer = ended(airflow, run_id)
    assert (answer["outcome"], answer["via"]) == ("approved", "page")


@pytest.mark.parametrize(("day", "default"), [(9, "promote"), (10, "keep")])
def test_nobody_s_answer_is_the_configured_one(settings: Settings, airflow: AirflowApi, day: int, default: str) -> None:
    before = champion(settings)
    world.set_policy(settings, "review", deadline_hours=0.005, default=default)
    run_id, version = world.start_at_the_gate(settings, airflow, day, 0.05)
    answer = ended(airflow, run_id)
    assert (answer["by"], answer["via"]) == ("rule:deadline", "deadline")
    assert champion(settings) == (version if default == "promote" else before)


def clear_again(api: AirflowApi, run_id: str, *task_ids: str) -> None:
    """What a person does who clears these tasks; the steps that this world does not have stay as they are."""
    body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": list(task_ids)}
    api._call("POST", f"/api/v2/dags/{DAG}/clearTaskInstances", body | {"reset_dag_runs": True})


@pytest.mark.parametrize(("day", "answered_before"), [(11, True), (12, False)])
def test_a_night_judged_anew_is_asked_about_anew_and_no_old_answer_counts(
    settings: Settings, airflow: AirflowApi, day: int, answered_before: bool
) -> None:
    from evensong.registry import review, versions

    before = champion(settings)
    run_id, version = waiting(settings, airflow, day)
    if answered_before:
        body = {"chosen_options": ["Reject"], "params_input": {"comment": "odd titles"}}
        airflow._call("PATCH", hitl(run_id), body)
        assert ended(airflow, run_id)["outcome"] == "rejected"
    first = versions.get(settings, version).tags[review.QUESTION]
    world.register_night(settings, day, 0.08)
    clear_again(airflow, run_id, "gate", "review", "promote")
    world.eventually(lambda: versions.get(settings, version).tags[review.QUESTION] != first, RUN_SECONDS)
    world.eventually(lambda: airflow.tasks(run_id)["review"]["state"] == "deferred", RUN_SECONDS)
    # Airflow's words are about the first decision: what was answered there, or is not any more, counts for nothing
    world.eventually(lambda: airflow._call("GET", hitl(run_id))["response_received"], RUN_SECONDS)
    option = airflow._call("GET", hitl(run_id))["chosen_options"]
    assert option == (["Reject"] if answered_before else ["Judged anew: answer on the page Promotions"])
    assert review.is_waiting(versions.get(settings, version))
    assert champion(settings) == before
    body = {"outcome": "approved", "comment": "better than it was"}
    airflow._call("POST", f"/evensong/api/reviews/{version}", body)
    answer = ended(airflow, run_id)
    assert (answer["outcome"], answer["via"], champion(settings)) == ("approved", "page", version)


def test_an_approved_night_whose_tasks_are_cleared_after_a_rollback_moves_nothing(
    settings: Settings, airflow: AirflowApi
) -> None:
    from evensong.registry import commands, ledger

    run_id, version = waiting(settings, airflow, 13)
    airflow._call("POST", f"/evensong/api/reviews/{version}", {"outcome": "approved", "comment": "fine"})
    ended(airflow, run_id)
    back = commands.rollback(settings, reason="clicks fell", actor="person:bob")["champion"]
    lines = len(ledger.read(settings))
    clear_again(airflow, run_id, "review", "promote")
    world.eventually(lambda: airflow.tasks(run_id)["promote"]["try_number"] == 2, RUN_SECONDS)
    airflow.follow(run_id, RUN_SECONDS)
    assert (champion(settings), len(ledger.read(settings))) == (back, lines)
    assert "only a person can promote it again" in airflow.returned(run_id, "promote")["reason"]


def test_the_retention_dag_says_what_may_go_and_removes_it_when_asked(settings: Settings, airflow: AirflowApi) -> None:
    for number, remove in enumerate((False, True)):
        run = {"dag_run_id": f"rule-{number}", "logical_date": None, "conf": {"remove": remove}}
        airflow._call("POST", "/api/v2/dags/retention/dagRuns", run)
        airflow.follow(f"rule-{number}", RUN_SECONDS, dag_id="retention")
        plan = airflow.returned(f"rule-{number}", "collect", dag_id="retention")
        assert {one["action"] for one in plan} == {"keep"}
        said = airflow.returned(f"rule-{number}", "collect", "retention", dag_id="retention")
        assert said.startswith("collected 0 of" if remove else "would collect 0 of")


def test_the_rollback_dag_goes_back_once_however_often_it_runs(settings: Settings, airflow: AirflowApi) -> None:
    before = champion(settings)
    conf = {"reason": "clicks fell by a fifth", "expected": before}
    body = {"dag_run_id": "back", "logical_date": None, "conf": conf}
    airflow._call("POST", f"/api/v2/dags/{ROLLBACK}/dagRuns", body)
    airflow.follow("back", RUN_SECONDS, dag_id=ROLLBACK)
    back, actor, reason = last_line(settings)
    assert (actor, reason) == ("person:admin", "clicks fell by a fifth")
    assert champion(settings) == back != before
    clear = {"dry_run": False, "only_failed": False, "dag_run_id": "back", "task_ids": ["roll_back"]}
    airflow._call("POST", f"/api/v2/dags/{ROLLBACK}/clearTaskInstances", clear)
    airflow.follow("back", RUN_SECONDS, dag_id=ROLLBACK)
    assert champion(settings) == back


def test_a_rollback_from_another_champion_than_expected_is_refused(settings: Settings, airflow: AirflowApi) -> None:
    before = champion(settings)
    body = {"dag_run_id": "late", "logical_date": None, "conf": {"reason": "too late", "expected": "1"}}
    airflow._call("POST", f"/api/v2/dags/{ROLLBACK}/dagRuns", body)
    world.eventually(lambda: (airflow.run("late", ROLLBACK) or {})["state"] == "failed", RUN_SECONDS)
    assert champion(settings) == before
