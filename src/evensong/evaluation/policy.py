"""The promotion policy: what a challenger must show, typed, read from YAML, unknown keys refused."""

from __future__ import annotations

import hashlib
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from evensong.errors import ConfigurationError
from evensong.types import Value

Mode = Literal["auto", "review", "review_when_doubtful"]
Inconclusive = Literal["pass", "fail"]
"""`pass` marks the check doubtful, so that `review_when_doubtful` asks a person; `fail` keeps the champion."""


class PrimaryRule(Value):
    """Better than the champion on one metric, shown by a paired bootstrap over users."""

    metric: str = "recall_at_20"
    margin: float = Field(0.001, ge=0)
    """The gain, in the metric's unit, that the interval's lower bound must exceed: less is a practical tie."""
    confidence: float = Field(0.99, gt=0.5, lt=1)
    """Of the two-sided interval; its lower bound alone errs in half of the rest."""
    resamples: int = Field(10_000, ge=1000)
    power: float = Field(0.8, gt=0.5, lt=1)
    """At which the smallest detectable gain is stated."""
    min_users: int = Field(20, ge=2)
    """Judged users below which no night concludes."""
    seed: int = Field(20261122, ge=0)
    """Of the resampling, so that the same evidence gives the same bounds."""


class BaselineRule(Value):
    """Above the baselines, by the mean over the same users."""

    names: tuple[str, ...] = ("popularity",)
    metrics: tuple[str, ...] = ("recall_at_20", "ndcg_at_10")
    margin: float = Field(0.0, ge=0)


class SliceRule(Value):
    """No slice sacrificed: each is held against a non-inferiority bound, corrected for their number (Bonferroni).

    A slice passes when its lower bound is above `-margin`, and fails when its upper bound is below it. Between the two
    the night's users cannot say, and `when_inconclusive` decides.
    """

    names: tuple[str, ...] = ("new_users", "new_items", "long_tail")
    margin: float = Field(0.02, ge=0)
    """Loss, in the primary metric's unit, that is still no loss."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided, of all slices together."""
    min_users: int = Field(10, ge=2)
    """A slice of fewer users is inconclusive without being looked at."""
    when_inconclusive: Inconclusive = "pass"


class NonInferiorityRule(Value):
    """Another metric that must not fall, held against a bound as a slice is."""

    margin: float = Field(0.01, ge=0)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    when_inconclusive: Inconclusive = "pass"


class GuardrailRule(Value):
    """Bounds of one figure; those that are given must hold, and a missing figure fails."""

    min: float | None = None
    max: float | None = None
    min_ratio_to_champion: float | None = Field(None, gt=0)
    max_ratio_to_champion: float | None = Field(None, gt=0)
    ignore_below: float | None = None
    """Up to here the figure is good whatever the ratio says: twice a millisecond is two milliseconds."""
    with_champion_only: bool = False
    """The figure exists only where there is a champion to compare with."""


class PlausibilityRule(Value):
    """Too good to be true asks for a person: leaks look like that."""

    max_ratio_to_champion: float = Field(2.0, gt=1)
    max_ratio_to_baseline: float = Field(20.0, gt=1)
    max_level: float = Field(0.95, gt=0)
    """Of the primary metric, whatever the others do."""
    min_level: float = Field(0.05, ge=0)
    """Below it a ratio says nothing: twice next to nothing is still next to nothing."""


class InputsRule(Value):
    """The night's inputs; what is required and not reported fails closed."""

    required: tuple[str, ...] = ("validation",)
    """Named checks of the inputs that must have passed: validation, leak_canary, features_served, …"""
    max_skew: float | None = Field(None, ge=0)
    """The largest training-serving difference of any feature; none: not asked."""


class OffPolicyRule(Value):
    """The challenger's online value, estimated from logged propensities."""

    enabled: bool = True
    """Estimate it where the log carries propensities."""
    required: bool = False
    """Fail where there is no estimate; otherwise an estimate that exists is judged, and none is said to be missing."""
    min_effective_sample_size: float = Field(100.0, ge=1)
    """Below it the estimate does not conclude, whatever it says."""
    max_relative_loss: float = Field(0.2, ge=0, le=1)
    """Fail when even the interval's upper bound lies this share below the logged policy's own value."""


class ReviewRule(Value):
    """What a waiting review comes to when nobody answers."""

    deadline_hours: float = Field(12.0, gt=0)
    default: Literal["promote", "keep"] = "keep"


class PromotionPolicy(Value):
    """Everything that the gate asks of a challenger."""

    mode: Mode = "auto"
    primary: PrimaryRule = PrimaryRule()
    baselines: BaselineRule = BaselineRule()
    non_inferior: dict[str, NonInferiorityRule] = Field(default={"ndcg_at_10": NonInferiorityRule()})
    slices: SliceRule = SliceRule()
    guardrails: dict[str, GuardrailRule] = Field(default={"index_recall": GuardrailRule(min=0.95)})
    plausibility: PlausibilityRule = PlausibilityRule()
    inputs: InputsRule = InputsRule()
    off_policy: OffPolicyRule = OffPolicyRule()
    review: ReviewRule = ReviewRule()

    @property
    def digest(self) -> str:
        """SHA-256 of the policy's content, whatever its comments and the order of its keys."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_policy(text: str, name: str = "promotion_policy.yaml") -> PromotionPolicy:
    """Read a policy from its YAML text.

    Raises:
        ConfigurationError: no YAML, an unknown key, or a value out of its range.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name}: expected YAML, {error}; see docs/guides/promotion.md") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"{name}: expected keys and values, got {type(values).__name__}; see docs/guides/promotion.md"
        )
    try:
        return PromotionPolicy.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        raise ConfigurationError(f"{name}: " + "; ".join(lines) + "; see docs/guides/promotion.md") from error
