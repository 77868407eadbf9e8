"""The dossier: the decision first, everything a reviewer asks for, one page that loads nothing and trusts no text."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from tests.unit.evaluation.gate_world import FIRST, SOUND, figures, report_of

from evensong.evaluation.dossier import Dossier, Example, Shift, build, changes
from evensong.evaluation.dossier_page import render
from evensong.evaluation.gate import GateInputs, decide
from evensong.evaluation.policy import load_policy

POLICY = load_policy(Path("mlflow/promotion_policy.yaml").read_text())


def made(gain: float = 0.1, *, with_champion: bool = True, **parts: object) -> Dossier:
    per_user = figures(gain=gain)
    report = report_of(per_user, with_champion=with_champion)
    inputs: GateInputs = SOUND if with_champion else FIRST
    decision = decide(report, POLICY, per_user, inputs)
    return build(report, decision, POLICY, per_user, inputs, title="recommender v2", version="2", **parts)


FULL: dict[str, object] = {
    "curves": {"retriever.loss": [3.0, 2.0, 1.5]},
    "rows": {"interactions": {"judged": "1,000", "quarantined": "3"}},
    "validation": "This night's validation passed.",
    "data_docs": "gx/index.html",
    "drift": [Shift(name="num_events_7d", psi=0.3, verdict="much"), Shift(name="price", psi=0.01, verdict="stable")],
    "examples": [Example(user_id="u1", history=["Red shoe"], challenger=["Blue sock"], champion=["Green hat"])],
    "changes": changes({"retriever.dimension": "32"}, {"retriever.dimension": "64"}),
    "lineage": {"lake_versions": '{"interactions": 3}', "code_commit": "abc"},
}


def test_decision_stands_before_everything_else() -> None:
    page = render(made(**FULL))
    body = page[page.index("<body>") :]
    assert body.index("Promote") < body.index("better than champion v1") < body.index("Champion against challenger")


@pytest.mark.parametrize(
    ("gain", "word"), [(0.1, "Promote"), (0.0, "Keep the champion"), (0.5, "A person must decide")]
)
def test_verdict_is_said_in_words(gain: float, word: str) -> None:
    assert re.search(rf'<div class="verdict \w+"><b>{word}', render(made(gain)))


def test_everything_a_reviewer_asks_for_is_there() -> None:
    page = render(made(**FULL))
    for text in (
        "recall at 20",
        "popularity",
        "new users",
        "smallest gain",
        "Blue sock",
        "Green hat",
        "Lately: Red shoe",
        "gx/index.html",
        "num events 7d",
        "retriever.dimension",
        "latency p99 seconds",
        "lake versions",
        "bundle megabytes",
    ):
        assert text in page
    assert page.count("<svg") >= 5


def test_page_loads_nothing_and_runs_nothing() -> None:
    page = render(made(**FULL))
    assert "<script" not in page
    assert not re.search(r"(src|href)\s*=", page)
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_titles_and_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    page = render(made(examples=[Example(user_id=evil, history=[evil], challenger=[evil])], lineage={evil: evil}))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_first_night_has_no_intervals_and_says_why() -> None:
    dossier = made(with_champion=False)
    assert dossier.smallest_detectable_gain is None
    assert "No intervals: there was no champion to compare with" in render(dossier)


def test_part_that_could_not_be_made_says_why() -> None:
    page = render(made(missing={"examples": "StorageError: no users", "drift": "ValueError: no examples"}))
    assert "Not made: StorageError: no users." in page
    assert "Not made: ValueError: no examples." in page


def test_data_is_the_page_in_json() -> None:
    dossier = made(**FULL)
    assert Dossier.model_validate_json(dossier.model_dump_json()) == dossier


def test_same_evidence_makes_the_same_page() -> None:
    assert render(made(**FULL)) == render(made(**FULL))


def test_gain_of_a_slice_is_of_its_users_only() -> None:
    per_user = figures(gain=0.1).with_columns(slice_new_users=pl.int_range(pl.len()) % 2 == 0)
    report = report_of(per_user)
    dossier = build(report, decide(report, POLICY, per_user, SOUND), POLICY, per_user, SOUND, title="t", version="2")
    gain = next(row.gain for row in dossier.slices if row.name == "new_users")
    assert gain is not None
    assert gain.num_users == 200


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_by_day_and_by_night(tmp_path: Path, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "dossier.html").write_text(render(made(**FULL)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(f"file://{tmp_path}/dossier.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 28)")
        page.emulate_media(media="print")
        assert page.locator("h2").first.is_visible()
        browser.close()
