"""The command line, as the tests give it."""

import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import gradmem_bench
from gradmem_bench.cli import main

METHODS = ("gradmem", "rmt", "full_kv", "truncated_text", "no_memory")

TASK = ["--set=task.pairs=1", "--set=task.key_length=1", "--set=task.value_length=1", "--set=task.alphabet=8"]
"""The smallest key-value task: `!a:5!|`, of eight symbols."""
TRAINING = [
    "--set=training.steps=40",
    "--set=training.evaluate_every=20",
    "--set=training.batch_size=16",
    "--set=training.warmup_steps=5",
    "--set=training.learning_rate=3e-3",
    "--set=training.validation_contexts=32",
]
UNTRAINED = ["--task=kv_retrieval", "--backbone=llama-1x32", "--limit=64", *TASK]
TINY = [*UNTRAINED, *TRAINING]
"""What every method learns something from within a second."""

WEIGHTS, CHECKPOINT = "method.safetensors", "training.safetensors"
"""What a run leaves, and what it has while it is trained."""


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    output: str
    errors: str


def command(*arguments: str | Path) -> Outcome:
    """`gradmem-bench ARGUMENTS` on one thread, in this process: importing torch anew would take seconds each time."""
    # Accelerate keeps its settings for the life of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    typed, threads = sys.argv, torch.get_num_threads()
    sys.argv = ["gradmem-bench", *map(str, arguments)]
    torch.set_num_threads(1)
    output, errors, code = StringIO(), StringIO(), 0
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = typed
        torch.set_num_threads(threads)
    return Outcome(code, output.getvalue(), errors.getvalue())


def start(*arguments: str | Path) -> subprocess.Popen:
    """The same in a process of its own, which can be killed."""
    variables = {"PYTHONPATH": str(Path(gradmem_bench.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "gradmem_bench", *map(str, arguments)],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in its background ignores Ctrl-C, and so would what is started here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def in_two(*arguments: str | Path) -> str:
    """What the command prints that two processes make together; fails where they do not come to an end."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gradmem_bench"]
    process = subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        # One that waits for another would wait for days.
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the processes wait for each other")
    assert process.returncode == 0, errors
    return printed


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file below `folder`: when it was changed last, and what it holds."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def only_run(output: Path) -> Path:
    """The folder of the one run below `output`."""
    [folder] = [path for path in output.glob("*/*") if path.is_dir()]
    return folder
