"""A mean with its interval."""

from collections.abc import Hashable, Sequence
from math import exp, sqrt
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gradmem_bench.config import StrictModel
from gradmem_bench.statistics.variance import arm, members_of, spread

if TYPE_CHECKING:
    from numpy import ndarray

# numpy and scipy are imported where they are used: records hold Estimates, and listing records must stay quick.

ROUNDING = 1e-12
"""A standard error below this share of the scores is zero but for rounding."""
Kind = Literal["proportion", "amount", "mean"]
"""What is averaged: numbers from 0 to 1, numbers that are not below 0, or any; ones and zeros alone are the first."""
_METHODS: dict[Kind, str] = {"proportion": "wilson", "amount": "t of the logarithm", "mean": "t"}


class Estimate(StrictModel):
    """A mean with its interval; a bound that cannot be known is `None`, with the reason."""

    value: float | None = Field(allow_inf_nan=False)
    """The mean over all values; `None` without any, or with one that is not finite."""
    low: float | None = Field(allow_inf_nan=False)
    """Lower bound of the interval."""
    high: float | None = Field(allow_inf_nan=False)
    """Upper bound of the interval."""
    n: int
    """Values, as a rule one a query; of several seeds, the values of each."""
    clusters: int
    """Contexts that the values belong to."""
    method: str
    """How the interval was made; empty where there is none."""
    reason: str | None = None
    """Why there is no value or no interval."""


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of `n` > 0 independent trials; never of zero width."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def estimate(
    values: "Sequence[float] | ndarray", clusters: Sequence[Hashable], kind: Kind, level: float = 0.95
) -> Estimate:
    """The mean of `values` with a `level` interval, for other contexts and, where there are several, other seeds.

    Wilson's interval for ones and zeros with one value a cluster. Any other proportion gets Wilson's interval at the
    effective sample size, p (1 - p) / variance, with Student's t in the normal quantile's place (Korn and Graubard,
    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
    Survey Methodology 24, 1998). An amount gets t times the standard error on the scale of its logarithm, since amounts
    are as a rule far from symmetric; any other mean on its own scale. The variance is that of `variance.spread`. A
    proportion that is 0 or 1 throughout gets Wilson's interval with n = number of clusters, which is as wide as the
    clusters could be uniform within.

    Args:
        values: (n,), or (S, n) with a row for each seed; of a proportion, 0 to 1 each.
        clusters: (n,), what each value belongs to: its context's id.
    """
    import numpy as np

    scores = np.atleast_2d(np.asarray(values, dtype=np.float64))
    seeds, n = scores.shape
    if len(clusters) != n:
        raise ValueError(f"{n} values but {len(clusters)} clusters")
    if kind == "mean" and np.isin(scores, (0, 1)).all():
        # A task's own accuracy, which does not say that it is one.
        kind = "proportion"
    proportion = kind == "proportion"
    if proportion and not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("a proportion is made of numbers from 0 to 1")
    k = len(set(clusters))

    def without_interval(value: float | None, reason: str) -> Estimate:
        return Estimate(value=value, low=None, high=None, n=n, clusters=k, method="", reason=reason)

    if n == 0:
        return without_interval(None, "there are no values")
    if not np.isfinite(scores).all():
        return without_interval(None, f"{int((~np.isfinite(scores)).sum())} of {scores.size} values are not finite")
    value = float(scores.mean())
    constant = bool((scores == scores[0, 0]).all())
    if constant:
        value = float(scores[0, 0])
    if k == 1:
        return without_interval(value, "all values belong to one context")
    unit = "context and seed" if seeds > 1 else "context"
    if proportion and constant and value in (0, 1):
        low, high = wilson(round(value * k), k, level)
        method = "wilson" if k == n and seeds == 1 else "wilson over contexts"
    elif proportion and k == n and seeds == 1 and np.isin(scores, (0, 1)).all():
        low, high = wilson(round(scores.sum()), n, level)
        method = "wilson"
    elif constant:
        return without_interval(value, "all values are equal")
    else:
        low, high = _interval(scores, members_of(clusters), value, kind, level)
        method = f"{_METHODS[kind]}, clustered by {unit}"
        if low == high:
            return without_interval(value, f"every {unit} has the same mean")
    return Estimate(value=value, low=low, high=high, n=n, clusters=k, method=method)


def _interval(scores: "ndarray", members: "ndarray", value: float, kind: Kind, level: float) -> tuple[float, float]:
    """The bounds around `value`; both are `value` where no variance was seen."""
    found = spread([arm(scores, members)])
    if sqrt(found.variance) <= ROUNDING * max(1.0, abs(value)):
        return value, value
    t = -found.quantile((1 - level) / 2)
    half = t * sqrt(found.variance)
    if kind == "amount" and value > 0:
        factor = exp(half / value)
        return value / factor, value * factor
    if kind != "proportion":
        return value - half, value + half
    size = value * (1 - value) / found.variance
    centre = (value + t * t / (2 * size)) / (1 + t * t / size)
    half = t / (1 + t * t / size) * sqrt(found.variance + (t / (2 * size)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)
