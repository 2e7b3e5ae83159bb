"""Intervals that fit the data: queries of one context are not independent, and 0 % is not known to be 0 %."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from gradmem_bench.config import StrictModel

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator

# numpy and scipy are imported where they are used: records hold Estimates, and listing records must stay quick.

RESAMPLES = 4000


class Estimate(StrictModel):
    """A mean with its interval; a bound that cannot be known is `None`, with the reason."""

    value: float | None = Field(allow_inf_nan=False)
    """The mean over all values; `None` without any, or with one that is not finite."""
    low: float | None = Field(allow_inf_nan=False)
    """Lower bound of the interval."""
    high: float | None = Field(allow_inf_nan=False)
    """Upper bound of the interval."""
    n: int
    """Values, as a rule one a query."""
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
    values: Sequence[float], clusters: Sequence[Hashable], proportion: bool, seed: int = 0, level: float = 0.95
) -> Estimate:
    """The mean of `values` with a `level` interval, the unit of chance being the cluster.

    Wilson's interval for a proportion with one value a cluster, else a bootstrap over clusters. A proportion that is
    0 or 1 throughout gets Wilson's interval with n = number of clusters, which is as wide as the clusters could be
    uniform within.

    Args:
        values: (n,), 0 or 1 each when `proportion`.
        clusters: (n,), what each value belongs to: its context's id.
        seed: of the bootstrap; equal arguments give equal bounds.
    """
    import numpy as np

    column = np.asarray(values, dtype=np.float64)
    number = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    n, k = len(column), len(number)
    if len(clusters) != n:
        raise ValueError(f"{n} values but {len(clusters)} clusters")
    if proportion and not np.isin(column, (0, 1)).all():
        raise ValueError("a proportion is made of zeros and ones")

    def without_interval(value: float | None, reason: str) -> Estimate:
        return Estimate(value=value, low=None, high=None, n=n, clusters=k, method="", reason=reason)

    if n == 0:
        return without_interval(None, "there are no values")
    if not np.isfinite(column).all():
        return without_interval(None, f"{int((~np.isfinite(column)).sum())} of {n} values are not finite")
    value = float(column.mean())
    constant = bool((column == column[0]).all())
    if constant:
        value = float(column[0])
    if k == 1:
        return without_interval(value, "all values belong to one context")
    if proportion and constant:
        low, high = wilson(round(value * k), k, level)
        method = "wilson" if k == n else "wilson over contexts"
    elif proportion and k == n:
        low, high = wilson(round(column.sum()), n, level)
        method = "wilson"
    elif constant:
        return without_interval(value, "all values are equal")
    else:
        members = np.fromiter((number[cluster] for cluster in clusters), dtype=np.int64, count=n)
        low, high = _cluster_bootstrap(column, members, k, np.random.default_rng(seed), level)
        method = "cluster bootstrap"
        if high - low <= 1e-12 * max(1.0, abs(value)):  # zero but for rounding
            return without_interval(value, "all contexts have the same mean")
    return Estimate(value=value, low=low, high=high, n=n, clusters=k, method=method)


def _cluster_bootstrap(
    column: "ndarray", members: "ndarray", k: int, rng: "Generator", level: float
) -> tuple[float, float]:
    """The expanded percentile interval of the mean over whole clusters drawn with replacement.

    Percentiles of the bootstrap are too narrow by sqrt((k - 1) / k) and use the normal's tails where Student's are due;
    both are mended by taking percentiles further out (Hesterberg, "What Teachers Should Know About the Bootstrap",
    2015, section 3.3).
    """
    import numpy as np
    from scipy.special import ndtr, stdtrit

    # Differences to the mean: nothing is lost to rounding where values are large and alike.
    centre = column.mean()
    sums = np.bincount(members, weights=column - centre, minlength=k)
    sizes = np.bincount(members, minlength=k)
    means = np.empty(RESAMPLES)
    rows = max(1, 200_000 // k)  # resamples at a time, so that the draws stay in cache
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, k, size=(min(rows, RESAMPLES - start), k), dtype=np.int32)
        total = sums[drawn].sum(axis=1)
        count = k * sizes[0] if (sizes == sizes[0]).all() else sizes[drawn].sum(axis=1)
        means[start : start + rows] = total / count
    tail = ndtr(np.sqrt(k / (k - 1)) * stdtrit(k - 1, (1 - level) / 2))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(centre + low), float(centre + high)
