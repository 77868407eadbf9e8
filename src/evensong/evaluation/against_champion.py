"""Challenger against champion on the same users: better on the primary metric, worse nowhere that matters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from evensong.evaluation import bootstrap
from evensong.evaluation.bootstrap import Floats, Interval
from evensong.evaluation.evidence import GateInputs, figure_of, missing, named
from evensong.evaluation.policy import Inconclusive, PromotionPolicy
from evensong.types import Check, EvaluationReport, Frame, ModelReport


@dataclass(frozen=True)
class Question:
    """A non-inferiority question: what may fall by how much, and how sure the answer must be."""

    name: str
    what: str
    margin: float
    confidence: float
    """One-sided."""
    min_users: int
    when_inconclusive: Inconclusive


def checks(
    report: EvaluationReport,
    champion: ModelReport,
    policy: PromotionPolicy,
    per_user: Frame | None,
    inputs: GateInputs,
) -> Iterator[Check]:
    """Every check that needs both models' figures of each user."""
    metric = policy.primary.metric
    better = f"better_than_champion.{metric}"
    try:
        paired = pair(per_user, report.challenger.model, champion.model, [metric, *sorted(policy.non_inferior)])
        _agrees(paired, report.challenger, metric, metric)
        _agrees(paired, champion, metric, f"{metric}_champion")
        if len(paired) < policy.primary.min_users:
            raise ValueError(f"{policy.primary.min_users} users with figures, {len(paired)} have them")
    except ValueError as error:
        yield missing(better, str(error))
        return
    gain = primary_interval(paired, policy, inputs)
    yield _better(better, gain, policy, report.champion_version)
    yield _plausible(gain, figure_of(champion, metric) or 0.0, policy)
    for name, rule in sorted(policy.non_inferior.items()):
        question = Question(f"not_worse.{name}", name, rule.margin, rule.confidence, 2, rule.when_inconclusive)
        yield not_worse(question, differences(paired, name), policy)
    yield from _slices(paired, policy)


def pair(per_user: Frame | None, challenger: str, champion: str, metrics: list[str]) -> Frame:
    """One row a user, by user: each metric as `<metric>` and `<metric>_champion`, and the other columns.

    Raises:
        ValueError: a column is missing, a user is missing from one model, doubled, or has no figure.
    """
    if per_user is None:
        raise ValueError("the per-user figures")
    if absent := [name for name in ("model", "user_id", *metrics) if name not in per_user.columns]:
        raise ValueError(f"the column {absent[0]} of the per-user figures")
    ours, theirs = (_rows_of(per_user, model, metrics) for model in (challenger, champion))
    if ours["user_id"].to_list() != theirs["user_id"].to_list():
        raise ValueError("the same users for the challenger and the champion in the per-user figures")
    other = theirs.select(pl.col(metric).alias(f"{metric}_champion") for metric in metrics)
    return pl.concat([ours, other], how="horizontal")


def differences(paired: Frame, metric: str) -> Floats:
    """Challenger minus champion, one figure a user."""
    return _values(paired, metric) - _values(paired, f"{metric}_champion")


def primary_interval(paired: Frame, policy: PromotionPolicy, inputs: GateInputs | None = None) -> Interval:
    """The interval of the gain on the primary metric, freed of what covariates from before the window explain."""
    means = inputs.covariate_means if inputs else {}
    gained = differences(paired, policy.primary.metric)
    names = [name for name in sorted(means) if f"covariate_{name}" in paired.columns]
    names = [name for name in names if paired[f"covariate_{name}"].null_count() == 0]
    if names:
        covariates = np.column_stack([_values(paired, f"covariate_{name}") for name in names])
        gained = bootstrap.adjust(gained, covariates, np.array([means[name] for name in names]))
    return _interval(gained, policy.primary.confidence, policy)


def interval(gained: Floats, policy: PromotionPolicy) -> Interval:
    """The interval of a mean difference at the policy's confidence."""
    return _interval(gained, policy.primary.confidence, policy)


def not_worse(question: Question, gained: Floats, policy: PromotionPolicy) -> Check:
    """Passed when the lower bound stays above the margin, failed when the upper bound is below it, else in doubt."""
    num_users = len(gained)
    if num_users == 0:
        return Check(name=question.name, passed=True, message=f"{question.what}: no such users tonight, nobody to lose")
    mean = float(gained.mean())
    if num_users < max(2, question.min_users):
        return Check(
            name=question.name,
            passed=question.when_inconclusive == "pass",
            doubtful=True,
            figure=mean,
            bound=-question.margin,
            message=f"{question.what}: {num_users} users are too few to tell, change {mean:+.4f}",
        )
    bounds = _interval(gained, 2 * question.confidence - 1, policy)
    shown, worse = bounds.lower >= -question.margin, bounds.upper < -question.margin
    verdict = "no worse" if shown else "worse" if worse else "cannot tell"
    return Check(
        name=question.name,
        passed=shown or (not worse and question.when_inconclusive == "pass"),
        doubtful=not shown and not worse,
        figure=bounds.upper if worse else bounds.lower,
        bound=-question.margin,
        message=(
            f"{question.what}: {verdict}, change {mean:+.4f}, bounds {bounds.lower:+.4f} to {bounds.upper:+.4f} "
            f"over {num_users} users, allowed {-question.margin:+.4f}"
        ),
    )


