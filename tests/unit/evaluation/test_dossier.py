"""The dossier: the decision first, everything a reviewer asks for, one page that loads nothing and trusts no text."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.browser import chromium
from tests.unit.evaluation.gate_world import FIRST, SOUND, figures, report_of

from evensong.evaluation.dossier import Dossier, Example, Shift, build, changes
from evensong.evaluation.dossier_page import gain_picture, readable, render, words
from evensong.evaluation.gate import GateInputs, decide
from evensong.evaluation.policy import PromotionPolicy, load_policy
from evensong.types import Skew

POLICY = load_policy(Path("mlflow/promotion_policy.yaml").read_text())


def made(gain: float = 0.1, *, with_champion: bool = True, slices: tuple[str, ...] = (), **parts: object) -> Dossier:
    per_user = figures(gain=gain)
    third = pl.col("slice_new_users")
    per_user = per_user.with_columns(third.alias(f"slice_{name}") for name in slices)
    report = report_of(per_user, with_champion=with_champion)
    figures_of = {name: {"num_users": 134.0, "recall_at_20": 0.333333} for name in (*POLICY.slices.names, *slices)}
    sliced = report.challenger.model_copy(update={"slices": figures_of})
    report = report.model_copy(update={"challenger": sliced})
    inputs: GateInputs = SOUND if with_champion else FIRST
    decision = decide(report, POLICY, per_user, inputs)
    return build(report, decision, POLICY, per_user, inputs, title="recommender v2", version="2", **parts)


FULL: dict[str, object] = {
    "curves": {"retriever.loss": [3.0, 2.0, 1.5]},
    "rows": {"interactions": {"judged": "1,000", "quarantined": "3"}},
    "training": {"labels from": "2026-02-01 00:00 UTC", "labels held out": "1,234"},
    "validation": "This night's validation passed.",
    "data_docs": "/home/ada/var/gx/index.html",
    "drift": [Shift(name="num_events_7d", psi=0.3, verdict="much"), Shift(name="price", psi=0.01, verdict="stable")],
    "skew": [
        Skew(
            name="item_events_7d",
            num_values=1400,
            num_different=3,
            max_difference=0.25,
            request_id="3ec4e28d79e3",
            served="3.0",
            offline="4.0",
        ),
        Skew(name="score", num_values=70, num_different=0, max_difference=0.0),
    ],
    "skew_message": "item_events_7d served otherwise than offline",
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
        '<a href="file:///home/ada/var/gx/index.html">/home/ada/var/gx/index.html</a>',
        "labels held out",
        "1,234",
        "num events 7d",
        "item_events_7d served otherwise than offline",
        "3 of 1,400",
        "3ec4e28d79e3",
        "No difference at all: score.",
        "retriever.dimension",
        "latency p99 seconds",
        "interactions 3",
        "bundle megabytes",
        "max_ratio_to_baseline: 20.0",
    ):
        assert text in page
    assert page.count("<svg") >= 5


def test_page_loads_nothing_and_runs_nothing() -> None:
    page = render(made(**FULL))
    assert "<script" not in page
    assert not re.search(r"(src|url|import)\s*[=(]", page)
    # links lead within the page, and to the Data Docs; nothing else refers to anything
    assert page.count("href") == page.count('<a href="#') + page.count('<a href="file:///home/ada/var/gx/index.html"')
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


def test_intervals_are_those_that_the_checks_were_held_against() -> None:
    generator = np.random.default_rng(3)
    past = np.tile(generator.normal(0.3, 1.0, size=400), 2)
    ours = pl.col("model") == "challenger"
    moved = pl.when(ours).then(pl.col("recall_at_20") + 0.05 * pl.Series(past)).otherwise(pl.col("recall_at_20"))
    per_user = figures(gain=0.1).with_columns(moved, covariate_num_interactions=pl.Series(past))
    inputs = SOUND.model_copy(update={"covariate_means": {"num_interactions": 0.0}})
    report = report_of(per_user)
    decision = decide(report, POLICY, per_user, inputs)
    dossier = build(report, decision, POLICY, per_user, inputs, title="t", version="2")
    asked = {check.name: check for check in decision.checks}
    metrics = {row.name: row for row in dossier.metrics}
    primary = metrics["recall_at_20"]
    assert primary.gain is not None
    assert primary.gain.lower == asked["better_than_champion.recall_at_20"].figure
    assert primary.bound == POLICY.primary.margin
    assert primary.challenger is not None
    assert primary.champion is not None
    assert primary.gain.mean < primary.challenger - primary.champion - 0.01
    for name, row in [("not_worse.ndcg_at_10", metrics["ndcg_at_10"])] + [
        (f"slice.{row.name}", row) for row in dossier.slices
    ]:
        assert row.gain is not None
        assert (row.gain.lower, row.bound) == (asked[name].figure, asked[name].bound)
    assert dossier.slices[0].gain is not None
    # three slices share one error of 5 %
    assert dossier.slices[0].gain.confidence == pytest.approx(1 - 2 * 0.05 / 3)
    assert dossier.smallest_detectable_gain is not None
    stated = f"could show a gain of {dossier.smallest_detectable_gain:.4f}"
    assert stated in asked["better_than_champion.recall_at_20"].message
    page = render(dossier)
    assert "the 99 % interval" in page
    assert "Each bound alone holds with 98.33 %, so that all 3 together do with\n95 %" in page
    assert "What is known of the users from before the window is taken out of the change on recall at 20" in page


def test_power_is_the_policys() -> None:
    policy = POLICY.model_copy(update={"primary": POLICY.primary.model_copy(update={"power": 0.9})})
    per_user = figures(gain=0.1)
    report = report_of(per_user)
    decision = decide(report, policy, per_user, SOUND)
    dossier = build(report, decision, policy, per_user, SOUND, title="t", version="2")
    assert dossier.power == 0.9
    assert "with 90 % power" in render(dossier)
    usual = made(0.1).smallest_detectable_gain
    assert usual is not None
    assert dossier.smallest_detectable_gain is not None
    assert dossier.smallest_detectable_gain > usual


def test_models_that_never_differ_claim_no_gain_that_could_have_been_shown() -> None:
    per_user = figures(gain=0.0)
    same = per_user.filter(pl.col("model") == "champion v1")
    per_user = pl.concat([same.with_columns(model=pl.lit("challenger")), same])
    report = report_of(per_user)
    dossier = build(report, decide(report, POLICY, per_user, SOUND), POLICY, per_user, SOUND, title="t", version="2")
    assert dossier.smallest_detectable_gain is None
    assert "no user's figure differs" in html.unescape(render(dossier))


def test_whole_policy_is_kept_and_shown() -> None:
    dossier = made(**FULL)
    assert PromotionPolicy.model_validate(dossier.policy) == POLICY
    assert PromotionPolicy.model_validate(dossier.policy).digest == dossier.policy_digest
    assert POLICY.digest in render(dossier)


def test_report_without_the_primary_metric_still_has_a_page() -> None:
    per_user = figures().drop("recall_at_20")
    report = report_of(figures())
    decision = decide(report, POLICY, per_user, SOUND)
    page = render(build(report, decision, POLICY, per_user, SOUND, title="t", version="2"))
    assert "No intervals: needs the column recall_at_20 of the per-user figures" in page


def test_figures_that_the_gate_did_not_ask_about_take_no_side() -> None:
    report = report_of(figures(gain=0.1))
    per_user = figures(gain=0.1).with_columns(mrr=pl.col("recall_at_20"))
    models = {
        name: model.model_copy(update={"metrics": model.metrics | {"mrr": 0.3}})
        for name, model in (("challenger", report.challenger), ("champion", report.champion))
        if model is not None
    }
    report = report.model_copy(update=models)
    dossier = build(report, decide(report, POLICY, per_user, SOUND), POLICY, per_user, SOUND, title="t", version="2")
    pictures = {row.name: gain_picture(row) for row in dossier.metrics if row.gain}
    assert '<g class="">' in pictures["mrr"]
    assert "bound" not in pictures["mrr"]
    assert '<g class="good">' in pictures["recall_at_20"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"interactions": 3, "items": 2}', "interactions 3, items 2"),
        ('{"service": "r1", "versions": {"a": "x", "b": "y"}}', "service r1, versions 2"),
        ("[1]", "[1]"),
        ("abc", "abc"),
    ],
)
def test_lineage_is_written_for_people(text: str, said: str) -> None:
    assert readable(text) == said


def test_value_of_an_attribute_is_shown_as_it_is() -> None:
    assert words("slice.country=New_York.x") == "slice · country = New_York.x"
    assert words("slice.new_users") == "slice · new users"


def test_gain_of_a_slice_is_of_its_users_only() -> None:
    per_user = figures(gain=0.1).with_columns(slice_new_users=pl.int_range(pl.len()) % 2 == 0)
    report = report_of(per_user)
    dossier = build(report, decide(report, POLICY, per_user, SOUND), POLICY, per_user, SOUND, title="t", version="2")
    gain = next(row.gain for row in dossier.slices if row.name == "new_users")
    assert gain is not None
    assert gain.num_users == 200


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_by_day_and_by_night(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "dossier.html").write_text(render(made(**FULL)))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
        page.goto(f"file://{tmp_path}/dossier.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 28)")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_holds_the_lists_of_all_ten_users_and_whole_tables(tmp_path: Path, scheme: str) -> None:
    users = [
        Example(user_id=f"user {n}", history=["Red shoe"], challenger=[f"Ours {n}"], champion=[f"Theirs {n}"])
        for n in range(10)
    ]
    (tmp_path / "dossier.html").write_text(
        render(made(**{**FULL, "examples": users}, slices=("item.colour=chartreuse",)))
    )
    with chromium() as browser:
        # a sheet of A4 between its margins, at 96 dots an inch
        page = browser.new_page(viewport={"width": 718, "height": 1046}, color_scheme=scheme)
        page.goto(f"file://{tmp_path}/dossier.html")
        page.emulate_media(media="print")
        for number in range(10):
            for who in ("Ours", "Theirs"):
                assert page.get_by_text(f"{who} {number}", exact=True).is_visible()
        # nothing scrolls on paper, so nothing may stick out
        cut = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        assert page.evaluate(f"{cut}.map(e => e.outerHTML.slice(0, 80))") == []
        assert page.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
