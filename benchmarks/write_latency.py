"""Time and peak memory of WRITE and READ at evaluation, beside a WRITE that records what nobody differentiates.

    python benchmarks/write_latency.py --model kv --pairs 16 --steps 5 --batch 64
    python benchmarks/write_latency.py --model gpt2 --length 256 --steps 5 --batch 2

*naive* is what the paper's code does at evaluation, written out: the WRITE of training, `create_graph=True` at every
step, with whole logits and eager attention. *plain* is ours as a run has it, *compiled* the same with the compiled
step. READ is greedy, of one query a context, and the same for all; it stands there for its own figures.
"""

import argparse

import torch
import torch.nn.functional as F
from meta_gradient import ALPHA, TARGET, model_and_batch
from rich.console import Console
from rich.table import Table
from side_by_side import Row, add_arguments, cells, drawn, publish, row, serve, take_turns
from torch import Tensor

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters

VARIANTS = ("naive", "plain", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("kv", "gpt2"), default="kv")
    parser.add_argument("--pairs", type=int, nargs="+", default=[16], help="key-value pairs in a context (kv)")
    parser.add_argument("--length", type=int, nargs="+", default=[256], help="tokens in a context (gpt2)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5], help="K")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--phase", choices=("write", "read"), help=argparse.SUPPRESS)
    add_arguments(parser, VARIANTS)
    arguments = parser.parse_args()
    if arguments.variant:
        work(arguments)
    else:
        drive(arguments)


def work(arguments: argparse.Namespace) -> None:
    backbone, batch = model_and_batch(arguments)
    variant, steps = arguments.variant, arguments.steps[0]
    engine = "compiled" if variant == "compiled" else "auto"
    settings = GradMemParameters(inner_steps=steps, inner_learning_rate=ALPHA, write_head=False, engine=engine)
    method = GradMem(backbone, settings).to(arguments.device).eval()
    if variant == "naive":
        backbone.model.set_attn_implementation("eager")

    def write() -> Row:
        if variant == "naive":
            memory = naive_write(backbone, method, batch.contexts, steps)
        else:
            with torch.no_grad():
                memory = method.write(batch.contexts).tensors["memory"]
        return {"memory": float(memory.detach().norm())}

    with torch.no_grad():
        state = method.write(batch.contexts) if arguments.phase == "read" else None

    def read() -> Row:
        answers = backbone.generate(method.read(state), batch.queries, TARGET)
        return {"tokens": sum(len(answer) for answer in answers)}

    serve(read if arguments.phase == "read" else write, arguments.device)


def naive_write(backbone: Backbone, method: GradMem, contexts: Tokens, steps: int) -> Tensor:
    ids, count = contexts.ids, method.settings.memory_vectors
    memory, context = method.memory(len(ids)), backbone.embed(ids)
    for _ in range(steps):
        logits = backbone.model(inputs_embeds=torch.cat([memory, context], dim=1)).logits[:, count - 1 : -1]
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        (slope,) = torch.autograd.grad(losses.mean(dim=1).sum(), memory, create_graph=True)
        memory = memory - ALPHA * slope
    return memory


def drive(arguments: argparse.Namespace) -> None:
    sizes = arguments.pairs if arguments.model == "kv" else arguments.length
    unit = "pairs" if arguments.model == "kv" else "tokens"
    console = Console()
    table = Table(unit, "K", "phase", "seconds a batch", "time ratio", "peak", "memory ratio")
    rows: list[Row] = []
    for size in sizes:
        for steps in sorted(arguments.steps):
            for one in measured(arguments, size, steps):
                rows.append({unit: size, "K": steps, **one})
                table.add_row(str(size), str(steps), f"{one['phase']} {one['variant']}", *cells(one))
                shown = " · ".join(cells(one))
                console.print(f"{size} {unit}, K = {steps}, {one['phase']} {one['variant']}: {shown}", highlight=False)
    console.print(table)
    many_steps = len(set(arguments.steps)) > 1
    figure = None
    if many_steps or len(sizes) > 1:
        written = [one for one in rows if one["phase"] == "write"]
        label = "K" if many_steps else f"{unit} in a context"
        figure = drawn(written, "K" if many_steps else unit, label, unit if many_steps and len(sizes) > 1 else None)
    name = f"write_latency-{arguments.model}-{'-'.join(map(str, sizes))}-b{arguments.batch}-{arguments.device}"
    what = {"model": arguments.model, "batch": arguments.batch}
    console.print(f"record: {publish(name, arguments, rows, figure, **what)}")


def measured(arguments: argparse.Namespace, size: int, steps: int) -> list[Row]:
    """The rows of WRITE, one a variant, and that of READ; raises SystemExit where the memories differ."""
    flags = ["--model", arguments.model, "--pairs", str(size), "--length", str(size), "--steps", str(steps)]
    flags += ["--batch", str(arguments.batch), "--threads", str(arguments.threads), "--device", arguments.device]
    answers = take_turns(__file__, [*flags, "--phase", "write"], VARIANTS, arguments.repeats)
    expected = answers["naive"][0]["memory"]
    for variant, found in answers.items():
        if abs(found[0]["memory"] - expected) > 1e-3 * expected:
            raise SystemExit(f"{variant} writes another memory than naive")
    rows = [row(found, answers["naive"], phase="write", variant=variant) for variant, found in answers.items()]
    read = take_turns(__file__, [*flags, "--phase", "read"], ["plain"], arguments.repeats)["plain"]
    return [*rows, row(read, None, phase="read", variant="plain")]


if __name__ == "__main__":
    main()
