"""Training steps a second of a run, beside those of the engine alone.

    python benchmarks/training_rate.py --pairs 16 --steps 1 --batch 64

*run* is the trainer that `gradmem-bench run` has: it makes the data, logs, clips and updates. *engine* repeats the loss
of one batch, its gradient and the update of the weights. Validations and checkpoints come every few hundred steps and
are left out of both; the first step, which counts its operations, and the last, which validates, as well.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from side_by_side import cells, positive, publish, row, serve, start, take_turns
from sweep import precision

from gradmem_bench.config import BackboneConfig, TrainingConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters
from gradmem_bench.precision import accelerator_for
from gradmem_bench.registry import resolve
from gradmem_bench.stages import TrainingStage
from gradmem_bench.tasks.batching import encode_documents
from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.training import Trainer

VARIANTS = ("engine", "run")
STEPS = 10
"""Of the trainer between two looks at the clock."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=positive, default=16, help="key-value pairs in a context")
    parser.add_argument("--steps", type=positive, default=1, help="K")
    parser.add_argument("--batch", type=positive, default=64, help="contexts at a time")
    engines = ("auto", "unrolled", "recompute", "compiled")
    parser.add_argument("--engine", choices=engines, default="auto", help="of GradMem")
    start(parser, VARIANTS, work, drive)


def work(arguments: argparse.Namespace) -> None:
    declared = {"pairs": arguments.pairs, "queries_per_context": 1}
    task = load_task(Path(resolve("task", "kv_retrieval").target), declared)
    backbone = load_backbone(BackboneConfig(name="llama-4x128"), task.tokenizer(), arguments.device, 0)
    settings = GradMemParameters(inner_steps=arguments.steps, write_head=False, engine=arguments.engine)
    method = GradMem(backbone, settings).train()
    documents = task.documents("train")
    held_out = encode_documents(task.documents("validation")[:1], task, backbone, backbone.max_positions)
    stage = TrainingStage(task, documents, held_out, backbone.max_positions, None, None)
    config = TrainingConfig(batch_size=arguments.batch, steps=STEPS + 2, evaluate_every=STEPS + 2)
    accelerator = accelerator_for(arguments.device, arguments.dtype, None)

    def run() -> float:
        clock: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                method, [stage], config, 0, Path(folder), accelerator, {}, lambda *_: clock.append(time.perf_counter())
            )
            trainer.run()
        return statistics.median(np.diff(clock[:-1]))

    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4)
    batch = stage.batch(range(arguments.batch), method, config, np.random.default_rng(0)).to(arguments.device)

    def engine() -> float:
        clock = [time.perf_counter()]
        for _ in range(STEPS):
            with precision(arguments, "engine"):
                loss = method.loss(batch).total
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            clock.append(time.perf_counter())
        return statistics.median(np.diff(clock))

    serve(run if arguments.variant == "run" else engine, arguments.device, clock=lambda step: step())


def drive(arguments: argparse.Namespace) -> None:
    answers = take_turns(__file__, arguments, VARIANTS)
    rows = [row(found, answers["engine"], variant=variant) for variant, found in answers.items()]
    table = Table("", "seconds a step", "time ratio", "peak", "memory ratio")
    for one in rows:
        table.add_row(one["variant"], *cells(one))
    console = Console()
    console.print(table)
    what = {"pairs": arguments.pairs, "K": arguments.steps, "batch": arguments.batch, "engine": arguments.engine}
    shape = f"kv-{arguments.pairs}-k{arguments.steps}-b{arguments.batch}"
    name = f"training_rate-{shape}-{arguments.engine}"
    console.print(f"record: {publish(name, arguments, rows, None, **what)}")


if __name__ == "__main__":
    main()
