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
    result = estimate([1, 0, 1, 1, 0, 1, 1, 1, 0, 1], range(10), "proportion")
    assert (result.value, result.n, result.clusters, result.method) == (0.7, 10, 10, "wilson")
    assert (result.low, result.high) == pytest.approx(wilson(7, 10))


def plain_jackknife(values, clusters):
    """The variance of the mean when each context in turn is left out: what the linearised one comes to."""
    groups = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    means = []
    for left_out in groups:
        rest = [value for cluster, group in groups.items() if cluster != left_out for value in group]
        means.append(sum(rest) / len(rest))
    k = len(means)
    centre = sum(means) / k
    return (k - 1) / k * sum((mean - centre) ** 2 for mean in means)


def unequal_contexts(contexts, seed=0):
    """Right and wrong answers, the chance of being right being the context's; and the contexts, not in order."""
    generator = random.Random(seed)
    pairs = []
    for context in range(contexts):
        level = generator.random()
        pairs += [(float(generator.random() < level), f"context {context}") for _ in range(generator.randint(1, 9))]
    generator.shuffle(pairs)  # a context's rows need not stand together
    return [value for value, _ in pairs], [context for _, context in pairs]


def test_queries_of_a_context_count_as_much_as_their_contexts_allow():
    values, clusters = unequal_contexts(60)
    result = estimate(values, clusters, "proportion")
    p = np.mean(values)
    assert (result.value, result.n, result.clusters) == (pytest.approx(p), len(values), 60)
    assert result.method == "wilson, clustered by context"
    # Wilson's bounds are where the distance to p is t standard errors, of a binomial of the effective size.
    size = p * (1 - p) / plain_jackknife(values, clusters)
    t = [(bound - p) / math.sqrt(bound * (1 - bound) / size) for bound in (result.low, result.high)]
    assert t[0] == pytest.approx(-t[1]) and 1.95 < t[1] < 2.15
    low, high = wilson(int(sum(values)), len(values))
    assert result.high - result.low > 1.2 * (high - low), "what is alike within a context is no independent evidence"


def test_ones_and_zeros_are_a_proportion_by_whatever_name():
    assert estimate([1, 0], "ab", "mean") == estimate([1, 0], "ab", "proportion")
    assert estimate([1, 0, 1, 1, 0], "aabbc", "mean") == estimate([1, 0, 1, 1, 0], "aabbc", "proportion")
    assert estimate([1, 0.5], "ab", "mean").low < 0


def test_any_other_mean_gets_students_t():
    values, clusters = unequal_contexts(60)
    logs = [math.exp(3 * value) + index % 7 for index, value in enumerate(values)]
    result = estimate(logs, clusters, "mean")
    assert result.method == "t, clustered by context"
    assert result.high - result.value == pytest.approx(result.value - result.low)
    half = result.high - result.value
    assert 1.98 < half / math.sqrt(plain_jackknife(logs, clusters)) < 2.1
    # With one value a context it is the t interval of the textbook, but for the degrees of freedom.
    single = estimate(logs, range(len(logs)), "mean")
    assert single.high - single.value == pytest.approx(1.97 * np.std(logs, ddof=1) / math.sqrt(len(logs)), rel=0.01)


