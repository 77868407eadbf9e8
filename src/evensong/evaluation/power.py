"""Simulated nights: how often the gate errs, and what gain a number of users can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from evensong.evaluation.against_champion import ask, pair, primary_interval, smallest_gain
from evensong.evaluation.bootstrap import Floats
from evensong.evaluation.gate import GateInputs, decide
from evensong.evaluation.policy import PromotionPolicy
from evensong.types import EvaluationReport, Frame, ModelReport, PromotionDecision

CHALLENGER, CHAMPION = "challenger", "champion v1"


@dataclass(frozen=True)
class Population:
    """Users whose held-out items two models find or miss.

    A user has some targets and a chance of their own to find one. The champion and the challenger agree on a target
    more often than chance, since both learned from the same data, and each does better for some users by its seed.
    """

    mean_recall: float = 0.2
    concentration: float = 2.0
    """Of the users' chances (a Beta distribution); small is diverse."""
    agreement: float = 0.6
    """Share of targets on which both models draw the same luck."""
    seed_spread: float = 0.05
    """Spread over users of what another seed changes, in units of chance."""
    heavy_tailed: bool = False
    """Few users hold most targets, and seeds change much for few users."""
    share_new: float = 0.15
    """Of the users who are new."""
    left_for_new: float | None = None
    """Share of the champion's chances that the challenger has with new users; none: it has the gain there too."""

    def night(self, num_users: int, gain: float, generator: np.random.Generator) -> Frame:
        """The per-user figures of one night whose challenger finds `gain` more of each user's targets on average."""
        alpha = self.mean_recall * self.concentration
        chance_U = generator.beta(alpha, self.concentration - alpha, size=num_users)
        if self.heavy_tailed:
            num_targets_U = 1 + np.minimum(generator.pareto(1.1, size=num_users).astype(np.int64), 500)
            luck_U = np.clip(generator.standard_t(2, size=(2, num_users)), -10, 10) * self.seed_spread / 2
        else:
            num_targets_U = 1 + generator.poisson(2.0, size=num_users)
            luck_U = generator.normal(0, self.seed_spread, size=(2, num_users))
        champion_U = np.clip(chance_U + luck_U[0], 0, 1)
        challenger_U = np.clip(chance_U + luck_U[1], 0, 1)
        # Whoever finds less can gain more; scaled so that the mean over the population's chances moves by `gain`.
        challenger_U = challenger_U + (1 - challenger_U) * gain / (1 - self.mean_recall)
        new_U = generator.random(num_users) < self.share_new
        if self.left_for_new is not None:
            challenger_U = np.where(new_U, self.left_for_new * champion_U, challenger_U)
        found = _found(num_targets_U, champion_U, challenger_U, self.agreement, generator)
        slices = {
            "slice_new_users": new_U,
            "slice_new_items": generator.random(num_users) < 0.2,
            "slice_long_tail": generator.random(num_users) < 0.4,
        }
        # where in a list a find stands is chance of its own, for each model anew
        ndcg = [recall_U * generator.uniform(0.6, 1.0, num_users) for recall_U in found]
        user_ids = [f"u{number:07}" for number in range(num_users)]
        return pl.concat(
            pl.DataFrame({"model": model, "user_id": user_ids, "recall_at_20": recall_U, "ndcg_at_10": ndcg_U} | slices)
            for model, recall_U, ndcg_U in zip((CHAMPION, CHALLENGER), found, ndcg, strict=True)
        )


@dataclass(frozen=True)
class Outcome:
    """What came of many simulated nights."""

    nights: int
    promoted: int
    mean_gain: float
    """Observed, over the nights."""
    reasons: dict[str, int]
    """Failed check to the number of nights that it stopped."""

    @property
    def rate(self) -> float:
        """Share of nights that promoted."""
        return self.promoted / self.nights


