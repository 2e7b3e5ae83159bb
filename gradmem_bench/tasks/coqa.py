"""CoQA: a story, a conversation about it, and the answer to its last question (Reddy et al., arXiv:1808.07042)."""

from itertools import zip_longest
from typing import Any

from gradmem_bench.metrics import exact_match, f1


def prompt(doc: dict[str, Any]) -> str:
    """The story, every question with its answer, and the last question without."""
    asked = zip_longest(doc["questions"]["input_text"], doc["answers"]["input_text"][:-1])
    turns = [f"Q: {question}\n\nA:" + ("" if answer is None else f" {answer}\n\n") for question, answer in asked]
    return f"{doc['story']}\n\n{''.join(turns)}"


def answers(doc: dict[str, Any]) -> list[str]:
    """What the first annotator answered to the last question, and what others did, but for its case, otherwise."""
    last = len(doc["questions"]["input_text"]) - 1
    annotators = [doc["answers"], *(other for other in (doc.get("additional_answers") or {}).values() if other)]
    given: dict[str, str] = {}
    for annotator in annotators:
        given.setdefault(annotator["input_text"][last].lower(), annotator["input_text"][last])
    return list(given.values())


def scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """CoQA's exact match and F1: against all annotators but one, in the mean over which one that is."""
    given, answer = answers(doc), results[0].strip().split("\n")[0]
    others = [[*given[:left_out], *given[left_out + 1 :]] or given for left_out in range(len(given))]
    return {
        "em": sum(exact_match(answer, targets, normalize=True) for targets in others) / len(others),
        "f1": sum(f1(answer, targets, normalize=True) for targets in others) / len(others),
    }
