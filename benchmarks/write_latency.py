"""Time and peak memory of WRITE and READ at evaluation, beside a WRITE that records what nobody differentiates.

    python benchmarks/write_latency.py --model kv --pairs 16 --steps 5 --batch 64
    python benchmarks/write_latency.py --model gpt2 --length 256 --steps 5 --batch 2

*naive* is what the paper's code does at evaluation, written out: the WRITE of training, `create_graph=True` at every
step, with whole logits and eager attention. *plain* is ours as a run has it, *compiled* the same with the compiled
step. READ is greedy, of one query a context, and the same for all; it stands there for its own figures.
"""

import argparse

import torch
from side_by_side import Row, row, serve, start, take_turns
from sweep import TARGET, TOLERANCE, add_sizes, method_and_batch, naive_write, precision, sweep
from torch import Tensor

VARIANTS = ("naive", "plain", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_sizes(parser, steps=[5])
    parser.add_argument("--phase", choices=("write", "read"), help=argparse.SUPPRESS)
    start(parser, VARIANTS, work, drive)


def work(arguments: argparse.Namespace) -> None:
    method, batch = method_and_batch(arguments, "auto" if arguments.variant == "plain" else arguments.variant)
    method.eval()

    def write() -> Tensor:
        with precision(arguments, arguments.variant):
            if arguments.variant == "naive":
                return naive_write(method, batch.contexts)
            with torch.no_grad():
                return method.write(batch.contexts).tensors["memory"]

    with torch.no_grad():
        state = method.write(batch.contexts) if arguments.phase == "read" else None

    def read() -> list[list[int]]:
        with precision(arguments, arguments.variant):
            return method.backbone.generate(method.read(state), batch.queries, TARGET)

    if arguments.phase == "read":
        serve(read, arguments.device)
    else:
        serve(write, arguments.device, lambda: {"memory": float(write().detach().norm())})


def drive(arguments: argparse.Namespace) -> None:
    def measured(size: int, steps: int) -> list[Row]:
        """The rows of WRITE, one a variant, and that of READ; raises SystemExit where the memories differ."""
        sizes = {"pairs": size, "length": size, "steps": steps}
        answers = take_turns(__file__, arguments, VARIANTS, phase="write", **sizes)
        norms = {variant: found[0]["memory"] for variant, found in answers.items() if found[0]["seconds"] is not None}
        expected = next(iter(norms.values()), 0.0)
        exact = arguments.dtype == (arguments.naive_dtype or "float32") == "float32"
        for variant, norm in norms.items():
            if exact and abs(norm - expected) > TOLERANCE * expected:
                raise SystemExit(f"{variant} writes another memory than naive")
        rows = [row(found, answers["naive"], phase="write", variant=variant) for variant, found in answers.items()]
        read = take_turns(__file__, arguments, ["plain"], phase="read", **sizes)["plain"]
        return [*rows, row(read, None, phase="read", variant="plain")]

    sweep("write_latency", ("phase", "seconds a batch"), arguments, measured)


if __name__ == "__main__":
    main()
