"""Reviews: asked once, answered once, from whichever place is first, and by the deadline when nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.registry.conftest import Prepared, Register, night
from tests.variants import first_daily

from evensong.errors import PromotionRefusedError, RegistryError
from evensong.pipelines import night as nights
from evensong.pipelines import promote
from evensong.pipelines import review as in_airflow
from evensong.registry import aliases, commands, decisions, ledger, review, tracking, versions
from evensong.settings import Settings
from evensong.types import PromotionDecision

NOW = datetime.now(UTC)
Ask = Callable[..., str]


@pytest.fixture
def ask(settings: Settings, register: Register, prepared: Prepared) -> Ask:
    """Version 1 is champion; the night's version waits for a person."""
    prepared(settings, promote_the_first)

    def call(day: int = 2, promote: bool = True, default: str = "keep", why: str = "looks good") -> str:
        version = register(day=day)
        decision = PromotionDecision(promote=promote, needs_review=True, reasons=[why])
        champion = versions.champion(settings)
        assert champion is not None
        decisions.store(settings, version, decision, evidence="e", compared_with=champion.version)
        stored = versions.get(settings, version.version)
        review.ask(settings, stored, decision, deadline_hours=12, default=default, now=NOW)  # type: ignore[arg-type]
        return version.version

    return call


def promote_the_first(settings: Settings, register: Register) -> None:
    first = register(day=1)
    aliases.move(settings, first.version, actor="rule:gate", reason="the first")
    register(day=2)  # which most tests ask about


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


def test_tag_that_was_set_before_a_command_counts(settings: Settings, ask: Ask) -> None:
    version = ask()
    set_tag(settings, version, "rejected: odd titles")
    with pytest.raises(PromotionRefusedError, match=r"was rejected by person:mlflow \(tag\).*registry promote 2"):
        commands.promote(settings, version, reason="fine titles", actor="person:ada")
    assert champion(settings) == "1"
    assert versions.get(settings, version).tags[aliases.BLOCKED] == "rejected by person:mlflow: odd titles"
    # who has been told decides anew
    assert commands.promote(settings, version, reason="fine titles", actor="person:ada")["moved"]
    third = ask(day=3)
    set_tag(settings, third, "approved")
    with pytest.raises(PromotionRefusedError, match=r"was approved by person:mlflow \(tag\)"):
        commands.reject(settings, third, reason="odd titles", actor="person:ada")
    assert (champion(settings), ledger.read(settings)[-1].actor) == (third, "person:mlflow")


def test_tag_and_command_that_agree_are_the_tag_s_answer(settings: Settings, ask: Ask) -> None:
    version = ask()
    set_tag(settings, version, "approved: fine titles")
    assert commands.promote(settings, version, reason="me too", actor="person:ada")["moved"]
    assert ledger.read(settings)[-1].actor == "person:mlflow"


@pytest.mark.parametrize(("default", "command"), [("keep", commands.promote), ("promote", commands.reject)])
def test_deadline_that_passed_before_a_command_counts(
    settings: Settings, ask: Ask, default: str, command: Callable[..., object]
) -> None:
    version = ask(default=default)
    versions.set_tags(settings, version, {review.DEADLINE: (NOW - timedelta(minutes=1)).isoformat()})
    with pytest.raises(PromotionRefusedError, match=r"by rule:deadline \(deadline\)"):
        command(settings, version, reason="too late", actor="person:ada")
    assert champion(settings) == (version if default == "promote" else "1")


@pytest.mark.parametrize(("default", "moved"), [("promote", True), ("keep", False)])
def test_night_begins_by_settling_reviews_whose_deadline_has_passed(
    settings: Settings, ask: Ask, default: str, moved: bool
) -> None:
    version = ask(default=default)
    nights.begin(settings, night(3))
    assert (champion(settings), review.is_waiting(versions.get(settings, version))) == ("1", True)
    versions.set_tags(settings, version, {review.DEADLINE: (NOW - timedelta(minutes=1)).isoformat()})
    nights.begin(settings, night(3))
    assert champion(settings) == (version if moved else "1")
    assert not review.is_waiting(versions.get(settings, version))


