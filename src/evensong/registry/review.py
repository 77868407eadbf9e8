"""A person's word on a waiting version: asked once, answered once, whichever of Airflow, tag, page or command is first.

The answer is one tag, written under a lock; what it means, the alias moved or the version kept back, is done after it
and can be done again, so a kill in between is finished by the next command that looks.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from evensong.errors import PromotionRefusedError, RegistryError
from evensong.registry import aliases, tracking, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import PromotionDecision, Value

#: The tag that a person may set in the MLflow UI: `approved`, `rejected`, with a comment after a colon.
TAG = "review"
NOTE = "review_note"
ASKED = "review_asked_at"
DEADLINE = "review_deadline"
DEFAULT = "review_default"
ANSWER = "review_answer"

Outcome = Literal["approved", "rejected"]
Via = Literal["airflow", "tag", "command", "page", "deadline", "overtaken"]
_WORDS: dict[str, Outcome] = {
    **dict.fromkeys(("approved", "approve", "yes", "promote"), "approved"),
    **dict.fromkeys(("rejected", "reject", "no", "keep"), "rejected"),
}


class Answer(Value):
    """The one answer to a review."""

    outcome: Outcome
    by: str
    """`person:NAME`, or `rule:deadline`, `rule:overtaken`."""
    via: Via
    comment: str
    at: datetime


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

    The default `promote` counts only where the evidence says promote: nobody's silence approves what the gate doubts.
    """
    if ASKED in version.tags or ANSWER in version.tags:
        return
    asked = now or datetime.now(UTC)
    versions.set_tags(
        settings,
        version.version,
        {
            TAG: "waiting",
            DEADLINE: (asked + timedelta(hours=deadline_hours)).isoformat(),
            DEFAULT: default if decision.promote else "keep",
        },
    )
    # Last, so that a version with this tag has all of them.
    versions.set_tags(settings, version.version, {ASKED: asked.isoformat()})


def answer(
    settings: Settings, version: str, outcome: Outcome, *, by: str, via: Via, comment: str, now: datetime | None = None
) -> Answer:
    """Answer a waiting review, and do what the answer says.

    Raises:
        PromotionRefusedError: nobody asked, somebody answered otherwise before, or the champion is of a later night.
        RegistryError: there is no such version, or `by` names nobody.
    """
    if ":" not in by:
        raise RegistryError(f"by: expected person:NAME, got {by!r}")
    before = settle(settings, version, now=now)
    if before is None:
        if outcome == "approved":
            refuse_other_champion(settings, version)
        before = record(settings, version, outcome, by=by, via=via, comment=comment, now=now)
    if before.outcome != outcome:
        raise PromotionRefusedError(
            f"version {version}: was {before.outcome} by {before.by} ({before.via}) at {before.at:%Y-%m-%d %H:%M} UTC; "
            f"one answer counts: use `evensong registry {'promote' if outcome == 'approved' else 'reject'} {version}` "
            "to decide anew"
        )
    carry_out(settings, version)
    return before


def refuse_other_champion(settings: Settings, version: str) -> None:
    """Approving holds against the champion that the version was compared with, or against its own night's first try.

    Raises:
        PromotionRefusedError: the champion changed since; nothing is answered.
    """
    found = versions.get(settings, version)
    now = versions.champion(settings)
    compared = found.tags.get("compared_with", "none")
    if now is not None and now.version not in (compared, found.version) and now.as_of != found.as_of:
        raise PromotionRefusedError(
            f"version {version}: was compared with {_champion(compared)}, the champion is version {now.version} now; "
            f"evaluate its night again, or use `evensong registry promote {version}`"
        )


def settle(settings: Settings, version: str, now: datetime | None = None) -> Answer | None:
    """The answer to the version's review, if there is one by now: given, set as a tag, overtaken, or by the deadline.

    Raises:
        PromotionRefusedError: the version was never put to review.
    """
    found = versions.get(settings, version)
    if ANSWER in found.tags:
        return _answer_of(found)
    if ASKED not in found.tags:
        raise PromotionRefusedError(
            f"version {version}: waits for no review; use `evensong registry promote {version}` or `reject`"
        )
    moment = now or datetime.now(UTC)
    word, _, comment = found.tags.get(TAG, "").partition(":")
    if outcome := _WORDS.get(word.strip().lower()):
        said = comment.strip() or "tag set in MLflow"
        return record(settings, version, outcome, by="person:mlflow", via="tag", comment=said, now=moment)
    if word.strip().lower() not in ("", "waiting") and not found.tags.get(NOTE):
        versions.set_tags(
            settings, version, {NOTE: f"{found.tags[TAG]!r} was not understood: write approved or rejected"}
        )
    champion = versions.champion(settings)
    if champion is not None and champion.as_of > found.as_of:
        said = f"version {champion.version} of a later night became champion"
        return record(settings, version, "rejected", by="rule:overtaken", via="overtaken", comment=said, now=moment)
    if moment >= datetime.fromisoformat(found.tags[DEADLINE]):
        outcome = "approved" if found.tags.get(DEFAULT) == "promote" else "rejected"
        said = f"nobody answered before the deadline, {found.tags[DEADLINE]}"
        return record(settings, version, outcome, by="rule:deadline", via="deadline", comment=said, now=moment)
    return None


