"""What `meta_gradient.py` and `write_latency.py` share: GradMem on random tokens, over sizes of the context and K.

Its WRITE stands here once more, as the paper's code has it.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from side_by_side import Row, cells, drawn, positive, publish
from torch import Tensor

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters
from gradmem_bench.registry import resolve
from gradmem_bench.tasks.declaration import load_task

QUERY, TARGET = 5, 2
"""Tokens of a key-value query and its answer; GPT-2's query has 24, as in the paper's Fig. 5."""
ALPHA = 0.04
"""As in the paper's key-value scripts. Ten times that, and after 30 steps nothing but rounding is compared."""

TOLERANCE = 1e-3
"""Of the norms of gradients and memories in float32, which are compared; where products are rounded, the difference is
told and no more."""


def add_sizes(parser: argparse.ArgumentParser, steps: list[int]) -> None:
    """The flags of a sweep; `steps` are the K that are tried where none are named."""
    parser.add_argument("--model", choices=("kv", "gpt2"), default="kv", help="whose shape the random backbone has")
    parser.add_argument("--pairs", type=positive, nargs="+", default=[16], help="key-value pairs in a context (kv)")
    parser.add_argument("--length", type=positive, nargs="+", default=[256], help="tokens in a context (gpt2)")
    parser.add_argument("--steps", type=positive, nargs="+", default=steps, help="K")
    parser.add_argument("--batch", type=positive, default=64, help="contexts at a time")


# ------------------------------------------------------------------------------------- one variant


def method_and_batch(arguments: argparse.Namespace, engine: str) -> tuple[GradMem, Batch]:
    """GradMem on the random backbone, and a batch of random tokens, one query a context, nothing padded.

    Args:
        engine: of GradMem; `naive` is eager attention, for `naive_write`.
    """
    tokenizer = load_task(Path(resolve("task", "kv_retrieval").target)).tokenizer()
    if arguments.model == "kv":
        shape, length, query = BackboneConfig(name="llama-4x128"), 7 * arguments.pairs[0] + 1, QUERY
        vocabulary = len(tokenizer)
    else:
        shape, length, query = BackboneConfig(name="gpt2-12x768", max_positions=2048), arguments.length[0], 24
        vocabulary = 50257
    backbone = load_backbone(shape, tokenizer, arguments.device, 0)
    if vocabulary != backbone.vocabulary_size:
        # Drawn anew: around the mean of the old ones they would all be the same token but for rounding.
        backbone.model.resize_token_embeddings(vocabulary, mean_resizing=False)

    def tokens(width: int) -> Tokens:
        size = arguments.batch, width
        return Tokens(torch.randint(vocabulary, size), torch.ones(size, dtype=torch.bool))

    batch = Batch(tokens(length), tokens(query), tokens(TARGET), torch.arange(arguments.batch))
    settings = GradMemParameters(
        inner_steps=arguments.steps[0],
        inner_learning_rate=ALPHA,
        write_head=False,
        engine="unrolled" if engine == "naive" else engine,
    )
    method = GradMem(backbone, settings).to(arguments.device)
    if engine == "naive":
        backbone.model.set_attn_implementation("eager")
        # The paper's scripts turn weights, memory and inner steps into bfloat16; ours stay float32.
        method.to(torch.bfloat16 if arguments.dtype == "bfloat16" else torch.float32)
    return method, batch.to(arguments.device)


def precision(arguments: argparse.Namespace, engine: str) -> AbstractContextManager:
    """What a method's loss is computed within."""
    rounded = arguments.dtype == "bfloat16" and engine != "naive"
    return torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=rounded)


def naive_write(method: GradMem, contexts: Tokens) -> Tensor:
    """M_K, (B, m, d): `create_graph=True` at every step, and whole logits."""
    backbone, ids, count = method.backbone, contexts.ids, method.settings.memory_vectors
    memory, context = method.memory(len(ids)), backbone.embed(ids)
    for _ in range(method.settings.inner_steps):
        logits = backbone.model(inputs_embeds=torch.cat([memory, context], dim=1)).logits[:, count - 1 : -1]
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        (slope,) = torch.autograd.grad(losses.mean(dim=1).sum(), memory, create_graph=True)
        memory = memory - ALPHA * slope
    return memory


# ------------------------------------------------------------------------------------- the sweep


def unit_of(arguments: argparse.Namespace) -> str:
    """What the size of a context is counted in."""
    return "pairs" if arguments.model == "kv" else "tokens"


def sweep(
    name: str, columns: tuple[str, str], arguments: argparse.Namespace, measured: Callable[[int, int], list[Row]]
) -> None:
    """Prints and publishes the rows of every size of the context with every K, and draws them where there are several.

    What was measured before a fault or Ctrl-C is published too, as a record that is not `complete`.

    Args:
        name: of the record.
        columns: headings of a row's name, and of its seconds.
        measured: (size, K) -> rows, each with its `variant`, and its `phase` where there are two; READ is not drawn.
    """
    unit, sizes = unit_of(arguments), arguments.pairs if arguments.model == "kv" else arguments.length
    console, table = Console(), Table(unit, "K", *columns, "time ratio", "peak", "memory ratio")
    rows: list[Row] = []
    places = [(size, steps) for size in sizes for steps in sorted(arguments.steps)]
    left = len(places)
    try:
        for size, steps in places:
            for one in measured(size, steps):
                rows.append({unit: size, "K": steps, **one})
                of = " ".join(one[key] for key in ("phase", "variant") if key in one)
                table.add_row(str(size), str(steps), of, *cells(one))
                seconds, ratio, peak, memory = cells(one)
                told = f"{seconds} s, {peak}" if one["seconds"] else seconds
                if one["time_ratio"] is not None:
                    told += f": {ratio} of naive's time, {memory} of its memory"
                if (products := one.get("products_seconds")) is not None:
                    told += f"; {products:.3g} s of one step were products"
                console.print(f"{size} {unit}, K = {steps}, {of}: {told}", highlight=False)
            left -= 1
    finally:
        if rows:
            console.print(table)
            console.print(f"record: {_published(name, arguments, rows, complete=not left)}")


def _published(name: str, arguments: argparse.Namespace, rows: list[Row], complete: bool) -> Path:
    unit, sizes = unit_of(arguments), arguments.pairs if arguments.model == "kv" else arguments.length
    many_steps = len(set(arguments.steps)) > 1
    figure = None
    if complete and (many_steps or len(sizes) > 1):
        across, label = ("K", "K") if many_steps else (unit, f"{unit} in a context")
        panels = unit if many_steps and len(sizes) > 1 else None
        figure = drawn([one for one in rows if one.get("phase") != "read"], across, label, panels)
    every = "-".join(map(str, sizes)), "-".join(map(str, sorted(set(arguments.steps))))
    some = "".join(f"-{one}" for one in getattr(arguments, "engines", None) or ())
    whole = f"{name}-{arguments.model}-{every[0]}-k{every[1]}-b{arguments.batch}{some}"
    about = {"model": arguments.model, "batch": arguments.batch, "complete": complete}
    return publish(whole, arguments, rows, figure, **about)