def test_night_begins_though_the_registry_is_away(
    settings: Settings, ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object, **__: object) -> None:
        raise RegistryError("the store is away")

    monkeypatch.setattr(review, "waiting", away)
    nights.begin(settings, night(3))
    assert "open reviews were not settled: the store is away" in caplog.text


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
    other = register(day=1, content="other").version
    version = ask(day=2)
    commands.promote(settings, other, reason="the other one", actor="person:ada")
    with pytest.raises(
        PromotionRefusedError, match=f"was compared with version 1, the champion is version {other} now"
    ):
        review.answer(settings, version, "approved", by="person:ada", via="page", comment="x", now=NOW)
    # nothing was answered: the person may still say no
    review.answer(settings, version, "rejected", by="person:ada", via="page", comment="too late", now=NOW)
    assert champion(settings) == other


def test_approval_in_airflow_against_another_champion_settles_the_review_and_keeps_the_champion(
    settings: Settings, ask: Ask, register: Register
) -> None:
    other = register(day=1, content="other").version
    version = ask(day=2)
    commands.promote(settings, other, reason="the other one", actor="person:ada")
    given = in_airflow.answer(settings, version, "approved", by="person:bob", comment="fine titles")
    assert (given.outcome, given.by, given.via) == ("rejected", "rule:overtaken", "overtaken")
    assert "person:bob approved it in Airflow (fine titles), too late" in given.comment
    assert (
        f"was compared with version 1, the champion is version {other} now; evaluate its night again" in given.comment
    )
    assert f"registry promote {version}" in given.comment
    # nobody's task waits for it any more, the night's last step goes through, and no rule is kept from it for ever
    assert review.waiting(settings) == []
    ended = promote.run(settings, night(2), version)
    assert (ended["champion"], ended["moved"], ended["reason"]) == (
        other,
        False,
        f"rejected by {given.by}: {given.comment}",
    )
    assert aliases.BLOCKED not in versions.get(settings, version).tags


def test_asking_again_keeps_the_first_deadline(settings: Settings, ask: Ask) -> None:
    version = versions.get(settings, ask())
    decision = PromotionDecision(promote=True, needs_review=True, reasons=[])
    review.ask(settings, version, decision, deadline_hours=48, default="promote", now=NOW + timedelta(hours=1))
    assert review.waiting(settings, now=NOW)[0].deadline == NOW + timedelta(hours=12)


@pytest.mark.parametrize("via", first_daily(["page", "command", "tag"]))
def test_approved_version_that_was_rolled_back_is_not_promoted_again_in_the_approver_s_name(
    settings: Settings, ask: Ask, via: str
) -> None:
    version = ask()
    if via == "page":
        review.answer(settings, version, "approved", by="person:ada", via="page", comment="fine", now=NOW)
    elif via == "command":
        commands.promote(settings, version, reason="fine", actor="person:ada")
    else:
        set_tag(settings, version, "approved")
        promote.run(settings, night(2), version)
    assert champion(settings) == version
    commands.rollback(settings, reason="clicks fell", actor="person:bob")
    # the night's last step again, and whoever else looks at the answer
    ended = promote.run(settings, night(2), version)
    assert (ended["champion"], ended["moved"]) == ("1", False)
    assert ended["reason"] == "rolled back by person:bob: clicks fell; only a person can promote it again"
    assert review.carry_out(settings, version) is False
    assert champion(settings) == "1"
    assert versions.get(settings, version).tags[aliases.BLOCKED] == "rolled back by person:bob: clicks fell"
    commands.promote(settings, version, reason="the cause is fixed", actor="person:ada")
    assert champion(settings) == version


def test_approval_is_carried_out_once_though_the_champion_left_without_a_block(settings: Settings, ask: Ask) -> None:
    version = ask()
    review.answer(settings, version, "approved", by="person:ada", via="page", comment="fine", now=NOW)
    commands.promote(settings, "1", reason="back for a day", actor="person:bob")
    assert promote.run(settings, night(2), version)["moved"] is False
    assert champion(settings) == "1"


def test_rejection_between_an_approval_and_its_move_stands(settings: Settings, ask: Ask) -> None:
    version = ask()
    review.record(settings, version, "approved", by="person:ada", via="airflow", comment="fine", now=NOW)
    commands.reject(settings, version, reason="odd titles", actor="person:bob")
    assert promote.run(settings, night(2), version)["moved"] is False
    assert champion(settings) == "1"


