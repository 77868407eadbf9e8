"""What the gate is told beside the report, and how its checks read a figure that may be missing."""

from __future__ import annotations

import math
from datetime import datetime

from pydantic import Field

from evensong.types import Check, ModelReport, Value


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
    mean_weight: float = 1.0
    """Near 1 where the logged policy could have shown all that the challenger shows; less where it could not."""
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
    newest_champion: str | None = None
    """The present champion."""
    newest_champion_as_of: datetime | None = None
    """Its cutoff; a night before it is a backfill."""
    twin: str | None = None
    """The present champion, where it is another version that the same night made of the very same."""
    earlier_attempts: tuple[str, ...] = ()
    """Versions that the same night made before this one."""
    covariate_means: dict[str, float] = Field(default={})
    """Means over all users, not only the judged ones, of the per-user columns `covariate_<name>`."""
    off_policy: tuple[OffPolicyEstimate, ...] = ()

    @property
    def attempt(self) -> int:
        """1 for the first version of the night."""
        return len(self.earlier_attempts) + 1


def figure_of(model: ModelReport | None, metric: str) -> float | None:
    return first(model.metrics.get(metric)) if model is not None else None


def first(*figures: float | None) -> float | None:
    return next((figure for figure in figures if figure is not None and math.isfinite(figure)), None)


def missing(name: str, what: str) -> Check:
    return Check(name=name, passed=False, message=f"{name} cannot be computed: it needs {what}")


def named(version: str | None) -> str:
    return f"champion v{version}" if version else "no champion"
