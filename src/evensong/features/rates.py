"""Rates of rare events, each drawn towards what all of them do.

Rates of few trials are mostly chance. With a Beta(a, b) prior fitted to all of them, `(conversions + a) / (trials + a +
b)` is each rate's posterior mean (empirical Bayes, Casella, The American Statistician 39(2), 1985). The prior is fitted
state: it travels with the model (`columns.RateColumn`), and the feature tables hold counts alone.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from evensong.types import Value

_STRONGEST = 1e6


class BetaPrior(Value):
    """What a rate is believed to be before anything is seen: Beta(a, b), worth `a + b` trials."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        """The expected rate."""
        return self.a / (self.a + self.b)


def smoothed_rates(conversions: pl.Series, trials: pl.Series, prior: BetaPrior) -> pl.Series:
    """The posterior mean of each rate, between 0 and 1. A conversion without a trial of its own counts as one."""
    seen = pl.select(pl.max_horizontal(conversions.cast(pl.Float64), trials.cast(pl.Float64))).to_series()
    return ((conversions.cast(pl.Float64) + prior.a) / (seen + prior.a + prior.b)).alias("rate")


def fit_prior(conversions: pl.Series, trials: pl.Series, strength: float = 0.0) -> BetaPrior:
    """The Beta prior of many rates by the method of moments (beta-binomial: Kleinman, JASA 68, 1973).

    Args:
        strength: trials that the prior is worth; 0: as the spread of the rates says. Rates that differ no more than
            chance alone would make them give the strongest prior, so that all are pulled to the common mean.

    Raises:
        ValueError: conversions and trials are not of one length.
    """
    if len(conversions) != len(trials):
        raise ValueError(f"expected as many conversions as trials, got {len(conversions)} and {len(trials)}")
    successes = conversions.cast(pl.Float64).to_numpy()
    sizes = np.maximum(trials.cast(pl.Float64).to_numpy(), successes)
    successes, sizes = successes[sizes > 0], sizes[sizes > 0]
    total = sizes.sum()
    # Half a conversion among one trial more (Jeffreys): no item has converted yet does not mean that none ever will.
    mean = float((successes.sum() + 0.5) / (total + 1))
    if strength <= 0:
        strength = _strength(successes, sizes, mean)
    return BetaPrior(a=mean * strength, b=(1 - mean) * strength)


def _strength(successes: np.ndarray, sizes: np.ndarray, mean: float) -> float:
    """`a + b` such that the weighted spread of the observed rates is the expected one."""
    if len(sizes) < 2:
        return 1.0
    total = sizes.sum()
    spread = float((sizes * (successes / sizes - mean) ** 2).sum())
    by_chance = mean * (1 - mean) * (len(sizes) - 1)
    beyond = spread - by_chance
    # E[spread] = mean (1 - mean) [ (k - 1) + rho (total - sum(n^2) / total - (k - 1)) ], rho = 1 / (a + b + 1).
    room = mean * (1 - mean) * (total - float((sizes**2).sum()) / total - (len(sizes) - 1))
    if beyond <= 0 or room <= 0:
        return _STRONGEST if room > 0 else 1.0
    rho = min(beyond / room, 0.999)
    return float(np.clip(1 / rho - 1, 1e-3, _STRONGEST))
