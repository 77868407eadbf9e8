"""Challenger against champion on the same users: better on the primary metric, worse nowhere that matters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from evensong.evaluation import bootstrap
from evensong.evaluation.bootstrap import Floats, Interval
from evensong.evaluation.evidence import GateInputs, figure_of, missing, named
from evensong.evaluation.policy import Inconclusive, NonInferiorityRule, PromotionPolicy, SliceRule
from evensong.types import Check, EvaluationReport, Frame, ModelReport

#: What figures that are not what they should be raise, on the way to an answer.
BROKEN = (ValueError, TypeError, ArithmeticError, pl.exceptions.PolarsError)


@dataclass(frozen=True)
class Question:
    """A non-inferiority question: whose figure may fall by how much, and how sure the answer must be."""

    name: str
    """The check's."""
    what: str
    metric: str
    column: str | None
    """Of the slice's users; none: everybody."""
    margin: float
    confidence: float
    """One-sided."""
    min_users: int
    when_inconclusive: Inconclusive


@dataclass(frozen=True)
class Answer:
    """What the users say to a question."""

    question: Question
    num_users: int
    mean: float
    """Challenger minus champion; 0 without users."""
    bounds: Interval | None
    """Its two bounds, each with the question's confidence; none of fewer than two users."""

    def chance_to_fail(self, gain: float) -> float:
        """How often a challenger that gains so much for these users would be kept out by this question."""
        question, bounds = self.question, self.bounds
        if bounds is None or bounds.standard_error == 0:
            return 0.0
        if question.when_inconclusive == "fail":
            return 1 - bounds.chance_above(-question.margin, gain)
        if question.when_inconclusive == "estimate" and self.num_users >= question.min_users:
            return bounds.chance_mean_below(-question.margin, gain)
        return 0.0


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
        gain, answers = primary_interval(paired, policy, inputs), ask(paired, policy)
        detectable = smallest_gain(gain, answers, policy)
    except BROKEN as error:
        what = str(error) if type(error) is ValueError else f"figures that are numbers, {type(error).__name__}: {error}"
        yield from _unasked(report, policy, what.splitlines()[0])
        return
    yield _better(better, gain, detectable, policy, report.champion_version)
    yield _plausible(gain, figure_of(champion, metric) or 0.0, policy)
    for answer in answers:
        yield _not_worse(answer)
    yield from _unasked_slices(report, paired, policy)


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
    inputs = inputs or GateInputs()
    means = inputs.covariate_means
    gained = differences(paired, policy.primary.metric)
    names = [name for name in sorted(means) if f"covariate_{name}" in paired.columns]
    names = [name for name in names if paired[f"covariate_{name}"].null_count() == 0]
    if names:
        covariates = np.column_stack([_values(paired, f"covariate_{name}") for name in names])
        gained = bootstrap.adjust(gained, covariates, np.array([means[name] for name in names]))
    return _interval(gained, primary_confidence(policy, inputs), policy)


def primary_confidence(policy: PromotionPolicy, inputs: GateInputs) -> float:
    """The policy's; for the n-th version of a night, an n²-th of its error.

    The sum of 1/n² is below 1.65: however often a night is tried again, its versions together err little more often
    than its first one may.
    """
    return 1 - (1 - policy.primary.confidence) / inputs.attempt**2


def interval(gained: Floats, policy: PromotionPolicy) -> Interval:
    """The interval of a mean difference at the policy's confidence."""
    return _interval(gained, policy.primary.confidence, policy)


def ask(paired: Frame, policy: PromotionPolicy) -> list[Answer]:
    """Every non-inferiority question that can be asked: of the other metrics over everybody, then of the slices."""
    answers = []
    for question in [*_of_metrics(paired, policy), *_of_slices(paired, policy)]:
        asked = paired.filter(pl.col(question.column)) if question.column else paired
        gained = differences(asked, question.metric)
        bounds = _interval(gained, 2 * question.confidence - 1, policy) if len(gained) > 1 else None
        answers.append(Answer(question, len(gained), float(gained.mean()) if len(gained) else 0.0, bounds))
    return answers


def smallest_gain(gain: Interval, answers: Sequence[Answer], policy: PromotionPolicy) -> float | None:
    """The gain, the same for everybody, that users such as tonight's show with the policy's power.

    That is: the lower bound exceeds the margin, and no slice is held against the challenger by chance. None where the
    models differ for nobody, so that nothing is known of how much they vary.
    """
    if gain.standard_error == 0:
        return None
    slices = [answer for answer in answers if answer.question.column is not None]

    def chance(true_gain: float) -> float:
        missed = sum(answer.chance_to_fail(true_gain) for answer in slices)
        return gain.chance_above(policy.primary.margin, true_gain) - missed

    return bootstrap.smallest_gain(chance, policy.primary.power)


def _of_metrics(paired: Frame, policy: PromotionPolicy) -> Iterator[Question]:
    for metric, rule in sorted(policy.non_inferior.items()):
        if f"{metric}_champion" in paired.columns:
            yield Question(
                name=f"not_worse.{metric}",
                what=metric,
                metric=metric,
                column=None,
                margin=_allowed(rule, paired, metric),
                confidence=rule.confidence,
                min_users=2,
                when_inconclusive=rule.when_inconclusive,
            )


