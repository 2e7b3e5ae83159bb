"""How long a task's contexts, queries and answers are, told from a sample before anything is run."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain

from gradmem_bench.backbone import Backbone
from gradmem_bench.errors import Notice, UserError
from gradmem_bench.tasks.base import Document, Query, Task
from gradmem_bench.tasks.batching import EncodedDocument, encode_documents

_SAMPLE = 200
"""Documents of the reported split that are looked at."""
_LONGEST = 64
"""So many queries of the most bytes are encoded, to find the one of the most tokens; and as many answers."""


@dataclass(frozen=True)
class Lengths:
    """Of the sampled contexts, in a backbone's tokens."""

    mean: float
    longest: int
    bytes: int
    """Of UTF-8, of the context that has the most."""


def context_lengths(task: Task, backbone: Backbone, limit: int | None) -> Lengths:
    """Those of the first contexts of the reported split.

    Raises:
        UserError: the tokenizer cannot write most of their answers.
    """
    sample: Sequence[Document] = task.documents("test")[: min(_SAMPLE, limit or _SAMPLE)]
    contexts = backbone.encode_contexts([document.context for document in sample])
    _check_answers(task, backbone, sample)
    lengths = [len(ids) for ids in contexts]
    size = max(len(document.context.encode()) for document in sample)
    return Lengths(sum(lengths) / len(lengths), max(lengths), size)


def asked_tokens(task: Task, backbone: Backbone) -> int:
    """Tokens to keep free for a query and its answer; tells of answers that are longer than what may be generated."""
    encoded = encode_documents(task.documents("test")[:_SAMPLE], task, backbone)
    targets = [target for document in encoded for target in document.targets]
    if too_long := sum(len(target) > task.max_new_tokens for target in targets):
        warnings.warn(
            f"{too_long} of the {len(targets)} answers of {task.name} that were looked at are longer than the "
            f"{task.max_new_tokens} tokens that may be generated (max_gen_toks of its file): no method can write them.",
            Notice,
            stacklevel=2,
        )
    query, answer = _longest(encoded, task)
    # A quarter more than the longest seen: not every query is looked at.
    return query + query // 4 + answer


def most_asked_tokens(documents: Iterable[Document], task: Task, backbone: Backbone) -> int:
    """Tokens that the longest query and the longest answer of all `documents` take, told from those of most bytes."""

    def answer(query: Query) -> int:
        return max(len(text.encode()) for text in (query.targets[0], *query.choices))

    queries = [query for document in documents for query in document.queries]
    asked = nlargest(_LONGEST, queries, key=lambda query: len(query.text.encode()))
    longest = (*asked, *nlargest(_LONGEST, queries, key=answer))
    return sum(_longest(encode_documents([Document("", "", longest)], task, backbone), task))


def _longest(encoded: Sequence[EncodedDocument], task: Task) -> tuple[int, int]:
    """Tokens of the longest query, and of the longest answer with its end or of what may be generated."""
    queries = [ids for document in encoded for ids in document.queries]
    written = [ids for document in encoded for ids in (*document.targets, *chain.from_iterable(document.choices))]
    return max(map(len, queries)), max(task.max_new_tokens, max(len(ids) + 1 for ids in written))


def _check_answers(task: Task, backbone: Backbone, documents: Sequence[Document]) -> None:
    """Refuses a tokenizer that cannot write the task's answers; every method would score zero behind it."""
    answers = [query.targets[0] for document in documents for query in document.queries]
    unknown = backbone.tokenizer.unk_token_id
    foreign = [answer for answer, ids in zip(answers, backbone.encode(answers), strict=True) if unknown in ids]
    # An answer here and there is foreign to many a tokenizer.
    if len(foreign) > len(answers) / 2:
        raise UserError(
            f"The tokenizer of {backbone.identity['name']} cannot write '{foreign[0]}' and {len(foreign) - 1} more of "
            f"{len(answers)} answers of {task.name}; take another --backbone, or name a tokenizer for a random one "
            "with --set backbone.tokenizer=FOLDER."
        )
