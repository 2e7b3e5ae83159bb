"""Time and peak memory of one training step of GradMem: our engines beside the plain double backward.

    python benchmarks/meta_gradient.py --model kv --pairs 16 --steps 1 2 5 --batch 64
    python benchmarks/meta_gradient.py --model gpt2 --length 256 --steps 1 --batch 2

*naive* is what the paper's code does, written out: eager attention, `create_graph=True` at every inner step, whole
logits. Every variant of a row runs in a process of its own, so that its peak memory is its own, and they take turns, so
that what else the machine does hits them alike. Times are medians of paired ratios. The gradients are compared first.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters
from gradmem_bench.registry import resolve
from gradmem_bench.results import code_version
from gradmem_bench.tasks.declaration import load_task

VARIANTS = ("naive", "unrolled", "recompute")
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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("leaderboards/performance"))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        work(arguments)
    else:
        drive(arguments)


# ------------------------------------------------------------------------------------- one variant


def work(arguments: argparse.Namespace) -> None:
    """Runs a step for every line on standard input, and answers with its figures."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    steps = arguments.steps[0]
    tokenizer = load_task(Path(resolve("task", "kv_retrieval").target)).tokenizer()
    if arguments.model == "kv":
        shape, length, query = BackboneConfig(name="llama-4x128"), 7 * arguments.pairs[0] + 1, QUERY
        vocabulary = len(tokenizer)
    else:
        shape, length, query = BackboneConfig(name="gpt2-12x768"), arguments.length[0], 24
        vocabulary = 50257
    backbone = load_backbone(shape, tokenizer, arguments.device, 0)
    if vocabulary != backbone.vocabulary_size:
        backbone.model.resize_token_embeddings(vocabulary)
    engine = "unrolled" if arguments.variant == "naive" else arguments.variant
    settings = GradMemParameters(inner_steps=steps, inner_learning_rate=ALPHA, write_head=False, engine=engine)
    method = GradMem(backbone, settings).to(arguments.device).train()
    if arguments.variant == "naive":
        backbone.model.set_attn_implementation("eager")
    batch = made_up(arguments.batch, length, query, vocabulary).to(arguments.device)
    before = peak(arguments.device)
    for _ in sys.stdin:
        method.zero_grad()
        started = now(arguments.device)
        loss = naive_loss(backbone, method, batch, steps) if arguments.variant == "naive" else method.loss(batch).total
        loss.backward()
        seconds = now(arguments.device) - started
        gradients = {name: float(one.grad.norm()) for name, one in method.named_parameters() if one.grad is not None}
        figures = {"seconds": seconds, "bytes": peak(arguments.device) - before, "loss": float(loss.detach())}
        print(json.dumps({**figures, "gradients": gradients}), flush=True)


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


def made_up(size: int, length: int, query: int, vocabulary: int) -> Batch:
    """Random tokens, one query a context, nothing padded."""

    def tokens(width: int) -> Tokens:
        return Tokens(torch.randint(vocabulary, (size, width)), torch.ones(size, width, dtype=torch.bool))

    return Batch(tokens(length), tokens(query), tokens(TARGET), torch.arange(size))


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ------------------------------------------------------------------------------------- side by side


def drive(arguments: argparse.Namespace) -> None:
    sizes = arguments.pairs if arguments.model == "kv" else arguments.length
    console = Console()
    table = Table(
        "pairs" if arguments.model == "kv" else "tokens", "K", "variant", "seconds", "time ratio", "peak", "ratio"
    )
    rows = []
    for size in sizes:
        for steps in arguments.steps:
            for row in measured(arguments, size, steps):
                rows.append(row)
                ratio = f"{row['time_ratio']:.2f} [{row['time_ratio_low']:.2f}, {row['time_ratio_high']:.2f}]"
                gib = f"{row['peak_bytes'] / 2**30:.2f} GiB"
                seconds = f"{row['seconds']:.3f}"
                table.add_row(str(size), str(steps), row["variant"], seconds, ratio, gib, f"{row['memory_ratio']:.2f}")
                console.print(f"{size} K={steps} {row['variant']}: {seconds} s, {ratio}, {gib}", highlight=False)
    console.print(table)
    record = {
        "command": ["python", *sys.argv],
        "code": code_version().model_dump(),
        "machine": {
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "cpu",
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "model": arguments.model,
        "batch": arguments.batch,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"meta_gradient-{arguments.model}-{arguments.device}-b{arguments.batch}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(f"record: {path}")


def measured(arguments: argparse.Namespace, size: int, steps: int) -> list[dict[str, Any]]:
    """One row a variant: its median seconds, and the median and range of its ratio to the naive step beside it."""
    flags = ["--model", arguments.model, "--pairs", str(size), "--length", str(size), "--steps", str(steps)]
    flags += ["--batch", str(arguments.batch), "--threads", str(arguments.threads), "--device", arguments.device]
    workers = {
        variant: subprocess.Popen(
            [sys.executable, __file__, *flags, "--variant", variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for variant in VARIANTS
    }
    answers: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    # The first round warms up, and shows that all compute the same.
    for _ in range(1 + arguments.repeats):
        for variant, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            answers[variant].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    naive = answers["naive"]
    rows = []
    for variant, found in answers.items():
        for name, norm in naive[0]["gradients"].items():
            if abs(found[0]["gradients"][name] - norm) > 1e-3 * norm + 1e-6:
                raise SystemExit(f"{variant} disagrees with naive on the gradient of {name}")
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(found[1:], naive[1:], strict=True)]
        rows.append(
            {
                "size": size,
                "steps": steps,
                "variant": variant,
                "seconds": statistics.median(one["seconds"] for one in found[1:]),
                "time_ratio": statistics.median(ratios),
                "time_ratio_low": min(ratios),
                "time_ratio_high": max(ratios),
                "peak_bytes": found[-1]["bytes"],
                "memory_ratio": found[-1]["bytes"] / naive[-1]["bytes"],
            }
        )
    return rows


if __name__ == "__main__":
    main()