def test_rejection_is_carried_out_once(settings: Settings, ask: Ask, register: Register) -> None:
    version = ask()
    review.answer(settings, version, "rejected", by="person:ada", via="page", comment="odd titles", now=NOW)
    commands.promote(settings, version, reason="they are fine", actor="person:bob")
    aliases.move(settings, register(day=3).version, actor="rule:gate", reason="better")
    promote.run(settings, night(2), version)
    assert aliases.BLOCKED not in versions.get(settings, version).tags


def test_night_judged_anew_is_asked_about_anew(settings: Settings, ask: Ask) -> None:
    version = ask(why="looks good")
    late = NOW + timedelta(hours=13)
    assert review.settle(settings, version, now=late).outcome == "rejected"  # type: ignore[union-attr]
    assert ask(why="looks even better") == version
    assert [waiting.version for waiting in review.waiting(settings, now=NOW)] == [version]
    assert promote.run(settings, night(2), version)["reason"] == "waits for a person's review"
    review.answer(settings, version, "approved", by="person:ada", via="page", comment="fine", now=NOW)
    assert champion(settings) == version
    # the same decision is the same question, and it has its answer
    ask(why="looks even better")
    assert review.waiting(settings, now=NOW) == []


def test_question_is_taken_away_when_the_new_decision_needs_no_person(settings: Settings, ask: Ask) -> None:
    version = ask()
    review.withdraw(settings, version)
    assert versions.get(settings, version).tags[review.TAG] == "waiting"
    kept = PromotionDecision(promote=False, needs_review=False, reasons=["worse"])
    decisions.store(settings, versions.get(settings, version), kept, evidence="f", compared_with="1")
    review.withdraw(settings, version)
    assert review.TAG not in versions.get(settings, version).tags
    # what somebody answered stays to be read
    versions.set_tags(settings, version, {review.TAG: "approved by person:ada: fine"})
    review.withdraw(settings, version)
    assert versions.get(settings, version).tags[review.TAG] == "approved by person:ada: fine"


def test_answer_to_a_decision_that_was_made_anew_without_a_question_counts_no_more(
    settings: Settings, ask: Ask
) -> None:
    version = ask()
    review.record(settings, version, "approved", by="person:ada", via="page", comment="fine", now=NOW)
    kept = PromotionDecision(promote=False, needs_review=False, reasons=["worse"])
    decisions.store(settings, versions.get(settings, version), kept, evidence="f", compared_with="1")
    assert promote.run(settings, night(2), version)["reason"] == "worse"
    assert champion(settings) == "1"
    assert commands.list_versions(settings)[0]["review"] is None
    with pytest.raises(PromotionRefusedError, match="waits for no review"):
        review.answer(settings, version, "approved", by="person:ada", via="page", comment="x", now=NOW)


def test_approval_of_a_version_that_was_blocked_before_it_was_asked_about_is_a_person_s_word(
    settings: Settings, ask: Ask
) -> None:
    version = ask()
    commands.promote(settings, version, reason="fine", actor="person:ada")
    commands.rollback(settings, reason="clicks fell", actor="person:bob")
    ask(why="on other days it is better")
    review.answer(settings, version, "approved", by="person:ada", via="page", comment="fixed", now=NOW)
    assert champion(settings) == version
    assert aliases.BLOCKED not in versions.get(settings, version).tags


def test_approval_by_tag_against_another_champion_is_told_and_nothing_is_answered(
    settings: Settings, ask: Ask, register: Register
) -> None:
    other = register(day=1, content="other").version
    version = ask(day=2, default="promote")
    commands.promote(settings, other, reason="the other one", actor="person:ada")
    set_tag(settings, version, "approved")
    (waiting,) = review.waiting(settings, now=NOW)
    assert waiting.note.startswith(
        f"cannot be approved: was compared with version 1, the champion is version {other} now"
    )
    # nobody's silence replaces a champion that it was not compared with
    answer = review.settle(settings, version, now=NOW + timedelta(hours=12))
    assert answer is not None
    assert (answer.outcome, answer.by) == ("rejected", "rule:deadline")
    assert f"the champion is version {other} now" in answer.comment
    assert promote.run(settings, night(2), version)["moved"] is False
    assert champion(settings) == other


