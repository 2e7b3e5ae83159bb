"""Time and peak memory of one training step of GradMem: our engines beside the plain double backward.

    python benchmarks/meta_gradient.py --model kv --pairs 16 --steps 1 2 5 --batch 64
    python benchmarks/meta_gradient.py --model gpt2 --length 256 512 --steps 1 --batch 2

*naive* is what the paper's code does, written out: eager attention, `create_graph=True` at every inner step, whole
logits. Times are medians of paired ratios. The gradients are compared first. Where the graphs of all steps would not
fit into memory, judged by fewer steps, those who keep them are left out.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from side_by_side import Row, add_arguments, cells, drawn, publish, row, serve, take_turns
from torch import Tensor

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters
from gradmem_bench.registry import resolve
from gradmem_bench.tasks.declaration import load_task

VARIANTS = ("naive", "unrolled", "recompute", "compiled")
KEEPS_ALL = ("naive", "unrolled")
QUERY, TARGET = 5, 2
"""Tokens of a key-value query and its answer; GPT-2's query has 24, as in the paper's Fig. 5."""
ALPHA = 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("kv", "gpt2"), default="kv")
    parser.add_argument("--pairs", type=int, nargs="+", default=[16], help="key-value pairs in a context (kv)")
    parser.add_argument("--length", type=int, nargs="+", default=[256], help="tokens in a context (gpt2)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5], help="K")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--engines", nargs="+", choices=VARIANTS, default=VARIANTS)
    add_arguments(parser, VARIANTS)
    arguments = parser.parse_args()
    if arguments.variant:
        work(arguments)
    else:
        drive(arguments)


# ------------------------------------------------------------------------------------- one variant


def model_and_batch(arguments: argparse.Namespace) -> tuple[Backbone, Batch]:
    """The random backbone and a batch of random tokens, one query a context, nothing padded."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = load_task(Path(resolve("task", "kv_retrieval").target)).tokenizer()
    if arguments.model == "kv":
        shape, length, query = BackboneConfig(name="llama-4x128"), 7 * arguments.pairs[0] + 1, QUERY
        vocabulary = len(tokenizer)
    else:
        shape, length, query = BackboneConfig(name="gpt2-12x768", max_positions=2048), arguments.length[0], 24
        vocabulary = 50257
    backbone = load_backbone(shape, tokenizer, arguments.device, 0)
    if vocabulary != backbone.vocabulary_size:
        backbone.model.resize_token_embeddings(vocabulary)

    def tokens(width: int) -> Tokens:
        size = arguments.batch, width
        return Tokens(torch.randint(vocabulary, size), torch.ones(size, dtype=torch.bool))

    batch = Batch(tokens(length), tokens(query), tokens(TARGET), torch.arange(arguments.batch))
    return backbone, batch.to(arguments.device)


def work(arguments: argparse.Namespace) -> None:
    backbone, batch = model_and_batch(arguments)
    variant, steps = arguments.variant, arguments.steps[0]
    engine = "unrolled" if variant == "naive" else variant
    settings = GradMemParameters(inner_steps=steps, inner_learning_rate=ALPHA, write_head=False, engine=engine)
    method = GradMem(backbone, settings).to(arguments.device).train()
    if variant == "naive":
        backbone.model.set_attn_implementation("eager")

    def step() -> Row:
        method.zero_grad()
        loss = naive_loss(backbone, method, batch, steps) if variant == "naive" else method.loss(batch).total
        loss.backward()
        gradients = {name: float(one.grad.norm()) for name, one in method.named_parameters() if one.grad is not None}
        return {"loss": float(loss.detach()), "gradients": gradients}

    serve(step, arguments.device)


