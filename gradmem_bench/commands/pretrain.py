"""`gradmem-bench pretrain`: a small language model of plain text."""

from pathlib import Path
from typing import Annotated

import typer

from gradmem_bench.commands.options import Device, Dtype, RunDevice, Seed, torch_device


def pretrain(
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="llama_3m, llama_10m, llama_14m, llama_26m or gpt2_18m, sized with GPT-2's vocabulary (a tokenizer of "
            "fewer tokens makes a smaller model), or the path of a YAML.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Text files, or JSON lines or Parquet with a column 'text': one file or a folder. Files whose names "
            "begin with 'validation' or 'test' are held out, else every 100th document.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="The folder that --backbone takes afterwards; a killed pretraining goes on in it."
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A folder, a hub id or a built-in backbone, in place of the preset's tokenizer."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Optimiser steps, in place of the preset's.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Stop after so many seconds of training, the learning rate at its end."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the training or the backbone (training.batch_size=8). May be repeated.",
        ),
    ] = None,
    seed: Seed = 0,
    device: RunDevice = Device.auto,
    dtype: Annotated[
        Dtype,
        typer.Option(
            metavar="DTYPE",
            help="Precision of the computation: float32, tf32 (a GPU rounds the factors of matrix products to 11 bits) "
            "or bfloat16, in which the weights are kept at the end as well.",
        ),
    ] = Dtype.float32,
) -> None:
    """Train a small language model on plain text, for --backbone. It is scored as it is kept.

    [dim]gradmem-bench pretrain --preset llama_26m --data TEXTS --output lm --dtype bfloat16[/]
    """
    from gradmem_bench.config import merge, parse_assignments
    from gradmem_bench.errors import UserError
    from gradmem_bench.registry import pretraining_recipe

    recipe = pretraining_recipe(preset)
    own = {
        "backbone": {} if tokenizer is None else {"tokenizer": tokenizer},
        "training": {key: value for key, value in (("steps", steps), ("seconds", seconds)) if value is not None},
    }
    given = parse_assignments(settings or [])
    for section in own.keys() & given.keys():
        if not isinstance(given[section], dict):
            raise UserError(f"--set {section} needs a key of it, for example --set {section}.KEY=VALUE.")
    from rich.console import Console

    from gradmem_bench.pretraining import perform, resolve
    from gradmem_bench.processes import is_first
    from gradmem_bench.reporting.progress import RunDisplay

    console = Console(quiet=not is_first())
    plan = resolve(recipe, data, merge(given, own), seed, torch_device(device), dtype.value)
    console.rule(f"[bold]{recipe.name}[/] · {plan.backbone.name}", align="left")
    perform(plan, output, RunDisplay(console))
