"""A step of GradMem in two processes against the same step in one."""

import subprocess
import sys
from pathlib import Path

import torch
from methods.two_processes import CASES, gradients, gradmem, share


def test_two_processes_have_the_gradient_of_one(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run(
        [sys.executable, *command, tmp_path / "found.pt"], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert found["processes"] == 2
    for case in CASES:
        method = gradmem(*case)
        for rank in range(2):
            (method(share(rank, 2)).total / 2).backward()
        expected = gradients(method)
        assert ("write_head.weight" in expected) == (case[1] == "second")
        assert found["gradients"][case].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found["gradients"][case][name], gradient, rtol=1e-10, atol=1e-12)
