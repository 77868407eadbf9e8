"""The promotion gate, a pure decision: a report, a policy and the night's evidence in, every check with its figure out.

A check that cannot be computed fails, and says what was missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import polars as pl
from pydantic import Field

from evensong.evaluation import bootstrap
from evensong.evaluation.bootstrap import Floats, Interval
from evensong.evaluation.policy import Inconclusive, PromotionPolicy
from evensong.types import Check, EvaluationReport, Frame, ModelReport, PromotionDecision, Value


class OffPolicyEstimate(Value):
    """The challenger's value a request, estimated from what the logged policy showed."""

    method: str
    """`snips` or `doubly_robust`."""
    value: float
    lower: float
    upper: float
    logged_value: float
    """What the logged policy itself earned on the same requests."""
    effective_sample_size: float
    num_rows: int


class GateInputs(Value):
    """What the gate is told beside the report; what is not told and yet asked for by the policy fails closed."""

    passed: dict[str, bool] = Field(default={})
    """Named checks of the night's inputs: `validation`, `leak_canary`, `features_served`, `bundle` …"""
    messages: dict[str, str] = Field(default={})
    """What those checks said."""
    figures: dict[str, float] = Field(default={})
    """The challenger's: `bundle_megabytes`, `latency_p99_seconds`, `max_skew`, …"""
    champion_figures: dict[str, float] = Field(default={})
    """The champion's, measured in the same process."""
    champion_version: str | None = None
    """The champion that this night must be compared with."""
    newest_champion_as_of: datetime | None = None
    """The cutoff of the present champion; a night before it is a backfill."""
    covariate_means: dict[str, float] = Field(default={})
    """Means over all users, not only the judged ones, of the per-user columns `covariate_<name>`."""
    off_policy: tuple[OffPolicyEstimate, ...] = ()


def decide(
    report: EvaluationReport,
    policy: PromotionPolicy,
    per_user: Frame | None = None,
    inputs: GateInputs | None = None,
) -> PromotionDecision:
    """Whether the challenger may become champion.

    `per_user` has one row a model and user: `model, user_id`, one column a metric, one boolean column `slice_<name>` a
    slice, as `EvaluationReport.per_user_uri` says. `promote` is the verdict of the evidence; with `needs_review` a
    person has to agree before the alias moves.
    """
    inputs = inputs or GateInputs()
    checks = list(_checks(report, policy, per_user, inputs))
    failed = [check for check in checks if not check.passed]
    doubts = [check for check in checks if check.doubtful]
    # A doubt that failed is one that only a person can settle; any other failure settles it.
    settled = [check for check in failed if not check.doubtful]
    promote = not failed
    asks = not settled and (
        bool(failed) or policy.mode == "review" or (policy.mode == "review_when_doubtful" and bool(doubts))
    )
    return PromotionDecision(
        promote=promote,
        needs_review=asks,
        reasons=[check.message for check in failed] or [check.message for check in checks if _tells(check)],
        checks=checks,
    )


def _checks(
    report: EvaluationReport, policy: PromotionPolicy, per_user: Frame | None, inputs: GateInputs
) -> Iterator[Check]:
    yield _enough_users(report, policy)
    yield from _order(report, inputs)
    yield from _baselines(report, policy)
    if report.champion is not None:
        yield from _against_champion(report, report.champion, policy, per_user, inputs)
    yield from _plausibility(report, policy)
    yield from _guardrails(report, policy, inputs)
    yield from _inputs(policy, inputs)
    yield from _off_policy(policy, inputs)


def _enough_users(report: EvaluationReport, policy: PromotionPolicy) -> Check:
    bound = policy.primary.min_users
    return Check(
        name="enough_users",
        passed=report.num_users >= bound,
        figure=report.num_users,
        bound=bound,
        message=f"{report.num_users} users judged, {bound} needed to conclude",
    )


def _order(report: EvaluationReport, inputs: GateInputs) -> Iterator[Check]:
    newest = inputs.newest_champion_as_of
    if newest is not None:
        older = report.as_of < newest
        yield Check(
            name="not_older_than_champion",
            passed=not older,
            message=f"the night of {report.as_of:%Y-%m-%d %H:%M} is "
            + (f"older than the champion's, {newest:%Y-%m-%d %H:%M}" if older else "not older than the champion's"),
        )
    if inputs.champion_version != report.champion_version and inputs.champion_version is not None:
        yield Check(
            name="same_champion",
            passed=False,
            message=f"the report compares with {_version(report.champion_version)}, the champion before this night is "
            f"{_version(inputs.champion_version)}: evaluate the night again",
        )


