"""What a trained memory's reconstruction loss is made of: keys, values and the marks between them, apart."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from gradmem_bench import checkpoints
from gradmem_bench.batch import Tokens
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.state import MemoryState
from gradmem_bench.tasks.base import Document, Task
from gradmem_bench.tasks.batching import encode_documents
from gradmem_bench.tasks.kv_retrieval import KeyValueRetrieval

PARTS_FILE = "reconstruction.json"
_CONTEXTS = 256
_BATCH = 32


def token_parts(task: Task, length: int) -> list[str]:
    """`keys`, `values` or `marks` for each of the `length` tokens of a key-value context, one token a character.

    Raises:
        UserError: the task is no key-value retrieval, or its contexts have other tokens or noise in them.
    """
    if not isinstance(task, KeyValueRetrieval) or task.settings.noise:
        raise UserError(f"{task.name} has no keys and values to tell apart; take key-value retrieval without noise.")
    keys, values = task.settings.key_length, task.settings.value_length
    pair = ["marks", *["keys"] * keys, "marks", *["values"] * values, "marks"]
    parts = pair * task.settings.pairs + ["marks"]
    if len(parts) != length:
        raise UserError(f"A context of {task.name} has {length} tokens and not {len(parts)}, one a character.")
    return parts


@torch.no_grad()
def measure_parts(method: MemoryMethod, task: Task, limit: int | None) -> dict[str, float]:
    """Mean nats per token of each part, over contexts of the test split, from states that crossed as bytes.

    Raises:
        UserError: the method does not rebuild its context, or as `token_parts` does.
    """
    encoded = encode_documents(_sample(task, limit), task, method.backbone)
    evaluator = Evaluator(method, task, _BATCH)
    parts = token_parts(task, len(encoded[0].context))
    sums = torch.zeros(len(parts), dtype=torch.float64)
    for batch in evaluator.batches(encoded):
        contexts = Tokens.from_lists([document.context for document in batch], method.backbone.device)
        states = evaluator.write(batch, reconstruct=False).states
        losses = method.reconstruction_losses(MemoryState.from_bytes(states, method.backbone.device), contexts)
        if losses is None:
            raise UserError(f"{type(method).__name__} does not rebuild its context: it has no reconstruction loss.")
        sums += losses.double().sum(dim=0).cpu()
    means = sums / len(encoded)
    return {
        name: float(means[[index for index, part in enumerate(parts) if part == name]].mean())
        for name in ("keys", "values", "marks")
    }


def _sample(task: Task, limit: int | None) -> Sequence[Document]:
    return task.documents("test")[: min(_CONTEXTS, limit or _CONTEXTS)]


def write_parts(method: MemoryMethod, task: Task, folder: Path, limit: int | None) -> None:
    """Measures the parts for the checkpoint in a run's folder, and leaves them beside its record."""
    source = folder / checkpoints.METHOD_FILE
    tensors, _ = checkpoints.load(source, str(method.backbone.device))
    checkpoints.restore(method, tensors, source)
    found = {"nats_per_token": measure_parts(method, task, limit), "contexts": len(_sample(task, limit))}
    part = folder / f".{PARTS_FILE}.part"
    part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / PARTS_FILE)
