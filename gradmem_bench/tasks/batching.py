"""From documents to tokens: what is encoded, what is cut, and what a training batch is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.errors import UserError
from gradmem_bench.tasks.base import Document, Query, Task

_ENCODED_TOGETHER = 1000


@dataclass(frozen=True)
class EncodedDocument:
    """A document in token ids."""

    document: Document
    context: list[int]
    queries: list[list[int]]
    targets: list[list[int]]
    """Each query's first accepted answer, without the end-of-text token."""
    truncated: bool
    """Whether the context was cut to what the backbone has positions for."""
    choices: list[list[list[int]]]
    """Each query's choices, empty for one that has none."""


def encode_documents(
    documents: Sequence[Document], task: Task, backbone: Backbone, max_context_tokens: int | None = None
) -> list[EncodedDocument]:
    """Encodes documents, in their order.

    A query and its answer are encoded together and split where the query ends, as lm-eval does, so that a tokenizer
    that marks the beginning of a word sees the answer in its place.

    Raises:
        UserError: a query has no tokens; a context is longer than `max_context_tokens` and the task does not allow
            cutting it.
    """
    contexts = backbone.encode_contexts([document.context for document in documents])
    asked = [query for document in documents for query in document.queries]
    alone = backbone.encode([query.text for query in asked])
    if nothing := next((query.id for query, ids in zip(asked, alone, strict=True) if not ids), None):
        raise UserError(f"The query '{nothing}' of {task.name} has no tokens, but an answer needs one to stand behind.")
    answers = [task.target_delimiter + query.targets[0] for query in asked]
    targets = continuations(backbone, [query.text for query in asked], alone, answers)
    choices = _choices(backbone, asked, alone)
    encoded, first = [], 0
    for document, context in zip(documents, contexts, strict=True):
        last = first + len(document.queries)
        truncated = max_context_tokens is not None and len(context) > max_context_tokens
        if truncated and not task.truncate_contexts:
            raise _too_long(document, len(context), task, backbone, max_context_tokens)
        encoded.append(
            EncodedDocument(
                document,
                context[:max_context_tokens] if truncated else context,
                alone[first:last],
                targets[first:last],
                truncated,
                choices[first:last],
            )
        )
        first = last
    return encoded


def check_contexts(documents: Sequence[Document], task: Task, backbone: Backbone, max_context_tokens: int) -> None:
    """Raises UserError, as `encode_documents` does, where a context is too long; encodes those alone that may be."""
    # A token has at least one byte, apart from what a tokenizer begins a text with, and the mark of a word's beginning.
    certain = max_context_tokens - len(backbone.start_ids) - 1
    doubtful = [document for document in documents if len(document.context.encode()) > certain]
    for first in range(0, len(doubtful), _ENCODED_TOGETHER):
        some = doubtful[first : first + _ENCODED_TOGETHER]
        contexts = backbone.encode_contexts([document.context for document in some])
        for document, context in zip(some, contexts, strict=True):
            if len(context) > max_context_tokens:
                raise _too_long(document, len(context), task, backbone, max_context_tokens)


def _too_long(document: Document, tokens: int, task: Task, backbone: Backbone, most: int) -> UserError:
    return UserError(
        f"The context of document '{document.id}' of {task.name} has {tokens} tokens, but at most {most} fit the "
        f"backbone's {backbone.max_positions} positions beside memory, query and answer; take a backbone with more, or "
        "set truncate_contexts: true in the task's metadata."
    )


def _choices(backbone: Backbone, asked: Sequence[Query], alone: Sequence[list[int]]) -> list[list[list[int]]]:
    """The choices of each query in ids."""
    owners = [row for row, query in enumerate(asked) for _ in query.choices]
    texts = [choice for query in asked for choice in query.choices]
    ids = continuations(backbone, [asked[row].text for row in owners], [alone[row] for row in owners], texts)
    choices: list[list[list[int]]] = [[] for _ in asked]
    for row, choice in zip(owners, ids, strict=True):
        choices[row].append(choice)
    return choices


def continuations(
    backbone: Backbone, prompts: Sequence[str], prompt_ids: Sequence[list[int]], texts: Sequence[str]
) -> list[list[int]]:
    """The ids of each text behind its prompt: both are encoded together and split where the prompt ends."""
    together = backbone.encode([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
    ids = []
    for prompt, both, text in zip(prompt_ids, together, texts, strict=True):
        split_cleanly = both[: len(prompt)] == prompt and len(both) > len(prompt)
        ids.append(both[len(prompt) :] if split_cleanly else backbone.encode([text])[0])
    return ids


def asked_of(document: Document, queries: int | None, generator: np.random.Generator) -> Document:
    """The document with so many of its queries, drawn at random; `None`, or more than there are, is all of them."""
    if queries is None or queries >= len(document.queries):
        return document
    chosen = generator.choice(len(document.queries), queries, replace=False)
    return replace(document, queries=tuple(document.queries[index] for index in chosen))


def training_batch(encoded: Sequence[EncodedDocument], end_id: int) -> Batch:
    """The documents' contexts, each with all of its queries."""
    return Batch(
        Tokens.from_lists([document.context for document in encoded]),
        Tokens.from_lists([query for document in encoded for query in document.queries]),
        Tokens.from_lists([[*target, end_id] for document in encoded for target in document.targets]),
        torch.tensor([row for row, document in enumerate(encoded) for _ in document.queries]),
    )