def _of_slices(paired: Frame, policy: PromotionPolicy) -> Iterator[Question]:
    """On the primary metric; one error rate for all slices together, of which each gets its share (Bonferroni)."""
    rule, metric = policy.slices, policy.primary.metric
    names = [name for name in _slice_names(paired, policy) if _has_slice(paired, name)]
    for name in names:
        yield Question(
            name=f"slice.{name}",
            what=f"{metric} of {name}",
            metric=metric,
            column=f"slice_{name}",
            margin=_allowed(rule, paired.filter(pl.col(f"slice_{name}")), metric),
            confidence=1 - (1 - rule.confidence) / len(names),
            min_users=rule.min_users,
            when_inconclusive=rule.when_inconclusive,
        )


def _not_worse(answer: Answer) -> Check:
    """Passed when the lower bound stays above the margin, failed when the upper bound is below it.

    Between the two, `when_inconclusive` decides; few users fail by what is shown alone.
    """
    question, bounds, mean = answer.question, answer.bounds, answer.mean
    if answer.num_users == 0:
        return Check(name=question.name, passed=True, message=f"{question.what}: no such users tonight, nobody to lose")
    few = answer.num_users < max(2, question.min_users)
    shown = bounds is not None and bounds.lower >= -question.margin
    worse = bounds is not None and bounds.upper < -question.margin
    likely_worse = question.when_inconclusive == "estimate" and not few and mean < -question.margin
    passed = shown or not (worse or likely_worse or question.when_inconclusive == "fail")
    verdict = "worse" if worse else "likely worse" if likely_worse else "no worse" if shown else "cannot tell"
    if few and not worse:
        verdict = "too few to tell"
    said = f"change {mean:+.4f} over {answer.num_users} users, allowed {-question.margin:+.4f}"
    figure = mean
    if bounds is not None:
        figure = bounds.upper if worse else mean if likely_worse else bounds.lower
        said += f", {percent(question.confidence)} bounds {bounds.lower:+.4f} and {bounds.upper:+.4f}"
    return Check(
        name=question.name,
        passed=passed,
        doubtful=passed and (few or not shown),
        figure=figure,
        bound=-question.margin,
        message=f"{question.what}: {verdict}, {said}",
    )


def _better(
    name: str, gain: Interval, detectable: float | None, policy: PromotionPolicy, champion_version: str | None
) -> Check:
    rule = policy.primary
    passed = gain.lower > rule.margin
    verdict = "better than" if passed else "not shown to be better than"
    could = "no user's figure differs, so nothing can be said of what they could show"
    if detectable is not None:
        could = f"these {gain.num_users} users could show a gain of {detectable:.4f} with {percent(rule.power)} power"
    return Check(
        name=name,
        passed=passed,
        figure=gain.lower,
        bound=rule.margin,
        message=(
            f"{verdict} {named(champion_version)} on {rule.metric}: gain {gain.mean:+.4f}, "
            f"{percent(gain.confidence)} interval {gain.lower:+.4f} to {gain.upper:+.4f}, "
            f"needed above {rule.margin:+.4f}; {could}"
        ),
    )


def percent(share: float) -> str:
    """A confidence in as many digits as it needs: 99 %, 99.75 %."""
    return f"{100 * share:.4g} %"


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


def _unasked(report: EvaluationReport, policy: PromotionPolicy, what: str) -> Iterator[Check]:
    """Every question that needs both models' figures, none of which can be asked."""
    metric = policy.primary.metric
    names = [f"better_than_champion.{metric}", f"plausible_gain.{metric}"]
    names += [f"not_worse.{other}" for other in sorted(policy.non_inferior)]
    common = {name for name in report.challenger.slices if "=" in name}
    slices = [*policy.slices.names, *sorted(common - set(policy.slices.names)), *sorted(report.slice_attributes)]
    for name in [*names, *(f"slice.{name}" for name in slices)]:
        yield missing(name, what)


def _unasked_slices(report: EvaluationReport, paired: Frame, policy: PromotionPolicy) -> Iterator[Check]:
    """What the policy or the settings name and nobody can be asked about: fails closed, unless nobody is concerned."""
    names = _slice_names(paired, policy)
    for name in names:
        if not _has_slice(paired, name):
            yield missing(f"slice.{name}", f"the column slice_{name} of every user in the per-user figures")
    for attribute, num_known in sorted(report.slice_attributes.items()):
        if num_known == 0:
            yield missing(f"slice.{attribute}", f"a known value of the attribute {attribute}, and nobody has one")
        elif not any(name.startswith(f"{attribute}=") for name in names):
            message = f"{attribute}: nobody with a value of it tonight, nobody to lose"
            yield Check(name=f"slice.{attribute}", passed=True, message=message)


def _slice_names(paired: Frame, policy: PromotionPolicy) -> list[str]:
    """The policy's slices, and those of the configured attributes, `country=DE`."""
    attributes = {name.removeprefix("slice_") for name in paired.columns if name.startswith("slice_") and "=" in name}
    return [*policy.slices.names, *sorted(attributes - set(policy.slices.names))]


def _has_slice(paired: Frame, name: str) -> bool:
    return f"slice_{name}" in paired.columns and not paired[f"slice_{name}"].null_count()


def _allowed(rule: SliceRule | NonInferiorityRule, paired: Frame, metric: str) -> float:
    """The loss that is still none: the margin, and never more than its share of what the champion gives."""
    champion = _values(paired, f"{metric}_champion")
    return min(rule.margin, rule.max_relative_loss * float(champion.mean())) if len(champion) else rule.margin


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
