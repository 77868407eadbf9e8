"""A person opens *Promotions* in Airflow: sees, approves, rolls back; light, dark, narrow, and on the first day."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.browser import chromium
from tests.integration import airflow_world as world

from evensong.settings import Settings

pytestmark = [pytest.mark.airflow, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Version 1, 2 and 5 were promoted, 3 and 4 kept back, 6 and 7 wait for a person."""
    settings = world.make_settings(tmp_path_factory.mktemp("browser") / "home")
    for day, gain in ((1, 0.05), (2, 0.05), (3, 0.0), (4, -0.03), (5, 0.08)):
        world.live(settings, day, gain)
    world.set_policy(settings, "review")
    for day, gain in ((6, 0.05), (7, 0.1)):
        world.live(settings, day, gain)
    return settings


@pytest.fixture(scope="module")
def address(settings: Settings) -> Iterator[str]:
    with world.server_on(settings) as address:
        yield address


def opened(browser: Any, url: str, *, width: int = 1400, scheme: str = "light") -> Any:
    page = browser.new_page(viewport={"width": width, "height": 1200}, color_scheme=scheme)
    page.set_default_timeout(60_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.problems = problems
    page.goto(url)
    return page


def keep_picture(page: Any, name: str) -> None:
    """For a person to look at, where the environment names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder, f"{name}.png")), full_page=True)


def champion(settings: Settings) -> str:
    from evensong.registry import versions

    now = versions.champion(settings)
    assert now is not None
    return now.version


def luminance(page: Any) -> float:
    """Of the page's ground as painted, 0 black to 1 white."""
    script = """() => { const c = document.createElement('canvas').getContext('2d');
        c.fillStyle = getComputedStyle(document.body).backgroundColor; c.fillRect(0, 0, 1, 1);
        const [r, g, b] = c.getImageData(0, 0, 1, 1).data; return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255; }"""
    return float(page.evaluate(script))


def test_the_first_day_says_what_to_do(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = world.make_settings(tmp_path_factory.mktemp("empty") / "home")
    with world.server_on(empty) as address:
        page = opened(browser, f"{address}/evensong/")
        page.get_by_role("heading", name="No version yet").wait_for()
        assert page.get_by_role("link", name="nightly_retraining").is_visible()
        assert not page.get_by_role("heading", name="Champion").is_visible()
        assert page.get_by_role("alert").is_hidden()
        keep_picture(page, "empty")
        assert page.problems == []


def test_airflow_leads_to_the_page_and_shows_it_in_its_own_look(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.get_by_role("link", name="Promotions").click()
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="Version 5").or_(frame.get_by_text("Version 5", exact=True)).first.wait_for()
    assert frame.get_by_role("article").count() == 2
    assert frame.locator("#curve svg").first.is_visible()
    assert frame.locator("#moves li").count() == 3
    keep_picture(page, "light")
    dossier = frame.get_by_role("article", name="Review of version 7").get_by_role("link", name="Dossier")
    with page.context.expect_page() as popup:
        dossier.click()
    popup.value.get_by_text("recall_at_20").first.wait_for()
    assert popup.value.url.endswith("/evensong/dossier/7")


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_is_as_light_or_dark_as_airflow(browser: Any, address: str, scheme: str, is_dark: bool) -> None:
    page = opened(browser, f"{address}/plugin/promotions", scheme=scheme)
    page.frame_locator("iframe").get_by_text("Version 5", exact=True).wait_for()
    frame = page.frames[-1]
    assert (luminance(frame) < 0.3) == is_dark
    keep_picture(page, scheme)


def test_400_pixels_are_enough(browser: Any, address: str) -> None:
    page = opened(browser, f"{address}/evensong/", width=400)
    page.get_by_role("button", name="Approve").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        assert box["height"] >= 40
    keep_picture(page, "narrow")
    assert page.problems == []


def test_reject_and_approve_by_clicking(browser: Any, address: str, settings: Settings) -> None:
    from evensong.registry import aliases, ledger, versions

    page = opened(browser, f"{address}/plugin/promotions")
    frame = page.frame_locator("iframe")
    sixth = frame.get_by_role("article", name="Review of version 6")
    sixth.get_by_label("Comment").fill("odd titles")
    sixth.get_by_role("button", name="Reject").click()
    frame.get_by_text("Version 6 is rejected.").wait_for()
    assert versions.get(settings, "6").tags[aliases.BLOCKED] == "rejected by person:Anonymous: odd titles"
    seventh = frame.get_by_role("article", name="Review of version 7")
    seventh.get_by_label("Comment").fill("fine titles")
    seventh.get_by_role("button", name="Approve").click()
    frame.get_by_text("Version 7 is approved.").wait_for()
    frame.get_by_text("Version 7", exact=True).wait_for()
    assert not frame.get_by_role("heading", name="Waiting for a person").is_visible()
    line = ledger.read(settings)[-1]
    assert (line.to_version, line.actor, line.reason) == ("7", "person:Anonymous", "review, page: fine titles")
    keep_picture(page, "approved")


def test_rollback_asks_why_before_it_moves(browser: Any, address: str, settings: Settings) -> None:
    page = opened(browser, f"{address}/plugin/promotions")
    frame = page.frame_locator("iframe")
    frame.get_by_role("button", name="Roll back to version 5").click()
    confirm = frame.get_by_role("dialog")
    confirm.get_by_text("Version 5 serves again in place of version 7").wait_for()
    confirm.get_by_role("button", name="Roll back").click()
    confirm.get_by_text("Say why").wait_for()
    keep_picture(page, "rollback")
    confirm.get_by_role("button", name="Cancel").click()
    assert champion(settings) == "7"
    frame.get_by_role("button", name="Roll back to version 5").click()
    confirm.get_by_label("Reason").fill("clicks fell by a fifth")
    confirm.get_by_role("button", name="Roll back").click()
    frame.get_by_text("Version 5 is the champion again.").wait_for()
    assert champion(settings) == "5"
    frame.get_by_text("Back from 7 to 5").wait_for()
    keep_picture(page, "rolled-back")


def test_an_alias_moved_by_hand_is_told(browser: Any, address: str, settings: Settings) -> None:
    from evensong.registry import tracking

    tracking.client(settings).set_registered_model_alias("recommender", "champion", "2")
    page = opened(browser, f"{address}/evensong/")
    page.get_by_text("another hand moved it").first.wait_for()
    page.get_by_text("unknown: another hand moved the alias").wait_for()
    keep_picture(page, "by-hand")
