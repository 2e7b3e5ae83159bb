"""What `show` prints: YAML that can be used as it is, and says of every key what it is and may be."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import command

from gradmem_bench.config import TrainingConfig, load_yaml
from gradmem_bench.lm_eval_names import KNOWN
from gradmem_bench.methods.gradmem import GradMemParameters
from gradmem_bench.registry import entries, load_object, method_recipe
from gradmem_bench.tasks.declaration import load_task


def shown(*arguments: str | Path) -> str:
    done = command("show", *arguments)
    assert (done.code, done.errors) == (0, "")
    return done.output


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(shown(name))
    return path


def explained(text: str, key: str) -> tuple[str, str, str]:
    """Of a key its value, what it may be, and the comment below it."""
    found = re.findall(rf"^ *{key}: (.*?)(?:  # (.*))?\n((?: +# .*\n?)*)", text, re.M)[0]
    return found[0], found[1], " ".join(found[2].replace("#", " ").split())


def test_every_parameter_of_a_method_is_explained_with_its_default_and_its_range():
    text = shown("gradmem")
    assert explained(text, "inner_steps") == (
        "1", "integer ≥ 0", "K, the steps of gradient descent in WRITE while training. Paper: 1, 2 or 5."
    )  # fmt: skip
    value, allowed, about = explained(text, "evaluation_inner_steps")
    assert (value, allowed) == ("null", "integer ≥ 0, or null")
    # As YAML has it, not Python.
    assert about.startswith("K at evaluation; `null` is the K of training.")
    assert explained(text, "order")[:2] == ("second", "second, first or none")
    # The recipe's, not the class's 0.4.
    assert explained(text, "inner_learning_rate")[:2] == ("2.0", "number > 0")
    for name, field in GradMemParameters.model_fields.items():
        assert explained(text, name)[2] == " ".join(field.description.replace("`None`", "`null`").split())


def test_every_key_of_the_training_and_of_the_tasks_own_settings_is_explained():
    text = shown("kv_small")
    assert explained(text, "pairs")[:2] == ("8", "integer ≥ 1, ≤ 4096")
    assert explained(text, "alphabet")[2] == "How many symbols keys and values are made of."
    for name, field in TrainingConfig.model_fields.items():
        if name != "curriculum":
            assert explained(text.partition("  training:")[2], name)[2] == " ".join(
                field.description.replace("`None`", "`null`").split()
            )


@pytest.mark.parametrize("kind", ["method", "task"])
def test_what_is_shown_of_anything_built_in_fits_80_columns(kind):
    for entry in entries(kind):
        lines = shown(entry.name).splitlines()
        assert lines[0] == f"# {kind} {entry.name} · built in" and lines[1] == f"# {entry.target}"
        assert max(map(len, lines[2:])) < 80


def test_a_method_as_it_is_shown_is_the_same_method(tmp_path):
    for entry in entries("method"):
        copy = load_yaml(written(tmp_path, entry.name))
        recipe = method_recipe(entry)
        parameters = load_object(recipe.implementation, entry).Parameters(**recipe.parameters)
        assert copy["class"] == recipe.implementation and copy["name"] == entry.name
        assert copy.get("parameters", {}) == parameters.model_dump(mode="json")
        # Not a default of its own: that would stand over the task's.
        assert (copy["training"], copy.get("backbone", {})) == (recipe.training, recipe.backbone)


def test_a_run_of_what_is_shown_is_the_run_of_the_name(tmp_path):
    path = written(tmp_path, "rmt")
    plain = ["--task=kv_small", "--max-positions=4", "--dry-run", "--output", tmp_path]
    assert command("run", f"--method={path}", *plain).output == command("run", "--method=rmt", *plain).output


def test_a_task_as_it_is_shown_is_the_same_task(tmp_path):
    for name in ("kv_small", "squad_removed"):
        (original,) = (Path(entry.target) for entry in entries("task") if entry.name == name)
        copy, task = load_task(written(tmp_path, name)), load_task(original)
        assert TrainingConfig(**copy.metadata["training"]) == TrainingConfig(**task.metadata["training"])
        rest = ("doc_to_text", "process_docs", "process_results", "generation_kwargs", "metric_list")
        assert [copy.declaration.get(key) for key in rest] == [task.declaration.get(key) for key in rest]
        assert type(copy) is type(task) and copy.settings == task.settings
    assert copy.declaration["doc_to_text"] == "Question: {{query}}\nAnswer:"


def test_a_task_that_shares_its_file_is_shown_with_its_own_description():
    described = yaml.safe_load(re.sub("!function ", "", shown("babi_qa3")))["metadata"]["description"]
    assert described == "A bAbI story, and a question about it that takes three supporting facts"


@pytest.fixture
def own_method(tmp_path, monkeypatch) -> Iterator[Path]:
    """The YAML of a method of one's own, beside its class."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "plain.py").write_text(
        "from pydantic import Field\n"
        "from gradmem_bench.config import StrictModel\n"
        "from gradmem_bench.methods.no_memory import NoMemory\n"
        "class Parameters(StrictModel):\n"
        "    share: float = Field(default=0.5, ge=0, lt=1)\n"
        "    names: list[str] = []\n"
        "    '''What they are called.'''\n"
        "class Plain(NoMemory):\n"
        "    Parameters = Parameters\n"
    )
    path = tmp_path / "plain.yaml"
    path.write_text("name: plain\nclass: plain:Plain\nparameters: {share: 0.25}\n")
    yield path
    # What a test imports of its folder is not imported for the next.
    sys.modules.pop("plain", None)


