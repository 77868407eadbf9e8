"""The paired bootstrap over users: the interval of a mean difference, and the smallest gain it could have shown."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from evensong.types import Value

Floats = npt.NDArray[np.float64]

#: Resamples drawn at once, times users: so many stay in the processor's cache, which takes a third of the time.
_CELLS = 100_000


class Interval(Value):
    """A mean with its two one-sided bounds, in the metric's own unit."""

    mean: float
    lower: float
    upper: float
    standard_error: float
    num_users: int
    confidence: float
    """Of the two-sided interval: at 0.99 each bound alone errs in 0.5 % of samples."""
    critical_lower: float
    """Standard errors between the mean and the lower bound."""
    critical_upper: float
    typical_difference: float
    """Size of a difference that is not zero: their mean square over their mean size."""
    mean_loss: float
    """What the users who lose lose, over all users."""

    def error_at(self, gain: float) -> float:
        """The standard error that a night such as this one would have at another true gain.

        A gain beyond tonight's is taken to come in equal parts from users who lose tonight and no longer do, as far as
        what they lose goes, and from users who newly differ, each by as much as those who differ tonight; the latter
        widen the spread.
        """
        beyond = max(0.0, gain - max(0.0, self.mean))
        new = max(beyond / 2, beyond - self.mean_loss)
        return math.sqrt(self.standard_error**2 + new * self.typical_difference / self.num_users)

    def chance_above(self, bound: float, gain: float) -> float:
        """How often the lower bound would exceed `bound` at this true gain: Student's noncentral t past the critical
        value (Cohen 1988, chapter 2)."""
        distance = (gain - bound) / self.error_at(gain)
        return float(stats.nct.sf(self.critical_lower, self.num_users - 1, distance))

    def chance_mean_below(self, bound: float, gain: float) -> float:
        """How often the mean itself would fall below `bound` at this true gain."""
        return float(stats.t.cdf((bound - gain) / self.error_at(gain), self.num_users - 1))


def smallest_gain(chance: Callable[[float], float], power: float, most: float = 64.0) -> float | None:
    """The smallest gain at which `chance` reaches `power`; none where no gain up to `most` does.

    `chance` grows with the gain.
    """
    low, high = 0.0, 1e-4
    while chance(high) < power:
        low, high = high, 2 * high
        if high > most:
            return None
    return float(optimize.brentq(lambda gain: chance(gain) - power, low, high, xtol=1e-7))


def paired_interval(
    differences: Floats, *, confidence: float, resamples: int, generator: np.random.Generator
) -> Interval:
    """The interval of the mean of one difference a user (challenger minus champion), users drawn with replacement.

    Bootstrap-t (Efron and Tibshirani 1993, section 12.5): the resampled statistic is studentized, so skewed and heavy
    tails move each bound by itself. Neither bound comes closer to the mean than Student's t puts it: with few users, or
    with few that differ at all, the bootstrap alone is too sure.

    Raises:
        ValueError: fewer than two users, or a difference that is not finite.
    """
    differences = np.asarray(differences, dtype=np.float64)
    num_users = len(differences)
    if num_users < 2:
        raise ValueError(f"expected at least 2 users, got {num_users}; hold out more days")
    if not np.isfinite(differences).all():
        raise ValueError("expected finite differences, got NaN or infinity; see the per-user figures")
    mean = float(differences.mean())
    standard_error = float(differences.std(ddof=1)) / math.sqrt(num_users)
    tail = (1 - confidence) / 2
    floor = float(stats.t.ppf(1 - tail, num_users - 1))
    lower_critical = upper_critical = floor
    if standard_error > 0:
        studentized = _studentized(differences - mean, resamples, generator)
        low = float(np.quantile(studentized, tail, method="lower"))
        high = float(np.quantile(studentized, 1 - tail, method="higher"))
        # A resample of equal users has no spread and an infinite statistic: where few users differ, that is most of
        # what the bootstrap knows, and thrice Student's distance is far enough.
        reach = 3 * floor
        lower_critical, upper_critical = min(max(floor, high), reach), min(max(floor, -low), reach)
    return Interval(
        mean=mean,
        lower=mean - lower_critical * standard_error,
        upper=mean + upper_critical * standard_error,
        standard_error=standard_error,
        num_users=num_users,
        confidence=confidence,
        critical_lower=lower_critical,
        critical_upper=upper_critical,
        mean_loss=float(np.maximum(-differences, 0.0).mean()),
        typical_difference=float((differences**2).sum() / size) if (size := np.abs(differences).sum()) > 0 else 0.0,
    )


def adjust(differences: Floats, covariates: Floats, population_means: Floats) -> Floats:
    """Differences freed of what the users' past explains, their mean moved to the whole population's past.

    The regression estimator for a sample whose covariates are known for everyone (Cochran 1977, chapter 7; CUPED is its
    two-sample form). Honest only for covariates fixed before the window; `covariates` has one row a user, one column a
    covariate, and `population_means` is their mean over all users from whom the sample was drawn.
    """
    centred = covariates - covariates.mean(axis=0)
    usable = centred.std(axis=0) > 1e-12
    if not usable.any() or len(differences) <= 2 + int(usable.sum()):
        return differences
    centred = centred[:, usable]
    mean = differences.mean()
    slope, *_ = np.linalg.lstsq(centred, differences - mean, rcond=None)
    shift = float((population_means - covariates.mean(axis=0))[usable] @ slope)
    # A fitted slope takes some noise along; what is left is stretched by the freedom that it cost.
    stretch = math.sqrt((len(differences) - 1) / (len(differences) - 1 - centred.shape[1]))
    return np.asarray(mean + shift + stretch * (differences - mean - centred @ slope))


def _studentized(centred: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """(mean* - mean) / se* of each resample; where all drawn are equal, an infinity of its sign."""
    num_users = len(centred)
    # Where values repeat, drawing how often each comes costs less than drawing every user: ten times as much a draw.
    values, counts = np.unique(centred, return_counts=True)
    statistic = np.empty(resamples)
    step = max(1, _CELLS // min(num_users, len(values)))
    squares = values**2
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if len(values) * 10 < num_users:
            drawn = generator.multinomial(num_users, counts / num_users, size=size)
            mean, square = drawn @ values / num_users, drawn @ squares / num_users
        else:
            sample = centred[generator.integers(0, num_users, size=(size, num_users))]
            mean, square = sample.mean(axis=1), (sample**2).mean(axis=1)
        variance = np.maximum(square - mean**2, 0.0) * num_users / (num_users - 1)
        error = np.sqrt(variance / num_users)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(error > 1e-15, mean / error, np.sign(mean) * np.inf)
        statistic[start : start + size] = np.nan_to_num(ratio, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return statistic
