"""Intervals and tests that fit the data: the queries of a context are not independent, nor is 0 % known to be 0 %.

What each of them is, and how often it is right, is in docs/statistics.md.
"""

from gradmem_bench.statistics.estimates import Estimate, estimate, wilson
from gradmem_bench.statistics.paired import Difference, Verdict, compared, holm, mcnemar, sign_flips, verdict

__all__ = [
    "Difference",
    "Estimate",
    "Verdict",
    "compared",
    "estimate",
    "holm",
    "mcnemar",
    "sign_flips",
    "verdict",
    "wilson",
]
