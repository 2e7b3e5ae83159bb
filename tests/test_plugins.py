"""A package of one's own, installed by pip into a fresh environment and used from the command line."""

import json
import shutil
from pathlib import Path

import pytest
from environments import Environment

PROJECT = Path(__file__).with_name("example_plugin")


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    made = Environment.make(tmp_path_factory.mktemp("environment"))
    made.install(PROJECT)
    return made


def bench(environment: Environment, *arguments: str | Path):
    return environment.python("-m", "gradmem_bench", *arguments)


def test_what_a_package_brings_is_listed_with_where_it_comes_from(environment):
    for kind, names in (("methods", ["strided", "strided_by_four", "gradmem"]), ("tasks", ["last_symbol", "kv_small"])):
        done = bench(environment, "list", kind)
        assert (done.returncode, done.stderr) == (0, "")
        rows = {line.split()[0]: line for line in done.stdout.splitlines() if line[1:2].strip()}
        assert set(names) <= set(rows)
        assert "example-memory" in rows[names[0]] and "built in" in rows[names[-1]]


def test_its_method_runs_on_its_task_beside_a_built_in_one(environment):
    methods = ["--method=example-memory:strided_by_four", "--method=no_memory"]
    done = bench(environment, "run", *methods, "--task=last_symbol", "--max-positions=4", "--limit=8")
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(path.read_text()) for path in (environment.folder / "runs").rglob("run.json")]
    made = {(record["method"]["name"], record["task"]["name"]): record for record in records}
    assert set(made) == {("strided_by_four", "last_symbol"), ("no_memory", "last_symbol")}
    record = made["strided_by_four", "last_symbol"]
    assert record["method"]["implementation"] == "example_memory.strided:Strided"
    assert record["method"]["package"] == "example-memory 0.3"
    assert record["method"]["citation"] == "Nobody, Nowhere, 2026"
    # 6 letters, every fourth of them, each of width 32 in float32.
    assert record["footprint"]["state_bytes"]["max"] == 2 * 32 * 4
    assert record["training"]["config"]["learning_rate"] == 1e-3


def test_of_two_packages_one_is_picked_and_a_broken_one_is_left_out(environment):
    for name, points in {
        "rival": "strided = rival:Strided",
        "broken": "odd = no_object",
        "unimportable": "lost = no_such_module_of_theirs:Lost",
    }.items():
        info = environment.packages / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gradmem_bench.methods]\n{points}\n")
    try:
        listed = bench(environment, "list", "methods")
        assert listed.returncode == 0
        assert [line.split()[0] for line in listed.stdout.splitlines()].count("strided") == 2
        assert listed.stderr.count("\n") == 1
        assert listed.stderr.startswith("warning: Left out: The method 'odd' of distribution broken 1.0 is 'no_object'")

        either = bench(environment, "run", "--method=strided", "--task=last_symbol", "--dry-run")
        assert (either.returncode, either.stdout) == (2, "")
        assert "distribution example-memory 0.3 and distribution rival 1.0" in either.stderr
        assert "write 'example-memory:strided' or 'rival:strided'" in either.stderr

        lost = bench(environment, "run", "--method=lost", "--task=last_symbol", "--dry-run")
        assert lost.returncode == 2
        assert "The method 'lost' (distribution unimportable 1.0) cannot be loaded: importing" in lost.stderr

        picked = bench(environment, "run", "--method=example-memory:strided", "--task=last_symbol", "--dry-run")
        assert (picked.returncode, picked.stderr) == (0, "")
    finally:
        for name in ("rival", "broken", "unimportable"):
            shutil.rmtree(environment.packages / f"{name}-1.0.dist-info")