def _baselines(report: EvaluationReport, policy: PromotionPolicy) -> Iterator[Check]:
    for name in policy.baselines.names:
        for metric in policy.baselines.metrics:
            figure = _figure(report.challenger, metric)
            baseline = _figure(report.baselines.get(name), metric)
            check = f"above_{name}.{metric}"
            if figure is None or baseline is None:
                yield _missing(check, f"{metric} of {'the challenger' if figure is None else name}")
                continue
            bound = baseline + policy.baselines.margin
            verdict = "above" if figure > bound else "not above"
            yield Check(
                name=check,
                passed=figure > bound,
                figure=figure,
                bound=bound,
                message=f"{metric} {figure:.4f} is {verdict} {name}'s {baseline:.4f}",
            )


def _against_champion(
    report: EvaluationReport,
    champion: ModelReport,
    policy: PromotionPolicy,
    per_user: Frame | None,
    inputs: GateInputs,
) -> Iterator[Check]:
    primary = policy.primary
    named = [primary.metric, *sorted(policy.non_inferior)]
    try:
        paired = pair(per_user, report.challenger.model, champion.model, named)
        _agrees(paired, report, champion, primary.metric)
    except ValueError as error:
        yield _missing(f"better_than_champion.{primary.metric}", str(error))
        return
    yield _primary(paired, policy, inputs, report.champion_version)
    for metric, rule in sorted(policy.non_inferior.items()):
        yield _not_worse(
            f"not_worse.{metric}",
            metric,
            _differences(paired, metric),
            rule.margin,
            rule.confidence,
            2,
            rule.when_inconclusive,
            policy,
        )
    rule_of_slices = policy.slices
    # One error rate for all slices together: each bound gets its share.
    confidence = 1 - (1 - rule_of_slices.confidence) / max(1, len(rule_of_slices.names))
    for name in rule_of_slices.names:
        check, column = f"slice.{name}", f"slice_{name}"
        if column not in paired.columns:
            yield _missing(check, f"the column {column} of the per-user figures")
            continue
        inside = paired.filter(pl.col(column).fill_null(False))
        yield _not_worse(
            check,
            f"{primary.metric} of {name}",
            _differences(inside, primary.metric),
            rule_of_slices.margin,
            confidence,
            rule_of_slices.min_users,
            rule_of_slices.when_inconclusive,
            policy,
        )


def pair(per_user: Frame | None, challenger: str, champion: str, metrics: list[str]) -> Frame:
    """One row a user, by user: each metric as `<metric>` and `<metric>_champion`, and the other columns.

    Raises:
        ValueError: a column is missing, a user is missing from one model, doubled, or has no figure.
    """
    if per_user is None:
        raise ValueError("the per-user figures")
    wanted = ["model", "user_id", *metrics]
    if absent := [name for name in wanted if name not in per_user.columns]:
        raise ValueError(f"the column {absent[0]} of the per-user figures")
    ours = per_user.filter(pl.col("model") == challenger).sort("user_id")
    theirs = per_user.filter(pl.col("model") == champion).sort("user_id")
    for name, rows in ((challenger, ours), (champion, theirs)):
        if rows.is_empty():
            raise ValueError(f"the per-user figures of {name}")
        if rows["user_id"].n_unique() != len(rows):
            raise ValueError(f"one row a user in the per-user figures of {name}: a user is there twice")
        for metric in metrics:
            if rows[metric].null_count() or not rows[metric].cast(pl.Float64).is_finite().all():
                raise ValueError(f"{metric} of every user in the per-user figures of {name}")
    if ours["user_id"].to_list() != theirs["user_id"].to_list():
        raise ValueError("the same users for the challenger and the champion in the per-user figures")
    other = theirs.select(pl.col(metric).alias(f"{metric}_champion") for metric in metrics)
    return pl.concat([ours, other], how="horizontal")


