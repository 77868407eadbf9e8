"""Reports and per-user figures for tests of the gate: everything in order, unless a test spoils something."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from evensong.evaluation.gate import GateInputs
from evensong.types import EvaluationReport, Frame, ModelReport

AS_OF = datetime(2026, 3, 3, tzinfo=UTC)
METRICS = ("recall_at_20", "ndcg_at_10")
SLICES = ("new_users", "new_items", "long_tail")
SERVES = {
    "bundle_index_recall": 0.99,
    "bundle_megabytes": 10.0,
    "bundle_recall_ratio": 1.1,
    "latency_p99_seconds": 0.005,
}
CLEAN = dict.fromkeys(("validation", "leak_canary", "features_served", "bundle"), True)
FIRST = GateInputs(passed=CLEAN, figures=SERVES | {"max_skew": 0.0})
SOUND = FIRST.model_copy(update={"champion_version": "1", "champion_figures": SERVES})


def figures(num_users: int = 400, gain: float = 0.1, seed: int = 0) -> Frame:
    """Champion's and challenger's figures of each user; every third user is in each slice."""
    generator = np.random.default_rng(seed)
    champion = generator.choice([0.0, 0.25, 0.5], size=num_users)
    noise = generator.normal(0, 0.05, size=num_users)
    rows = []
    for model, values in (("challenger", champion + gain + noise), ("champion v1", champion)):
        rows.append(
            pl.DataFrame(
                {
                    "model": model,
                    "user_id": [f"u{number:05}" for number in range(num_users)],
                    **dict.fromkeys(METRICS, values),
                    **{f"slice_{name}": [number % 3 == 0 for number in range(num_users)] for name in SLICES},
                }
            )
        )
    return pl.concat(rows)


SHOWN_BY_POPULARITY = {"coverage": 0.01, "novelty": 5.0, "miscalibration": 2.0}


def report_of(
    per_user: Frame, *, with_champion: bool = True, popularity: float = 0.05, **changes: object
) -> EvaluationReport:
    """The report that such figures come to."""

    def model(name: str) -> ModelReport:
        means = per_user.filter(pl.col("model") == name).select(METRICS).mean().row(0, named=True)
        return ModelReport(model=name, metrics={**means, "coverage": 0.4, "novelty": 8.0, "miscalibration": 0.5})

    values: dict[str, object] = {
        "as_of": AS_OF,
        "window_start": AS_OF - timedelta(days=1),
        "window_end": AS_OF,
        "num_users": per_user["user_id"].n_unique(),
        "num_events": len(per_user),
        "challenger": model("challenger"),
        "champion": model("champion v1") if with_champion else None,
        "champion_version": "1" if with_champion else None,
        "baselines": {
            name: ModelReport(model=name, metrics=dict.fromkeys(METRICS, popularity) | SHOWN_BY_POPULARITY)
            for name in ("popularity", "item_knn")
        },
        "guardrails": {"index_recall": 0.99, "exact_index_gain": 0.0},
    }
    return EvaluationReport.model_validate(values | changes)
