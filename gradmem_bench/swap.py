"""The swap test: given the state of another context, a method must know no more than chance (design law 1).

A method that keeps the context anywhere but in the bytes still answers right with the wrong state. Chance is measured
on the same queries: how often an answer from a foreign state would be right for another example with the same query,
or how often the weights are right without any memory, whichever is more.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import torch

from gradmem_bench.config import StateDtype
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator, likeliest
from gradmem_bench.metrics import exact_match
from gradmem_bench.results import SwapTest
from gradmem_bench.state import MemoryState
from gradmem_bench.statistics import wilson
from gradmem_bench.tasks.base import Document, Query, Task
from gradmem_bench.tasks.batching import EncodedDocument

_LEVEL = 0.999
_QUERIES = 4
"""Asked of each context."""
_TOLERANCE = 0.02
"""Foreign contexts of one source may hold an answer by themselves (two paragraphs of one article)."""
Asked = Sequence[tuple[EncodedDocument, int]]
"""Queries, each by its document and its place there."""


def closed_book(evaluator: Evaluator, documents: Sequence[EncodedDocument]) -> float:
    """The share of the swap test's queries that the weights answer right without any memory.

    To be asked before any of these contexts is written: weights that WRITE moved could answer from them afterwards,
    and what was smuggled would pass for what was known.
    """
    asked, states = _asked(documents), None
    if evaluator.method.role == "floor":
        # It holds nothing of any context, but may have learned what stands before its queries.
        nothing = EncodedDocument(Document("", "", ()), [evaluator.backbone.end_id], [], [], False, [])
        states = evaluator.write([nothing], reconstruct=False).states * len(asked)
    return _right_ones(evaluator.task, asked, _answers(evaluator, asked, states)) / len(asked)


def swap_test(evaluator: Evaluator, documents: Sequence[EncodedDocument], known: float) -> SwapTest:
    """Answers some of each document's queries from its own state and from that of a document half the sample away.

    It passes when the foreign states answer no better than chance, fails when they do, and has no verdict where the own
    states answer no better than chance either: then there was nothing to lose. What random states answer, and those
    that nothing was written into, is told beside it, and decides nothing.

    Args:
        known: what `closed_book` gave for the same documents.
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
    asked, task = _asked(documents), evaluator.task
    away = {document.document.id: documents[row - len(documents) // 2] for row, document in enumerate(documents)}

    def answers(states: dict[str, bytes]) -> list[str]:
        return _answers(evaluator, asked, [states[document.document.id] for document, _ in asked])

    def right(answers: list[str]) -> int:
        return _right_ones(task, asked, answers)

    own, foreign = answers(states), answers({key: states[other.document.id] for key, other in away.items()})
    own_right, swapped_right = right(own), right(foreign)
    drawn = random_states(list(states.values()), evaluator.budget.state_dtype)
    blank = evaluator.blank()
    if blank is not None and _kind(blank) != _kind(next(iter(states.values()))):
        raise UserError(
            f"{type(evaluator.method).__name__}.blank gave a state of other names, dtypes or shapes than write does; "
            "where a class below a built-in one writes another state, its blank has to be that, or to give None."
        )
    chance, count = max(known, _chance(foreign, asked, task)), len(asked)
    own_score, swapped_score = own_right / count, swapped_right / count
    low, _ = wilson(swapped_right, count, _LEVEL)
    allowed = chance + max(_TOLERANCE, 0.1 * (own_score - chance))
    passed: bool | None = low <= allowed
    sentence = (
        f"{_measure(task, asked)} {own_score:.3f} from the own state, {swapped_score:.3f} from another's, "
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
        blank_score=None if blank is None else right(_answers(evaluator, asked, [blank] * count)) / count,
        passed=passed,
        outcome=outcome,
    )


def _kind(state: bytes) -> dict[str, tuple]:
    return MemoryState.from_bytes([state]).kind


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


def _asked(documents: Sequence[EncodedDocument]) -> Asked:
    """Some queries of each document; drawn, not the first: a method may hold a context's beginning better."""
    draw = random.Random(0)
    return [
        (document, index)
        for document in documents
        for index in sorted(draw.sample(range(len(document.queries)), min(_QUERIES, len(document.queries))))
    ]


def _answers(evaluator: Evaluator, asked: Asked, states: Sequence[bytes] | None) -> list[str]:
    """The answer to each query, or the likeliest of its choices, from its state; `None` is no memory at all."""
    ids = [document.queries[index] for document, index in asked]
    chosen = evaluator.likelihoods(states, ids, [document.choices[index] for document, index in asked])
    targets = [document.targets[index] for document, index in asked]
    read = evaluator.read(states, ids, targets, generate=True)
    return [
        likeliest(query, offered) or evaluator.whole_text(answer)
        for query, offered, (_, _, answer, _) in zip(_queries(asked), chosen, read, strict=True)
    ]


def _queries(asked: Asked) -> list[Query]:
    return [document.document.queries[index] for document, index in asked]


def _measure(task: Task, asked: Asked) -> str:
    if any(query.choices for query in _queries(asked)):
        return "right choices"
    return f"{task.own_metric} of 1:" if task.own_metric else "exact match"


def _right(task: Task, query: Query, answer: str) -> bool:
    """Whether an answer, or the choice that was taken for one, is right."""
    if query.choices:
        return answer.removeprefix(task.target_delimiter) in query.targets
    own = task.own_score(query, answer, ())
    return exact_match(answer, query.targets, task.text_metrics) if own is None else own >= 1


def _right_ones(task: Task, asked: Asked, answers: Sequence[str]) -> int:
    return sum(_right(task, query, answer) for query, answer in zip(_queries(asked), answers, strict=True))


def _chance(answers: Sequence[str], asked: Asked, task: Task) -> float:
    """How often a choice that is drawn blindly is right; without choices, how often an answer is right for other
    contexts' examples: of the same query, or all where there is none."""
    queries = _queries(asked)
    if any(query.choices for query in queries):
        return sum(1 / len(query.choices) for query in queries) / len(queries)
    owners = [document.document.id for document, _ in asked]
    same_text = defaultdict(list)
    for example in zip(owners, queries, strict=True):
        same_text[example[1].text].append(example)
    total = 0.0
    for answer, context_id, query in zip(answers, owners, queries, strict=True):
        others = [other for owner, other in same_text[query.text] if owner != context_id]
        others = others or [other for owner, other in zip(owners, queries, strict=True) if owner != context_id]
        total += sum(_right(task, other, answer) for other in others) / len(others)
    return total / len(answers)
