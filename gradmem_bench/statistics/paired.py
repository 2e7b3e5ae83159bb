"""The difference of two methods on the same examples, and whether it is more than chance."""

from collections.abc import Hashable, Sequence
from math import sqrt
from sys import float_info
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gradmem_bench.config import StrictModel
from gradmem_bench.statistics.estimates import ROUNDING, Kind
from gradmem_bench.statistics.variance import arm, members_of, spread, totals_of

if TYPE_CHECKING:
    from numpy import ndarray

Verdict = Literal["better", "worse", "tied"]

FLIPS = 20_000
"""Sign flips that are drawn where they are too many to count."""


class Difference(StrictModel):
    """How far one method's mean is above another's; what cannot be known is `None`, with the reason."""

    value: float | None = Field(allow_inf_nan=False)
    """Mean of the first less mean of the second."""
    low: float | None = Field(allow_inf_nan=False)
    """Lower bound of its interval."""
    high: float | None = Field(allow_inf_nan=False)
    """Upper bound of its interval."""
    p: float | None = Field(allow_inf_nan=False)
    """How often chance alone makes a difference so large, of either sign; not corrected for other comparisons."""
    test: str
    """The test that `p` is from; empty without one."""
    n: int
    """Pairs of values, as a rule one a query."""
    clusters: int
    """Contexts that the pairs belong to."""
    reason: str | None = None
    """Why there is no interval or no `p`."""


def compared(
    first: "Sequence[float] | ndarray",
    second: "Sequence[float] | ndarray",
    clusters: Sequence[Hashable],
    kind: Kind,
    level: float = 0.95,
    same_trainings: bool = False,
) -> Difference:
    """The mean of `first` less that of `second`, paired by example and clustered by context.

    The interval is a quantile of t times the standard error of `variance.spread`, and of proportions no further than -1
    and 1. The test, of a single seed each:

    - `mcnemar` for ones and zeros with one query a context;
    - `sign_flips` for anything else.

    McNemar's test asks whether the discordant queries fall to either side like fair coins, thrown apart. Where a
    context has several queries they are not thrown apart: a state that lost its context loses all of its queries, to
    one side. Counting queries as trials then calls differences that are not there (8 to 12 % of the time at a level of
    5 %, see docs/statistics.md). Flipping the signs of whole contexts keeps the queries of a context together; with
    one query a context it is McNemar's test, flip for flip.

    With more than one seed on either side neither test would do, for both hold the trained weights fixed; there p is
    where an interval ends at 0, by the variance and the quantiles of `variance.spread`, which has the seeds in it.
    Where both are the same trainings, evaluated in two ways, their rows are pairs as the examples are: what varies is
    how far a training moves, and not how good it is.

    Args:
        first, second: (n,), or (S, n) with a row for each seed; the columns are the same examples.
        clusters: (n,), the context of each.
        kind: what the values are, of both methods alike.
        same_trainings: whether row s of both is one training, evaluated in two ways.
    """
    import numpy as np

    one, other = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second))
    n = one.shape[1]
    if other.shape[1] != n or len(clusters) != n:
        raise ValueError(f"{n} values, {other.shape[1]} to compare them with, and {len(clusters)} clusters")
    k = len(set(clusters))

    def difference(reason: str | None = None, value: float | None = None, **known: float | str | None) -> Difference:
        empty = {"low": None, "high": None, "p": None, "test": ""}
        return Difference(value=value, n=n, clusters=k, reason=reason, **(empty | known))

    if n == 0:
        return difference("there are no pairs")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return difference("some values are not finite")
    value = float(one.mean() - other.mean())
    if k == 1:
        return difference("all queries belong to one context", value)
    members = members_of(clusters)
    if same_trainings:
        found, test = spread([arm(one - other, members)]), "t over seeds and contexts, paired by training"
    else:
        found, test = spread([arm(one, members), arm(other, members)]), "t over seeds and contexts"
    error = sqrt(found.variance)
    exact = error <= ROUNDING * max(1.0, float(np.abs(one).max()), float(np.abs(other).max()))
    if len(one) == len(other) == 1:
        binary = np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all()
        if k == n and binary:
            p, test = mcnemar(int((one > other).sum()), int((other > one).sum())), "exact McNemar"
        else:
            p, test = sign_flips(totals_of(one - other, members)[0])
        tested = {"p": p, "test": test}
    elif exact:
        tested = {}
    else:
        tested = {"p": found.p(value), "test": test}
    if exact:
        return difference("the difference is the same in every context", value, **tested)
    half = -found.quantile((1 - level) / 2) * error
    low, high = value - half, value + half
    if kind == "proportion":
        low, high = max(-1.0, low), min(1.0, high)
    return difference(None, value, low=low, high=high, **tested)


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p of McNemar's test: of independent pairs, how many were right on one side only."""
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return 1.0 if discordant == 0 else max(float(binomtest(first_only, discordant).pvalue), float_info.min)


def sign_flips(differences: "ndarray") -> tuple[float, str]:
    """The two-sided p that the differences (k,), summed within each context, have no direction; and the test's name.

    Under the null hypothesis the methods may be swapped in any context, which flips the sign of its difference. Whole
    differences, those of counts, get the exact distribution of the sum over all 2^k flips; others get FLIPS random
    ones, the observed one among them (Phipson and Smyth, "Permutation p-values should never be zero", 2010).
    """
    import numpy as np

    sizes = np.abs(differences)
    observed = abs(differences.sum())
    if (sizes == np.rint(sizes)).all():
        distribution, total = _signed_sums(sizes.astype(np.int64))
        sums = np.abs(np.arange(-total, total + 1))
        p = min(1.0, float(distribution[sums >= observed - 0.5].sum()))
        return max(p, float_info.min), "exact sign flips by context"
    generator, hits = np.random.default_rng(0), 1
    rows = max(1, 4_000_000 // len(sizes))  # flips at a time, so that they fit in memory
    for start in range(0, FLIPS - 1, rows):
        signs = generator.integers(0, 2, size=(min(rows, FLIPS - 1 - start), len(sizes)), dtype=np.int8)
        # signs are 0 and 1: the flipped sum is twice what they keep, less the whole.
        sums = np.abs(2 * (signs @ sizes) - sizes.sum())
        hits += int((sums >= observed * (1 - 1e-9)).sum())
    return hits / FLIPS, f"sign flips by context, {FLIPS:,} drawn"


def _signed_sums(sizes: "ndarray") -> tuple["ndarray", int]:
    """The chances of every sum -total ... total of the `sizes`, each with a fair sign; and the total."""
    import numpy as np
    from scipy.stats import binom

    chances, total = np.ones(1), 0
    for size, count in zip(*np.unique(sizes[sizes > 0], return_counts=True), strict=True):
        # `count` of one size: their sum is size * (2 Binomial(count, 1/2) - count).
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, steps)
        total += int(size * count)
    return chances, total


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p values corrected for there being so many of them (Holm's step-down method); `None` is not one of them."""
    order = sorted((p, index) for index, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[index] = highest
    return corrected


def verdict(
    difference: float | None, p: float | None, higher_is_better: bool = True, level: float = 0.95
) -> Verdict | None:
    """What may be said of a difference whose corrected p value is `p`; `None` where nothing may.

    `tied` says that chance alone could have made the difference; it does not say that there is none.
    """
    if difference is None or p is None:
        return None
    if p > 1 - level:
        return "tied"
    return "better" if (difference > 0) == higher_is_better else "worse"
