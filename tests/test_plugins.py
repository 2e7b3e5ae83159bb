"""A package of one's own, installed by pip into a fresh environment and used from the command line."""

import json
from pathlib import Path

import pytest
from commands import Outcome
from environments import Environment


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    """One with the example plugin, a package that claims the name of its method, and a broken one."""
    made = Environment.make(tmp_path_factory.mktemp("environment"))
    made.install(Path(__file__).with_name("example_plugin"))
    for name, point in {"rival": "strided = no_such_module:Strided", "broken": "odd = no_object"}.items():
        info = made.packages / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gradmem_bench.methods]\n{point}\n")
    (made.folder / "own.yaml").write_text(OWN)
    return made


OWN = """
figure: own
title: What a package brings
scales:
  tiny:
    about: For a test.
    task: last_symbol
    limit: 8
    settings: {training.steps: 1, training.evaluate_every: 1}
    runs:
      - {name: by four, method: strided_by_four, settings: {max_tokens: 5}}
      - {name: a name of two, method: example-memory:strided, settings: {max_tokens: 2}}
"""

COMMANDS = {
    "methods": ["list", "methods"],
    "tasks": ["list", "tasks"],
    "two owners": ["run", "--method=strided", "--task=last_symbol"],
    "run": ["run", "--method=example-memory:strided", "--method=strided_by_four", "--task=last_symbol"]
    + ["--max-positions=4", "--limit=8"],
    "check": ["check", "example-memory:strided", "--backbone=llama-1x32"],
    "made": ["reproduce", "own.yaml", "--output=own"],
    "made again": ["reproduce", "own.yaml", "--output=own", "--dry-run"],
}
SCRIPT = """
import json, sys
sys.path.append(sys.argv[1])
from commands import command
print(json.dumps({name: vars(command(*line)) for name, line in json.loads(sys.argv[2]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes(environment) -> dict[str, Outcome]:
    """What the commands print and leave, all in one process of the environment."""
    done = environment.python("-c", SCRIPT, Path(__file__).parent, json.dumps(COMMANDS))
    assert (done.returncode, done.stderr) == (0, "")
    return {name: Outcome(**found) for name, found in json.loads(done.stdout).items()}


def test_what_packages_bring_is_listed_with_where_it_comes_from(outcomes):
    methods, tasks = outcomes["methods"], outcomes["tasks"]
    assert methods.code == tasks.code == 0
    rows = [line.split() for line in methods.output.splitlines()]
    assert [row[0] for row in rows].count("strided") == 2
    (task,) = [row for row in map(str.split, tasks.output.splitlines()) if row[:1] == ["last_symbol"]]
    assert "example-memory" in task
    assert {"example-memory", "rival"} <= {word for row in rows if row[0] == "strided" for word in row}
    # The broken one is one warning, and only where methods are asked for.
    assert tasks.errors == "" and methods.errors.count("\n") == 1
    assert methods.errors.startswith("warning: Left out: The method 'odd' of distribution broken 1.0 is 'no_object'")


def test_a_name_of_two_packages_is_asked_for(outcomes):
    done = outcomes["two owners"]
    assert (done.code, done.output) == (2, "")
    assert "several owners, distribution example-memory 0.3 and distribution rival 1.0;" in done.errors
    assert "write 'example-memory:strided' or 'rival:strided'" in done.errors


def test_its_methods_run_on_its_task(environment, outcomes):
    done = outcomes["run"]
    assert (done.code, done.errors) == (0, "")
    records = [json.loads(path.read_text()) for path in (environment.folder / "runs").rglob("run.json")]
    made = {record["method"]["name"]: record for record in records}
    assert set(made) == {"strided", "strided_by_four"}
    assert {record["method"]["package"] for record in records} == {"example-memory 0.3"}
    assert {record["method"]["implementation"] for record in records} == {"example_memory.strided:Strided"}
    assert {record["task"]["name"] for record in records} == {"last_symbol"}
    # Of 6 letters every second and every fourth one, each of width 32 in float32.
    sizes = {name: record["footprint"]["state_bytes"]["max"] for name, record in made.items()}
    assert sizes == {"strided": 3 * 128, "strided_by_four": 2 * 128}
    # What its YAML says is used and recorded.
    assert made["strided_by_four"]["method"]["citation"] == "Nobody, Nowhere, 2026"
    assert made["strided_by_four"]["training"]["config"]["learning_rate"] == 1e-3


def test_a_figure_is_made_of_what_packages_bring(environment, outcomes):
    done = outcomes["made"]
    assert (done.code, done.errors) == (0, "") and " scores missing." in " ".join(done.output.split())
    records = [json.loads(path.read_text()) for path in (environment.folder / "own").rglob("run.json")]
    made = {record["method"]["name"]: record["method"]["parameters"] for record in records}
    assert made == {"strided_by_four": {"stride": 4, "max_tokens": 5}, "strided": {"stride": 2, "max_tokens": 2}}
    assert "0 of 2 runs to make" in outcomes["made again"].output


def test_its_method_keeps_the_laws(outcomes):
    done = outcomes["check"]
    assert (done.code, done.errors) == (0, "")
    rows = {
        line.split()[0]: line.split()[1]
        for line in done.output.splitlines()
        if line[1:2].isalpha() and len(line.split()) > 1
    }
    assert rows["isolation"] == rows["budget"] == "pass"
