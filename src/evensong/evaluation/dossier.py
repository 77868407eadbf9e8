"""The dossier of a challenger: the decision, why, and everything that a reviewer wants to see, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from evensong.evaluation import against_champion
from evensong.evaluation.against_champion import Answer
from evensong.evaluation.bootstrap import Interval
from evensong.evaluation.evidence import GateInputs, OffPolicyEstimate
from evensong.evaluation.policy import PromotionPolicy
from evensong.types import EvaluationReport, Frame, ModelReport, PromotionDecision, Skew, Value


class Comparison(Value):
    """One figure of every model, and the challenger's gain on the champion where users can be paired.

    Where the gate asked about it, `gain` is the very interval that its check was held against.
    """

    name: str
    challenger: float | None
    champion: float | None = None
    baselines: dict[str, float] = Field(default={})
    gain: Interval | None = None
    bound: float | None = None
    """What the interval's lower end was held against; none: the gate did not ask."""
    verdict: Literal["passed", "doubt", "failed"] | None = None
    """What its check came to."""
    num_users: int | None = None


class Example(Value):
    """What one user would be shown by each."""

    user_id: str
    history: list[str]
    """Titles, newest first."""
    challenger: list[str]
    champion: list[str] = Field(default=[])


class Shift(Value):
    """How far a feature's values in the judged window are from those of the training data."""

    name: str
    psi: float
    verdict: str


class Change(Value):
    """One setting or version that is not what the champion had."""

    name: str
    champion: str | None
    challenger: str | None


class Dossier(Value):
    """Everything about one challenger. A part that could not be made is empty, and `missing` says why."""

    title: str
    version: str
    champion_version: str | None
    as_of: datetime
    decision: PromotionDecision
    mode: str
    policy_digest: str
    policy: dict[str, Any] = Field(default={})
    """The whole of it, as it was."""
    attempt: int = 1
    """1 for the first version of its night."""
    earlier_attempts: list[str] = Field(default=[])
    num_users: int
    num_events: int
    window_start: datetime
    window_end: datetime
    smallest_detectable_gain: float | None = None
    power: float = 0.8
    """With which that gain would have been shown."""
    primary_metric: str
    slice_confidence: float = 0.95
    """One-sided, of all slices together."""
    metrics: list[Comparison]
    slices: list[Comparison] = Field(default=[])
    curves: dict[str, list[float]] = Field(default={})
    """Loss by epoch."""
    rows: dict[str, dict[str, str]] = Field(default={})
    """Table to its counts."""
    training: dict[str, str] = Field(default={})
    """What was learned from: the window, its labels by part, the catalogue."""
    validation: str = ""
    data_docs: str | None = None
    drift: list[Shift] = Field(default=[])
    skew: list[Skew] = Field(default=[])
    """Of each feature and of the score, the largest first."""
    skew_message: str = ""
    """What the skew check came to."""
    examples: list[Example] = Field(default=[])
    changes: list[Change] = Field(default=[])
    fitness: list[Comparison] = Field(default=[])
    """Sizes, latencies, index recall."""
    off_policy: list[OffPolicyEstimate] = Field(default=[])
    lineage: dict[str, str] = Field(default={})
    missing: dict[str, str] = Field(default={})


def build(
    report: EvaluationReport,
    decision: PromotionDecision,
    policy: PromotionPolicy,
    per_user: Frame | None,
    inputs: GateInputs,
    *,
    title: str,
    version: str,
    **parts: object,
) -> Dossier:
    """The dossier from what the gate judged; `parts` are the fields that other steps know."""
    metrics = sorted(report.challenger.metrics)
    paired, why = _paired(report, per_user, metrics, policy.primary.metric)
    missing = dict(parts.pop("missing", {}))  # type: ignore[call-overload]
    primary = policy.primary
    gain, detectable = None, None
    answers: list[Answer] = []
    if paired is not None:
        try:
            gain = against_champion.primary_interval(paired, policy, inputs)
            answers = against_champion.ask(paired, policy)
            detectable = against_champion.smallest_gain(gain, answers, policy)
        except against_champion.BROKEN as error:
            paired, gain, answers, why = None, None, [], f"needs figures that are numbers: {error}"
    if why:
        missing["intervals"] = why
    return Dossier.model_validate(
        {
            "title": title,
            "version": version,
            "champion_version": report.champion_version,
            "as_of": report.as_of,
            "decision": decision,
            "mode": policy.mode,
            "policy_digest": policy.digest,
            "policy": policy.model_dump(mode="json", exclude_none=True),
            "attempt": inputs.attempt,
            "earlier_attempts": list(inputs.earlier_attempts),
            "num_users": report.num_users,
            "num_events": report.num_events,
            "window_start": report.window_start,
            "window_end": report.window_end,
            "smallest_detectable_gain": detectable,
            "power": primary.power,
            "primary_metric": primary.metric,
            "slice_confidence": policy.slices.confidence,
            "metrics": [_judged(one, decision) for one in _metrics(report, paired, policy, gain, answers)],
            "slices": [_judged(one, decision, "slice.") for one in _slices(report, policy, answers)],
            "fitness": _fitness(report, inputs),
            "off_policy": list(inputs.off_policy),
            "missing": missing,
            **parts,
        }
    )


