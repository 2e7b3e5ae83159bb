"""Two steps of GradMem in data parallel on this machine's CPU, by several engines; each process takes every second
context.

    torchrun --nproc-per-node 2 two_processes.py OUTPUT
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMem
from gradmem_bench.precision import accelerator_for
from gradmem_bench.registry import recipe_folder
from gradmem_bench.tasks.declaration import load_task

CONTEXTS = 4
CASES = [
    ("unrolled", "second", None),
    ("recompute", "second", None),
    ("recompute", "second", 1),
    ("recompute", "first", 1),
]
"""Engine, order, and contexts whose graphs exist at a time; in first order WRITE's head has no gradient."""


def gradmem(engine: str, order: str, micro_batch: int | None) -> GradMem:
    tokenizer = load_task(recipe_folder("task") / "kv_retrieval.yaml").tokenizer()
    on = load_backbone(BackboneConfig(name="llama-1x32"), tokenizer, "cpu", 0)
    given = {"memory_vectors": 2, "inner_steps": 3, "engine": engine, "order": order}
    torch.manual_seed(1)
    method = GradMem(on, GradMem.Parameters(**given)).double()
    method.micro_batch = lambda contexts: micro_batch
    return method


def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)

    def tokens(width: int) -> Tokens:
        ids = torch.randint(40, (CONTEXTS, width), generator=generator)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    return Batch(tokens(9), tokens(3), tokens(2), torch.arange(CONTEXTS))


def share(rank: int, ranks: int) -> Batch:
    whole, rows = batch(), slice(rank, None, ranks)
    sides = (side.select(rows) for side in (whole.contexts, whole.queries, whole.targets))
    return Batch(*sides, torch.arange(CONTEXTS // ranks))


def gradients(method: GradMem) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in method.named_parameters() if one.grad is not None}


if __name__ == "__main__":
    accelerator, found = accelerator_for("cpu", "float32", None), {}
    for case in CASES:
        method = gradmem(*case)
        model = accelerator.prepare(method)
        # A second step is refused where the first left a parameter without what was waited for.
        for _ in range(2):
            method.zero_grad()
            accelerator.backward(model(share(accelerator.process_index, accelerator.num_processes)).total)
        found[case] = gradients(method)
    if accelerator.is_main_process:
        torch.save({"processes": accelerator.num_processes, "gradients": found}, Path(sys.argv[1]))
