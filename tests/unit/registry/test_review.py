"""Reviews: asked once, answered once, from whichever place is first, and by the deadline when nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.registry.conftest import Register, night

from evensong.errors import PromotionRefusedError
from evensong.pipelines import promote
from evensong.registry import aliases, commands, decisions, ledger, review, tracking, versions
from evensong.settings import Settings
from evensong.types import PromotionDecision

NOW = datetime.now(UTC)
Ask = Callable[..., str]


@pytest.fixture
def ask(settings: Settings, register: Register) -> Ask:
    """Version 1 is champion; the night's version waits for a person."""
    first = register(day=1)
    aliases.move(settings, first.version, actor="rule:gate", reason="the first")

    def call(day: int = 2, promote: bool = True, default: str = "keep") -> str:
        version = register(day=day)
        decision = PromotionDecision(promote=promote, needs_review=True, reasons=["looks good"])
        champion = versions.champion(settings)
        assert champion is not None
        decisions.store(settings, version, decision, evidence="e", compared_with=champion.version)
        stored = versions.get(settings, version.version)
        review.ask(settings, stored, decision, deadline_hours=12, default=default, now=NOW)  # type: ignore[arg-type]
        return version.version

    return call


def champion(settings: Settings) -> str:
    now = versions.champion(settings)
    assert now is not None
    return now.version


def set_tag(settings: Settings, version: str, text: str) -> None:
    """What a person does in the MLflow UI."""
    tracking.client(settings).set_model_version_tag("recommender", version, "review", text)


def test_waiting_review_holds_the_alias_and_is_listed_with_its_reasons(settings: Settings, ask: Ask) -> None:
    version = ask()
    ended = promote.run(settings, night(2), version)
    assert (ended["champion"], ended["moved"], ended["reason"]) == ("1", False, "waits for a person's review")
    found = review.waiting(settings, now=NOW)
    assert [(w.version, w.reasons, w.deadline) for w in found] == [("2", ["looks good"], NOW + timedelta(hours=12))]


def test_approval_in_airflow_moves_the_alias_with_the_comment_in_the_ledger(settings: Settings, ask: Ask) -> None:
    review.answer(settings, ask(), "approved", by="person:ada", via="airflow", comment="fine titles", now=NOW)
    assert champion(settings) == "2"
    line = ledger.read(settings)[-1]
    assert (line.actor, line.reason) == ("person:ada", "review, airflow: fine titles")
    assert line.decision == versions.get(settings, "2").tags["decision_hash"]


@pytest.mark.parametrize(
    ("text", "moved"),
    [("approved", True), ("Approve: fine titles", True), ("rejected: odd titles", False), ("no", False)],
)
def test_tag_set_in_mlflow_is_an_answer(settings: Settings, ask: Ask, text: str, moved: bool) -> None:
    version = ask()
    set_tag(settings, version, text)
    promote.run(settings, night(2), version)
    assert champion(settings) == ("2" if moved else "1")
    answer = review.settle(settings, version)
    assert answer is not None
    assert (answer.via, answer.by) == ("tag", "person:mlflow")


def test_misspelt_tag_is_no_answer_and_says_so(settings: Settings, ask: Ask) -> None:
    version = ask()
    set_tag(settings, version, "aproved")
    assert review.settle(settings, version, now=NOW) is None
    assert "'aproved' was not understood: write approved or rejected" in review.waiting(settings, now=NOW)[0].note


def test_command_answers_too(settings: Settings, ask: Ask) -> None:
    commands.promote(settings, ask(), reason="fine titles", actor="person:ada")
    assert champion(settings) == "2"
    answer = review.settle(settings, "2")
    assert answer is not None
    assert (answer.outcome, answer.via) == ("approved", "command")
    commands.reject(settings, ask(day=3), reason="odd titles", actor="person:ada")
    assert review.waiting(settings, now=NOW) == []
    assert promote.run(settings, night(3), "3")["reason"] == "rejected by person:ada: odd titles"


def test_first_answer_counts_and_the_second_is_told(settings: Settings, ask: Ask) -> None:
    version = ask()
    review.answer(settings, version, "rejected", by="person:ada", via="page", comment="odd titles", now=NOW)
    with pytest.raises(PromotionRefusedError, match=r"was rejected by person:ada \(page\).*registry promote 2"):
        review.answer(settings, version, "approved", by="person:bob", via="airflow", comment="fine", now=NOW)
    set_tag(settings, version, "approved")
    promote.run(settings, night(2), version)
    assert champion(settings) == "1"


