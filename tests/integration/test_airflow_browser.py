"""A person opens Airflow, fills in the form, watches the night turn green; the service has the new version at once."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import httpx
import pytest

from evensong.launch import components
from evensong.launch.airflow_api import DAG, AirflowApi
from evensong.launch.prepare import prepare
from evensong.launch.supervisor import Supervisor
from evensong.settings import Settings, load_settings

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.browser, pytest.mark.timeout(2400)]

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NIGHT_SECONDS = 1200


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: install the package chromium to run this test")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(120_000)
        yield opened
        browser.close()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A shop of eight days."""
    from evensong.data.simulator import ShopConfig
    from evensong.pipelines import simulate

    settings = load_settings(
        home=tmp_path_factory.mktemp("home"),
        airflow={"port": free_port()},
        mlflow_port=free_port(),
        serving={"port": free_port(), "poll_seconds": 0.5},
    )
    config = ShopConfig(num_users=600, num_items=300, start=date(2026, 1, 1))
    simulate.run(settings, days=8, policy="warmup", config=config)
    return settings


@pytest.fixture(scope="module")
def everything(settings: Settings) -> Iterator[Supervisor]:
    """What `make up` starts."""
    prepare(settings)
    with Supervisor(settings, components.all_components(settings)) as running:
        running.wait_ready(300)
        yield running


def test_a_night_from_the_form_reaches_the_service(settings: Settings, everything: Supervisor, page: Any) -> None:
    service = httpx.Client(base_url=f"http://127.0.0.1:{settings.serving.port}", trust_env=False, timeout=30)
    assert service.get("/readyz").status_code == 503
    process = everything.pids()["service"]

    with AirflowApi(settings) as api:
        api.wait_ready(180)
        page.goto(f"{api.address}/dags/{DAG}")
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
        page.get_by_role("button", name="Trigger").last.click()

        deadline = time.monotonic() + NIGHT_SECONDS
        runs: list[dict[str, Any]] = []
        while not runs or runs[0]["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, runs
            time.sleep(1)
            runs = api._call("GET", f"/api/v2/dags/{DAG}/dagRuns")["dag_runs"]
        run_id = runs[0]["dag_run_id"]
        assert runs[0]["state"] == "success", api.tasks(run_id)
        assert api.returned(run_id, "plan")["as_of"] == "2026-01-09T00:00:00Z"
        page.goto(f"{api.address}/dags/{DAG}/runs/{run_id}")
        page.get_by_text("Success").first.wait_for()
        decision, version = api.returned(run_id, "gate"), api.returned(run_id, "register")
        assert decision["promote"], decision["reasons"]

        # the task's button leads to the version in the MLflow UI
        page.goto(f"{api.address}/dags/{DAG}/runs/{run_id}/tasks/register/details")
        address = page.get_by_role("link", name="MLflow version").get_attribute("href")
        assert address == f"http://127.0.0.1:{settings.mlflow_port}/#/models/recommender/versions/{version}"
        page.goto(address)
        page.get_by_text("champion").first.wait_for()

    deadline = time.monotonic() + 60
    while service.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    answer = service.get("/recommend", params={"user_id": "nobody-knows-me", "k": 20}).json()
    assert str(answer["model_version"]) == str(version)
    assert len(answer["items"]) == 20
    assert everything.pids()["service"] == process