@pytest.mark.parametrize("place", first_daily(["page", "command", "tag"]))
def test_champion_is_never_rejected_and_its_review_is_settled(settings: Settings, ask: Ask, place: str) -> None:
    version = ask()
    # what a command of an older release left when it was killed after its move
    aliases.move(settings, version, actor="person:ada", reason="urgent")
    if place == "tag":
        set_tag(settings, version, "rejected: odd titles")
        assert review.waiting(settings, now=NOW + timedelta(days=2)) == []
    elif place == "page":
        with pytest.raises(PromotionRefusedError, match=r"was approved by rule:champion \(champion\)"):
            review.answer(settings, version, "rejected", by="person:bob", via="page", comment="x", now=NOW)
    else:
        with pytest.raises(PromotionRefusedError, match="is the champion; use `evensong registry rollback`"):
            commands.reject(settings, version, reason="odd titles", actor="person:bob")
    assert champion(settings) == version
    assert aliases.BLOCKED not in versions.get(settings, version).tags
    assert review.settle(settings, version, now=NOW).outcome == "approved"  # type: ignore[union-attr]


def test_command_that_comes_second_is_told_and_moves_nothing(
    settings: Settings, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ask()
    waiting = versions.get(settings, version)
    review.answer(settings, version, "rejected", by="person:ada", via="page", comment="odd titles", now=NOW)
    # as if both had looked before either answered
    monkeypatch.setattr(versions, "get", first_then_real(waiting))
    with pytest.raises(PromotionRefusedError, match="was rejected by person:ada"):
        commands.promote(settings, version, reason="fine", actor="person:bob")
    assert champion(settings) == "1"


def first_then_real(first: versions.ModelVersion) -> Callable[..., versions.ModelVersion]:
    """What was seen a moment ago, then the truth."""
    real, seen = versions.get, [first]
    return lambda settings, version: seen.pop() if seen else real(settings, version)


def test_command_killed_before_its_move_is_finished_by_the_next_look(
    settings: Settings, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ask()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(aliases, "move", killed)
        with pytest.raises(KeyboardInterrupt):
            commands.promote(settings, version, reason="fine titles", actor="person:ada")
    assert promote.run(settings, night(2), version)["moved"] is True
    assert (champion(settings), ledger.read(settings)[-1].actor) == (version, "person:ada")


@pytest.mark.parametrize(
    "outcomes",
    [
        ("approved", "rejected", "approved"),
        ("rejected", "approved", "approved"),
        ("approved", "rejected", "rejected"),
        ("rejected", "approved", "rejected"),
    ],
)
def test_command_page_and_tag_at_once_leave_no_rejected_champion_and_no_half_answer(
    settings: Settings, ask: Ask, outcomes: tuple[review.Outcome, ...]
) -> None:
    version = ask()

    def command(outcome: str) -> None:
        say = commands.promote if outcome == "approved" else commands.reject
        say(settings, version, reason="by command", actor="person:cleo")

    def page(outcome: review.Outcome) -> None:
        review.answer(settings, version, outcome, by="person:pia", via="page", comment="on the page", now=NOW)

    def tag(outcome: str) -> None:
        set_tag(settings, version, outcome)
        promote.run(settings, night(2), version)

    start = threading.Barrier(3)
    surprises: list[Exception] = []

    def run(say: Callable[[review.Outcome], None], outcome: review.Outcome) -> None:
        start.wait()
        try:
            say(outcome)
        except PromotionRefusedError:
            pass
        except Exception as error:
            surprises.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip((command, page, tag), outcomes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert surprises == []
    ended = champion(settings)
    is_blocked = aliases.BLOCKED in versions.get(settings, version).tags
    assert is_blocked == (ended != version)
    assert [line.to_version for line in ledger.read(settings)] == ["1", version][: 2 - is_blocked]
    # whoever looks at the answer later changes nothing
    promote.run(settings, night(2), version)
    assert review.settle(settings, version) is not None
    assert (champion(settings), aliases.BLOCKED in versions.get(settings, version).tags) == (ended, is_blocked)
    assert aliases.ledger_verify(settings).sound


def test_comment_that_the_ledger_cannot_hold_is_refused_before_anything_is_answered(
    settings: Settings, ask: Ask
) -> None:
    version = ask()
    with pytest.raises(RegistryError, match="say it shorter"):
        review.answer(settings, version, "approved", by="person:ada", via="page", comment="x" * 5000, now=NOW)
    assert [waiting.version for waiting in review.waiting(settings, now=NOW)] == [version]


def test_version_nobody_asked_about_cannot_be_answered(settings: Settings, register: Register) -> None:
    with pytest.raises(PromotionRefusedError, match="waits for no review"):
        review.answer(settings, register(day=1).version, "approved", by="person:ada", via="page", comment="x")