def naive_loss(backbone: Backbone, method: GradMem, batch: Batch, steps: int) -> Tensor:
    model, ids = backbone.model, batch.contexts.ids
    count = method.settings.memory_vectors
    memory, context = method.memory(len(ids)), backbone.embed(ids)
    for _ in range(steps):
        logits = model(inputs_embeds=torch.cat([memory, context], dim=1)).logits[:, count - 1 : -1]
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        (slope,) = torch.autograd.grad(losses.mean(dim=1).sum(), memory, create_graph=True)
        memory = memory - ALPHA * slope
    asked = torch.cat([batch.queries.ids, batch.targets.ids], dim=1)
    logits = model(inputs_embeds=torch.cat([memory, backbone.embed(asked)], dim=1)).logits
    start = count + batch.queries.ids.shape[1] - 1
    return F.cross_entropy(logits[:, start:-1].flatten(0, 1), batch.targets.ids.flatten())


# ------------------------------------------------------------------------------------- side by side


def drive(arguments: argparse.Namespace) -> None:
    sizes = arguments.pairs if arguments.model == "kv" else arguments.length
    unit = "pairs" if arguments.model == "kv" else "tokens"
    console = Console()
    table = Table(unit, "K", "engine", "seconds", "time ratio", "peak", "memory ratio")
    rows: list[Row] = []
    for size in sizes:
        naive_bytes: dict[int, int] = {}
        for steps in sorted(arguments.steps):
            variants = [one for one in VARIANTS if one in arguments.engines]
            needed, room = predicted(naive_bytes, steps), available(arguments.device)
            # Each holds what it once used until its process ends; the last of them to be left out is the reference.
            for one in reversed(KEEPS_ALL):
                if one in variants and needed * sum(other in KEEPS_ALL for other in variants) > room:
                    console.print(f"{size} {unit}, K = {steps}: {one} would take {needed / 2**30:.0f} GiB")
                    variants.remove(one)
            for one in measured(arguments, variants, size, steps):
                rows.append(one)
                if one["variant"] == "naive":
                    naive_bytes[steps] = one["bytes"]
                table.add_row(str(size), str(steps), one["variant"], *cells(one))
                shown = " · ".join(cells(one))
                console.print(f"{size} {unit}, K = {steps}, {one['variant']}: {shown}", highlight=False)
    console.print(table)
    many_steps = len(set(arguments.steps)) > 1
    figure = None
    if many_steps or len(sizes) > 1:
        label = "K" if many_steps else f"{unit} in a context"
        figure = drawn(rows, "K" if many_steps else unit, label, unit if many_steps and len(sizes) > 1 else None)
    sizes_shown = "-".join(str(size) for size in sizes)
    name = f"meta_gradient-{arguments.model}-{sizes_shown}-b{arguments.batch}-{arguments.device}"
    path = publish(name, arguments, rows, figure, model=arguments.model, batch=arguments.batch)
    console.print(f"record: {path}")


def predicted(naive_bytes: dict[int, int], steps: int) -> float:
    """Bytes of so many steps of the plain double backward, on the line through what fewer took; 0 without two."""
    if len(naive_bytes) < 2:
        return 0
    (first, low), *_, (last, high) = sorted(naive_bytes.items())
    return low + (high - low) * (steps - first) / (last - first)


def available(device: str) -> float:
    """Bytes that a process may fill, with a fifth kept free."""
    if device == "cuda":
        return 0.8 * torch.cuda.mem_get_info()[0]
    return 0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measured(arguments: argparse.Namespace, variants: list[str], size: int, steps: int) -> list[Row]:
    """One row a variant; raises SystemExit where its gradient is not that of the first."""
    flags = ["--model", arguments.model, "--pairs", str(size), "--length", str(size), "--steps", str(steps)]
    flags += ["--batch", str(arguments.batch), "--threads", str(arguments.threads), "--device", arguments.device]
    answers = take_turns(__file__, flags, variants, arguments.repeats)
    expected = answers[variants[0]][0]["gradients"]
    unit = "pairs" if arguments.model == "kv" else "tokens"
    rows = []
    for variant, found in answers.items():
        for name, norm in expected.items():
            if abs(found[0]["gradients"][name] - norm) > 1e-3 * norm + 1e-6:
                raise SystemExit(f"{variant} disagrees with {variants[0]} on the gradient of {name}")
        rows.append(row(found, answers.get("naive"), **{unit: size, "K": steps, "variant": variant}))
    return rows


if __name__ == "__main__":
    main()
