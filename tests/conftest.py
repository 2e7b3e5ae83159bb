import json
import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models: $GRADMEM_BENCH_SHARED, or `shared` beside the checkout."""
    folder = Path(os.environ.get("GRADMEM_BENCH_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs real data and models, and {folder} is no folder: set GRADMEM_BENCH_SHARED")
    return folder.resolve()


@pytest.fixture(scope="session")
def five_runs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One trained run of each method, alike: the record's path -> the record."""
    from commands import METHODS, TINY, command

    from gradmem_bench.results import find_records

    output = tmp_path_factory.mktemp("five")
    done = command("run", *(f"--method={method}" for method in METHODS), *TINY, "--output", output)
    assert (done.code, done.errors) == (0, "")
    return find_records([output])


@pytest.fixture(scope="session")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 128 positions and a tokenizer of one token a character."""
    from gradmem_bench.config import BackboneConfig
    from gradmem_bench.loading import load_backbone
    from gradmem_bench.registry import recipe_folder
    from gradmem_bench.tasks.declaration import load_task

    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_task(recipe_folder("task") / "kv_retrieval.yaml").tokenizer()
    backbone = load_backbone(BackboneConfig(name="llama-1x32", max_positions=128), tokenizer, "cpu", 0)
    backbone.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def local_task(tmp_path: Path) -> Path:
    """A task of one's own: 30 contexts to train on and 9 to test, each asked twice, whose texts have 24 characters."""
    for split, count in {"train": 30, "test": 9}.items():
        rows = [
            {"context": f"!{split}:{row:02}!!{split}x:9!".ljust(24, "|"), "query": f"?!{split}{x}:", "target": target}
            for row in range(count)
            for x, target in (("", f"{row:02}"), ("x", "9"))
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "boxes.yaml"
    path.write_text(
        "task: boxes\ndataset_path: json\ndataset_kwargs:\n  data_files: {train: train.jsonl, test: test.jsonl}\n"
        "training_split: train\ntest_split: test\ngeneration_kwargs: {until: [], max_gen_toks: 32}\n"
        "metadata:\n  version: 1\n  training: {steps: 3, batch_size: 4}\n"
    )
    return path


@pytest.fixture(scope="session")
def _traced():
    import torch

    from gradmem_bench import compiled

    return torch.compile(compiled._slope, fullgraph=True, dynamic=False, backend="aot_eager")


@pytest.fixture
def traced(_traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled engine without its code generator: what is traced and differentiated is the same, in a second."""
    from gradmem_bench import compiled

    monkeypatch.setattr(compiled, "_compiled", _traced)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # not at the top: most tests of the command line never need it

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture
def forgotten(monkeypatch):
    """What a test imports of its folder is not imported for the next."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("greedy_method", "own_class"):
        sys.modules.pop(name, None)


@pytest.fixture
def one_thread():
    """Sums come in one order, and two trainings that should be equal are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