def test_same_answer_twice_moves_once(settings: Settings, ask: Ask) -> None:
    version = ask()
    for person in ("person:ada", "person:bob"):
        review.answer(settings, version, "approved", by=person, via="page", comment="fine", now=NOW)
    assert len(ledger.read(settings)) == 2
    assert ledger.read(settings)[-1].actor == "person:ada"


def test_of_two_answers_at_once_one_counts(settings: Settings, ask: Ask) -> None:
    version = ask()
    start = threading.Barrier(2)
    refused = []

    def say(outcome: str) -> None:
        start.wait()
        try:
            review.answer(settings, version, outcome, by="person:ada", via="page", comment="x", now=NOW)  # type: ignore[arg-type]
        except PromotionRefusedError as error:
            refused.append(error)

    threads = [threading.Thread(target=say, args=(outcome,)) for outcome in ("approved", "rejected")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    answer = review.settle(settings, version)
    assert answer is not None
    assert champion(settings) == ("2" if answer.outcome == "approved" else "1")


def test_killed_between_answer_and_move_is_finished_by_the_next_look(settings: Settings, ask: Ask) -> None:
    version = ask()
    review.record(settings, version, "approved", by="person:ada", via="airflow", comment="fine", now=NOW)
    assert champion(settings) == "1"
    ended = promote.run(settings, night(2), version)
    assert (ended["champion"], ended["moved"]) == ("2", True)


@pytest.mark.parametrize(
    ("default", "evidence", "moved"), [("promote", True, True), ("promote", False, False), ("keep", True, False)]
)
def test_deadline_comes_to_the_default_and_never_promotes_what_the_gate_doubts(
    settings: Settings, ask: Ask, default: str, evidence: bool, moved: bool
) -> None:
    version = ask(promote=evidence, default=default)
    assert review.settle(settings, version, now=NOW + timedelta(hours=11, minutes=59)) is None
    late = NOW + timedelta(hours=12)
    answer = review.settle(settings, version, now=late)
    assert answer is not None
    assert (answer.by, answer.outcome) == ("rule:deadline", "approved" if moved else "rejected")
    promote.run(settings, night(2), version)
    assert champion(settings) == ("2" if moved else "1")
    assert aliases.BLOCKED not in versions.get(settings, version).tags


def test_review_overtaken_by_a_later_night_is_closed(settings: Settings, ask: Ask, register: Register) -> None:
    version = ask()
    later = register(day=3)
    aliases.move(settings, later.version, actor="person:ada", reason="urgent")
    assert review.waiting(settings, now=NOW) == []
    answer = review.settle(settings, version, now=NOW)
    assert answer is not None
    assert (answer.outcome, answer.via) == ("rejected", "overtaken")
    assert champion(settings) == "3"


def test_approval_against_another_champion_is_refused(settings: Settings, ask: Ask, register: Register) -> None:
    register(day=1, content="other")
    version = ask(day=2)
    commands.promote(settings, "2", reason="the other one", actor="person:ada")
    with pytest.raises(PromotionRefusedError, match="was compared with version 1, the champion is version 2 now"):
        review.answer(settings, version, "approved", by="person:ada", via="page", comment="x", now=NOW)
    # nothing was answered: the person may still say no
    review.answer(settings, version, "rejected", by="person:ada", via="page", comment="too late", now=NOW)
    assert champion(settings) == "2"


def test_asking_again_keeps_the_first_deadline(settings: Settings, ask: Ask) -> None:
    version = versions.get(settings, ask())
    decision = PromotionDecision(promote=True, needs_review=True, reasons=[])
    review.ask(settings, version, decision, deadline_hours=48, default="promote", now=NOW + timedelta(hours=1))
    assert review.waiting(settings, now=NOW)[0].deadline == NOW + timedelta(hours=12)


def test_version_nobody_asked_about_cannot_be_answered(settings: Settings, register: Register) -> None:
    with pytest.raises(PromotionRefusedError, match="waits for no review"):
        review.answer(settings, register(day=1).version, "approved", by="person:ada", via="page", comment="x")
