"""The swap test: given the state of another context, a method must know no more than chance (design law 1).

A method that keeps the context anywhere but in the bytes still answers right with the wrong state. Chance is measured
on the same answers: how often an answer from a foreign state would be right for another example with the same query.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import torch

from gradmem_bench.config import StateDtype
from gradmem_bench.evaluation import Evaluator, likeliest
from gradmem_bench.metrics import exact_match
from gradmem_bench.results import SwapTest
from gradmem_bench.state import MemoryState
from gradmem_bench.statistics import wilson
from gradmem_bench.tasks.base import Query, Task
from gradmem_bench.tasks.batching import EncodedDocument

_LEVEL = 0.999
_QUERIES = 4
"""Asked of each context."""
_TOLERANCE = 0.02
"""Foreign contexts of one source may hold an answer by themselves (two paragraphs of one article)."""


def swap_test(evaluator: Evaluator, documents: Sequence[EncodedDocument]) -> SwapTest:
    """Answers some of each document's queries from its own state and from that of a document half the sample away.

    It passes when the foreign states answer no better than chance, fails when they do, and has no verdict where the own
    states answer no better than chance either: then there was nothing to lose. What random states answer is told beside
    it, and decides nothing.
    """
    if len(documents) < 2:
        return SwapTest(
            contexts=len(documents),
            queries=0,
            own_score=None,
            swapped_score=None,
            chance_score=None,
            passed=None,
            outcome="not tried: it takes two contexts",
        )
    states: dict[str, bytes] = {}
    for batch in evaluator.batches(documents):
        written = evaluator.write(batch, reconstruct=False)
        states.update(zip((document.document.id for document in batch), written.states, strict=True))
    # Drawn, not the first ones: a method may hold the beginning of a context better than its end.
    draw = random.Random(0)
    asked = [
        (document, index)
        for document in documents
        for index in sorted(draw.sample(range(len(document.queries)), min(_QUERIES, len(document.queries))))
    ]
    away = {document.document.id: documents[row - len(documents) // 2] for row, document in enumerate(documents)}

    queries = [document.document.queries[index] for document, index in asked]

    def answers(states: dict[str, bytes]) -> list[str]:
        read_from = [states[document.document.id] for document, _ in asked]
        ids = [document.queries[index] for document, index in asked]
        targets = [document.targets[index] for document, index in asked]
        chosen = evaluator.likelihoods(read_from, ids, [document.choices[index] for document, index in asked])
        read = evaluator.read(read_from, ids, targets, generate=True)
        return [
            likeliest(query, offered) or evaluator.whole_text(answer)
            for query, offered, (_, _, answer, _) in zip(queries, chosen, read, strict=True)
        ]

    def right(answers: list[str]) -> int:
        return sum(_right(evaluator.task, query, answer) for answer, query in zip(answers, queries, strict=True))

    own, foreign = answers(states), answers({key: states[other.document.id] for key, other in away.items()})
    own_right, swapped_right = right(own), right(foreign)
    drawn = random_states(list(states.values()), evaluator.budget.state_dtype)
    if any(query.choices for query in queries):
        chance = _chance_of_choices(evaluator, asked)
    else:
        owned = [(document.document.id, query) for (document, _), query in zip(asked, queries, strict=True)]
        chance = _chance(foreign, owned, evaluator.task)
    count = len(asked)
    own_score, swapped_score = own_right / count, swapped_right / count
    low, _ = wilson(swapped_right, count, _LEVEL)
    allowed = chance + max(_TOLERANCE, 0.1 * (own_score - chance))
    passed: bool | None = low <= allowed
    sentence = (
        f"{_measure(evaluator.task, queries)} {own_score:.3f} from the own state, {swapped_score:.3f} from another's, "
        f"{chance:.3f} by chance"
    )
    if not passed:
        outcome = f"FAILED, answers do not come from the state alone: {sentence}"
    elif wilson(own_right, count)[0] <= chance:
        passed, outcome = None, f"without a verdict, the own states answer no better than chance: {sentence}"
    else:
        outcome = f"passed: {sentence}"
    return SwapTest(
        contexts=len(documents),
        queries=count,
        own_score=own_score,
        swapped_score=swapped_score,
        chance_score=chance,
        random_score=None if drawn is None else right(answers(dict(zip(states, drawn, strict=True)))) / count,
        passed=passed,
        outcome=outcome,
    )


def random_states(states: Sequence[bytes], dtype: StateDtype) -> list[bytes] | None:
    """States of the same shapes whose floating-point numbers are drawn; `None` where there are none.

    The mean and the deviation of each tensor are those of its own numbers over all of `states`.
    """
    written = MemoryState.from_bytes(states)
    floats = {name: tensor for name, tensor in written.tensors.items() if tensor.is_floating_point()}
    if not floats:
        return None
    generator, drawn = torch.Generator().manual_seed(0), dict(written.tensors)
    for name, tensor in floats.items():
        own = tensor
        if name in written.ragged:
            own = tensor[torch.arange(tensor.shape[1]) < written.lengths[:, None]]
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        drawn[name] = (own.float().mean() + noise * own.float().std()).to(tensor.dtype)
    return MemoryState(drawn, written.ragged, written.lengths).to_bytes(dtype)


def _measure(task: Task, queries: Sequence[Query]) -> str:
    if any(query.choices for query in queries):
        return "right choices"
    return f"{task.own_metric} of 1:" if task.own_metric else "exact match"


def _right(task: Task, query: Query, answer: str) -> bool:
    """Whether an answer, or the choice that was taken for one, is right."""
    if query.choices:
        return answer.removeprefix(task.target_delimiter) in query.targets
    own = task.own_score(query, answer, ())
    return exact_match(answer, query.targets, task.text_metrics) if own is None else own >= 1


def _chance_of_choices(evaluator: Evaluator, asked: Sequence[tuple[EncodedDocument, int]]) -> float:
    """How often a choice is right of which nothing is known: drawn blindly, or the likeliest behind no memory."""
    queries = [document.document.queries[index] for document, index in asked]
    ids = [document.queries[index] for document, index in asked]
    choices = [document.choices[index] for document, index in asked]
    chosen = [likeliest(*pair) for pair in zip(queries, evaluator.likelihoods(None, ids, choices), strict=True)]
    right = sum(_right(evaluator.task, query, choice) for query, choice in zip(queries, chosen, strict=True))
    return max(right, sum(1 / len(query.choices) for query in queries)) / len(queries)


def _chance(answers: Sequence[str], asked: Sequence[tuple[str, Query]], task: Task) -> float:
    """How often an answer is right for other contexts' examples: of the same query, or all where there is none."""
    same_text = defaultdict(list)
    for example in asked:
        same_text[example[1].text].append(example)
    total = 0.0
    for answer, (context_id, query) in zip(answers, asked, strict=True):
        others = [other for owner, other in same_text[query.text] if owner != context_id]
        others = others or [other for owner, other in asked if owner != context_id]
        total += sum(_right(task, other, answer) for other in others) / len(others)
    return total / len(answers)
