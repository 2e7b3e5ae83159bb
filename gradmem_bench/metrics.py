"""Metrics: how an answer is scored, under which name and in which version.

A version goes up whenever the same prediction could get another number; tables refuse to mix versions.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradmem_bench.statistics.estimates import Kind

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Metric:
    """What a name in a table means."""

    version: int
    kind: "Kind"
    unit: str
    meaning: str
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {
    "exact_match": Metric(1, "proportion", "share of queries", "The generated answer equals one of the targets."),
    "unseen_exact_match": Metric(
        1, "proportion", "share of queries", "Exact match of the queries that were not trained on with their context."
    ),
    "f1": Metric(
        1, "proportion", "0 to 1", "Words (of symbols: characters) shared by the generated answer and a target."
    ),
    "teacher_forced_exact_match": Metric(
        1, "proportion", "share of queries", "Each token of the first target is the likeliest after those before it."
    ),
    "token_accuracy": Metric(
        1, "proportion", "share of tokens", "Tokens of the first target that are the likeliest after those before it."
    ),
    "target_bits_per_token": Metric(
        1, "amount", "bits/token", "Negative log2-likelihood of the first target.", higher_is_better=False
    ),
    "task_score": Metric(1, "mean", "as the task says", "The task's own metric of the answer, or of what was chosen."),
    "reconstruction_nats_per_token": Metric(
        1,
        "amount",
        "nats/token",
        "Negative log-likelihood of the context, given its own state.",
        higher_is_better=False,
    ),
}
"""Every metric by the name it has in records, tables and example rows."""


def normalized(text: str) -> str:
    """SQuAD's normal form: lower case, without punctuation and articles, white space folded."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, targets: Sequence[str], normalize: bool) -> bool:
    """Whether `prediction` is one of `targets`, in normal form, or without `normalize` but for outer white space."""
    form = normalized if normalize else str.strip
    return form(prediction) in [form(target) for target in targets]


def f1(prediction: str, targets: Sequence[str], normalize: bool) -> float:
    """The best F1 over `targets`: of the bags of normalised words, or of characters without `normalize`.

    As in SQuAD 2.0's official script, where either side is empty it is 1 if both are and else 0.
    """
    if prediction in targets:
        return 1.0
    return max(_overlap(_parts(prediction, normalize), _parts(target, normalize)) for target in targets)


def _parts(text: str, normalize: bool) -> Counter[str]:
    return Counter(normalized(text).split() if normalize else text.strip())


def _overlap(predicted: Counter[str], wanted: Counter[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    return 2 * (predicted & wanted).total() / (predicted.total() + wanted.total())


def recalled_bits(accuracy: float, value_bits: float) -> float:
    """The least bits that are known of a value that is recalled with probability `accuracy`, by Fano's inequality.

    Args:
        value_bits: log2 of the number of choices, among which the value is uniform.
    """
    chance = 2.0**-value_bits
    if accuracy <= chance:
        return 0.0
    wrong = 1 - accuracy
    doubt = -sum(share * math.log2(share) for share in (accuracy, wrong) if share > 0)
    return value_bits - doubt - wrong * (value_bits + math.log2(1 - chance))
