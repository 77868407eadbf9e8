"""A person approves a night by a click on Airflow's own page *Required Actions*, in the demo that asks for no login."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.browser import chromium
from tests.integration import airflow_world as world

from evensong.launch.airflow_api import DAG, AirflowApi
from evensong.launch.supervisor import Supervisor
from evensong.settings import Settings
from evensong.types import Night

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.browser, pytest.mark.timeout(2400)]

NIGHT = Night.model_validate({"as_of": "2026-01-09"})
RUN = "reviewed"
NIGHT_SECONDS = 1200


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return world.small_shop(tmp_path_factory.mktemp("approval") / "home", mode="review")


@pytest.fixture(scope="module")
def everything(settings: Settings) -> Iterator[Supervisor]:
    with world.everything_on(settings) as running:
        yield running


def test_a_click_on_required_actions_makes_the_night_s_version_champion(
    settings: Settings, everything: Supervisor
) -> None:
    from evensong.registry import ledger, tracking, versions

    service = httpx.Client(base_url=f"http://127.0.0.1:{settings.serving.port}", trust_env=False, timeout=30)
    with chromium() as browser, AirflowApi(settings) as api:
        api.wait_ready(180)
        api.start(NIGHT, RUN)
        world.eventually(lambda: api.tasks(RUN).get("review", {}).get("state") == "deferred", NIGHT_SECONDS)
        version = str(api.returned(RUN, "register"))
        assert versions.champion(settings) is None
        assert service.get("/readyz").status_code == 503

        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(api.address)
        page.get_by_role("button", name="Browse").click()
        page.get_by_role("menuitem", name="Required Actions").click()
        page.get_by_role("link", name=f"Promote recommender version {version}").click()
        for words in ("the policy asks a person", "recall_at_20", "Without an answer by"):
            page.get_by_text(words).first.wait_for()
        dossier = page.get_by_role("link", name="Dossier").get_attribute("href")
        assert dossier == f"{api.address}/evensong/dossier/{version}"
        page.locator("[name=element_comment]").fill("fine titles")
        page.get_by_role("button", name="Approve").click()

        tasks = api.follow(RUN, NIGHT_SECONDS)
        assert {task["state"] for task in tasks.values()} == {"success"}
        page.goto(f"{api.address}/dags/{DAG}/runs/{RUN}")
        page.get_by_text("Success").first.wait_for()

    champion = versions.champion(settings)
    assert champion is not None
    assert champion.version == version
    line = ledger.read(settings)[-1]
    assert (line.to_version, line.actor, line.reason) == (version, "person:Anonymous", "review, airflow: fine titles")
    assert tracking.client(settings).get_run(tracking.night_run(settings, NIGHT)).info.status == "FINISHED"
    world.eventually(lambda: service.get("/readyz").status_code == 200, 60)
    answer = service.get("/recommend", params={"user_id": "nobody-knows-me"}).json()
    assert answer["model_version"] == version
    service.close()