def _better(name: str, gain: Interval, policy: PromotionPolicy, champion_version: str | None) -> Check:
    rule = policy.primary
    detectable = gain.smallest_detectable(rule.margin, rule.power)
    passed = gain.lower > rule.margin
    verdict = "better than" if passed else "not shown to be better than"
    return Check(
        name=name,
        passed=passed,
        figure=gain.lower,
        bound=rule.margin,
        message=(
            f"{verdict} {named(champion_version)} on {rule.metric}: gain {gain.mean:+.4f}, "
            f"{rule.confidence:.0%} interval {gain.lower:+.4f} to {gain.upper:+.4f}, "
            f"needed above {rule.margin:+.4f}; these {gain.num_users} users could show a gain of {detectable:.4f} "
            f"with {rule.power:.0%} power"
        ),
    )


def _plausible(gain: Interval, champion: float, policy: PromotionPolicy) -> Check:
    """A jump counts from the interval's lower bound: with few users a mean jumps by luck."""
    rule, metric = policy.plausibility, policy.primary.metric
    bound = max((rule.max_ratio_to_champion - 1) * champion, rule.min_level)
    plausible = gain.lower <= bound
    return Check(
        name=f"plausible_gain.{metric}",
        passed=plausible,
        doubtful=not plausible,
        figure=gain.lower,
        bound=bound,
        message=f"a gain of at least {gain.lower:+.4f} on {metric} is "
        + (
            "plausible"
            if plausible
            else f"more than {rule.max_ratio_to_champion:g} times the champion's {champion:.4f} allows: "
            "too good to believe, as a leak would be; a person must look"
        ),
    )


def _slices(paired: Frame, policy: PromotionPolicy) -> Iterator[Check]:
    rule, metric = policy.slices, policy.primary.metric
    # One error rate for all slices together: each bound gets its share (Bonferroni).
    attributes = [name.removeprefix("slice_") for name in paired.columns if name.startswith("slice_") and "=" in name]
    names = [*rule.names, *sorted(set(attributes) - set(rule.names))]
    confidence = 1 - (1 - rule.confidence) / max(1, len(names))
    for name in names:
        check, column = f"slice.{name}", f"slice_{name}"
        if column not in paired.columns or paired[column].null_count():
            yield missing(check, f"the column {column} of every user in the per-user figures")
            continue
        question = Question(
            check, f"{metric} of {name}", rule.margin, confidence, rule.min_users, rule.when_inconclusive
        )
        yield not_worse(question, differences(paired.filter(pl.col(column)), metric), policy)


def _rows_of(per_user: Frame, model: str, metrics: list[str]) -> Frame:
    rows = per_user.filter(pl.col("model") == model).sort("user_id")
    if rows.is_empty():
        raise ValueError(f"the per-user figures of {model}")
    if rows["user_id"].n_unique() != len(rows):
        raise ValueError(f"one row a user in the per-user figures of {model}: a user is there twice")
    for metric in metrics:
        if rows[metric].null_count() or not rows[metric].cast(pl.Float64).is_finite().all():
            raise ValueError(f"{metric} of every user in the per-user figures of {model}")
    return rows


def _agrees(paired: Frame, model: ModelReport, metric: str, column: str) -> None:
    stated, found = figure_of(model, metric), float(np.mean(_values(paired, column)))
    if stated is None:
        raise ValueError(f"{metric} of {model.model}")
    if not math.isclose(stated, found, rel_tol=1e-6, abs_tol=1e-9):
        raise ValueError(
            f"per-user figures that agree with the report: {metric} of {model.model} is {stated:.6f} there and "
            f"{found:.6f} here"
        )


def _interval(gained: Floats, confidence: float, policy: PromotionPolicy) -> Interval:
    return bootstrap.paired_interval(
        gained,
        confidence=confidence,
        resamples=policy.primary.resamples,
        generator=np.random.default_rng(policy.primary.seed),
    )


def _values(frame: Frame, column: str) -> Floats:
    return frame[column].cast(pl.Float64).to_numpy().astype(np.float64)
