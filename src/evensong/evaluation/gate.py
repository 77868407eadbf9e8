"""The promotion gate, a pure decision: a report, a policy and the night's evidence in, every check with its figure out.

A check that cannot be computed fails, and says what was missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from evensong.evaluation import against_champion
from evensong.evaluation.evidence import GateInputs, OffPolicyEstimate, figure_of, first, missing, named
from evensong.evaluation.policy import GuardrailRule, PromotionPolicy
from evensong.types import Check, EvaluationReport, Frame, PromotionDecision

__all__ = ["GateInputs", "OffPolicyEstimate", "decide"]


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
    yield from _attempts(inputs)
    yield from _baselines(report, policy)
    if report.champion is not None:
        yield from against_champion.checks(report, report.champion, policy, per_user, inputs)
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
            message=f"the report compares with {named(report.champion_version)}, the champion to compare with is "
            f"{named(inputs.champion_version)}: evaluate the night again",
        )
    if inputs.twin is not None:
        yield Check(
            name="other_than_champion",
            passed=False,
            message=f"{named(inputs.twin)} was made by this very night of the same data, code, settings and seed, "
            "and came out in other bytes: between the two chance alone would choose",
        )


def _attempts(inputs: GateInputs) -> Iterator[Check]:
    """Whoever tries a night again until it passes is seen; what another try may err is in `primary_confidence`."""
    earlier = inputs.earlier_attempts
    if not earlier:
        return
    yield Check(
        name="first_attempt",
        passed=True,
        doubtful=True,
        figure=inputs.attempt,
        bound=1,
        message=f"version {inputs.attempt} of this night, after v{', v'.join(earlier)}: its interval errs "
        f"{inputs.attempt**2} times less often than a first one's, so that trying again does not help",
    )


def _baselines(report: EvaluationReport, policy: PromotionPolicy) -> Iterator[Check]:
    for name in policy.baselines.names:
        for metric in policy.baselines.metrics:
            figure = figure_of(report.challenger, metric)
            baseline = figure_of(report.baselines.get(name), metric)
            check = f"above_{name}.{metric}"
            if figure is None or baseline is None:
                yield missing(check, f"{metric} of {'the challenger' if figure is None else name}")
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


def _plausibility(report: EvaluationReport, policy: PromotionPolicy) -> Iterator[Check]:
    """The level itself; the jump from the champion is judged with its interval, beside the champion."""
    rule, metric = policy.plausibility, policy.primary.metric
    figure = figure_of(report.challenger, metric)
    if figure is None:
        yield missing(f"plausible.{metric}", f"{metric} of the challenger")
        return
    said, bound = f"the level {rule.max_level:g}", rule.max_level
    best = max((figure_of(model, metric) or 0.0 for model in report.baselines.values()), default=0.0)
    if report.champion is None and 0 < best * rule.max_ratio_to_baseline < bound:
        said = f"{rule.max_ratio_to_baseline:g} times the best baseline's {best:.4f}"
        bound = max(best * rule.max_ratio_to_baseline, rule.min_level)
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
        figure = first(report.guardrails.get(name), figure_of(report.challenger, name), inputs.figures.get(name))
        if figure is None:
            yield missing(f"guardrail.{name}", f"{name} of the challenger")
            continue
        lowest, highest, unknown = [rule.min], [rule.max], ""
        for other, asked, low_ratio, high_ratio in _ratios(name, rule, report, inputs):
            if low_ratio is None and high_ratio is None:
                continue
            if asked is None:
                unknown = other
                continue
            lowest.append(None if low_ratio is None else low_ratio * asked)
            highest.append(None if high_ratio is None else high_ratio * asked)
        if unknown:
            yield missing(f"guardrail.{name}", f"{name} of {unknown}")
            continue
        low = max((bound for bound in lowest if bound is not None), default=None)
        high = min((bound for bound in highest if bound is not None), default=None)
        if high is not None and rule.ignore_below is not None:
            high = max(high, rule.ignore_below)
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
            bound = low if low is not None else high
            said = "is within its bounds" if bound is not None else "has no bound without a champion"
            yield Check(
                name=f"guardrail.{name}", passed=True, figure=figure, bound=bound, message=f"{name} {figure:.4g} {said}"
            )


def _ratios(
    name: str, rule: GuardrailRule, report: EvaluationReport, inputs: GateInputs
) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    """Whom a figure is held against, what theirs is, and the least and the most that it may be of it."""
    if report.champion is not None:
        champion = first(figure_of(report.champion, name), inputs.champion_figures.get(name))
        yield "the champion", champion, rule.min_ratio_to_champion, rule.max_ratio_to_champion
    popularity = figure_of(report.baselines.get("popularity"), name)
    yield "popularity", popularity, rule.min_ratio_to_popularity, rule.max_ratio_to_popularity


def _inputs(policy: PromotionPolicy, inputs: GateInputs) -> Iterator[Check]:
    for name in policy.inputs.required:
        if name not in inputs.passed:
            yield missing(f"input.{name}", f"the outcome of {name}")
            continue
        passed = inputs.passed[name]
        said = inputs.messages.get(name) or ("passed" if passed else "did not pass")
        yield Check(name=f"input.{name}", passed=passed, message=f"{name}: {said}")
    for name in sorted(inputs.passed.keys() - set(policy.inputs.required)):
        # Nobody asked for it, and yet it says no: what is known to be wrong is not promoted.
        if not inputs.passed[name]:
            said = inputs.messages.get(name, "did not pass")
            yield Check(name=f"input.{name}", passed=False, message=f"{name}: {said}")
    figure, allowed = first(inputs.figures.get("max_skew")), policy.inputs.max_skew
    if figure is None:
        yield missing("input.skew", "the difference between served and offline features")
        return
    yield Check(
        name="input.skew",
        passed=figure <= allowed,
        figure=figure,
        bound=allowed,
        message=f"served and offline features differ by at most {figure:.3g}, allowed {allowed:.3g}",
    )


def _off_policy(policy: PromotionPolicy, inputs: GateInputs) -> Iterator[Check]:
    rule = policy.off_policy
    if not inputs.off_policy:
        if rule.required:
            yield missing("off_policy", "an off-policy estimate: no logged propensities")
        return
    for estimate in inputs.off_policy:
        name, size = f"off_policy.{estimate.method}", estimate.effective_sample_size
        weight = estimate.mean_weight
        figures = (estimate.value, estimate.lower, estimate.upper, estimate.logged_value, size, weight)
        if not all(math.isfinite(figure) for figure in figures):
            yield missing(name, f"figures that are numbers: {estimate.method} came to {figures}")
            continue
        said = (
            f"{estimate.method}: {estimate.value:.4f} ({estimate.lower:.4f} to {estimate.upper:.4f}) a request, "
            f"the logged policy earned {estimate.logged_value:.4f}; "
            f"effective sample size {size:.0f} of {estimate.num_rows}"
        )
        small, unlike = size < rule.min_effective_sample_size, weight < rule.min_mean_weight
        if small or unlike:
            why = (
                f"too small to conclude, needed {rule.min_effective_sample_size:.0f}"
                if small
                else f"mean weight {weight:.2f}, needed {rule.min_mean_weight:g}: the log could not have shown much of "
                "what the challenger shows, and does not conclude"
            )
            yield Check(
                name=name,
                passed=not rule.required,
                doubtful=not rule.required,
                figure=size if small else weight,
                bound=rule.min_effective_sample_size if small else rule.min_mean_weight,
                message=f"{said}: {why}",
            )
            continue
        bound = (1 - rule.max_relative_loss) * estimate.logged_value
        yield Check(name=name, passed=estimate.upper >= bound, figure=estimate.upper, bound=bound, message=said)


def _tells(check: Check) -> bool:
    """Whether a passed check is worth a line in the reasons."""
    return check.doubtful or check.name.startswith(("better_than", "above_"))
