"""`process_results` for lm-eval: the very metrics of `gradmem_bench.metrics`, which need no network."""

from typing import Any


def score_text(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match and F1 of a generated answer under SQuAD's normalisation."""
    return _scores(doc, results, normalize=True)


def score_symbols(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match and F1 of a generated answer, letter by letter."""
    return _scores(doc, results, normalize=False)


def _scores(doc: dict[str, Any], results: list[str], normalize: bool) -> dict[str, float]:
    # Deferred: lm-eval imports this file when it reads the YAML, long before it scores anything.
    from gradmem_bench.metrics import exact_match, f1

    targets = doc["targets"]
    return {
        "exact_match": float(exact_match(results[0], targets, normalize)),
        "f1": f1(results[0], targets, normalize),
    }
