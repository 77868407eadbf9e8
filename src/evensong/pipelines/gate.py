"""The step that decides by the policy whether the version may become champion."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from evensong.data import storage
from evensong.evaluation.gate import GateInputs, decide
from evensong.evaluation.policy import PromotionPolicy
from evensong.pipelines import dossier, evidence
from evensong.pipelines.policy import read_policy
from evensong.registry import decisions, review, versions
from evensong.settings import Settings
from evensong.types import EvaluationReport, Frame, Night

__all__ = ["read_policy", "run"]


def run(settings: Settings, night: Night, version: str, evaluation_uri: str) -> dict[str, Any]:
    """Judge the version, store the decision on it and in `decision.json`, and return it.

    The same evidence is judged once: a rerun returns the stored decision. A champion is not judged against itself.

    Raises:
        ConfigurationError: the policy is missing or wrong.
        RegistryError: there is no such version.
    """
    policy = read_policy(settings)
    report = EvaluationReport.model_validate(storage.read_json(evaluation_uri))
    challenger = versions.get(settings, version)
    place = settings.run_uri(night.run_id, "decision.json")
    if challenger.version == report.champion_version and "decision_hash" in challenger.tags:
        # another run of the night made the champion's very bundle again: it has been judged
        value = decisions.read(settings, challenger).model_dump(mode="json")
        storage.write_json(place, value)
        return value
    inputs = evidence.collect(settings, night, challenger, report, policy)
    judged = _judged(report, policy, inputs)
    if challenger.tags.get("evidence_hash") == judged:
        decision = decisions.read(settings, challenger)
    else:
        per_user = _per_user(report)
        decision = decide(report, policy, per_user, inputs)
        dossier.run(settings, night, challenger, report, decision, policy, per_user, inputs)
        decisions.store(settings, challenger, decision, evidence=judged, compared_with=inputs.champion_version)
    if decision.needs_review:
        rule = policy.review
        review.ask(settings, challenger, decision, deadline_hours=rule.deadline_hours, default=rule.default)
    dossier.link(settings, version)
    value = decision.model_dump(mode="json")
    storage.write_json(place, value)
    return value


def _per_user(report: EvaluationReport) -> Frame | None:
    if report.per_user_uri is None or not storage.exists(report.per_user_uri):
        return None
    return storage.read_frame(report.per_user_uri)


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
