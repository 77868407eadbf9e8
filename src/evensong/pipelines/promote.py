"""The step that moves the alias `champion`, by the stored decision alone."""

from __future__ import annotations

from typing import Any

from evensong.errors import PromotionRefusedError
from evensong.registry import aliases, decisions, ledger, review, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import Night


def run(settings: Settings, night: Night, version: str) -> dict[str, Any]:
    """Obey the decision on the version: `{"champion", "moved", "reason"}`.

    Run again, it changes nothing more. A night older than the champion's never moves the alias.

    Raises:
        RegistryError: the version has no decision.
        PromotionRefusedError: another promotion came between the decision and this step; decide again.
    """
    aliases.recover_quietly(settings)
    challenger = versions.get(settings, version)
    decision = decisions.read(settings, challenger)
    now = aliases.champion(settings)
    if now is not None and now.version == challenger.version:
        return _answer(now.version, False, "it already is the champion")
    if now is not None and now.as_of > challenger.as_of:
        return _answer(now.version, False, f"the champion is of a later night, {now.as_of:%Y-%m-%d %H:%M}")
    if decision.needs_review:
        return _by_review(settings, challenger, now)
    if not decision.promote:
        return _answer(_version(now), False, "; ".join(decision.reasons))
    if word := challenger.tags.get(aliases.BLOCKED):
        return _answer(_version(now), False, f"{word}; only a person can promote it again")
    if now is not None and _came_after(settings, challenger, now):
        return _answer(now.version, False, f"version {now.version} of the same night took its place")
    _refuse_other_champion(challenger, now)
    line = aliases.move(
        settings,
        challenger.version,
        actor="rule:gate",
        reason="; ".join(decision.reasons) or "every check passed",
        decision=challenger.tags["decision_hash"],
        expected_current=_version(now),
    )
    return _answer(challenger.version, line is not None, "the gate's decision")


def _by_review(settings: Settings, challenger: ModelVersion, now: ModelVersion | None) -> dict[str, Any]:
    given = review.settle(settings, challenger.version)
    if given is None:
        return _answer(_version(now), False, "waits for a person's review")
    moved = review.carry_out(settings, challenger.version)
    reason = f"{given.outcome} by {given.by}: {given.comment}"
    if given.outcome == "approved" and (word := challenger.tags.get(aliases.BLOCKED)) and not moved:
        reason = f"{word}; only a person can promote it again"
    return _answer(_version(aliases.champion(settings)), moved, reason)


def _came_after(settings: Settings, challenger: ModelVersion, now: ModelVersion) -> bool:
    """Whether the champion is of the same night and replaced the version, so that its decision has been obeyed."""
    if now.as_of != challenger.as_of:
        return False
    return any(line.to_version == challenger.version for line in ledger.read(settings))


def _refuse_other_champion(challenger: ModelVersion, now: ModelVersion | None) -> None:
    """The decision holds against the champion that it was made against."""
    compared = challenger.tags.get("compared_with", "none")
    if now is None or now.version == compared:
        return
    raise PromotionRefusedError(
        f"version {challenger.version}: the gate compared it with "
        f"{'no champion' if compared == 'none' else f'version {compared}'}, the champion is version {now.version} now; "
        "another promotion came first: evaluate the night and run the gate again"
    )


def _version(now: ModelVersion | None) -> str | None:
    return now.version if now else None


def _answer(champion: str | None, moved: bool, reason: str) -> dict[str, Any]:
    return {"champion": champion, "moved": moved, "reason": reason}