def record(
    settings: Settings, version: str, outcome: Outcome, *, by: str, via: Via, comment: str, now: datetime | None = None
) -> Answer:
    """Write the answer if there is none and return the one that counts, whoever gave it; nothing is moved.

    Raises:
        PromotionRefusedError: the version waits for no review.
    """
    with tracking.locked(settings, f"review-{version}", wait_seconds=10), aliases.shared_lock(settings, "review"):
        found = versions.get(settings, version)
        if ANSWER in found.tags:
            return _answer_of(found)
        if ASKED not in found.tags:
            raise PromotionRefusedError(f"version {version}: waits for no review")
        given = Answer(outcome=outcome, by=by, via=via, comment=comment.strip(), at=now or datetime.now(UTC))
        versions.set_tags(settings, version, {ANSWER: json.dumps(given.model_dump(mode="json"), sort_keys=True)})
        versions.set_tags(settings, version, {TAG: f"{outcome} by {by}: {given.comment}"})
        return given


def carry_out(settings: Settings, version: str) -> bool:
    """Do what the answer says, if it is not done; whether the alias moved just now.

    Raises:
        RegistryError: there is no answer.
        PromotionRefusedError: the champion changed since the version was compared with it.
    """
    found = versions.get(settings, version)
    given = _answer_of(found)
    now = versions.champion(settings)
    if given.outcome == "rejected":
        if given.via not in ("deadline", "overtaken") and aliases.BLOCKED not in found.tags:
            aliases.block(settings, version, f"rejected by {given.by}: {given.comment}")
        return False
    if now is not None and (now.version == found.version or now.as_of > found.as_of):
        return False
    refuse_other_champion(settings, version)
    line = aliases.move(
        settings,
        version,
        actor=given.by,
        reason=f"review, {given.via}: {given.comment}",
        decision=found.tags.get("decision_hash"),
        expected_current=now.version if now else None,
    )
    return line is not None


def answer_of(version: ModelVersion) -> Answer | None:
    """The answer that the version's tags hold, if they hold one that can be read."""
    with contextlib.suppress(RegistryError):
        return _answer_of(version)
    return None


def is_waiting(version: ModelVersion) -> bool:
    """Whether somebody asked, and nobody answered, as far as the version's tags say."""
    return ASKED in version.tags and ANSWER not in version.tags


def waiting(settings: Settings, now: datetime | None = None) -> list[Waiting]:
    """Every open review, newest first; one that a tag, a later night or the deadline answers is settled on the way."""
    found = []
    for version in versions.listed(settings):
        if not is_waiting(version):
            continue
        if settle(settings, version.version, now=now) is not None:
            # Whose champion changed meanwhile stays where it is; the next one in the list is looked at all the same.
            with contextlib.suppress(PromotionRefusedError):
                carry_out(settings, version.version)
            continue
        tags = versions.get(settings, version.version).tags
        found.append(
            Waiting(
                version=version.version,
                as_of=version.as_of,
                asked_at=datetime.fromisoformat(tags[ASKED]),
                deadline=datetime.fromisoformat(tags[DEADLINE]),
                default="promote" if tags.get(DEFAULT) == "promote" else "keep",
                reasons=[line for line in tags.get("gate_reasons", "").split("\n") if line],
                note=tags.get(NOTE, ""),
            )
        )
    return found


def _answer_of(version: ModelVersion) -> Answer:
    text = version.tags.get(ANSWER)
    if text is None:
        raise RegistryError(f"version {version.version}: expected an answer to its review, found none")
    try:
        return Answer.model_validate_json(text)
    except ValidationError as error:
        raise RegistryError(
            f"version {version.version}: its tag {ANSWER} was edited and cannot be read; remove the tag, answer again"
        ) from error


def _champion(compared: str) -> str:
    return "no champion" if compared == "none" else f"version {compared}"
