"""How far out an interval goes where few seeds and many contexts both vary."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, norm
from scipy.stats import t as student

from gradmem_bench.statistics.variance import Spread


def test_without_seeds_it_is_students_t():
    spread = Spread(contexts=(0.04, 11.5))
    assert spread.variance == 0.04
    for tail in (0.3, 0.025, 1e-6, 1e-30):
        assert spread.quantile(tail) == pytest.approx(student.ppf(tail, 11.5))
    assert spread.p(0.5) == spread.p(-0.5) == pytest.approx(2 * student.sf(2.5, 11.5))


def test_three_seeds_by_hand():
    # Half of the variance each; t is 4.303 for 2 degrees of freedom and all but normal for a million.
    spread = Spread(contexts=(0.5, 1e6), seeds=((0.5, 2),))
    assert spread.quantile(0.025) == pytest.approx(-(1.960 + (4.303 - 1.960) * 0.5**1.5), abs=1e-3)
    # Two seeds weight the quantiles by the variances themselves (Cochran and Cox).
    spread = Spread(contexts=(0.75, 1e6), seeds=((0.25, 1),))
    assert spread.quantile(0.025) == pytest.approx(-(0.75 * 1.960 + 0.25 * 12.706), abs=1e-3)


def test_seeds_of_two_arms_are_one_source():
    # By Satterthwaite's rule two equal variances with 2 degrees of freedom each have 4, whose t is 2.776.
    alike = Spread(contexts=(0.0, 1.0), seeds=((0.3, 2), (0.3, 2)))
    assert alike.quantile(0.025) == pytest.approx(-2.776, abs=1e-3)
    one_sided = Spread(contexts=(0.0, 1.0), seeds=((0.3, 2), (0.0, 2)))
    assert one_sided.quantile(0.025) == pytest.approx(-4.303, abs=1e-3)


@pytest.mark.parametrize("seeds", [((0.1, 2), (0.3, 4)), ((0.2, 1),), ()])
def test_p_and_interval_say_the_same(seeds):
    spread = Spread(contexts=(0.3, 40.0), seeds=seeds)
    for tail in (0.25, 0.025, 1e-4, 1e-12):
        assert spread.p(spread.quantile(tail) * math.sqrt(spread.variance)) == pytest.approx(2 * tail, rel=1e-6)
    assert spread.p(0.0) == 1.0
    assert 0 < spread.p(1e300) < 1e-90, "a difference that is beyond all doubt has a p that is not 0"


@pytest.mark.parametrize(
    ("freedom", "lowest", "highest"), [(1, 0.938, 0.979), (2, 0.942, 0.961), (4, 0.947, 0.954), (9, 0.949, 0.952)]
)
def test_it_holds_the_truth_whatever_share_of_the_variance_is_the_seeds(freedom, lowest, highest):
    # Normal seeds and contexts, the latter's variance known: integrated over the seeds' chi square.
    drawn = chi2.ppf((np.arange(500) + 0.5) / 500, freedom) / freedom
    for share in np.linspace(0, 1, 11):
        held = []
        for factor in drawn:
            spread = Spread(contexts=(1 - share, 1e9), seeds=((share * factor, freedom),))
            held.append(2 * norm.cdf(-spread.quantile(0.025) * math.sqrt(spread.variance)) - 1)
        assert lowest <= np.mean(held) <= highest
