import itertools
import json
import math

import numpy as np
import pytest

from gradmem_bench.statistics import Difference, compared, holm, mcnemar, sign_flips, verdict


def binomial_tail(n, k):
    """Two-sided: as far from n / 2 as k is, or farther."""
    far = abs(k - n / 2)
    return sum(math.comb(n, i) for i in range(n + 1) if abs(i - n / 2) >= far) / 2**n


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (9, 1), (10, 20), (59, 6)])
def test_mcnemar_counts_coins(first, second):
    assert mcnemar(first, second) == pytest.approx(binomial_tail(first + second, first), rel=1e-9)


def all_flips(differences):
    """The share of all sign patterns whose sum is as far from 0."""
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(value >= abs(sum(differences)) - 1e-9 for value in sums) / len(patterns)


def test_whole_differences_are_flipped_in_every_way():
    generator = np.random.default_rng(0)
    for _ in range(5):
        differences = generator.integers(-4, 6, size=10).astype(float)
        p, test = sign_flips(differences)
        assert (p, test) == (pytest.approx(all_flips(differences), rel=1e-9), "exact sign flips by context")
    assert sign_flips(np.zeros(7))[0] == 1


def test_other_differences_are_flipped_at_random_and_p_is_never_zero():
    differences = np.random.default_rng(1).normal(0.4, 1, size=12)
    p, test = sign_flips(differences)
    assert p == pytest.approx(all_flips(differences), abs=0.01)
    assert test == "sign flips by context, 20,000 drawn"
    assert sign_flips(np.full(200, 0.5))[0] == 1 / 20_000
    assert 0 < sign_flips(np.full(5000, 1.0))[0] < 1e-300
    assert 0 < mcnemar(5000, 0) < 1e-300


def test_with_one_query_a_context_sign_flips_are_mcnemar():
    generator = np.random.default_rng(2)
    first, second = (generator.random(300) < share for share in (0.7, 0.62))
    found = compared(first, second, range(300), "proportion")
    assert found.test == "exact McNemar"
    assert found.p == pytest.approx(sign_flips(first.astype(float) - second)[0])
    # The interval is the paired t interval of the textbook.
    differences = first.astype(float) - second
    half = 1.97 * differences.std(ddof=1) / math.sqrt(300)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=2e-3)
    assert found.value == pytest.approx(first.mean() - second.mean())


def test_queries_of_one_context_are_no_independent_trials():
    # Each of 12 contexts is remembered by one method only, 8 by the first: 80 queries against 40.
    first = np.repeat([1.0] * 8 + [0.0] * 4, 10)
    found = compared(first, 1 - first, np.repeat(np.arange(12), 10).tolist(), "proportion")
    assert found.test == "exact sign flips by context"
    assert found.p == pytest.approx(binomial_tail(12, 8)) and found.p > 0.3
    assert found.low < 0 < found.high
    assert mcnemar(80, 40) < 0.001, "what counting queries would have said"


def test_pairing_tells_apart_what_two_intervals_do_not():
    generator = np.random.default_rng(3)
    hard = generator.random(2000)
    first, second = (hard < 0.70).astype(float), (hard < 0.68).astype(float)
    paired = compared(first, second, range(2000), "proportion")
    assert paired.p < 1e-6 and paired.low > 0
    shuffled = compared(first, generator.permutation(second), range(2000), "proportion")
    assert shuffled.value == pytest.approx(paired.value) and shuffled.low < 0


def trained(seeds, score, spread, generator, contexts=200):
    """(seeds, 4 * contexts) answers of one method, whose trainings score more or less."""
    levels = score + spread * generator.normal(size=(seeds, 1))
    return (generator.random((seeds, 4 * contexts)) < levels).astype(float)


def test_seeds_that_differ_as_much_as_methods_make_a_tie():
    generator, clusters = np.random.default_rng(4), np.repeat(np.arange(200), 4).tolist()
    tied = significant = 0
    for _ in range(150):
        first, second = (trained(3, 0.7, 0.05, generator) for _ in range(2))
        found = compared(first, second, clusters, "proportion")
        tied += verdict(found.value, found.p) == "tied"
        given = compared(first.mean(axis=0), second.mean(axis=0), clusters, "proportion")
        significant += given.p <= 0.05
    assert found.test == "t over seeds and contexts"
    assert tied / 150 >= 0.9, "the same method twice"
    assert significant / 150 > 0.3, "the data are such that taking the seeds for given fails"
    better = compared(trained(3, 0.9, 0.02, generator), trained(3, 0.6, 0.02, generator), clusters, "proportion")
    assert verdict(better.value, better.p) == "better" and 0.2 < better.low < better.high < 0.4


