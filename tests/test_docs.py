"""Every command in docs/, in its order, in an empty folder, with a few steps and examples.

A block that begins with `# PATH` is a file of the reader's, and is written there. A ```bash block is run line by line:
`gradmem-bench` in this process, pip and pytest in an environment of their own, anything else by a shell. A block after
`<!-- needs ... -->` takes the local data and model of the `shared` fixture in place of the hub's.
"""

import re
import shlex
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from commands import command
from environments import Environment
from typer.core import TyperGroup as Group

from gradmem_bench.cli import app
from gradmem_bench.reproduction import experiments

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BELOW = ("*.md", "docs/*.md", "leaderboards/**/*.md", "backbones/*/*.md")
LINKED = [page for below in BELOW for page in sorted(ROOT.glob(below))]
BLOCK = re.compile(r"(?:<!-- (?P<needs>needs [^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
FILE = re.compile(r"# (?P<path>[\w./-]+/[\w.-]+\.\w+)\n")
TINY = ["--limit=6", "--device=cpu"]
BRIEF = shlex.split(
    "--set=training.steps=2 --set=training.evaluate_every=1 --set=training.batch_size=2 "
    "--set=training.validation_contexts=2 --set=training.curriculum=[]"
)


def lines(block: str) -> Iterator[str]:
    """The commands of a block: continued lines made one, and a here-document kept with its command."""
    rest = block.replace("\\\n", " ").splitlines()
    while rest:
        line = rest.pop(0)
        if document := re.search(r"<<'(\w+)'$", line):
            end = rest.index(document[1])
            line, rest = "\n".join([line, *rest[: end + 1]]), rest[end + 1 :]
        if line.strip():
            yield line.strip()


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Environment:
    """Where a page installs its packages; what is installed there is seen by this process too, while the test runs."""
    made = Environment.make(tmp_path / "environment")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield made
    forget(tmp_path)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The reader's own, empty."""
    made = tmp_path / "reader"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def forget(folder: Path) -> None:
    """Modules from below `folder`, as a new process would not know them."""
    for name, module in [*sys.modules.items()]:
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


def run(line: str, environment: Environment, stand_ins: dict[str, str]) -> None:
    for name, here in stand_ins.items():
        line = line.replace(name, here)
    program, *arguments = shlex.split(line.partition(" > ")[0])
    if program == "gradmem-bench":
        forget(Path.cwd())
        brief = [] if "--no-train" in arguments else BRIEF
        tiny = [*TINY, *brief] if arguments[0] == "run" else []
        if arguments[0] == "check" and "--backbone" not in arguments:
            tiny = ["--backbone=llama-2x32"]
        done = command(*arguments, *tiny)
        assert done.code == 0, f"{line}\n{done.output}\n{done.errors}"
    elif program in ("pip", "pytest"):
        offline = ["--no-build-isolation"] if program == "pip" else ["--quiet", "-p", "no:cacheprovider"]
        done = environment.python("-m", program, *arguments, *offline, cwd=Path.cwd())
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        site.addsitedir(str(environment.packages))
    else:
        subprocess.run(["bash", "-c", line], check=True)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_command_of_a_page_runs(page, folder, environment, request, monkeypatch):
    skipped = []
    for block in BLOCK.finditer(page.read_text()):
        if file := FILE.match(block["body"]):
            path = folder / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(re.sub(r"(training\.steps|training\.evaluate_every|limit): \d+", r"\1: 2", block["body"]))
        elif block["language"] == "bash":
            stand_ins = {}
            if block["needs"]:
                try:
                    shared = request.getfixturevalue("shared")
                except pytest.skip.Exception:
                    skipped.append(block["needs"])
                    continue
                monkeypatch.setenv("GRADMEM_BENCH_DATA", str(shared / "data"))
                stand_ins = {"--backbone gpt2": f"--backbone {shared / 'models' / 'stories260K'}"}
            for line in lines(block["body"]):
                run(line, environment, stand_ins)
    if skipped:
        pytest.skip(f"all but {len(skipped)} of its blocks were run: {'; '.join(skipped)}")


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", LINKED, ids=[str(page.relative_to(ROOT)) for page in LINKED])
def test_every_link_of_a_page_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if target.startswith("https://"):
            continue
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), anchor


@pytest.mark.parametrize("page", LINKED, ids=[str(page.relative_to(ROOT)) for page in LINKED])
def test_every_command_of_a_page_is_one_that_there_is(page, monkeypatch):
    """As far as it shows without running it: its options, and what its names stand for."""
    monkeypatch.chdir(ROOT)
    commands = typer.main.get_command(app)
    for block in BLOCK.finditer(page.read_text()):
        found = lines(block["body"]) if block["language"] == "bash" else ()
        for line in (one for one in found if one.startswith("gradmem-bench ")):
            _, *arguments = shlex.split(line.partition(" > ")[0].replace("$", ""), comments=True)
            command, rest = commands, arguments
            while rest and isinstance(command, Group) and rest[0] in command.commands:
                command, rest = command.commands[rest[0]], rest[1:]
            # lm-eval's own arguments are its own.
            if command.name == "lm-eval":
                continue
            given = command.make_context(line, rest).params
            if command.name == "reproduce" and "/" not in given["figure"]:
                for experiment in experiments(given["figure"]):
                    assert given["scale"] in (None, *experiment.scales) or len(experiments(given["figure"])) > 1, line


def test_the_laws_are_those_of_the_page():
    from gradmem_bench.conformance.check import LAWS

    table = re.findall(r"^\| `(\w+)` \| (.*?) \|", (DOCS / "README.md").read_text(), re.M)
    assert [name for name, _ in table] == [law.name for law in LAWS]


def test_the_figures_of_the_page_on_budgets_are_those_of_its_commands():
    def planned(*arguments: str) -> list[str]:
        facts = command("run", "--task=kv_small", "--dry-run", *arguments).output
        lines = [line.replace("at most ", "") for line in facts.splitlines()]
        return [" ".join(line.split()[1:]) for line in lines if line.startswith(("state", "READ"))]

    both = ["--method=mean_pool", "--method=truncated_text"]
    vectors, positions, _, tokens = planned(*both, "--max-positions=8")
    assert (vectors.split(" for")[0], positions.split(",")[0]) == ("2 KiB", "positions 8")
    assert tokens.split(",")[0] == "positions 8"
    vectors, positions, text, tokens = planned(*both, "--budget=2KiB")
    assert (vectors.split(" for")[0], positions.split(",")[0]) == ("2 KiB", "positions 8")
    assert (text.split(" for")[0], tokens.split(",")[0]) == ("41 B", "positions 41")
    size, positions = planned("--method=mean_pool", "--budget=1000B")
    assert (size.split(" for")[0], positions.split(",")[0]) == (f"{3 * 64 * 4} B", "positions 3")


def test_the_page_on_experiments_names_every_key():
    from gradmem_bench.reproduction import Experiment, FigureGroup, Group, Scale, Start

    page = (DOCS / "write_an_experiment.md").read_text()
    keys = {key for model in (Experiment, FigureGroup, Group, Scale, Start) for key in model.model_fields}
    assert {key for key in keys if not re.search(rf"`{key}[`:]", page)} == set()
