"""How far a mean over contexts would move with other contexts, and with other seeds."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

# numpy is imported where it is used: records hold Estimates, and listing records must stay quick.


@dataclass(frozen=True)
class Spread:
    """The variance of an estimate, and how well it is known."""

    parts: tuple[tuple[float, float], ...]
    """What the variance is the sum of, each with its degrees of freedom: at least 1, not necessarily whole."""

    @property
    def variance(self) -> float:
        return sum(part for part, _ in self.parts)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the whole, for Student's t, by Satterthwaite's rule; 1 without any variance."""
        whole = self.variance
        # Scaled, since squares of small variances leave the range of floats.
        return 1 / sum((part / whole) ** 2 / freedom for part, freedom in self.parts) if whole else 1.0

    def cautious_t(self, level: float) -> float:
        """The parts' own quantiles of t, weighted by their variances (Cochran and Cox, "Experimental Designs", 1957).

        Satterthwaite's rule is too sure of one method's mean: two or three seeds that happen to agree make their part
        look small, and many degrees of freedom with it, just where the mean of these seeds is far from that of others.
        """
        from scipy.special import stdtrit

        quantiles = [float(stdtrit(freedom, (1 + level) / 2)) for _, freedom in self.parts]
        return sum(part * t for (part, _), t in zip(self.parts, quantiles, strict=True)) / self.variance


@dataclass(frozen=True)
class Arm:
    """The scores of one method, split by seed and by context."""

    means: "ndarray"
    """(S,), the mean of each seed."""
    shares: "ndarray"
    """(S, k), what each context adds to its seed's mean above its due; the sum over contexts is 0.

    With y the scores and n_c the queries of context c, it is sum(y_c) / n - n_c / n * mean: the linearised ratio.
    """

    @property
    def seeds(self) -> int:
        return len(self.means)


def members_of(clusters: Sequence[Hashable]) -> "ndarray":
    """(n,), each value's cluster as a number from 0."""
    import numpy as np

    number = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    return np.fromiter((number[cluster] for cluster in clusters), dtype=np.int64, count=len(clusters))


def totals_of(scores: "ndarray", members: "ndarray") -> "ndarray":
    """(S, k), the sum of each cluster's scores; `scores` are (S, n)."""
    import numpy as np

    return np.stack([np.bincount(members, weights=row) for row in scores])


def arm(scores: "ndarray", members: "ndarray") -> Arm:
    """The scores (S, n), one row a seed, of values whose clusters are `members` (n,)."""
    import numpy as np

    # Around the mean: nothing is lost to rounding where scores are large and alike.
    centre = scores.mean()
    totals = totals_of(scores - centre, members)
    due = np.bincount(members) / len(members)
    means = totals.sum(axis=1) / len(members)
    return Arm(means=means + centre, shares=totals / len(members) - means[:, None] * due)


def spread(arms: Sequence[Arm]) -> Spread:
    """Of the mean of one arm over its seeds, or of the difference of two arms on the same k > 1 contexts.

    Contexts are drawn at random, and so are the seeds of an arm that has more than one; every seed answers the same
    contexts. With g the contexts' shares, averaged over seeds (and subtracted, of two arms):

        contexts      k / (k - 1) * sum g^2                          their own variance and the interaction's
        seeds         var(seed means) / S, of each arm               their own variance and the interaction's
        interaction   k / (k - 1) * sum (g_s - g)^2 / (S - 1) / S    counted twice above, so taken off once
        variance      max(0, contexts - interaction) + seeds

    That is the two-way analysis of variance with random seeds and random contexts; the floor at 0 and the degrees of
    freedom of each part are those of Hillis ("A comparison of denominator degrees of freedom methods for
    multiple observer ROC analysis", Statistics in Medicine 26, 2007), where readers stand for seeds and cases for
    contexts. The degrees of freedom of the contexts' part come from the kurtosis of g: k - 1 where all contexts weigh
    alike, few where the variance hangs on a few of them. An arm of one seed adds nothing: what is said then holds for
    that seed's training only.
    """
    import numpy as np

    k = arms[0].shares.shape[1]
    correction = k / (k - 1)
    signs = (1, -1)[: len(arms)]
    shares = sum(sign * one.shares.mean(axis=0) for sign, one in zip(signs, arms, strict=True))
    squares = shares**2
    contexts = correction * squares.sum()
    parts, interaction = [], 0.0
    for one in arms:
        if one.seeds > 1:
            parts.append((float(one.means.var(ddof=1)) / one.seeds, one.seeds - 1))
            rest = one.shares - one.shares.mean(axis=0)
            interaction += correction * (rest**2).sum() / (one.seeds - 1) / one.seeds
    if contexts > 0:
        concentration = (squares**2).sum() / squares.sum() ** 2 - 1 / k
        freedom = float(np.clip(2 / max(concentration, 1e-9), 1, k - 1))
        parts.append((max(0.0, float(contexts - interaction)), freedom))
    return Spread(tuple(parts))
