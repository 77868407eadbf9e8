"""The promotion policy: what a challenger must show, typed, read from YAML, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from evensong.errors import ConfigurationError
from evensong.types import Value

Mode = Literal["auto", "review", "review_when_doubtful"]
Inconclusive = Literal["estimate", "pass", "fail"]
"""What a bound that neither shows nor excludes a loss comes to.

`estimate`: the best guess decides; a measured change that is itself beyond the margin keeps the champion, anything else
passes in doubt. `pass`: passes in doubt, whatever was measured. `fail`: keeps the champion. Doubt is what makes
`review_when_doubtful` ask a person.
"""

ALWAYS_REQUIRED = ("leak_canary",)
"""Checks of the night that no policy can leave out. The skew check is the other one: its bound has no `null`."""


class Rule(Value):
    """A part of the policy; a bound that is no number would be none."""

    model_config = ConfigDict(allow_inf_nan=False)


class PrimaryRule(Rule):
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


class BaselineRule(Rule):
    """Above the baselines, by the mean over the same users."""

    names: tuple[str, ...] = ("popularity", "item_knn")
    metrics: tuple[str, ...] = ("recall_at_20", "ndcg_at_10")
    margin: float = Field(0.0, ge=0)


class SliceRule(Rule):
    """No slice sacrificed: each is held against a non-inferiority bound, corrected for their number (Bonferroni).

    A slice passes when its lower bound is above the allowed loss, and fails when its upper bound is below it. Between
    the two the night's users cannot say, and `when_inconclusive` decides.
    """

    names: tuple[str, ...] = ("new_users", "new_items", "long_tail")
    margin: float = Field(0.02, ge=0)
    """Loss, in the primary metric's unit, that is still no loss."""
    max_relative_loss: float = Field(0.1, gt=0, le=1)
    """And no more than this share of the champion's own figure: where it finds little, a small margin is a lot."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided, of all slices together."""
    min_users: int = Field(10, ge=2)
    """A slice of fewer users fails only by a loss that is shown; else it is in doubt."""
    when_inconclusive: Inconclusive = "estimate"


class NonInferiorityRule(Rule):
    """Another metric that must not fall, held against a bound as a slice is."""

    margin: float = Field(0.01, ge=0)
    """Loss, in the metric's unit, that is still no loss."""
    max_relative_loss: float = Field(0.1, gt=0, le=1)
    """And no more than this share of the champion's own figure."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided."""
    when_inconclusive: Inconclusive = "estimate"


class GuardrailRule(Rule):
    """Bounds of one figure; those that are given must hold, and a missing figure fails."""

    min: float | None = None
    max: float | None = None
    min_ratio_to_champion: float | None = Field(None, gt=0)
    max_ratio_to_champion: float | None = Field(None, gt=0)
    min_ratio_to_popularity: float | None = Field(None, gt=0)
    max_ratio_to_popularity: float | None = Field(None, gt=0)
    """What popularity shows the same users is a bound that needs no champion."""
    ignore_below: float | None = None
    """Up to here the figure is good whatever the ratio says: twice a millisecond is two milliseconds."""
    with_champion_only: bool = False
    """The figure exists only where there is a champion to compare with."""

    @model_validator(mode="after")
    def _has_bound(self) -> Self:
        low = (self.min, self.min_ratio_to_champion, self.min_ratio_to_popularity)
        high = (self.max, self.max_ratio_to_champion, self.max_ratio_to_popularity)
        if all(bound is None for bound in (*low, *high)):
            raise ValueError("expected min, max, or a ratio to the champion or to popularity: it would always pass")
        if self.ignore_below is not None and all(bound is None for bound in high):
            raise ValueError("ignore_below loosens what a figure may be at most, and nothing bounds it from above")
        return self


