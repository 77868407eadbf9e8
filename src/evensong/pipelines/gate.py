"""The step that decides by the policy whether the version may become champion."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from evensong.data import storage
from evensong.errors import DamagedFileError
from evensong.evaluation.gate import GateInputs, decide
from evensong.evaluation.policy import PromotionPolicy
from evensong.pipelines import dossier, evidence
from evensong.pipelines.policy import read_policy
from evensong.registry import aliases, decisions, review, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import EvaluationReport, Frame, ModelReport, Night

__all__ = ["read_policy", "run"]


def run(settings: Settings, night: Night, version: str, evaluation_uri: str) -> dict[str, Any]:
    """Judge the version, store the decision on it and in `decision.json`, and return it.

    The same evidence is judged once: a rerun returns the stored decision. A champion is not judged against itself.

    Raises:
        ConfigurationError: the policy is missing or wrong.
        RegistryError: there is no such version.
    """
    policy = read_policy(settings)
    challenger = versions.get(settings, version)
    damaged: dict[str, str] = {}
    report = _report(settings, night, challenger, evaluation_uri, damaged)
    per_user = _per_user(report, damaged)
    place = settings.run_uri(night.run_id, "decision.json")
    if challenger.version == report.champion_version and "decision_hash" in challenger.tags:
        # another run of the night made the champion's very bundle again: it has been judged
        value = decisions.read(settings, challenger).model_dump(mode="json")
        storage.write_json(place, value)
        return value
    inputs = evidence.collect(settings, night, challenger, report, policy)
    if damaged:
        passed = inputs.passed | dict.fromkeys(damaged, False)
        inputs = inputs.model_copy(update={"passed": passed, "messages": inputs.messages | damaged})
    judged = _judged(report, policy, inputs)
    if challenger.tags.get("evidence_hash") == judged:
        decision = decisions.read(settings, challenger)
    else:
        decision = decide(report, policy, per_user, inputs)
        dossier.run(settings, night, challenger, report, decision, policy, per_user, inputs)
        decisions.store(settings, challenger, decision, evidence=judged, compared_with=inputs.champion_version)
    if decision.needs_review:
        rule = policy.review
        review.ask(settings, challenger, decision, deadline_hours=rule.deadline_hours, default=rule.default)
    else:
        review.withdraw(settings, version)
    dossier.link(settings, version)
    value = decision.model_dump(mode="json")
    storage.write_json(place, value)
    return value


def _report(
    settings: Settings, night: Night, challenger: ModelVersion, uri: str, damaged: dict[str, str]
) -> EvaluationReport:
    """The night's evaluation; one that cannot be read is one without any figure, and every question goes unanswered."""
    content = storage.read_bytes(uri)
    try:
        return EvaluationReport.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        damaged["evaluation"] = f"cannot be computed: {uri}: {where}: {first['msg']}; evaluate the night again"
    rival = aliases.rival(settings, night.as_of, challenger.tags.get(versions.RECIPE, ""), challenger.version)
    nothing: dict[str, float] = {}
    return EvaluationReport(
        as_of=night.as_of,
        window_start=night.as_of,
        window_end=night.as_of,
        num_users=0,
        num_events=0,
        challenger=ModelReport(model="challenger", metrics=nothing),
        champion=ModelReport(model=f"champion v{rival.version}", metrics=nothing) if rival else None,
        champion_version=rival.version if rival else None,
    )


def _per_user(report: EvaluationReport, damaged: dict[str, str]) -> Frame | None:
    if report.per_user_uri is None or not storage.exists(report.per_user_uri):
        return None
    try:
        return storage.read_frame(report.per_user_uri)
    except DamagedFileError as error:
        damaged["per_user"] = f"cannot be computed: {error}; evaluate the night again"
        return None


def _judged(report: EvaluationReport, policy: PromotionPolicy, inputs: GateInputs) -> str:
    """What was judged, without what changes by itself: where the champion has moved since, and measured times."""
    what = {
        "report": report.model_dump(mode="json"),
        "policy": policy.digest,
        "passed": inputs.passed,
        "champion": inputs.champion_version,
        **({"twin": inputs.twin} if inputs.twin else {}),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
