"""The values that cross rooms."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator

Frame = pl.DataFrame

#: Times everywhere are UTC with microseconds.
TIMESTAMP = pl.Datetime("us", "UTC")

INTERACTIONS: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "event_type": pl.String(),
    "event_timestamp": TIMESTAMP,
    "value": pl.Float64(),
    "session_id": pl.String(),
    "request_id": pl.String(),
    "position": pl.Int32(),
    "propensity": pl.Float64(),
    "created_timestamp": TIMESTAMP,
}
"""What happened. `created_timestamp` is when the row became known; `value` is in the event's own unit (a rating, a
price paid, seconds of dwell); `position` counts from 0; `propensity` is the logging policy's probability."""

ITEMS: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "category_path": pl.String(),
    "price": pl.Float64(),
    "image_uri": pl.String(),
    "attributes": pl.String(),
    "event_timestamp": TIMESTAMP,
    "created_timestamp": TIMESTAMP,
}
"""What can be recommended; several rows an item, the newest known one counts. `category_path` names up to three levels
from broad to narrow, joined by CATEGORY_SEPARATOR; `attributes` is a JSON object."""

USERS: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "attributes": pl.String(),
    "event_timestamp": TIMESTAMP,
    "created_timestamp": TIMESTAMP,
}
"""Who is recommended to; several rows a user, the newest known one counts. `attributes` is a JSON object."""

TABLES = {"interactions": INTERACTIONS, "items": ITEMS, "users": USERS}

CATEGORY_SEPARATOR = " > "

#: What makes two rows of a table the same row: a second import adds only rows with a new key.
TABLE_KEYS = {
    "interactions": (
        "user_id", "item_id", "event_type", "event_timestamp", "value", "session_id", "request_id", "position",
    ),
    "items": ("item_id", "event_timestamp", "created_timestamp"),
    "users": ("user_id", "event_timestamp", "created_timestamp"),
}  # fmt: skip


class Value(BaseModel):
    """A frozen, typed value that travels as JSON and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Night(Value):
    """One run of `nightly_retraining`: everything that decides its outcome beside the data and the settings."""

    as_of: datetime
    """The cutoff: the run sees what was known at this moment (UTC, inclusive), and nothing later."""
    source: str = "all"
    """Which registered source to ingest from; `all` takes every one."""
    train_from: str = Field(default="scratch", pattern="^(scratch|champion|[0-9]+)$")
    """Start the weights at random, or continue from the champion's, or from a version's."""
    refit: bool = True
    """After the evaluation, train the same recipe on everything up to `as_of`; the bundle holds that model."""
    seed: int = Field(default=7, ge=0)

    @field_validator("as_of", mode="before")
    @classmethod
    def _read_as_of(cls, value: object) -> object:
        if isinstance(value, str) and len(value) == 10:
            try:
                value = date.fromisoformat(value)
            except ValueError:
                raise ValueError("expected a day such as 2026-01-15 or a moment such as 2026-01-15T02:00:00Z") from None
        if isinstance(value, date) and not isinstance(value, datetime):
            return datetime.combine(value, time(), UTC)
        return value

    @field_validator("as_of")
    @classmethod
    def _as_utc(cls, value: datetime) -> datetime:
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)

    @property
    def run_id(self) -> str:
        """The name of the run's folder: one night has one, whoever starts it and however often."""
        return f"{self.as_of:%Y-%m-%dT%H%M%S}"


class ModelReport(Value):
    """How one model did on the held-out events. Metrics are means over the same users."""

    model: str
    """`challenger`, `champion v3`, `popularity`, …"""
    metrics: dict[str, float]
    slices: dict[str, dict[str, float]] = {}
    """Slice name (`new_users`, `long_tail`, …) to its metrics; `num_users` among them."""


class EvaluationReport(Value):
    """Challenger, champion and baselines on the same users and the same events. Knows nothing of recommending."""

    as_of: datetime
    window_start: datetime
    window_end: datetime
    num_users: int
    num_events: int
    challenger: ModelReport
    champion: ModelReport | None = None
    champion_version: str | None = None
    champion_train_cutoff: datetime | None = None
    """Up to when the judged champion had learned; with a refit, its weights of before it where these are needed."""
    baselines: dict[str, ModelReport] = {}
    guardrails: dict[str, float] = {}
    """Figures of the challenger that no other model has: `index_recall`, …"""
    slice_attributes: dict[str, int] = {}
    """Configured attribute to how many have a value of it, judged or not; its common values are slices `name=value`."""
    per_user_uri: str | None = None
    """Parquet: `model, user_id`, one column a metric, one boolean column `slice_<name>` a slice."""


class Skew(Value):
    """The largest difference of one served feature, or of the score, from the offline one, and where it was found."""

    name: str
    num_values: int
    num_different: int
    max_difference: float
    request_id: str | None = None
    """Of the largest difference."""
    served: str | None = None
    offline: str | None = None


class Check(Value):
    """One question that the gate asked: the figure, the bound it was held against, the verdict."""

    name: str
    passed: bool
    figure: float | None = None
    bound: float | None = None
    message: str = ""
    doubtful: bool = False
    """Passed, but on thin evidence, or failed in a way that only a person can judge: a reason to ask one."""


class PromotionDecision(Value):
    """The gate's answer. The same object is logged, shown, stored and tested."""

    promote: bool
    reasons: list[str]
    checks: list[Check] = []
    needs_review: bool = False
