"""The DAG in a real Airflow, with everything that `make up` starts, on a small simulated shop."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.browser import chromium
from tests.integration import airflow_world as world

from evensong.data import storage
from evensong.errors import LaunchError
from evensong.launch import components, secrets
from evensong.launch.airflow_api import DAG, AirflowApi
from evensong.launch.supervisor import Supervisor
from evensong.settings import Settings
from evensong.types import Night, PromotionDecision

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(1200)]

NIGHT_SECONDS = 900


def run_id(night: Night) -> str:
    return f"test__{night.run_id}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return world.small_shop(tmp_path_factory.mktemp("airflow") / "home", airflow={"auth": "password"})


@pytest.fixture(scope="module")
def everything(settings: Settings) -> Iterator[Supervisor]:
    with world.everything_on(settings) as running:
        yield running


@pytest.fixture(scope="module")
def airflow(settings: Settings, everything: Supervisor) -> Iterator[AirflowApi]:
    with AirflowApi(settings) as api:
        api.wait_ready(180)
        yield api


@pytest.fixture(scope="module")
def first_night(airflow: AirflowApi) -> Night:
    """A night that has gone through every step."""
    night = Night.model_validate({"as_of": "2026-01-09"})
    airflow.start(night, run_id(night))
    airflow.follow(run_id(night), NIGHT_SECONDS)
    return night


@pytest.mark.browser
def test_a_person_fills_in_the_form_watches_it_turn_green_and_the_service_has_the_new_version(
    settings: Settings, everything: Supervisor, airflow: AirflowApi
) -> None:
    night = Night.model_validate({"as_of": "2026-01-09"})
    service = httpx.Client(base_url=f"http://127.0.0.1:{settings.serving.port}", trust_env=False, timeout=30)
    assert service.get("/readyz").status_code == 503
    process = everything.pids()["service"]
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{airflow.address}/dags/{DAG}")
        page.locator("[name=username]").fill("admin")
        page.locator("[name=password]").fill(secrets.admin_password(settings))
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Trigger").first.click()
        for words in (
            "The cutoff (UTC)",
            "Which registered source",
            "Start with random weights",
            "Of every random choice",
        ):
            page.get_by_text(words).wait_for()
        page.get_by_text("Select date and time").click()
        page.get_by_placeholder("YYYY/MM/DD").fill("2026/01/09")
        page.get_by_placeholder("HH:mm").fill("00:00")
        page.keyboard.press("Enter")
        page.get_by_text("Advanced Options").click()
        page.locator("[name=dagRunId]").fill(run_id(night))
        page.get_by_role("button", name="Trigger").last.click()
        world.eventually(lambda: airflow.run(run_id(night)), 60)
        airflow.follow(run_id(night), NIGHT_SECONDS)
        page.goto(f"{airflow.address}/dags/{DAG}/runs/{run_id(night)}")
        page.get_by_text("Success").first.wait_for()
        version = airflow.returned(run_id(night), "register")

        # the tasks' buttons lead to the version in the MLflow UI, and to what was found in the data
        page.goto(f"{airflow.address}/dags/{DAG}/runs/{run_id(night)}/tasks/register/details")
        address = page.get_by_role("link", name="MLflow version").get_attribute("href")
        assert address == f"http://127.0.0.1:{settings.mlflow_port}/#/models/recommender/versions/{version}"
        page.goto(address)
        page.get_by_text("champion").first.wait_for()
        page.goto(f"{airflow.address}/dags/{DAG}/runs/{run_id(night)}/tasks/validate/details")
        page.goto(page.get_by_role("link", name="Data Docs").get_attribute("href"))
        page.get_by_text("Validation of the night of 2026-01-09").wait_for()
        page.get_by_role("link", name="interactions").click()
        page.get_by_text("Expectation Validation Result").wait_for()

    world.eventually(lambda: service.get("/readyz").status_code == 200, 60)
    answer = service.get("/recommend", params={"user_id": "nobody-knows-me", "k": 20}).json()
    assert str(answer["model_version"]) == str(version)
    assert len(answer["items"]) == 20
    assert everything.pids()["service"] == process
    service.close()


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
    assert decision.checks
    assert moved["moved"] == decision.promote
    champion = versions.champion(settings)
    assert decision.promote
    assert champion is not None
    assert champion.version == str(version)


def test_tasks_link_to_what_they_made(settings: Settings, airflow: AirflowApi, first_night: Night) -> None:
    docs = airflow.returned(run_id(first_night), "validate", "link_data_docs")
    assert docs == f"{airflow.address}/evensong/data-docs/{first_night.run_id}/index.html"
    page = httpx.get(docs, headers=dict(airflow._http.headers), trust_env=False)
    assert page.status_code == 200
    assert "Passed" in page.text
    version = airflow.returned(run_id(first_night), "register")
    link = airflow.returned(run_id(first_night), "register", "link_mlflow_version")
    assert link == f"http://127.0.0.1:{settings.mlflow_port}/#/models/recommender/versions/{version}"
    dossier = airflow.returned(run_id(first_night), "gate", "link_dossier")
    assert dossier.startswith(f"http://127.0.0.1:{settings.mlflow_port}/#/experiments/")
    assert dossier.endswith("/artifacts")
    gate_log = "\n".join(airflow.log(run_id(first_night), "gate", 1))
    assert "Decision: " in gate_log


def test_the_run_in_mlflow_is_finished_with_the_seconds_of_every_step(
    settings: Settings, airflow: AirflowApi, first_night: Night
) -> None:
    from evensong.registry import tracking

    run = tracking.client(settings).get_run(tracking.night_run(settings, first_night))
    assert run.info.status == "FINISHED"
    steps = set(airflow.tasks(run_id(first_night))) - {"plan", "review"}
    assert {name.removeprefix("seconds.") for name in run.data.metrics if name.startswith("seconds.")} == steps


@pytest.mark.slow  # one more night of the DAG
def test_the_same_night_again_is_the_same_version(airflow: AirflowApi, first_night: Night) -> None:
    again = "again__" + first_night.run_id
    airflow.start(first_night, again)
    airflow.follow(again, NIGHT_SECONDS)
    for task_id in ("register", "gate"):
        assert airflow.returned(again, task_id) == airflow.returned(run_id(first_night), task_id)


@pytest.mark.slow
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
    # whoever is called at night finds a line that says what to do, and a button to what was found
    log = "\n".join(airflow.log(run_id(night), "validate", 1))
    assert "clear the task" in log
    docs = airflow.returned(run_id(night), "validate", "link_data_docs")
    page = httpx.get(docs, headers=dict(airflow._http.headers), trust_env=False)
    assert "Failed: nothing was trained" in page.text
    assert "expected the newest event at most" in page.text
    from evensong.registry import tracking

    run = tracking.client(settings).get_run(tracking.night_run(settings, night))
    assert run.info.status == "FAILED"
    assert "ValidationFailedError" in run.data.tags[tracking.FAILURE]


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
    assert dag["next_dagrun_run_after"].endswith(f"T{world.DUE_HOUR:02d}:00:00Z")


@pytest.mark.slow  # two more nights of the DAG
def test_a_backfill_makes_up_for_past_nights_one_after_the_other_and_leaves_the_champion(
    settings: Settings, airflow: AirflowApi, first_night: Night
) -> None:
    from evensong.registry import versions
    from evensong.serving.freshness import materialized

    champion, online = versions.champion(settings), materialized(settings)
    assert champion is not None
    command = ["backfill", "create", "--dag-id", DAG, "--from-date", "2026-01-07", "--to-date", "2026-01-08T23:59"]
    environment = {"PATH": os.environ["PATH"], "AIRFLOW_HOME": settings.place("airflow")}
    done = subprocess.run([components.executable("airflow"), *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs: list[dict[str, Any]] = []
    deadline = time.monotonic() + NIGHT_SECONDS
    while len(runs) < 2 or any(run["state"] in ("queued", "running") for run in runs):
        assert time.monotonic() < deadline, runs
        time.sleep(1)
        answer = airflow._call("GET", f"/api/v2/dags/{DAG}/dagRuns?run_type=backfill&order_by=logical_date")
        runs = answer["dag_runs"]
    nights = [run["dag_run_id"] for run in runs]
    assert [run["state"] for run in runs] == ["success"] * 2
    as_of = ["2026-01-07T00:00:00Z", "2026-01-08T00:00:00Z"]
    assert [airflow.returned(night, "plan")["as_of"] for night in nights] == as_of
    # each night is registered and judged
    made = [versions.get(settings, str(airflow.returned(night, "register"))) for night in nights]
    assert [version.as_of for version in made] == [Night.model_validate({"as_of": moment}).as_of for moment in as_of]
    # and one that is older than the champion's moves nothing
    for night in nights:
        assert airflow.returned(night, "gate")["checks"]
        moved = airflow.returned(night, "promote")
        assert (moved["champion"], moved["moved"]) == (champion.version, False)
        assert "the champion is of a later night" in moved["reason"]
    after = versions.champion(settings)
    assert after is not None
    assert after.version == champion.version
    assert materialized(settings) == online
    # one night after the other: no step of a night has ended before the last of the night before
    tasks = [airflow.tasks(night) for night in nights]
    ends = [[task["end_date"] for name, task in night.items() if name not in ("plan", "review")] for night in tasks]
    for earlier, later in itertools.pairwise(ends):
        assert max(earlier) < min(later)


def test_a_stranger_is_turned_away(airflow: AirflowApi) -> None:
    answer = httpx.get(f"{airflow.address}/api/v2/dags", trust_env=False)
    assert answer.status_code == 401
    body = {"username": "admin", "password": "admin"}
    assert httpx.post(f"{airflow.address}/auth/token", json=body, trust_env=False).status_code == 401
