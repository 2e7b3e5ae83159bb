"""Time and peak memory of one training step of GradMem: our engines beside the plain double backward.

    python benchmarks/meta_gradient.py --model kv --pairs 16 --steps 1 2 5 --batch 64
    python benchmarks/meta_gradient.py --model gpt2 --length 256 512 --steps 1 --batch 2

*naive* is what the paper's code does, written out: eager attention, `create_graph=True` at every inner step, whole
logits. Times are medians of paired ratios. The norms of all gradients are compared first. On a CPU the seconds that one
step of each spends in products of matrices are told as well: no exact engine is without them. Where the graphs of all
steps would not fit into memory, judged by fewer steps, those who keep them are left out.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import Row, row, serve, start, take_turns
from sweep import TOLERANCE, add_sizes, method_and_batch, naive_write, precision, sweep, unit_of
from torch import Tensor
from torch.autograd.profiler import profile

from gradmem_bench.batch import Batch
from gradmem_bench.methods.gradmem import GradMem

PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm")}
VARIANTS = ("naive", "unrolled", "recompute", "compiled")
KEEPS_ALL = ("naive", "unrolled")
HOLES = 1.7
"""Of a process whose tensors have been measured: what it holds, with the holes of its heap, over what they take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_sizes(parser, steps=[1, 2, 5])
    parser.add_argument("--engines", nargs="+", choices=VARIANTS, help="what is set side by side; all")
    start(parser, VARIANTS, work, drive)


def work(arguments: argparse.Namespace) -> None:
    method, batch = method_and_batch(arguments, arguments.variant)
    method.train()

    def step() -> None:
        method.zero_grad()
        with precision(arguments, arguments.variant):
            loss = naive_loss(method, batch) if arguments.variant == "naive" else method.loss(batch).total
        loss.backward()

    def figures() -> Row:
        gradients = {name: float(one.grad.norm()) for name, one in method.named_parameters() if one.grad is not None}
        return {"gradients": gradients, "products": products(step) if arguments.device == "cpu" else None}

    serve(step, arguments.device, figures)


def products(step: Callable[[], None]) -> float:
    """Seconds of one step in products of matrices; those within READ's fused attention, which are few, are left out."""
    with profile() as seen:
        step()
    return sum(one.self_cpu_time_total for one in seen.key_averages() if one.key in PRODUCTS) / 1e6


def naive_loss(method: GradMem, batch: Batch) -> Tensor:
    memory, backbone = naive_write(method, batch.contexts), method.backbone
    asked = torch.cat([batch.queries.ids, batch.targets.ids], dim=1)
    logits = backbone.model(inputs_embeds=torch.cat([memory, backbone.embed(asked)], dim=1)).logits
    first = memory.shape[1] + batch.queries.ids.shape[1] - 1
    return F.cross_entropy(logits[:, first:-1].flatten(0, 1), batch.targets.ids.flatten())


def drive(arguments: argparse.Namespace) -> None:
    naive_bytes: dict[int, dict[int, int]] = defaultdict(dict)

    def measured(size: int, steps: int) -> list[Row]:
        """One row a variant; raises SystemExit where its gradient is not that of the first."""
        variants = [one for one in VARIANTS if one in (arguments.engines or VARIANTS)]
        needed, room = predicted(naive_bytes[size], steps), available(arguments.device)
        # Each holds what it once used until its process ends; the last of them to be left out is the reference.
        for one in reversed(KEEPS_ALL):
            if one in variants and needed * sum(other in KEEPS_ALL for other in variants) > room:
                print(f"{size} {unit_of(arguments)}, K = {steps}: {one} would take {needed / 2**30:.0f} GiB")
                variants.remove(one)
        answers = take_turns(__file__, arguments, variants, pairs=size, length=size, steps=steps)
        norms = {one: found[0]["gradients"] for one, found in answers.items() if found[0]["seconds"] is not None}
        expected, rows = next(iter(norms.values()), {}), {}
        for variant, found in answers.items():
            own = norms.get(variant, {})
            differences = {name: abs(norm - expected[name]) / max(expected[name], 1e-30) for name, norm in own.items()}
            worst = max(differences, key=differences.get, default=None)
            exact = arguments.dtype == (arguments.naive_dtype or "float32") == "float32"
            if worst and exact and not differences[worst] <= TOLERANCE:
                raise SystemExit(f"{variant} disagrees with {next(iter(norms))} on the gradient of {worst}")
            difference = worst and differences[worst]
            told = {"gradient_difference": difference, "products_seconds": found[0].get("products")}
            rows[variant] = row(found, answers.get("naive"), variant=variant, **told)
        if "naive" in rows and rows["naive"]["bytes"] is not None:
            naive_bytes[size][steps] = rows["naive"]["bytes"]
        return list(rows.values())

    sweep("meta_gradient", ("engine", "seconds"), arguments, measured)


def predicted(naive_bytes: dict[int, int], steps: int) -> float:
    """Bytes of a process of so many steps of the plain double backward, on the line through fewer, or through one and
    nothing; 0 without any."""
    if not naive_bytes:
        return 0
    (first, low), *_, (last, high) = sorted((naive_bytes if len(naive_bytes) > 1 else {0: 0, **naive_bytes}).items())
    return HOLES * (low + (high - low) * (steps - first) / (last - first))


def available(device: str) -> float:
    """Bytes that a process may fill, with a fifth kept free."""
    if device == "cuda":
        return 0.8 * torch.cuda.mem_get_info()[0]
    return 0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
