"""The page in a real browser: choose a user, see history and recommendations, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from tests.browser import chromium
from tests.variants import first_daily

from evensong.settings import Settings

Serve = Callable[..., AbstractContextManager[httpx.Client]]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def client(world: Any, serve: Serve) -> Iterator[httpx.Client]:
    world.promote(world.second)
    with serve(world.settings) as running:
        yield running


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end the browser must have had nothing to complain about."""
    complaints: list[str] = []
    contexts = []

    def opened(client: httpx.Client, path: str = "/", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None,
        )
        page.goto(str(client.base_url.join(path)))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def titles(page: Any, part: str) -> list[str]:
    page.wait_for_selector(f"#{part} li")
    return [each.inner_text() for each in page.query_selector_all(f"#{part} .title")]


@pytest.mark.parametrize(
    "options", [{"viewport": {"width": 1280, "height": 900}}, {"viewport": {"width": 400, "height": 800}}]
)
@pytest.mark.parametrize("scheme", first_daily(["light", "dark"]))
def test_chosen_user_has_history_beside_recommendations(
    client: httpx.Client, world: Any, open_page: Callable[..., Any], options: dict[str, Any], scheme: str
) -> None:
    page = open_page(client, color_scheme=scheme, **options)
    page.click("#sample button:text-is('bu19')")
    recommended = titles(page, "items")
    past = titles(page, "history")
    assert len(past) == 9
    assert not set(past) & set(recommended)
    assert all(title.startswith("Barrow ") for title in [*past, *recommended[:5]])
    assert f"Model version {world.second}" in page.inner_text("#source")
    assert f"version {world.second}" in page.inner_text("#model")
    assert page.inner_text("#recommended") == "Recommended for bu19"
    width = options["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_form_works_by_keyboard_and_the_address_can_be_shared(
    client: httpx.Client, open_page: Callable[..., Any]
) -> None:
    page = open_page(client)
    page.wait_for_selector("#sample button")
    page.focus("#user")
    page.keyboard.type("au3")
    page.select_option("#k", "5")
    page.focus("#user")
    page.keyboard.press("Enter")
    first = titles(page, "items")
    assert len(first) == 5
    assert page.url.endswith("/?user=au3&k=5")
    again = open_page(client, "/?user=au3&k=5")
    assert titles(again, "items") == first
    page.click("#sample button:text-is('bu19')")
    page.wait_for_selector("#recommended:text-is('Recommended for bu19')")
    page.go_back()
    page.wait_for_selector("#recommended:text-is('Recommended for au3')")


def test_stranger_is_told_to_get_popular_items(client: httpx.Client, open_page: Callable[..., Any]) -> None:
    page = open_page(client, "/?user=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&k=5")
    assert len(titles(page, "items")) == 5
    assert "Nobody knows this user yet" in page.inner_text("#source")
    assert page.inner_text("#no-history") == "Nobody knows this user."
    assert page.inner_text("#recommended") == "Recommended for <img src=x onerror=alert(1)>"
    assert page.query_selector("#result img") is None


def test_page_without_a_model_says_so(
    serve: Serve, open_page: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("empty"), serving={"poll_seconds": 0.2})
    with serve(settings, ready=False) as client:
        page = open_page(client)
        page.wait_for_selector("#start:has-text('no model yet')")
        assert "No model is loaded." in page.inner_text("#model")
        page.wait_for_selector("#problem strong")


def test_refusal_is_shown_with_what_to_do(client: httpx.Client, open_page: Callable[..., Any]) -> None:
    page = open_page(client, f"/?user={'u' * 300}")
    page.wait_for_selector("#problem strong")
    assert "query.user_id" in page.inner_text("#problem")
    assert "correct what is named" in page.inner_text("#problem")
    assert page.is_hidden("#result")