def simulate(
    policy: PromotionPolicy,
    population: Population,
    *,
    nights: int,
    num_users: int,
    gain: float,
    seed: int,
    tries: int = 1,
) -> Outcome:
    """Let the whole gate decide many nights of one true gain; 0 is the A/A case, the same model with another seed.

    With `tries`, a night makes so many versions one after the other, until one is promoted.
    """
    promoted, gains = 0, []
    reasons: dict[str, int] = {}
    for number in range(nights):
        for attempt in range(1, tries + 1):
            per_user = population.night(num_users, gain, np.random.default_rng([seed, number, *range(1, attempt)]))
            report = report_of(per_user)
            decision = judge(policy, per_user, report, seed=seed + number, attempt=attempt)
            for check in decision.checks:
                if not check.passed:
                    reasons[check.name] = reasons.get(check.name, 0) + 1
            gains.append(report.challenger.metrics["recall_at_20"] - _champion(report).metrics["recall_at_20"])
            if decision.promote:
                promoted += 1
                break
    return Outcome(nights, promoted, float(np.mean(gains)), dict(sorted(reasons.items())))


def judge(
    policy: PromotionPolicy, per_user: Frame, report: EvaluationReport, *, seed: int, attempt: int = 1
) -> PromotionDecision:
    """The gate's decision on one simulated night, everything but the figures being in order."""
    inputs = GateInputs(
        passed=dict.fromkeys(policy.inputs.required, True),
        figures={"max_skew": 0.0},
        champion_version="1",
        earlier_attempts=tuple(str(number) for number in range(2, attempt + 1)),
    )
    # What a bundle must be fit for is no figure of users, and the same on every simulated night.
    simulated = {
        "primary": policy.primary.model_copy(update={"seed": seed}),
        "guardrails": {name: rule for name, rule in policy.guardrails.items() if name in report.challenger.metrics},
        "baselines": policy.baselines.model_copy(update={"names": tuple(report.baselines)}),
    }
    return decide(report, policy.model_copy(update=simulated), per_user, inputs)


def smallest_detectable(
    policy: PromotionPolicy, population: Population, *, num_users: int, seed: int, nights: int = 20
) -> float:
    """The gain that so many users show with the policy's power: the median over nights of what each would state."""
    stated = []
    for number in range(nights):
        per_user = population.night(num_users, 0.0, np.random.default_rng([seed, number]))
        paired = pair(per_user, CHALLENGER, CHAMPION, [policy.primary.metric])
        gain = primary_interval(paired, policy)
        stated.append(smallest_gain(gain, ask(paired, policy), policy) or math.inf)
    return float(np.median(stated))


def report_of(per_user: Frame) -> EvaluationReport:
    """The evaluation report that such per-user figures come to."""
    as_of = datetime(2026, 1, 2, tzinfo=UTC)
    metrics = ["recall_at_20", "ndcg_at_10"]
    popularity = {**dict.fromkeys(metrics, 0.01), "coverage": 0.05, "novelty": 7.0}

    def model(name: str) -> ModelReport:
        means = per_user.filter(pl.col("model") == name).select(metrics).mean().row(0, named=True)
        return ModelReport(model=name, metrics={**means, "coverage": 0.5, "novelty": 8.0})

    return EvaluationReport(
        as_of=as_of,
        window_start=as_of - timedelta(days=1),
        window_end=as_of,
        num_users=per_user["user_id"].n_unique(),
        num_events=per_user.height,
        challenger=model(CHALLENGER),
        champion=model(CHAMPION),
        champion_version="1",
        baselines={"popularity": ModelReport(model="popularity", metrics=popularity)},
        guardrails={"index_recall": 1.0},
    )


def _found(
    num_targets_U: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    champion_U: Floats,
    challenger_U: Floats,
    agreement: float,
    generator: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Each user's share of targets found by the one and by the other."""
    user_T = np.repeat(np.arange(len(num_targets_U)), num_targets_U)
    luck_T = generator.random(len(user_T))
    other_T = np.where(generator.random(len(user_T)) < agreement, luck_T, generator.random(len(user_T)))
    shares = []
    for drawn_T, chance_U in ((luck_T, champion_U), (other_T, challenger_U)):
        hits_U = np.bincount(user_T, weights=drawn_T < chance_U[user_T], minlength=len(num_targets_U))
        shares.append(hits_U / num_targets_U)
    return shares[0], shares[1]


def _champion(report: EvaluationReport) -> ModelReport:
    assert report.champion is not None
    return report.champion