GUARDRAILS = {
    "coverage": GuardrailRule(min_ratio_to_champion=0.5, min_ratio_to_popularity=1.0),
    "novelty": GuardrailRule(min_ratio_to_champion=0.7, min_ratio_to_popularity=0.95),
    "miscalibration": GuardrailRule(max_ratio_to_champion=1.5, max_ratio_to_popularity=1.25, ignore_below=1.0),
    "index_recall": GuardrailRule(min=0.95),
    "exact_index_gain": GuardrailRule(max=0.005),
    "bundle_index_recall": GuardrailRule(min=0.95),
    "bundle_recall_ratio": GuardrailRule(min=0.8),
    "bundle_megabytes": GuardrailRule(max=4000, max_ratio_to_champion=3.0, ignore_below=50),
    "latency_p99_seconds": GuardrailRule(max=1.0, max_ratio_to_champion=2.0, ignore_below=0.005),
}
"""What a policy without guardrails of its own is held to, as mlflow/promotion_policy.yaml has them."""


class PlausibilityRule(Rule):
    """Too good to be true asks for a person: leaks look like that."""

    max_ratio_to_champion: float = Field(2.0, gt=1)
    max_ratio_to_baseline: float = Field(20.0, gt=1)
    max_level: float = Field(0.95, gt=0)
    """Of the primary metric, whatever the others do."""
    min_level: float = Field(0.05, ge=0)
    """Below it a ratio says nothing: twice next to nothing is still next to nothing."""


class InputsRule(Rule):
    """The night's inputs; what is required and not reported fails closed.

    A policy sets what else is asked. The leak canary and the skew check are asked whatever it says.
    """

    required: tuple[str, ...] = ("validation", "leak_canary", "features_served", "bundle")
    """Named checks of the inputs that must have passed; one that is always asked is added where it is left out."""
    max_skew: float = Field(0.0001, ge=0, lt=1)
    """The largest training-serving difference of any feature. A feature that one side lacks is a difference of 1."""

    @field_validator("required")
    @classmethod
    def _with_what_is_always_asked(cls, required: tuple[str, ...]) -> tuple[str, ...]:
        return required + tuple(name for name in ALWAYS_REQUIRED if name not in required)


class OffPolicyRule(Rule):
    """The challenger's online value, estimated from logged propensities."""

    enabled: bool = True
    """Estimate it where the log carries propensities."""
    required: bool = False
    """Fail where there is no estimate; otherwise an estimate that exists is judged, and none is said to be missing."""
    min_effective_sample_size: float = Field(100.0, ge=1)
    """Below it the estimate does not conclude, whatever it says."""
    min_mean_weight: float = Field(0.7, ge=0, le=1)
    """Nor below this mean of the importance weights: the log could not have shown much of what the challenger shows."""
    max_relative_loss: float = Field(0.2, ge=0, le=1)
    """Fail when even the interval's upper bound lies this share below the logged policy's own value."""


class ReviewRule(Rule):
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
    guardrails: dict[str, GuardrailRule] = Field(default=GUARDRAILS)
    plausibility: PlausibilityRule = PlausibilityRule()
    inputs: InputsRule = InputsRule()
    off_policy: OffPolicyRule = OffPolicyRule()
    review: ReviewRule = ReviewRule()

    @property
    def digest(self) -> str:
        """SHA-256 of the policy's content, whatever its comments and the order of its keys."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_policy(text: str, name: str = "promotion_policy.yaml") -> PromotionPolicy:
    """Read a policy from its YAML text. A number is a number: one in quotes is refused, and so is a key given twice.

    Raises:
        ConfigurationError: no YAML, an unknown or repeated key, or a value of another type or out of its range.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name}: expected YAML, {error}; see docs/guides/promotion.md") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"{name}: expected keys and values, got {type(values).__name__}; see docs/guides/promotion.md"
        )
    try:
        # as JSON, whose lists may be tuples where nothing else is taken for what it is not
        return PromotionPolicy.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}, got {_shown(e)}" for e in error.errors()]
        raise ConfigurationError(f"{name}: " + "; ".join(lines) + "; see docs/guides/promotion.md") from error


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the last would count without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _shown(error: Any) -> str:
    given = error["input"]
    hint = ": write a number without quotes, as 0.001" if isinstance(given, str) and "number" in error["msg"] else ""
    return f"{given!r}{hint}"
