"""What the page shows, and what a reviewer is asked, from a home with a history."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.registry.conftest import make_bundle, night, write_materialized
from tests.unit.registry.test_promotion_steps import evaluate

from evensong.errors import BundleError, RegistryError
from evensong.pipelines import gate, promote, register, review
from evensong.pipelines.overview import Overview, dossier_of, overview
from evensong.registry import aliases, commands, decisions, tracking, versions
from evensong.registry import review as reviews
from evensong.settings import Settings
from evensong.types import Check

METRIC = "recall_at_20"


def set_mode(settings: Settings, mode: str, **rule: object) -> None:
    policy = yaml.safe_load(Path("mlflow/promotion_policy.yaml").read_text())
    policy["guardrails"] = {name: policy["guardrails"][name] for name in ("index_recall", "coverage")}
    policy |= {"mode": mode, "review": policy["review"] | rule}
    settings.registry.policy_path.write_text(yaml.safe_dump(policy))


def live(settings: Settings, day: int, gain: float) -> str:
    write_materialized(settings.home, day)
    folder = make_bundle(settings.home / "made" / str(day), day, f"night {day}")
    evaluation = evaluate(settings, day, gain)
    version = register.run(settings, night(day), str(folder), evaluation)
    gate.run(settings, night(day), version, evaluation)
    promote.run(settings, night(day), version)
    return version


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """1, 2, 4 promoted, 3 kept back, 4 rolled back to 2, 5 rejected in its review, 6 waits."""
    home = tmp_path_factory.mktemp("lived")
    settings = Settings(home=home, registry={"policy_path": home / "policy.yaml"})  # type: ignore[arg-type]
    set_mode(settings, "auto")
    for day, gain in ((1, 0.05), (2, 0.05), (3, 0.0), (4, 0.05)):
        live(settings, day, gain)
    commands.rollback(settings, reason="clicks fell", actor="person:ada")
    set_mode(settings, "review", deadline_hours=48, default="promote")
    version = live(settings, 5, 0.05)
    reviews.answer(settings, version, "rejected", by="person:bob", via="page", comment="odd titles")
    live(settings, 6, 0.05)
    return settings


@pytest.fixture(scope="module")
def seen(lived: Settings) -> Overview:
    return overview(lived)


def test_champion_is_shown_with_since_when_by_whom_and_where_a_rollback_would_go(seen: Overview) -> None:
    now = seen.champion
    assert now is not None
    assert (now.version, now.by, now.reason, now.rolls_back_to) == ("2", "person:ada", "clicks fell", "1")
    assert now.since == seen.moves[0].at
    assert now.figure is not None
    assert now.figure > 0


def test_each_night_says_what_became_of_it(seen: Overview) -> None:
    assert [(row.version, row.state) for row in seen.nights] == [
        ("6", "waits"),
        ("5", "rejected"),
        ("4", "rolled back"),
        ("3", "kept"),
        ("2", "champion"),
        ("1", "was champion"),
    ]
    assert seen.nights[1].answer == "rejected by person:bob (page): odd titles"
    assert "not shown to be better" in "; ".join(seen.nights[3].reasons)


def test_curve_has_each_night_s_figures_on_its_own_users(seen: Overview) -> None:
    first, *_ = reversed(seen.nights)
    assert (first.figures.champion, first.figures.popularity is not None) == (None, True)
    better = seen.nights[0].figures
    assert better.challenger is not None
    assert better.champion is not None
    assert better.challenger > better.champion


def test_moves_are_the_ledger_newest_first(seen: Overview) -> None:
    assert [(move.kind, move.from_version, move.to_version) for move in seen.moves] == [
        ("rollback", "4", "2"),
        ("promote", "2", "4"),
        ("promote", "1", "2"),
        ("promote", None, "1"),
    ]


def test_waiting_review_carries_its_evidence_and_what_the_deadline_comes_to(seen: Overview) -> None:
    (row,) = seen.waiting
    assert (row.version, row.compared_with, row.promote, row.default) == ("6", "2", True, "promote")
    assert (row.deadline - row.asked_at).total_seconds() == 48 * 3600
    (gain,) = [gain for gain in row.gains if gain.metric == METRIC]
    assert gain.lower is not None
    assert gain.lower > 0


def test_question_tells_the_verdict_the_figures_the_deadline_and_where_to_read_on(lived: Settings) -> None:
    asked = review.question(lived, "6", "http://airflow/evensong/dossier/6")
    assert asked.subject == "Promote recommender version 6, the night of 2026-03-06?"
    assert "The evidence says promote" in asked.body
    assert "judged against champion version 2" in asked.body
    assert f"| {METRIC} | 0." in asked.body
    assert "better than champion v2" in asked.body
    assert "it is promoted" in asked.body
    assert "[Dossier](http://airflow/evensong/dossier/6)" in asked.body
    assert "/#/models/recommender/versions/6)" in asked.body


def test_names_that_come_from_the_data_are_shown_as_they_are_and_not_as_markdown(lived: Settings) -> None:
    version = versions.get(lived, reviews.waiting(lived)[0].version)
    said = decisions.read(lived, version)
    evil = "recall_at_20 of country=<b>*DE*</b> [here](http://evil.example)\n# now | then: worse"
    doubt = Check(name="slice.country", passed=True, doubtful=True, message=evil)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "read", lambda *given: said.model_copy(update={"checks": [doubt], "reasons": [evil]}))
        body = review.question(lived, version.version, "http://127.0.0.1/dossier").body
    shown = r"- recall\_at\_20 of country=\<b\>\*DE\*\</b\> \[here\](http\://evil.example) \# now \| then: worse"
    assert body.count(shown) == 2
    assert "\n#" not in body


def test_version_that_nobody_asked_about_has_no_review(lived: Settings) -> None:
    assert review.is_asked(lived, "6")
    assert review.is_asked(lived, "5")
    assert not review.is_asked(lived, "3")


def test_answer_in_airflow_that_comes_second_changes_nothing_and_is_told_who_was_first(lived: Settings) -> None:
    given = review.answer(lived, "5", "approved", by="person:late", comment="fine")
    assert (given.outcome, given.by) == ("rejected", "person:bob")
    assert aliases.champion(lived).version == "2"  # type: ignore[union-attr]


def copy_of(lived: Settings, folder: Path) -> Settings:
    """The same home, to be changed; MLflow's database goes on naming the artifacts of the first."""
    home = Path(shutil.copytree(lived.home, folder / "home"))
    return Settings(home=home, registry={"policy_path": home / "policy.yaml"})  # type: ignore[arg-type]


