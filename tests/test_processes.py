"""A run that torchrun starts in two processes, against the same run in one."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from commands import TINY, WEIGHTS, command

from gradmem_bench import checkpoints
from gradmem_bench.results import find_records, read_examples


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / WEIGHTS)[0]


def test_two_processes_make_the_runs_of_one(tmp_path):
    arguments = ["run", "--method=rmt", "--method=gradmem", *TINY, "--set=memory_vectors=2", "--device=cpu"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gradmem_bench"]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments, "--output", tmp_path / "two"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # One of them is heard, and writes.
    assert done.stdout.count("step     40") == 2
    assert "trained by 2 processes, evaluated" in " ".join(done.stdout.split())
    assert command(*arguments, "--output", tmp_path / "one").code == 0
    two, one = (
        {record.method.name: (path.parent, record) for path, record in find_records([tmp_path / name]).items()}
        for name in ("two", "one")
    )
    assert two.keys() == one.keys() == {"rmt", "gradmem"}
    for (folder, record), (other, expected) in zip(
        (two[name] for name in two), (one[name] for name in two), strict=True
    ):
        assert (record.training.processes, expected.training.processes) == (2, 1)
        assert record.config_hash == expected.config_hash
        for count in ("steps", "contexts", "queries", "tokens"):
            assert getattr(record.training, count) == getattr(expected.training, count)
        assert abs(record.training.flops / expected.training.flops - 1) < 0.02
        assert len(read_examples(folder)) == record.task.queries == expected.task.queries
        # Targets are of one length, so that the mean of two halves is that of the whole.
        for name, weights in trained(other).items():
            torch.testing.assert_close(trained(folder)[name], weights, rtol=1e-3, atol=1e-3)


def test_a_batch_has_to_be_shared_equally(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    done = command("run", "--method=rmt", *TINY, "--device=cpu", "--output", tmp_path)
    assert done.code == 2 and "A batch of 16 contexts cannot be shared equally by 3 processes" in done.errors


def test_figures_are_made_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = command("reproduce", "fig3", "--output", tmp_path)
    assert done.code == 2 and "reproduce works in one process, and 2 were started" in done.errors