def _agrees(paired: Frame, report: EvaluationReport, champion: ModelReport, metric: str) -> None:
    for model, column in ((report.challenger, metric), (champion, f"{metric}_champion")):
        stated, found = _figure(model, metric), float(np.mean(_values(paired, column)))
        if stated is None:
            raise ValueError(f"{metric} of {model.model}")
        if not math.isclose(stated, found, rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(
                f"per-user figures that agree with the report: {metric} of {model.model} is {stated:.6f} there and "
                f"{found:.6f} here"
            )


def primary_interval(paired: Frame, policy: PromotionPolicy, inputs: GateInputs | None = None) -> Interval:
    """The interval of the gain on the primary metric, freed of what covariates from before the window explain."""
    differences = _differences(paired, policy.primary.metric)
    names = [
        name
        for name in sorted((inputs or GateInputs()).covariate_means)
        if f"covariate_{name}" in paired.columns and paired[f"covariate_{name}"].null_count() == 0
    ]
    if inputs is not None and names:
        covariates = np.column_stack([_values(paired, f"covariate_{name}") for name in names])
        means = np.array([inputs.covariate_means[name] for name in names])
        differences = bootstrap.adjust(differences, covariates, means)
    return _interval(differences, policy.primary.confidence, policy)


def _primary(paired: Frame, policy: PromotionPolicy, inputs: GateInputs, champion_version: str | None) -> Check:
    rule = policy.primary
    name = f"better_than_champion.{rule.metric}"
    if len(paired) < rule.min_users:
        return _missing(name, f"{rule.min_users} users with figures, {len(paired)} have them")
    interval = primary_interval(paired, policy, inputs)
    detectable = interval.smallest_detectable(rule.margin, rule.power)
    passed = interval.lower > rule.margin
    verdict = "better than" if passed else "not shown to be better than"
    return Check(
        name=name,
        passed=passed,
        figure=interval.lower,
        bound=rule.margin,
        message=(
            f"{verdict} {_version(champion_version)} on {rule.metric}: gain {interval.mean:+.4f}, "
            f"{rule.confidence:.0%} interval {interval.lower:+.4f} to {interval.upper:+.4f}, "
            f"needed above {rule.margin:+.4f}; these {interval.num_users} users could show a gain of {detectable:.4f} "
            f"with {rule.power:.0%} power"
        ),
    )


def _not_worse(
    name: str,
    what: str,
    differences: Floats,
    margin: float,
    confidence: float,
    min_users: int,
    when_inconclusive: Inconclusive,
    policy: PromotionPolicy,
) -> Check:
    """`confidence` is one-sided."""
    num_users = len(differences)
    if num_users == 0:
        return Check(name=name, passed=True, message=f"{what}: no such users tonight, nobody to lose")
    mean = float(differences.mean())
    if num_users < max(2, min_users):
        return Check(
            name=name,
            passed=when_inconclusive == "pass",
            doubtful=True,
            figure=mean,
            bound=-margin,
            message=f"{what}: {num_users} users are too few to tell, mean {mean:+.4f}",
        )
    interval = _interval(differences, 2 * confidence - 1, policy)
    shown, worse = interval.lower >= -margin, interval.upper < -margin
    verdict = "no worse" if shown else "worse" if worse else "cannot tell"
    return Check(
        name=name,
        passed=shown or (not worse and when_inconclusive == "pass"),
        doubtful=not shown and not worse,
        figure=interval.upper if worse else interval.lower,
        bound=-margin,
        message=(
            f"{what}: {verdict}, change {mean:+.4f}, bounds {interval.lower:+.4f} to {interval.upper:+.4f} "
            f"over {num_users} users, allowed {-margin:+.4f}"
        ),
    )


def _plausibility(report: EvaluationReport, policy: PromotionPolicy) -> Iterator[Check]:
    rule, metric = policy.plausibility, policy.primary.metric
    figure = _figure(report.challenger, metric)
    if figure is None:
        yield _missing(f"plausible.{metric}", f"{metric} of the challenger")
        return
    bounds = {f"the level {rule.max_level:g}": rule.max_level}
    champion = _figure(report.champion, metric)
    if champion is not None:
        bounds[f"{rule.max_ratio_to_champion:g} times the champion's {champion:.4f}"] = (
            rule.max_ratio_to_champion * champion
        )
    else:
        best = max((_figure(model, metric) or 0.0 for model in report.baselines.values()), default=0.0)
        if best > 0:
            bounds[f"{rule.max_ratio_to_baseline:g} times the best baseline's {best:.4f}"] = (
                rule.max_ratio_to_baseline * best
            )
    said, bound = min(bounds.items(), key=lambda item: item[1])
    bound = max(bound, rule.min_level)
    plausible = figure <= bound
    yield Check(
        name=f"plausible.{metric}",
        passed=plausible,
        doubtful=not plausible,
        figure=figure,
        bound=bound,
        message=f"{metric} {figure:.4f} is plausible"
        if plausible
        else f"{metric} {figure:.4f} is above {said}: too good to believe, as a leak would be; a person must look",
    )


def _guardrails(report: EvaluationReport, policy: PromotionPolicy, inputs: GateInputs) -> Iterator[Check]:
    for name, rule in sorted(policy.guardrails.items()):
        if rule.with_champion_only and report.champion is None:
            continue
        figure = _first(report.guardrails.get(name), _figure(report.challenger, name), inputs.figures.get(name))
        champion = _first(_figure(report.champion, name), inputs.champion_figures.get(name))
        relative = rule.min_ratio_to_champion is not None or rule.max_ratio_to_champion is not None
        if figure is None:
            yield _missing(f"guardrail.{name}", f"{name} of the challenger")
            continue
        if relative and report.champion is not None and champion is None:
            yield _missing(f"guardrail.{name}", f"{name} of the champion")
            continue
        lowest, highest = [rule.min], [rule.max]
        if report.champion is not None and champion is not None:
            lowest.append(None if rule.min_ratio_to_champion is None else rule.min_ratio_to_champion * champion)
            highest.append(None if rule.max_ratio_to_champion is None else rule.max_ratio_to_champion * champion)
        low = max((bound for bound in lowest if bound is not None), default=None)
        high = min((bound for bound in highest if bound is not None), default=None)
        if low is not None and figure < low:
            yield Check(
                name=f"guardrail.{name}",
                passed=False,
                figure=figure,
                bound=low,
                message=f"{name} {figure:.4g} is below {low:.4g}",
            )
        elif high is not None and figure > high:
            yield Check(
                name=f"guardrail.{name}",
                passed=False,
                figure=figure,
                bound=high,
                message=f"{name} {figure:.4g} is above {high:.4g}",
            )
        else:
            yield Check(
                name=f"guardrail.{name}",
                passed=True,
                figure=figure,
                bound=low if low is not None else high,
                message=f"{name} {figure:.4g} is within its bounds",
            )


def _inputs(policy: PromotionPolicy, inputs: GateInputs) -> Iterator[Check]:
    for name in policy.inputs.required:
        if name not in inputs.passed:
            yield _missing(f"input.{name}", f"the outcome of {name}")
            continue
        passed = inputs.passed[name]
        said = inputs.messages.get(name) or ("passed" if passed else "did not pass")
        yield Check(name=f"input.{name}", passed=passed, message=f"{name}: {said}")
    for name in sorted(inputs.passed.keys() - set(policy.inputs.required)):
        # Nobody asked for it, and yet it says no: what is known to be wrong is not promoted.
        if not inputs.passed[name]:
            said = inputs.messages.get(name, "did not pass")
            yield Check(name=f"input.{name}", passed=False, message=f"{name}: {said}")
    if policy.inputs.max_skew is not None:
        figure = _first(inputs.figures.get("max_skew"))
        if figure is None:
            yield _missing("input.skew", "the difference between served and offline features")
        else:
            passed = figure <= policy.inputs.max_skew
            yield Check(
                name="input.skew",
                passed=passed,
                figure=figure,
                bound=policy.inputs.max_skew,
                message=f"served and offline features differ by at most {figure:.3g}, "
                f"allowed {policy.inputs.max_skew:.3g}",
            )


def _off_policy(policy: PromotionPolicy, inputs: GateInputs) -> Iterator[Check]:
    rule = policy.off_policy
    if not inputs.off_policy:
        if rule.required:
            yield _missing("off_policy", "an off-policy estimate: no logged propensities")
        return
    for estimate in inputs.off_policy:
        name, size = f"off_policy.{estimate.method}", estimate.effective_sample_size
        said = (
            f"{estimate.method}: {estimate.value:.4f} ({estimate.lower:.4f} to {estimate.upper:.4f}) a request, "
            f"the logged policy earned {estimate.logged_value:.4f}; "
            f"effective sample size {size:.0f} of {estimate.num_rows}"
        )
        if not math.isfinite(size) or size < rule.min_effective_sample_size:
            yield Check(
                name=name,
                passed=not rule.required,
                doubtful=True,
                figure=size,
                bound=rule.min_effective_sample_size,
                message=f"{said}: too small to conclude, needed {rule.min_effective_sample_size:.0f}",
            )
            continue
        bound = (1 - rule.max_relative_loss) * estimate.logged_value
        yield Check(name=name, passed=estimate.upper >= bound, figure=estimate.upper, bound=bound, message=said)


def _interval(differences: Floats, confidence: float, policy: PromotionPolicy) -> Interval:
    return bootstrap.paired_interval(
        differences,
        confidence=confidence,
        resamples=policy.primary.resamples,
        generator=np.random.default_rng(policy.primary.seed),
    )


def _differences(paired: Frame, metric: str) -> Floats:
    return _values(paired, metric) - _values(paired, f"{metric}_champion")


def _values(frame: Frame, column: str) -> Floats:
    return frame[column].cast(pl.Float64).to_numpy().astype(np.float64)


def _figure(model: ModelReport | None, metric: str) -> float | None:
    return _first(model.metrics.get(metric)) if model is not None else None


def _first(*figures: float | None) -> float | None:
    return next((figure for figure in figures if figure is not None and math.isfinite(figure)), None)


def _missing(name: str, what: str) -> Check:
    return Check(name=name, passed=False, message=f"{name} cannot be computed: it needs {what}")


def _tells(check: Check) -> bool:
    """Whether a passed check is worth a line in the reasons."""
    return check.doubtful or check.name.startswith(("better_than", "above_"))


def _version(version: str | None) -> str:
    return f"champion v{version}" if version else "no champion"