def test_one_seed_can_stand_against_several():
    generator, clusters = np.random.default_rng(5), np.repeat(np.arange(200), 4).tolist()
    several, single = trained(3, 0.8, 0.02, generator), trained(1, 0.6, 0, generator)[0]
    one, other = (compared(*pair, clusters, "proportion") for pair in ((several, single), (single, several)))
    assert one.test == other.test == "t over seeds and contexts"
    assert one.p == pytest.approx(other.p) and one.value == pytest.approx(-other.value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_two_evaluations_of_the_same_trainings_are_pairs():
    generator, clusters = np.random.default_rng(7), np.repeat(np.arange(200), 4).tolist()
    # Trainings that differ much, each of which the second evaluation moves by as little as the others.
    before = np.concatenate([trained(1, score, 0, generator) for score in (0.5, 0.7, 0.9)])
    after = np.where(generator.random(before.shape) < 0.2, 1.0, before)
    apart = compared(after, before, clusters, "proportion")
    paired = compared(after, before, clusters, "proportion", same_trainings=True)
    assert paired.test == "t over seeds and contexts, paired by training" and paired.value == apart.value
    assert verdict(apart.value, apart.p) == "tied" and paired.high - paired.low < (apart.high - apart.low) / 3
    gains = (after - before).mean(axis=1)
    # Nearly all of the variance is the seeds': t of the three gains, with two degrees of freedom.
    assert (paired.high - paired.low) / 2 == pytest.approx(4.303 * gains.std(ddof=1) / math.sqrt(3), rel=0.15)


def test_seeds_of_exactly_one_mean_still_have_contexts_that_vary():
    first = np.array([[1, 0, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1], [1, 0, 0, 1, 1, 1]], dtype=float)
    found = compared(first, np.zeros((3, 6)), list("abcdef"), "mean", same_trainings=True)
    shares = first.mean(axis=0) - first.mean()
    error = math.sqrt(6 / 5 * (shares**2).sum()) / 6
    assert found.reason is None and found.low < found.value - 1.9 * error < found.value + 1.9 * error < found.high


def test_the_difference_of_two_shares_is_no_more_than_all():
    contexts = [0, 0, 1, 1, 2, 2, 3, 3]
    seeds, nothing = np.ones((3, 8)), np.zeros((3, 8))
    seeds[0, :3] = 0  # one seed of the three is worse, so that t has about two degrees of freedom
    found = compared(seeds, nothing, contexts, "proportion")
    free = compared(seeds, nothing, contexts, "mean")
    assert free.high > 1 and (found.low, found.high) == (free.low, 1.0) and found.p == free.p
    turned = compared(nothing, seeds, contexts, "proportion")
    assert (turned.low, turned.high) == (-1.0, -found.low)


@pytest.mark.parametrize(
    ("first", "second", "clusters", "value", "p", "reason"),
    [
        ([], [], [], None, None, "there are no pairs"),
        ([1], [0], ["a"], 1.0, None, "all queries belong to one context"),
        ([1, 0, 1], [0, 0, 0], ["a", "a", "a"], pytest.approx(2 / 3), None, "all queries belong to one context"),
        ([1, 0, 1], [1, 0, 1], ["a", "b", "c"], 0.0, 1.0, "the difference is the same in every context"),
        ([1] * 8, [0] * 8, range(8), 1.0, 2 / 2**8, "the difference is the same in every context"),
        ([0.5, float("nan")], [0, 0], ["a", "b"], None, None, "some values are not finite"),
        ([[1, 0]] * 2, [[1, 0]] * 2, ["a", "b"], 0.0, None, "the difference is the same in every context"),
    ],
)
def test_what_cannot_be_known_is_said_with_its_reason_and_never_zero_or_nan(first, second, clusters, value, p, reason):
    found = compared(first, second, clusters, "proportion")
    assert (found.value, found.low, found.high, found.reason) == (value, None, None, reason)
    assert found.p is None if p is None else found.p == pytest.approx(p)
    text = found.model_dump_json()
    assert Difference.model_validate(json.loads(text, parse_constant=pytest.fail)) == found


def test_values_that_are_no_pairs_are_not_taken_for_pairs():
    with pytest.raises(ValueError, match="3 values, 2 to compare them with, and 3 clusters"):
        compared([1, 0, 1], [1, 0], ["a", "b", "c"], "proportion")


def test_holm_by_hand():
    # Four of them, sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (no less than before), 0.5 * 1.
    assert holm([0.03, None, 0.01, 0.5, 0.02]) == pytest.approx([0.06, None, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == [] and holm([None]) == [None]


def test_verdicts():
    assert verdict(0.1, 0.04) == "better" and verdict(-0.1, 0.04) == "worse"
    assert verdict(0.1, 0.06) == verdict(-0.1, 1.0) == "tied"
    assert verdict(-0.1, 0.01, higher_is_better=False) == "better"
    assert verdict(0.1, None) is verdict(None, None) is None
