"""The page's app in a real API server: who may look, who may move, and what a foreign page cannot do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.integration import airflow_world as world

from evensong.settings import Settings

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(600)]

USERS = {"vera": "viewer", "otto": "user", "olga": "op"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Versions 1 and 2 were promoted, 3 was kept back, 4 waits for a person."""
    settings = world.make_settings(tmp_path_factory.mktemp("page") / "home", auth="password")
    for day, gain in ((1, 0.05), (2, 0.05), (3, 0.0)):
        world.live(settings, day, gain)
    world.set_policy(settings, "review")
    world.live(settings, 4, 0.05)
    return settings


@pytest.fixture(scope="module")
def address(settings: Settings) -> Iterator[str]:
    with world.server_on(settings, USERS) as address:
        yield address


def client(address: str, name: str | None = None) -> httpx.Client:
    """A client of the page, logged in by name."""
    made = httpx.Client(base_url=address, timeout=60, trust_env=False)
    if name:
        token = made.post("/auth/token", json={"username": name, "password": name}).json()["access_token"]
        made.headers["Authorization"] = f"Bearer {token}"
    return made


@pytest.fixture(scope="module")
def viewer(address: str) -> Iterator[httpx.Client]:
    made = client(address, "vera")
    yield made
    made.close()


@pytest.fixture(scope="module")
def operator(address: str) -> Iterator[httpx.Client]:
    made = client(address, "otto")
    yield made
    made.close()


REVIEW = {"outcome": "approved", "comment": "fine titles"}
ROLLBACK = {"expected": "2", "reason": "clicks fell"}
MOVES = [("/evensong/api/reviews/4", REVIEW), ("/evensong/api/rollback", ROLLBACK)]


def overview(of: httpx.Client) -> dict[str, Any]:
    answer = of.get("/evensong/api/overview")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_viewer_sees_everything(viewer: httpx.Client) -> None:
    found = overview(viewer)
    shown = found["overview"]
    assert (found["user"], found["may_review"], found["may_roll_back"]) == ("vera", False, False)
    assert (shown["champion"]["version"], shown["champion"]["rolls_back_to"]) == ("2", "1")
    assert [row["version"] for row in shown["waiting"]] == ["4"]
    assert [(row["version"], row["state"]) for row in shown["nights"]] == [
        ("4", "waits"),
        ("3", "kept"),
        ("2", "champion"),
        ("1", "was champion"),
    ]
    assert [move["to_version"] for move in shown["moves"]] == ["2", "1"]
    assert shown["metric"] == "recall_at_20"
    assert shown["nights"][0]["figures"]["challenger"] > shown["nights"][0]["figures"]["champion"]
    gains = {gain["metric"]: gain for gain in shown["waiting"][0]["gains"]}
    assert 0 < gains["recall_at_20"]["lower"] < gains["recall_at_20"]["mean"] < gains["recall_at_20"]["upper"]
    assert shown["problems"] == []


@pytest.mark.parametrize(("path", "body"), MOVES)
def test_a_viewer_moves_nothing(viewer: httpx.Client, path: str, body: dict[str, str]) -> None:
    assert viewer.post(path, json=body).status_code == 403
    assert overview(viewer)["overview"]["champion"]["version"] == "2"


@pytest.mark.parametrize(("path", "body"), MOVES)
def test_a_stranger_neither_sees_nor_moves(address: str, path: str, body: dict[str, str]) -> None:
    with client(address) as stranger:
        assert stranger.get("/evensong/api/overview").status_code == 401
        assert stranger.get("/evensong/dossier/4").status_code == 401
        assert stranger.post(path, json=body).status_code == 401


def test_who_opens_a_dossier_without_a_login_is_sent_to_it_and_back(address: str) -> None:
    with client(address) as stranger:
        answer = stranger.get("/evensong/dossier/4", headers={"Accept": "text/html"})
    assert answer.status_code == 307
    assert "/auth/login?next=" in answer.headers["location"]
    assert "dossier%2F4" in answer.headers["location"]