def test_looking_settles_nothing_and_moves_nothing(lived: Settings, tmp_path: Path) -> None:
    looked = copy_of(lived, tmp_path)
    versions.set_tags(looked, "6", {reviews.DEADLINE: "2026-01-01T00:00:00+00:00", reviews.TAG: "approved: at once"})
    before = versions.listed(looked)
    assert [row.version for row in overview(looked).waiting] == ["6"]
    assert versions.listed(looked) == before
    # who asks what waits settles it
    assert commands.reviews(looked) == []
    assert aliases.champion(looked).version == "6"  # type: ignore[union-attr]


def test_a_page_that_stays_open_asks_little_of_mlflow(lived: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    overview(lived)
    asked: list[str] = []

    def counted(name: str) -> Any:
        real = getattr(MlflowClient, name)

        def call(*arguments: Any, **values: Any) -> Any:
            asked.append(name)
            return real(*arguments, **values)

        return call

    for name in vars(MlflowClient):
        if name.startswith(("get_", "search_", "list_", "download_")):
            monkeypatch.setattr(MlflowClient, name, counted(name))
    assert len(overview(lived).nights) == 6
    # however many nights there are
    assert len(asked) <= 10, asked


def test_dossier_that_was_edited_is_neither_shown_nor_believed(lived: Settings, tmp_path: Path) -> None:
    edited = copy_of(lived, tmp_path)
    other = "0" * 64
    versions.set_tags(edited, "6", {"dossier_hash": other, "dossier_json_hash": other})
    with pytest.raises(BundleError, match=r"dossier\.html should hash to 000000000000…, found .*do not decide by it"):
        dossier_of(edited, "6")
    (row,) = overview(edited).waiting
    assert row.gains == []
    assert "dossier.json should hash to" in row.doubts[0]


def test_acknowledged_ledger_is_not_a_new_champion(lived: Settings, tmp_path: Path) -> None:
    moved = copy_of(lived, tmp_path)
    since = overview(moved).champion.since  # type: ignore[union-attr]
    client = tracking.client(moved)
    client.delete_registered_model_tag("recommender", aliases.HEAD)
    assert overview(moved).problems
    assert commands.adopt(moved, reason="I removed the tag", actor="person:ada")["adopted"]
    seen = overview(moved)
    assert seen.problems == []
    assert (seen.champion.since, seen.champion.by) == (since, "person:ada")  # type: ignore[union-attr]
    assert (seen.moves[0].kind, seen.moves[0].from_version, seen.moves[0].to_version) == ("adopt", "2", "2")


def test_dossier_is_the_page_on_the_version(lived: Settings) -> None:
    assert dossier_of(lived, "6") == versions.read_attached(lived, versions.get(lived, "6"), "dossier.html")
    with pytest.raises(RegistryError):
        dossier_of(lived, "99")


def test_empty_registry_is_an_empty_page(tmp_path: Path) -> None:
    seen = overview(Settings(home=tmp_path))
    assert (seen.champion, seen.nights, seen.moves, seen.waiting, seen.problems) == (None, [], [], [], [])


def test_alias_moved_by_hand_is_told(lived: Settings, tmp_path: Path) -> None:
    moved = copy_of(lived, tmp_path)
    tracking.client(moved).set_registered_model_alias("recommender", "champion", "1")
    seen = overview(moved)
    assert "another hand moved it" in seen.problems[0]
    assert seen.champion is not None
    assert (seen.champion.version, seen.champion.since, seen.champion.by) == ("1", None, "another hand")


def test_looking_needs_none_of_the_libraries_that_train_or_answer() -> None:
    code = (
        "import sys; import evensong.pipelines.overview; "
        "print([name for name in ('torch', 'faiss', 'feast', 'great_expectations', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
