"""A person's word on a waiting version: asked once, answered once, whichever of Airflow, tag, page or command is first.

A question is about one decision of the gate, and so is its answer: a night that is judged anew is asked about anew. The
answer is one tag, written under a lock; what it means, the alias moved or the version kept back, is done after it. A
kill in between is finished by the next command that looks, and what was done once is never done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from evensong.errors import PromotionRefusedError, RegistryError
from evensong.registry import aliases, ledger, locks, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import PromotionDecision, Value

#: The tag that a person may set in the MLflow UI: `approved`, `rejected`, with a comment after a colon.
TAG = "review"
NOTE = "review_note"
ASKED = "review_asked_at"
DEADLINE = "review_deadline"
DEFAULT = "review_default"
#: The hash of the decision that was asked about.
QUESTION = "review_decision"
ANSWER = "review_answer"
#: The hash of the decision that Airflow's request for input shows.
IN_AIRFLOW = "review_in_airflow"

Outcome = Literal["approved", "rejected"]
Via = Literal["airflow", "tag", "command", "page", "deadline", "overtaken", "champion"]
_WORDS: dict[str, Outcome] = {
    **dict.fromkeys(("approved", "approve", "yes", "promote"), "approved"),
    **dict.fromkeys(("rejected", "reject", "no", "keep"), "rejected"),
}


class Answer(Value):
    """The one answer to a review."""

    outcome: Outcome
    by: str
    """`person:NAME`, or `rule:deadline`, `rule:overtaken`, `rule:champion`."""
    via: Via
    comment: str
    at: datetime
    decision: str | None = None
    """The hash of the gate's decision that was answered; none in answers of older releases."""
    despite: str | None = None
    """Why rules might not promote the version when a person answered; a later such word stands against the answer."""

    def move_id(self, version: str) -> str:
        """The id of the one move that carries this answer out."""
        said = json.dumps([version, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]


class Waiting(Value):
    """A review that nobody has answered."""

    version: str
    as_of: datetime
    asked_at: datetime
    deadline: datetime
    default: Literal["promote", "keep"]
    """What the deadline comes to."""
    reasons: list[str]
    note: str = ""
    """Why a tag that somebody set was not understood."""


def ask(
    settings: Settings,
    version: ModelVersion,
    decision: PromotionDecision,
    *,
    deadline_hours: float,
    default: Literal["promote", "keep"],
    now: datetime | None = None,
) -> None:
    """Open the review of a version whose decision needs one; asked again, the first question and its deadline stand.

    Another decision than the one that was asked about is another question: an answer to the old one counts no more. The
    default `promote` counts only where the evidence says promote: nobody's silence approves what the gate doubts.
    """
    found = versions.get(settings, version.version)
    if is_asked(found):
        return
    asked = now or datetime.now(UTC)
    versions.delete_tag(settings, found.version, NOTE)
    versions.set_tags(
        settings,
        found.version,
        {
            TAG: "waiting",
            DEADLINE: (asked + timedelta(hours=deadline_hours)).isoformat(),
            DEFAULT: default if decision.promote else "keep",
        },
    )
    # Last, so that a version with this tag has all of them.
    versions.set_tags(settings, found.version, {ASKED: asked.isoformat()})
    versions.set_tags(settings, found.version, {QUESTION: _judged(found)})


def withdraw(settings: Settings, version: str) -> None:
    """Take a question away that nobody asks any more: the version was judged anew, and its decision needs no person."""
    found = versions.get(settings, version)
    if not is_asked(found) and found.tags.get(TAG, "").strip().lower() == "waiting":
        versions.delete_tag(settings, version, TAG)
        versions.delete_tag(settings, version, NOTE)


def answer(
    settings: Settings, version: str, outcome: Outcome, *, by: str, via: Via, comment: str, now: datetime | None = None
) -> Answer:
    """Answer a waiting review, and do what the answer says.

    Raises:
        PromotionRefusedError: nobody asked, somebody answered otherwise before, or the champion is of a later night.
        RegistryError: there is no such version, `by` names nobody, or the comment is none or too long.
    """
    given = settle(settings, version, now=now)
    if given is None:
        given = record(settings, version, outcome, by=by, via=via, comment=comment, now=now)
    refuse_other_answer(version, given, outcome)
    carry_out(settings, version)
    return given


def refuse_other_answer(version: str, given: Answer, outcome: Outcome) -> None:
    """One answer counts.

    Raises:
        PromotionRefusedError: it is another one than this.
    """
    if given.outcome != outcome:
        raise PromotionRefusedError(
            f"version {version}: was {given.outcome} by {given.by} ({given.via}) at {given.at:%Y-%m-%d %H:%M} UTC; "
            f"one answer counts: use `evensong registry {'promote' if outcome == 'approved' else 'reject'} {version}` "
            "to decide anew"
        )


def settle(settings: Settings, version: str, now: datetime | None = None) -> Answer | None:
    """The answer to the version's review, if there is one by now: given, set as a tag, overtaken, or by the deadline.

    Raises:
        PromotionRefusedError: the version was never put to review, or its night was judged anew since.
    """
    found = versions.get(settings, version)
    if given := _given(found):
        return given
    if not is_asked(found):
        raise PromotionRefusedError(
            f"version {version}: waits for no review; use `evensong registry promote {version}` or `reject`"
        )
    moment = now or datetime.now(UTC)
    champion = versions.champion(settings)
    if champion is not None and champion.version == found.version:
        said = "it became the champion meanwhile"
        return record(settings, version, "approved", by="rule:champion", via="champion", comment=said, now=moment)
    other = _other_champion(found, champion)
    word, _, comment = found.tags.get(TAG, "").partition(":")
    outcome = _WORDS.get(word.strip().lower())
    if outcome == "rejected" or (outcome == "approved" and not other):
        said = comment.strip() or "tag set in MLflow"
        return record(settings, version, outcome, by="person:mlflow", via="tag", comment=said, now=moment)
    if outcome == "approved":
        _note(settings, found, f"cannot be approved: {other}; evaluate its night again")
    elif word.strip().lower() not in ("", "waiting"):
        _note(settings, found, f"{found.tags[TAG]!r} was not understood: write approved or rejected")
    if champion is not None and champion.as_of > found.as_of:
        said = f"version {champion.version} of a later night became champion"
        return record(settings, version, "rejected", by="rule:overtaken", via="overtaken", comment=said, now=moment)
    if moment >= datetime.fromisoformat(found.tags[DEADLINE]):
        outcome = "approved" if found.tags.get(DEFAULT) == "promote" and not other else "rejected"
        said = f"nobody answered before the deadline, {found.tags[DEADLINE]}" + (f"; {other}" if other else "")
        return record(settings, version, outcome, by="rule:deadline", via="deadline", comment=said, now=moment)
    return None


def record(
    settings: Settings, version: str, outcome: Outcome, *, by: str, via: Via, comment: str, now: datetime | None = None
) -> Answer:
    """Write the answer if there is none and return the one that counts, whoever gave it; nothing is moved.

    Raises:
        PromotionRefusedError: the version waits for no review, it is the champion and cannot be rejected, or the
            champion is another one than it was compared with and cannot be replaced (a command may).
        RegistryError: `by` names nobody, or the comment is none or too long.
    """
    if ":" not in by:
        raise RegistryError(f"by: expected person:NAME, got {by!r}")
    ledger.checked_reason(_reason(via, comment))
    with locks.held(settings, f"review-{version}"):
        found = versions.get(settings, version)
        if given := _given(found):
            return given
        if not is_asked(found):
            raise PromotionRefusedError(f"version {version}: waits for no review")
        champion = versions.champion(settings)
        if outcome == "rejected" and champion is not None and champion.version == found.version:
            raise PromotionRefusedError(f"version {version} is the champion; use `evensong registry rollback` instead")
        if outcome == "approved" and via != "command":
            refuse_other_champion(found, champion)
        given = Answer(
            outcome=outcome,
            by=by,
            via=via,
            comment=comment.strip(),
            at=now or datetime.now(UTC),
            decision=_judged(found),
            despite=found.tags.get(aliases.BLOCKED) if by.startswith("person:") else None,
        )
        versions.set_tags(settings, version, {ANSWER: json.dumps(given.model_dump(mode="json"), sort_keys=True)})
        versions.set_tags(settings, version, {TAG: f"{outcome} by {by}: {given.comment}"})
        return given


def carry_out(settings: Settings, version: str) -> bool:
    """Do what the answer says, once; whether the alias moved just now.

    An approval whose move stands in the ledger is done, whatever became of the version since; and one that somebody
    rejected or rolled back after the approval is not promoted in the approver's name.

    Raises:
        RegistryError: there is no answer.
        PromotionRefusedError: the champion changed since the version was compared with it.
    """
    aliases.recover_quietly(settings)
    found = versions.get(settings, version)
    given = _given(found)
    if given is None:
        raise RegistryError(f"version {version}: expected an answer to its review, found none")
    now = versions.champion(settings)
    is_champion = now is not None and now.version == found.version
    lines = ledger.read(settings)
    if given.outcome == "rejected":
        promoted_since = any(line.to_version == version and line.at > given.at for line in lines)
        is_done = is_champion or promoted_since or aliases.BLOCKED in found.tags
        if given.by.startswith("person:") and not is_done:
            aliases.block(settings, version, f"rejected by {given.by}: {given.comment}")
        return False
    move_id = given.move_id(version)
    if is_champion or any(line.move == move_id for line in lines) or _is_blocked(found, given):
        return False
    if now is not None and now.as_of > found.as_of:
        return False
    if given.via != "command":
        refuse_other_champion(found, now)
    line = aliases.move(
        settings,
        version,
        actor=given.by,
        reason=_reason(given.via, given.comment),
        decision=found.tags.get("decision_hash"),
        expected_current=now.version if now else None,
        move_id=move_id,
        despite=given.despite,
    )
    return line is not None


def refuse_other_champion(version: ModelVersion, champion: ModelVersion | None) -> None:
    """Approving holds against the champion that the version was compared with.

    Raises:
        PromotionRefusedError: the champion changed since.
    """
    if other := _other_champion(version, champion):
        raise PromotionRefusedError(
            f"version {version.version}: {other}; evaluate its night again, "
            f"or use `evensong registry promote {version.version}`"
        )


def answer_of(version: ModelVersion) -> Answer | None:
    """The answer to the present question that the version's tags hold, if they hold one that can be read."""
    with contextlib.suppress(RegistryError):
        return _given(version)
    return None


def is_asked(version: ModelVersion) -> bool:
    """Whether the version's present decision was put to review, answered or not."""
    judged = _judged(version)
    return ASKED in version.tags and version.tags.get(QUESTION, judged) == judged


def is_waiting(version: ModelVersion) -> bool:
    """Whether somebody asked, and nobody answered, as far as the version's tags say."""
    try:
        return is_asked(version) and _given(version) is None
    except RegistryError:  # an answer that cannot be read
        return False


def is_in_airflow(version: ModelVersion) -> bool:
    """Whether the request that Airflow keeps for this version is about its present decision."""
    return version.tags.get(IN_AIRFLOW) == _judged(version)


def put_in_airflow(settings: Settings, version: ModelVersion) -> None:
    """Note that Airflow is about to show the question about the present decision."""
    versions.set_tags(settings, version.version, {IN_AIRFLOW: _judged(version)})


def said(version: ModelVersion) -> str:
    """`waiting`, or who answered what; empty where no review is open or decided."""
    return version.tags.get(TAG, "") if is_asked(version) else ""


def open_reviews(listed: Sequence[ModelVersion]) -> list[Waiting]:
    """Those of these versions that wait for a person, as far as their tags say; nothing is settled."""
    return [
        Waiting(
            version=version.version,
            as_of=version.as_of,
            asked_at=datetime.fromisoformat(version.tags[ASKED]),
            deadline=datetime.fromisoformat(version.tags[DEADLINE]),
            default="promote" if version.tags.get(DEFAULT) == "promote" else "keep",
            reasons=[line for line in version.tags.get("gate_reasons", "").split("\n") if line],
            note=version.tags.get(NOTE, ""),
        )
        for version in listed
        if is_waiting(version)
    ]


def waiting(settings: Settings, now: datetime | None = None) -> list[Waiting]:
    """Every open review, newest first; one that a tag, a later night or the deadline answers is settled on the way."""
    for version in versions.listed(settings):
        if is_waiting(version) and settle(settings, version.version, now=now) is not None:
            # Whose champion changed meanwhile stays where it is; the next one in the list is looked at all the same.
            with contextlib.suppress(PromotionRefusedError):
                carry_out(settings, version.version)
    return open_reviews(versions.listed(settings))


def _judged(version: ModelVersion) -> str:
    return version.tags.get("decision_hash", "none")


def _given(version: ModelVersion) -> Answer | None:
    """The answer to the present question, if there is one."""
    if ANSWER not in version.tags:
        return None
    given = _answer_of(version)
    return given if given.decision in (None, _judged(version)) else None


def _is_blocked(version: ModelVersion, given: Answer) -> bool:
    word = version.tags.get(aliases.BLOCKED)
    return word is not None and word != given.despite


def _other_champion(version: ModelVersion, champion: ModelVersion | None) -> str:
    """Why the comparison that was judged does not hold any more; empty while it does."""
    compared = version.tags.get("compared_with", "none")
    if champion is None or champion.version in (compared, version.version):
        return ""
    named = "no champion" if compared == "none" else f"version {compared}"
    return f"was compared with {named}, the champion is version {champion.version} now"


def _note(settings: Settings, version: ModelVersion, text: str) -> None:
    if version.tags.get(NOTE) != text:
        versions.set_tags(settings, version.version, {NOTE: text})


def _reason(via: Via, comment: str) -> str:
    return f"review, {via}: {comment.strip()}" if comment.strip() else ""


def _answer_of(version: ModelVersion) -> Answer:
    try:
        return Answer.model_validate_json(version.tags[ANSWER])
    except ValidationError as error:
        raise RegistryError(
            f"version {version.version}: its tag {ANSWER} was edited and cannot be read; remove the tag, answer again"
        ) from error
