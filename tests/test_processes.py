"""Runs that torchrun starts in two processes, against the same runs in one."""

from pathlib import Path

import torch
from accelerate import Accelerator
from commands import TINY, WEIGHTS, command, in_two

from gradmem_bench import checkpoints
from gradmem_bench.results import find_records, read_examples


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / WEIGHTS)[0]


def test_two_processes_make_the_runs_of_one(tmp_path):
    # The second run is another evaluation of the first one's training. Of two pairs one is asked, drawn from the seed.
    arguments = ["run", "--method=gradmem", *TINY, "--device=cpu", "--set=memory_vectors=2"]
    arguments += ["--state-dtype=float32", "--state-dtype=int8"]
    arguments += ["--set=task.pairs=2", "--set=training.queries_per_context=1", "--set=training.steps=20"]
    printed = in_two(*arguments, "--output", tmp_path / "two")
    # One of them is heard, and writes.
    assert printed.count("step     20") == printed.count("trained before") == 1
    assert "trained by 2 processes, evaluated" in " ".join(printed.split())
    assert command(*arguments, "--output", tmp_path / "one").code == 0
    two, one = (
        {path.parent.name: (path.parent, record) for path, record in find_records([tmp_path / name]).items()}
        for name in ("two", "one")
    )
    assert two.keys() == one.keys() and len(two) == 2
    for name, (folder, record) in two.items():
        other, expected = one[name]
        assert (record.training.processes, expected.training.processes) == (2, 1)
        for count in ("steps", "contexts", "queries", "tokens"):
            assert getattr(record.training, count) == getattr(expected.training, count)
        assert abs(record.training.flops / expected.training.flops - 1) < 0.02
        assert len(read_examples(folder)) == record.task.queries == expected.task.queries
        for key, weights in trained(other).items():
            torch.testing.assert_close(trained(folder)[key], weights, rtol=1e-3, atol=1e-4)


def test_a_batch_has_to_be_shared_equally(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    done = command("run", "--method=rmt", *TINY, "--device=cpu", "--output", tmp_path)
    assert done.code == 2 and "A batch of 16 contexts cannot be shared equally by 3 processes" in done.errors


def test_figures_are_made_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = command("reproduce", "fig3", "--output", tmp_path)
    assert done.code == 2 and "reproduce works in one process, and 2 were started" in done.errors
