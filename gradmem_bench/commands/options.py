"""What several commands are told: the options, what `--help` says of them, and what they stand for."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradmem_bench.errors import UserError

if TYPE_CHECKING:
    from gradmem_bench.results import RunRecord


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"


class StoredAs(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


Methods = Annotated[
    list[str],
    typer.Option("--method", metavar="NAME", help="A method's name, or the path of its YAML. May be repeated."),
]
Tasks = Annotated[
    list[str],
    typer.Option(
        "--task",
        metavar="NAME",
        help="A task's name, a group of tasks, or the path of a YAML. May be repeated; every pair is run.",
    ),
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="A hub id, a local folder, wiki_2m or wiki_14m (small language models, built in), kv_recall (of "
        "kv_small), or a random model's shape such as llama-2x64 or gpt2-12x768. The task names a default.",
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="BYTES",
        help="The most state bytes per context, for example 4KiB; methods are fitted to it. May be repeated: every "
        "method is run at every combination of --budget, --max-positions and --state-dtype.",
    ),
]
MaxPositions = Annotated[
    list[int] | None,
    typer.Option(
        "--max-positions",
        min=1,
        metavar="N",
        help="The most positions that may stand before the query at READ. May be repeated.",
    ),
]
StateDtypes = Annotated[
    list[StoredAs] | None,
    typer.Option(
        "--state-dtype",
        metavar="DTYPE",
        help="What a state's vectors are stored as: float32 (the default), bfloat16, int8, int4; more of the narrower "
        "ones fit a budget. May be repeated.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A parameter of every method (memory_vectors=4) or of one (rmt.passes=2), or a setting of the "
        "training, the task or the backbone (training.steps=500, task.pairs=4, backbone.heads=2), of training and "
        "backbone also for one method (rmt.training.steps=900). May be repeated.",
    ),
]
Load = Annotated[
    Path | None,
    typer.Option(
        "--load",
        metavar="PATH",
        help="A checkpoint, a run's folder, a folder with one run of the method, or a folder of METHOD.safetensors.",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Of new weights and of the order of the data; one a command.")
]
RunDevice = Annotated[
    Device,
    typer.Option(
        "--device", metavar="DEVICE", help="Where to run: auto (a GPU where there is one, else the CPU), cpu or cuda."
    ),
]
RunDtype = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Precision of the computation: float32, tf32 (a GPU rounds the factors of matrix products to 11 bits, and "
        "nothing else) or bfloat16; weights, memory and inner steps stay float32.",
    ),
]
IncludePath = Annotated[
    list[Path] | None,
    typer.Option(
        "--include-path", metavar="PATH", help="A folder of your own method and task YAML files. May be repeated."
    ),
]
Runs = Annotated[list[Path] | None, typer.Argument(help="Records, or folders of them; by default ./runs.")]


def torch_device(device: Device) -> str:
    """What torch calls the device; raises UserError where it has none."""
    import torch

    available = torch.cuda.is_available()
    if device == Device.cuda and not available:
        raise UserError("--device cuda: this machine's torch sees no GPU; take --device cpu.")
    return "cuda" if device != Device.cpu and available else "cpu"


def records_of(runs: list[Path] | None) -> "dict[Path, RunRecord]":
    """The records that `runs` stands for, by their files; raises UserError where there are none."""
    from gradmem_bench.results import find_records

    records = find_records(runs or [Path("runs")])
    if not records:
        raise UserError("There are no records here; make some with gradmem-bench run, or name a folder that has them.")
    return records
