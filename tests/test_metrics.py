import random

import pytest

from gradmem_bench.metrics import exact_match, f1


@pytest.mark.parametrize(
    ("prediction", "targets", "matches", "overlap"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], True, 1.0),
        ("in the year 1923", ["1923"], False, 2 * 1 / (3 + 1)),
        ("b b c", ["b c c"], False, 2 * 2 / (3 + 3)),
        ("St. John's", ["st johns"], True, 1.0),  # punctuation goes, and leaves no space
        ("well-known", ["well known"], False, 0.0),
        ("Athens", ["Paris", "athens, Greece"], False, 2 * 1 / (1 + 2)),
        ("theatre an anvil", ["theatre anvil"], True, 1.0),  # articles are whole words
        ("“the end”", ["“ end”"], True, 1.0),  # only ASCII's punctuation goes
        ("  two \n words ", ["two words"], True, 1.0),
        ("the", [""], True, 1.0),
        ("", ["Paris"], False, 0.0),
        ("Paris", ["a"], False, 0.0),
    ],
)
def test_text_is_scored_as_squad_scores_it(prediction, targets, matches, overlap):
    assert exact_match(prediction, targets, normalize=True) is matches
    assert f1(prediction, targets, normalize=True) == pytest.approx(overlap)


def test_symbols_are_compared_letter_by_letter():
    assert exact_match(" Qz\n", ["Qz"], normalize=False)
    assert not exact_match("qz", ["Qz"], normalize=False)
    assert not exact_match("a", [""], normalize=False), "a is no article here"
    assert f1("Qz", ["zQ"], normalize=False) == 1.0
    assert f1("aab", ["xyz", "abb"], normalize=False) == pytest.approx(2 * 2 / 6)
    assert f1("", ["Qz"], normalize=False) == 0.0


def plain_words(text: str) -> list[str]:
    """SQuAD's words of ASCII text, letter by letter; there an article is a whole word once punctuation is gone."""
    kept = "".join(letter for letter in text.lower() if letter.isalnum() or letter.isspace())
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def test_agrees_with_a_plain_scorer_on_random_text():
    generator = random.Random(0)
    words = ["the", "The", "a", "an", "Paris", "paris.", "St.", "1,923", "it's", "an-other", "'", "$", "_", "  ", "\t"]
    seen = set()
    for _ in range(3000):
        prediction, target = (" ".join(generator.choices(words, k=generator.randint(0, 4))) for _ in range(2))
        predicted, wanted = plain_words(prediction), plain_words(target)
        left = list(wanted)
        for word in predicted:
            if word in left:
                left.remove(word)
        shared = len(wanted) - len(left)
        if not predicted or not wanted:
            expected = float(predicted == wanted)
        elif shared == 0:
            expected = 0.0
        else:
            precision, recall = shared / len(predicted), shared / len(wanted)
            expected = 2 * precision * recall / (precision + recall)
        assert exact_match(prediction, [target], normalize=True) == (predicted == wanted)
        assert f1(prediction, [target], normalize=True) == pytest.approx(expected)
        seen.add(round(expected, 3))
    assert len(seen) > 5, "more than zeros and ones were met"