def test_a_variance_that_hangs_on_few_contexts_is_known_to_be_unknown():
    contexts = [index // 4 for index in range(400)]
    few = [2.0] * 392 + [1.0] * 8
    result = estimate(few, contexts, "mean")
    # Two contexts of a hundred hold all that is wrong: t has about four degrees of freedom, and a quantile of 2.78.
    half = (result.high - result.low) / 2
    assert half / math.sqrt(plain_jackknife(few, contexts)) == pytest.approx(2.78, abs=0.1)


def test_few_seeds_that_agree_are_not_taken_for_many():
    generator = np.random.default_rng(6)
    contexts = generator.normal(size=80)
    scores = contexts + np.array([[-0.03], [0.03]]) + 0.1 * generator.normal(size=(2, 80))
    result = estimate(scores, range(80), "mean")
    by_context = scores.mean(axis=0)
    rest = scores - scores.mean(axis=1, keepdims=True) - by_context + scores.mean()
    of_seeds = scores.mean(axis=1).var(ddof=1) / 2
    of_contexts = by_context.var(ddof=1) / 80 - (rest**2).sum() / 79 / 80 / 2
    # Student's t for 1 and for 79 degrees of freedom, weighted by the variance that each is for (the context's degrees
    # of freedom come from a kurtosis, and are some 5 % off here).
    t = (12.706 * of_seeds + 1.990 * of_contexts) / (of_seeds + of_contexts)
    half = (result.high - result.low) / 2
    assert half == pytest.approx(t * math.sqrt(of_seeds + of_contexts), rel=0.01)
    assert 0.02 < of_seeds / (of_seeds + of_contexts) < 0.5 and t > 2.2, "both parts count"


def coverage(trials, contexts, queries, seeds=1, seed_spread=0.0):
    """How often the interval of a known mean, 0, holds it; and how often one that knows of no contexts and seeds."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(contexts), queries)
    held = naive = 0
    for _ in range(trials):
        shared = generator.normal(size=contexts)[clusters] + seed_spread * generator.normal(size=(seeds, 1))
        values = shared + 0.5 * generator.normal(size=(seeds, len(clusters)))
        result = estimate(values, clusters.tolist(), "mean")
        held += result.low <= 0 <= result.high
        naive += abs(values.mean()) <= 1.96 * values.std() / math.sqrt(values.size)
    return held / trials, naive / trials


def test_the_interval_holds_the_truth_as_often_as_it_says():
    held, naive = coverage(600, contexts=12, queries=5)
    assert 0.925 <= held <= 0.975
    assert naive < 0.75, "the data are such that taking queries for independent fails"


def test_with_several_seeds_it_is_about_other_seeds_too():
    held, naive = coverage(600, contexts=40, queries=3, seeds=5, seed_spread=0.5)
    assert 0.925 <= held <= 0.975
    assert naive < 0.6


@pytest.mark.parametrize("seeds", [2, 3])
def test_it_holds_the_truth_of_few_seeds_that_differ_much(seeds):
    held, _ = coverage(600, contexts=40, queries=3, seeds=seeds, seed_spread=0.5)
    assert 0.925 <= held <= 0.98


def test_seeds_and_contexts_are_the_two_ways_of_an_analysis_of_variance():
    generator = np.random.default_rng(1)
    seeds, contexts = 4, 50
    scores = generator.normal(size=(seeds, 1)) + generator.normal(size=contexts) + generator.normal(size=(4, contexts))
    by_seed, by_context = scores.mean(axis=1), scores.mean(axis=0)
    rest = scores - by_seed[:, None] - by_context + scores.mean()
    # Mean squares of the textbook: of the rows, of the columns, and of what neither explains.
    rows = contexts * ((by_seed - scores.mean()) ** 2).sum() / (seeds - 1)
    columns = seeds * ((by_context - scores.mean()) ** 2).sum() / (contexts - 1)
    error = (rest**2).sum() / ((seeds - 1) * (contexts - 1))
    variance = (rows + columns - error) / (seeds * contexts)
    result = estimate(scores, range(contexts), "mean")
    assert result.method == "t, clustered by context and seed"
    # The variance is the seeds' but for little, and they have 3 degrees of freedom: t is 3.18 for 3, 2.78 for 4.
    assert 2.9 < (result.high - result.low) / 2 / math.sqrt(variance) < 3.2


def test_seeds_that_agree_add_no_doubt():
    values, clusters = unequal_contexts(30)
    alike = estimate([values] * 3, clusters, "proportion")
    single = estimate(values, clusters, "proportion")
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high))


def test_large_values_lose_nothing_to_rounding():
    values = np.random.default_rng(0).normal(size=300)
    clusters = [index // 3 for index in range(300)]
    result, shifted = (estimate(values + shift, clusters, "mean") for shift in (0, 1e6))
    assert (shifted.low - 1e6, shifted.high - 1e6) == pytest.approx((result.low, result.high), abs=1e-8)


def test_an_interval_of_a_proportion_stays_within_0_and_1():
    values = [1.0] * 119 + [0.5]
    result = estimate(values, [index // 6 for index in range(120)], "proportion")
    assert 0.9 < result.low < result.value < result.high <= 1


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_constant_proportion_is_as_uncertain_as_its_contexts_are_few(level):
    result = estimate([level] * 20, [index // 4 for index in range(20)], "proportion")
    assert (result.value, result.low, result.high) == (level, *wilson(int(level * 5), 5))
    assert result.high - result.low > 0.4


@pytest.mark.parametrize(
    ("values", "clusters", "kind", "value", "reason"),
    [
        ([], [], "proportion", None, "there are no values"),
        ([1, 0, 1], ["a", "a", "a"], "proportion", pytest.approx(2 / 3), "all values belong to one context"),
        ([1], ["a"], "proportion", 1.0, "all values belong to one context"),
        ([0.1] * 3, ["a", "b", "c"], "mean", 0.1, "all values are equal"),
        ([0.1, 0.7] * 3, [0, 0, 1, 1, 2, 2], "mean", pytest.approx(0.4), "every context has the same mean"),
        ([0.3] * 3, ["a", "b", "c"], "proportion", 0.3, "all values are equal"),
        ([0.5, float("nan"), float("inf")], ["a", "b", "c"], "mean", None, "2 of 3 values are not finite"),
    ],
)
def test_no_interval_is_said_with_its_reason_and_never_zero_or_nan(values, clusters, kind, value, reason):
    result = estimate(values, clusters, kind)
    assert (result.value, result.low, result.high, result.reason) == (value, None, None, reason)
    text = result.model_dump_json()
    assert Estimate.model_validate(json.loads(text, parse_constant=pytest.fail)) == result


def test_an_amount_has_its_interval_on_the_scale_of_its_logarithm_and_never_below_zero():
    bits = [0.01, 0.02, 0.01, 0.05, 0.02, 3.0]
    plain, amount = estimate(bits, range(6), "mean"), estimate(bits, range(6), "amount")
    assert plain.low < 0 < amount.low < amount.value < plain.high < amount.high
    # A share of the value down is the same share up; for small ones the two are one interval.
    assert math.log(amount.high / amount.value) == pytest.approx((plain.high - plain.value) / plain.value, rel=1e-12)
    assert math.sqrt(amount.low * amount.high) == pytest.approx(amount.value, rel=1e-12)
    far = [[one + 100 for one in bits] for _ in range(2)]
    plain, amount = (estimate(values, range(6), kind) for values, kind in zip(far, ("mean", "amount"), strict=True))
    assert (amount.low, amount.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    assert amount.method == "t of the logarithm, clustered by context"


def test_values_that_are_no_proportion_are_not_taken_for_one():
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        estimate([1.5, 1, 0], ["a", "b", "c"], "proportion")
