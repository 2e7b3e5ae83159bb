import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from boards import write_run
from records import BACKBONE, TASK

from gradmem_bench.config import Budget

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A leaderboard of seven runs on two tasks, two of them seeds of one method, and numbers of a paper."""
    board = tmp_path_factory.mktemp("board")
    kv, other = board / "kv_retrieval", board / "squad_removed"
    write_run(kv / "no_memory-1", "no_memory", 4, "floor", 0, 0)
    write_run(kv / "full_kv-1", "full_kv", 60, "ceiling", 40_960, 40)
    write_run(kv / "gradmem-1", "gradmem", 45, budget=Budget(positions=8))
    write_run(kv / "gradmem-2", "gradmem", 48, seed=1, budget=Budget(positions=8))
    write_run(kv / "rmt-1", "rmt", 24, budget=Budget(positions=8))
    write_run(kv / "rmt-2", "rmt", 30, state_bytes=4096, positions=16, budget=Budget(bytes=4096))
    task = TASK.model_copy(update={"name": "squad_removed", "settings": {}})
    backbone = BACKBONE.model_copy(update={"name": "gpt2</script>", "weights_hash": "ab" * 32})
    command = ["gradmem-bench", "run", "--set", "task.name=</script><script>alert(1)</script>"]
    write_run(other / "gradmem-1", "gradmem", 20, task=task, backbone=backbone, command=command)
    (board / "paper").mkdir()
    (board / "paper" / "fig3.yaml").write_text(
        "figure: fig3\ntitle: Exact match against pairs\nsource: A paper, Fig. 3\nrows:\n"
        "- {method: GradMem K=1, task: kv_retrieval, setting: {pairs: 4}, metric: exact_match, value: 0.963,"
        " low: 0.954, high: 0.972, n: 5000, source: 'A paper, Table 1', seeds: 3}\n"
        "- {method: GradMem K=1, task: kv_retrieval, setting: {pairs: 96}, metric: exact_match, value: 0.326}\n"
        "- {method: RMT, task: kv_retrieval, setting: {pairs: 96}, metric: exact_match, value: null, note: not run}\n"
    )
    return board


@pytest.fixture(scope="session")
def published() -> Path:
    """The leaderboard of the checkout."""
    folder = Path(__file__).parents[2] / "leaderboards"
    if not folder.is_dir():
        pytest.skip("needs a checkout with its leaderboards/")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator["Chrome"]:
    """Debian's chromium without a window; each console message is kept."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, and it is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver, and they are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()
