import json
import math
import random

import numpy as np
import pytest

from gradmem_bench.statistics import Estimate, estimate, wilson


def test_wilson_is_the_textbook_formula():
    z = 1.959963984540054
    for successes, n in [(0, 10), (1, 3), (81, 263), (500, 500)]:
        share = successes / n
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        assert wilson(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-12)
    # Newcombe 1998, table I: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_one_query_a_context_gives_wilson():
    result = estimate([1, 0, 1, 1, 0, 1, 1, 1, 0, 1], range(10), proportion=True)
    assert (result.value, result.n, result.clusters, result.method) == (0.7, 10, 10, "wilson")
    assert (result.low, result.high) == pytest.approx(wilson(7, 10))


def plain_bootstrap(values, clusters, tail, resamples=4000):
    """Draws whole clusters, in plain Python; bounds at `tail` and 1 - `tail`."""
    groups = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    generator, means = random.Random(1), []
    for _ in range(resamples):
        drawn = [value for group in generator.choices(list(groups.values()), k=len(groups)) for value in group]
        means.append(sum(drawn) / len(drawn))
    return np.quantile(means, [tail, 1 - tail])


def test_clusters_of_unequal_size_are_drawn_whole():
    generator = random.Random(0)
    values, clusters = [], []
    for cluster in range(40):
        level = generator.random()
        for _ in range(generator.randint(1, 9)):
            values.append(float(generator.random() < level))
            clusters.append(f"context {cluster}")
    order = generator.sample(range(len(values)), len(values))  # a context's rows need not stand together
    values, clusters = [values[i] for i in order], [clusters[i] for i in order]
    result = estimate(values, clusters, proportion=True)
    # The expanded tail for 40 clusters: Phi(-sqrt(40 / 39) * 2.0227), Student's t with 39 degrees of freedom.
    tail = 0.5 * math.erfc(math.sqrt(40 / 39) * 2.0227 / math.sqrt(2))
    assert (result.low, result.high) == pytest.approx(plain_bootstrap(values, clusters, tail), abs=0.01)
    assert result.value == pytest.approx(np.mean(values))
    low, high = wilson(int(sum(values)), len(values))
    assert result.high - result.low > 1.2 * (high - low), "what is alike within a context is no independent evidence"
    assert (result.n, result.clusters, result.method) == (len(values), 40, "cluster bootstrap")


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    contexts = np.repeat(np.arange(12), 5)
    covered = naive = 0
    for trial in range(400):
        values = generator.normal(size=12)[contexts] + 0.5 * generator.normal(size=60)
        result = estimate(values, contexts.tolist(), proportion=False, seed=trial)
        covered += result.low <= 0 <= result.high
        naive += abs(values.mean()) <= 1.96 * values.std() / math.sqrt(60)
    assert 0.92 <= covered / 400 <= 0.98
    assert naive / 400 < 0.75, "the data are such that treating queries as independent fails"


def test_equal_arguments_give_equal_bounds_and_large_values_lose_nothing():
    values = np.random.default_rng(0).normal(size=300)
    clusters = [index // 3 for index in range(300)]
    result = estimate(values, clusters, proportion=False)
    assert result == estimate(values, clusters, proportion=False)
    shifted = estimate(values + 1e6, clusters, proportion=False)
    assert (shifted.low - 1e6, shifted.high - 1e6) == pytest.approx((result.low, result.high), abs=1e-8)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_constant_proportion_is_as_uncertain_as_its_contexts_are_few(level):
    result = estimate([level] * 20, [index // 4 for index in range(20)], proportion=True)
    assert (result.value, result.low, result.high) == (level, *wilson(int(level * 5), 5))
    assert result.high - result.low > 0.4


@pytest.mark.parametrize(
    ("values", "clusters", "proportion", "value", "reason"),
    [
        ([], [], True, None, "there are no values"),
        ([1, 0, 1], ["a", "a", "a"], True, pytest.approx(2 / 3), "all values belong to one context"),
        ([1], ["a"], True, 1.0, "all values belong to one context"),
        ([0.1] * 3, ["a", "b", "c"], False, 0.1, "all values are equal"),
        ([0.1, 0.7] * 3, [0, 0, 1, 1, 2, 2], False, pytest.approx(0.4), "all contexts have the same mean"),
        ([0.5, float("nan"), float("inf")], ["a", "b", "c"], False, None, "2 of 3 values are not finite"),
    ],
)
def test_no_interval_is_said_with_its_reason_and_never_zero_or_nan(values, clusters, proportion, value, reason):
    result = estimate(values, clusters, proportion)
    assert (result.value, result.low, result.high, result.reason) == (value, None, None, reason)
    text = result.model_dump_json()
    assert Estimate.model_validate(json.loads(text, parse_constant=pytest.fail)) == result


def test_values_that_are_no_proportion_are_not_taken_for_one():
    with pytest.raises(ValueError, match="zeros and ones"):
        estimate([0.5, 1, 0], ["a", "b", "c"], proportion=True)