def test_a_users_own_method_is_explained_as_well(own_method):
    text = shown("plain", "--include-path", own_method.parent)
    assert explained(text, "share") == ("0.25", "number ≥ 0, < 1", "")
    assert explained(text, "names") == ("[]", "", "What they are called.")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("parameters: {share: 2}", "method 'plain': 'share' is 2, but: input should be less than 1."),
        ("parameters: {shares: 0.5}", "method 'plain' has no key 'shares'. Did you mean 'share'?"),
        ("training: {stepz: 3}", "the training of 'plain' has no key 'stepz'. Did you mean 'steps'?"),
        ("backbone: {nam: gpt2}", "the backbone of 'plain' has no key 'nam'. Did you mean 'name'?"),
    ],
)
def test_a_mistake_in_a_users_own_method_is_one_sentence(own_method, wrong, sentence):
    own_method.write_text(f"name: plain\nclass: plain:Plain\n{wrong}\n")
    done = command("show", own_method)
    assert (done.code, done.output, done.errors) == (2, "", f"error: {sentence}\n")


def test_a_class_that_is_no_method_is_said_to_be_none(own_method):
    own_method.write_text("name: plain\nclass: plain:Parameters\n")
    assert command("show", own_method).errors.startswith("error: plain:Parameters is no MemoryMethod")


# ---------------------------------------------------------------------------------------- lm-eval's own


def test_a_task_of_lm_evals_is_shown_as_a_run_has_it():
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install gradmem-bench[lm-eval]")
    from gradmem_bench.registry import resolve

    text = shown("lm_eval:drop")
    ours, theirs = text.split("\n---\n")
    made = load_task(Path(resolve("task", "lm_eval:drop").target))
    assert yaml.safe_load(ours) == {"task": made.name, "dataset_kwargs": made.settings.model_dump()}
    assert explained(ours, "context")[0] == "passage"
    assert explained(ours, "context")[2].startswith("A column, or a jinja2 template")
    assert "\ntraining_split: train\nvalidation_split: validation\n" in theirs
    assert "doc_to_text: '{{passage}} {{question}}'" in theirs and "process_docs: !function 'utils." in theirs
    assert "Reported is test_split, or validation_split where there is none" in " ".join(
        theirs.replace("#", "").split()
    )


def test_a_task_of_lm_evals_that_is_not_known_says_what_a_run_needs(tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install gradmem-bench[lm-eval]")
    path = tmp_path / "talk.yaml"
    path.write_text("task: talk\ndataset_path: json\ntest_split: test\ndoc_to_text: '{{background}} {{question}}'\n")
    text = shown(f"lm_eval:{path}")
    assert text.startswith("# task lm_eval:talk · lm-eval ")
    assert "a run needs --set task.context=COLUMN" in " ".join(text.replace("#", "").split())
    assert yaml.safe_load(text.partition("---\n")[2])["doc_to_text"] == "{{background}} {{question}}"


def test_the_list_of_tasks_ends_with_those_of_lm_eval():
    listed = command("list", "tasks").output
    last = listed[listed.index("\n\n") :]
    assert re.findall(r"lm_eval:(\w+)", last) == list(KNOWN)
    assert "lm_eval:" not in command("list", "methods").output