@pytest.mark.parametrize(("path", "body"), MOVES)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_foreign_page_cannot_use_a_person_s_cookie(
    operator: httpx.Client, path: str, body: dict[str, str], headers: dict[str, str], status: int
) -> None:
    import json

    assert operator.post(path, content=json.dumps(body), headers=headers).status_code == status
    assert overview(operator)["overview"]["champion"]["version"] == "2"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/evensong/api/reviews/4", {"outcome": "perhaps", "comment": "x"}),
        ("/evensong/api/reviews/4", {"outcome": "approved", "comment": "  "}),
        ("/evensong/api/reviews/4", REVIEW | {"by": "person:somebody"}),
        ("/evensong/api/rollback", {"expected": "two", "reason": "clicks fell"}),
        ("/evensong/api/rollback", {"expected": "2", "reason": ""}),
    ],
)
def test_a_wrong_body_is_refused(operator: httpx.Client, path: str, body: dict[str, str]) -> None:
    assert operator.post(path, json=body).status_code == 422


def test_an_unknown_version_and_an_unusable_reason_are_told_from_a_registry_that_is_away(
    operator: httpx.Client,
) -> None:
    unknown = operator.post("/evensong/api/reviews/99", json=REVIEW)
    assert (unknown.status_code, "99" in unknown.json()["detail"]) == (404, True)
    unusable = operator.post("/evensong/api/reviews/4", json=REVIEW | {"comment": "odd\u0001titles"})
    assert (unusable.status_code, "got control characters" in unusable.json()["detail"]) == (422, True)
    assert overview(operator)["overview"]["champion"]["version"] == "2"


def test_the_dossier_is_shown_and_never_run(viewer: httpx.Client) -> None:
    answer = viewer.get("/evensong/dossier/4")
    assert answer.status_code == 200
    assert answer.text.lstrip().lower().startswith("<!doctype html>")
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert viewer.get("/evensong/dossier/99").status_code == 404


