"""What a person does with the registry, from the command line or a page: each answer can be printed as JSON."""

from __future__ import annotations

import getpass
from typing import Any

from evensong.errors import RegistryError
from evensong.registry import aliases, bundle, decisions, ledger, retention, review, tracking, versions
from evensong.settings import Settings


def person() -> str:
    """The actor `person:NAME` of whoever runs this process."""
    try:
        return f"person:{getpass.getuser()}"
    except (OSError, KeyError):
        return "person:unknown"


def list_versions(settings: Settings) -> list[dict[str, Any]]:
    """Every version, newest first: number, as_of, gate's outcome, whether it is the champion."""
    aliases.recover_quietly(settings)
    return [
        {
            "version": version.version,
            "as_of": version.as_of.isoformat(),
            "champion": versions.CHAMPION in version.aliases,
            "gate": version.tags.get("gate"),
            "review": review.said(version) or None,
            "blocked": version.tags.get(aliases.BLOCKED),
            "digest": version.digest,
            "created_at": version.created_at.isoformat(),
        }
        for version in versions.listed(settings)
    ]


def show(settings: Settings, version: str) -> dict[str, Any]:
    """Everything about one version, its moves included; `champion` names the present one."""
    aliases.recover_quietly(settings)
    found = versions.get(settings, version)
    moves = [
        line.model_dump(mode="json")
        for line in ledger.read(settings)
        if found.version in (line.to_version, line.from_version)
    ]
    return found.model_dump(mode="json") | {"moves": moves}


def decision_of(settings: Settings, version: str) -> dict[str, Any] | None:
    """The gate's stored decision on a version; none where there is none, or none that can be believed."""
    try:
        return decisions.read(settings, versions.get(settings, version)).model_dump(mode="json")
    except RegistryError:
        return None


def origin(settings: Settings, version: str) -> dict[str, Any]:
    """Where a version's answers come from: bundle and its files, features, lake versions, code, runs, moves."""
    aliases.recover_quietly(settings)
    found = versions.get(settings, version)
    manifest: dict[str, Any] = {}
    if "collected" not in found.tags:
        manifest = bundle.read_manifest(bundle.fetch(settings, found.version))
    return {
        "version": found.version,
        "as_of": found.as_of.isoformat(),
        "bundle_digest": found.digest,
        "files": manifest.get("files", {}),
        "feature_service": manifest.get("feature_service", found.tags.get("feature_service")),
        "features": manifest.get("features"),
        "lake_versions": versions.lake_versions(found),
        "code_commit": found.tags.get("code_commit"),
        "seed": found.tags.get("seed"),
        "mlflow_run": found.run_id,
        "airflow_run": found.tags.get("airflow_run"),
        "decision_hash": found.tags.get("decision_hash"),
        "dossier_hash": found.tags.get("dossier_hash"),
        "moves": [line.model_dump(mode="json") for line in ledger.read(settings) if line.to_version == found.version],
    }


def promote(settings: Settings, version: str, *, reason: str, actor: str | None = None) -> dict[str, Any]:
    """Make the version champion by a person's word, whatever the gate said; it answers a waiting review too.

    Raises:
        PromotionRefusedError: another promotion came first.
        RegistryError: there is no such version, or no reason was given.
    """
    who = actor or person()
    said = ledger.checked_reason(reason)
    found = versions.get(settings, version)
    given = None
    if review.is_waiting(found):
        given = _first_answer(settings, found.version, "approved", who, said)
        if (given.by, given.via, given.comment) != (who, "command", said):
            moved = review.carry_out(settings, found.version)
            return _moved(settings, ledger.read(settings)[-1] if moved else None)
    before = aliases.champion(settings)
    line = aliases.move(
        settings,
        found.version,
        actor=who,
        reason=said,
        decision=found.tags.get("decision_hash"),
        expected_current=before.version if before else None,
        move_id=given.move_id(found.version) if given else None,
        despite=given.despite if given else None,
    )
    return _moved(settings, line)


def reject(settings: Settings, version: str, *, reason: str, actor: str | None = None) -> dict[str, Any]:
    """Keep the version from being promoted by a rule; it answers a waiting review too.

    Raises:
        PromotionRefusedError: it is the champion, so that a rollback is what is meant; or somebody approved it first.
        RegistryError: there is no such version, or no reason was given.
    """
    who = actor or person()
    said = ledger.checked_reason(reason)
    found = versions.get(settings, version)
    if review.is_waiting(found) and versions.CHAMPION not in found.aliases:
        _first_answer(settings, found.version, "rejected", who, said)
        review.carry_out(settings, found.version)
    else:
        aliases.block(settings, found.version, f"rejected by {who}: {said}")
    return {"version": found.version, "rejected": True, "by": who, "reason": said}


def _first_answer(settings: Settings, version: str, outcome: review.Outcome, who: str, said: str) -> review.Answer:
    """The answer that counts: what a tag, a later night or the deadline said before, or else this one.

    It is recorded before anything moves, so of two answers at once one counts, wherever they come from.

    Raises:
        PromotionRefusedError: another answer was first; it has been carried out.
    """
    given = review.settle(settings, version)
    if given is None:
        given = review.record(settings, version, outcome, by=who, via="command", comment=said)
    if given.outcome != outcome:
        review.carry_out(settings, version)
    review.refuse_other_answer(version, given, outcome)
    return given


def rollback(
    settings: Settings,
    *,
    reason: str,
    actor: str | None = None,
    to: str | None = None,
    expected: str | None = None,
) -> dict[str, Any]:
    """Return to the champion before, or to the earlier one `to`; with `expected`, only from that champion, and once.

    Raises:
        PromotionRefusedError: there is none to return to, or another one than expected stands.
    """
    who = actor or person()
    if expected is None:
        return _moved(settings, aliases.rollback(settings, actor=who, reason=reason, to=to))
    line = aliases.rollback(settings, actor=who, reason=reason, to=to, expected_current=expected)
    return _moved(settings, line)


def reviews(settings: Settings) -> list[dict[str, Any]]:
    """Every review that waits for a person, newest first."""
    return [waiting.model_dump(mode="json") for waiting in review.waiting(settings)]


def collect(settings: Settings, *, dry_run: bool = True) -> list[dict[str, Any]]:
    """What the retention rule keeps and lets go; without `dry_run` what may go is removed."""
    return [one.model_dump(mode="json") for one in retention.collect(settings, dry_run=dry_run)]


def read_ledger(settings: Settings) -> list[dict[str, Any]]:
    """Every move of the champion, oldest first; what a killed mover left is finished before."""
    aliases.recover_quietly(settings)
    return [line.model_dump(mode="json") for line in ledger.read(settings)]


def verify(settings: Settings) -> dict[str, Any]:
    """Whether the ledger and the alias are as the registry left them; `sound` is false when not."""
    return aliases.ledger_verify(settings).model_dump(mode="json")


def adopt(settings: Settings, *, reason: str, actor: str | None = None) -> dict[str, Any]:
    """Acknowledge where another hand moved the alias, and what the ledger's check finds; nothing moves.

    Raises:
        PromotionRefusedError: there is no champion to acknowledge.
        RegistryError: a line cannot be read, or no reason was given.
    """
    line = aliases.adopt(settings, actor=actor or person(), reason=reason)
    return {"adopted": line is not None, "line": line.model_dump(mode="json") if line else None}


def _moved(settings: Settings, line: ledger.Line | None) -> dict[str, Any]:
    now = aliases.champion(settings)
    return {
        "champion": now.version if now else None,
        "moved": line is not None,
        "line": line.model_dump(mode="json") if line else None,
        "registry": tracking.place_of(settings),
    }