def changes(champion: Mapping[str, str], challenger: Mapping[str, str]) -> list[Change]:
    """What differs between two sets of names and values, by name."""
    return [
        Change(name=name, champion=champion.get(name), challenger=challenger.get(name))
        for name in sorted(champion.keys() | challenger.keys())
        if champion.get(name) != challenger.get(name)
    ]


def _paired(
    report: EvaluationReport, per_user: Frame | None, metrics: list[str], primary: str
) -> tuple[Frame | None, str]:
    if report.champion is None:
        return None, "there was no champion to compare with"
    columns = [name for name in metrics if per_user is not None and name in per_user.columns]
    try:
        paired = against_champion.pair(
            per_user, report.challenger.model, report.champion.model, list(dict.fromkeys([primary, *columns]))
        )
    except against_champion.BROKEN as error:
        return None, f"needs {error}"
    return (paired, "") if len(paired) > 1 else (None, "needs two users at least")


def _judged(row: Comparison, decision: PromotionDecision, *prefixes: str) -> Comparison:
    """The row with what its check came to; a gain that is not shown is a doubt as long as no loss is."""
    names = [f"{prefix}{row.name}" for prefix in prefixes or ("better_than_champion.", "not_worse.")]
    check = next((check for check in decision.checks if check.name in names), None)
    if check is None or row.gain is None:
        return row
    undecided = check.doubtful or (check.name.startswith("better") and not check.passed and row.gain.upper >= 0)
    verdict = "doubt" if undecided else "passed" if check.passed else "failed"
    return row.model_copy(update={"verdict": verdict})


def _metrics(
    report: EvaluationReport,
    paired: Frame | None,
    policy: PromotionPolicy,
    primary: Interval | None,
    answers: list[Answer],
) -> list[Comparison]:
    names = sorted(report.challenger.metrics)
    return [_comparison(name, report, paired, policy, primary, answers) for name in names]


def _comparison(
    name: str,
    report: EvaluationReport,
    paired: Frame | None,
    policy: PromotionPolicy,
    primary: Interval | None,
    answers: list[Answer],
) -> Comparison:
    asked = {answer.question.metric: answer for answer in answers if answer.question.column is None}
    gain, bound = None, None
    if name == policy.primary.metric:
        gain, bound = primary, policy.primary.margin if primary else None
    elif name in asked:
        gain, bound = asked[name].bounds, -asked[name].question.margin
    elif paired is not None and f"{name}_champion" in paired.columns:
        gain = against_champion.interval(against_champion.differences(paired, name), policy)
    return Comparison(
        name=name,
        challenger=report.challenger.metrics.get(name),
        champion=report.champion.metrics.get(name) if report.champion else None,
        baselines={
            baseline: model.metrics[name]
            for baseline, model in sorted(report.baselines.items())
            if name in model.metrics
        },
        gain=gain,
        bound=bound,
    )


def _slices(report: EvaluationReport, policy: PromotionPolicy, answers: list[Answer]) -> list[Comparison]:
    metric = policy.primary.metric
    asked = {answer.question.name: answer for answer in answers}
    found = []
    for name in sorted({*policy.slices.names, *report.challenger.slices}):
        answer = asked.get(f"slice.{name}")
        gain = answer.bounds if answer else None
        bound = -answer.question.margin if answer and gain else None
        users = _of_slice(report.challenger, name, "num_users")
        found.append(
            Comparison(
                name=name,
                challenger=_of_slice(report.challenger, name, metric),
                champion=_of_slice(report.champion, name, metric),
                baselines={
                    baseline: value
                    for baseline, model in sorted(report.baselines.items())
                    if (value := _of_slice(model, name, metric)) is not None
                },
                gain=gain,
                bound=bound,
                num_users=None if users is None else int(users),
            )
        )
    return found


def _fitness(report: EvaluationReport, inputs: GateInputs) -> list[Comparison]:
    ours = report.guardrails | inputs.figures
    return [
        Comparison(name=name, challenger=ours[name], champion=inputs.champion_figures.get(name))
        for name in sorted(ours)
    ]


def _of_slice(model: ModelReport | None, name: str, metric: str) -> float | None:
    return None if model is None else model.slices.get(name, {}).get(metric)