@pytest.fixture(scope="module")
def docs(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A night whose data was judged, as its folder of the home has it; a secret lies beside it."""
    from pathlib import Path

    from evensong.data import storage
    from evensong.pipelines import docs_pages

    night = "2026-03-04T000000"
    report = {
        "as_of": "2026-03-04T00:00:00+00:00",
        "success": False,
        "failed": [{"table": "interactions", "message": "expected <b>fresh</b> events"}],
        "tables": {"items": {"judged": 1200, "accepted": 1199, "quarantined": 1, "reasons": {"title is missing": 1}}},
        "expectations": [
            {"table": "items", "expectation": "expect_no_null", "column": "title", "success": True, "unexpected": 1,
             "message": "title is missing"},
        ],
    }  # fmt: skip
    page = tmp_path_factory.mktemp("of-gx") / "validations" / "items" / "lake-items.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        "<html><head><script src='https://elsewhere.example/x.js'></script></head><body>of GX</body></html>"
    )
    docs_pages.publish(page.parents[2], report, settings.run_uri(night, docs_pages.DOCS))
    storage.write_bytes(settings.run_uri(night, "secret.html"), b"a secret")
    Path(settings.run_uri(night, "data_docs", "linked.html")).symlink_to(settings.run_uri(night, "secret.html"))
    return f"/evensong/data-docs/{night}"


def test_data_docs_are_shown_and_never_run(viewer: httpx.Client, docs: str) -> None:
    first = viewer.get(f"{docs}/index.html")
    assert first.status_code == 200
    assert "Failed: nothing was trained" in first.text
    assert "expected &lt;b&gt;fresh&lt;/b&gt; events" in first.text
    assert "1 title is missing" in first.text
    assert 'href="validations/items/lake-items.html"' in first.text
    page = viewer.get(f"{docs}/validations/items/lake-items.html")
    assert "of GX" in page.text
    assert "elsewhere.example" not in page.text
    for answer in (first, page):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox")
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/secret.html",
        "..%2fsecret.html",
        "validations/%2e%2e/%2e%2e/secret.html",
        "validations/..%2f..%2fsecret.html",
        "..%5csecret.html",
        "%2fetc%2fpasswd",
        "linked.html",
        "validations/items/",
        "..%2f..%2f..%2f..%2fairflow%2fpasswords.json",
        "nothing.html",
    ],
)
def test_no_path_leads_out_of_the_data_docs(viewer: httpx.Client, docs: str, path: str) -> None:
    answer = viewer.get(f"{docs}/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text.replace(path, "").replace("secret.html", "")


def test_a_night_that_nobody_judged_says_so(viewer: httpx.Client, docs: str) -> None:
    for night in ("2020-01-01T000000", "%2e%2e", "x"):
        answer = viewer.get(f"/evensong/data-docs/{night}/index.html")
        assert answer.status_code == 404
    assert "has not come so far" in viewer.get("/evensong/data-docs/2020-01-01T000000/index.html").text


def test_a_stranger_sees_no_data_docs(address: str, docs: str) -> None:
    with client(address) as stranger:
        assert stranger.get(f"{docs}/index.html").status_code == 401


def test_airflow_s_navigation_has_the_page(viewer: httpx.Client) -> None:
    menu = viewer.get("/ui/auth/menus")
    assert menu.status_code == 200
    admin = client(str(viewer.base_url), "admin")
    plugins = admin.get("/api/v2/plugins").json()["plugins"]
    admin.close()
    views = [view for plugin in plugins for view in plugin["external_views"]]
    assert [(view["name"], view["url_route"]) for view in views] == [("Promotions", "promotions")]
    page = viewer.get("/evensong/")
    assert page.status_code == 200
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["otto", "olga", "admin"])
def test_who_may_edit_the_dag_may_move(address: str, name: str) -> None:
    with contextlib.closing(client(address, name)) as person:
        found = overview(person)
        assert (found["may_review"], found["may_roll_back"]) == (True, True)
        # past the permissions, to the registry's own refusal
        for path, body in (
            ("/evensong/api/reviews/3", REVIEW),
            ("/evensong/api/rollback", ROLLBACK | {"expected": "1"}),
        ):
            answer = person.post(path, json=body)
            assert answer.status_code == 409, answer.text


def test_an_edited_dossier_is_not_shown(settings: Settings, viewer: httpx.Client) -> None:
    from evensong.registry import versions

    written = versions.get(settings, "3").tags["dossier_hash"]
    versions.set_tags(settings, "3", {"dossier_hash": "0" * 64})
    answer = viewer.get("/evensong/dossier/3")
    versions.set_tags(settings, "3", {"dossier_hash": written})
    assert (answer.status_code, "it was edited" in answer.json()["detail"]) == (409, True)
    assert viewer.get("/evensong/dossier/3").status_code == 200


def test_a_viewer_s_look_settles_nothing(settings: Settings, viewer: httpx.Client) -> None:
    from evensong.registry import review, versions

    deadline = versions.get(settings, "4").tags[review.DEADLINE]
    versions.set_tags(settings, "4", {review.DEADLINE: "2026-01-01T00:00:00+00:00"})
    assert [row["version"] for row in overview(viewer)["overview"]["waiting"]] == ["4"]
    assert review.is_waiting(versions.get(settings, "4"))
    versions.set_tags(settings, "4", {review.DEADLINE: deadline})


def test_an_operator_approves_in_their_own_name_and_only_once(settings: Settings, operator: httpx.Client) -> None:
    from evensong.registry import ledger

    answer = operator.post("/evensong/api/reviews/4", json=REVIEW)
    assert (answer.status_code, answer.json()["by"], answer.json()["via"]) == (200, "person:otto", "page")
    line = ledger.read(settings)[-1]
    assert (line.to_version, line.actor, line.reason) == ("4", "person:otto", "review, page: fine titles")
    again = operator.post("/evensong/api/reviews/4", json={"outcome": "rejected", "comment": "no"})
    assert again.status_code == 409
    assert "was approved by person:otto (page)" in again.json()["detail"]
    never = operator.post("/evensong/api/reviews/3", json=REVIEW)
    assert (never.status_code, "waits for no review" in never.json()["detail"]) == (409, True)


def test_an_operator_rolls_back_once_however_often_the_button_is_pressed(
    settings: Settings, operator: httpx.Client
) -> None:
    from evensong.registry import ledger

    late = operator.post("/evensong/api/rollback", json={"expected": "2", "reason": "clicks fell"})
    assert late.status_code == 409
    assert "expected version 2 as champion, found version 4" in late.json()["detail"]
    for _ in range(2):
        answer = operator.post("/evensong/api/rollback", json={"expected": "4", "reason": "clicks fell"})
        assert (answer.status_code, answer.json()["champion"]) == (200, "2")
    lines = ledger.read(settings)
    assert [line.kind for line in lines].count("rollback") == 1
    assert (lines[-1].actor, lines[-1].reason) == ("person:otto", "clicks fell")
    assert overview(operator)["overview"]["nights"][0]["state"] == "rolled back"
