import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models: $GRADMEM_BENCH_SHARED, or `shared` beside the checkout."""
    folder = Path(os.environ.get("GRADMEM_BENCH_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs real data and models, and {folder} is no folder: set GRADMEM_BENCH_SHARED")
    return folder.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # not at the top: most tests of the command line never need it

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and there is none")
