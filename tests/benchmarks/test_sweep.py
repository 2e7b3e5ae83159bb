"""A sweep's record: what was measured before a fault is not lost, and does not count as the whole."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from gradmem_bench.reproducing import unmeasured
from gradmem_bench.reproduction import Scale

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CALL = ["--pairs", "2", "--steps", "1", "5"]


@pytest.fixture
def benchmark(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import side_by_side
    import sweep

    yield sweep, side_by_side
    for name in ("sweep", "side_by_side"):
        if name not in before:
            sys.modules.pop(name, None)


def test_what_was_measured_before_a_fault_is_kept_and_is_to_be_measured_again(benchmark, tmp_path, monkeypatch):
    sweep, side_by_side = benchmark
    monkeypatch.setattr(sys, "argv", ["benchmarks/meta_gradient.py", *CALL])
    told = {"model": "kv", "pairs": [2], "steps": [5, 1], "batch": 4, "engines": None, "output": tmp_path}
    arguments = Namespace(**told, device="cpu", threads=1, repeats=1, dtype="float32", naive_dtype=None)
    scale = Scale(about="For a test.", benchmark=[CALL])

    def measured(size: int, steps: int) -> list[dict]:
        if steps > room:
            raise MemoryError
        answers = [{"seconds": 0.5 * steps, "bytes": 2**20}] * 3
        return [side_by_side.row(answers, answers, variant="naive")]

    room = 1
    with pytest.raises(MemoryError):
        sweep.sweep("meta_gradient", ("engine", "seconds"), arguments, measured)
    [path] = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert ([found["K"] for found in record["rows"]], record["complete"]) == ([1], False)
    assert unmeasured(scale, tmp_path) == [CALL]

    room = 5
    sweep.sweep("meta_gradient", ("engine", "seconds"), arguments, measured)
    record = json.loads(path.read_text())
    assert ([found["K"] for found in record["rows"]], record["complete"]) == ([1, 5], True)
    assert unmeasured(scale, tmp_path) == [] and path.with_suffix(".png").exists()
