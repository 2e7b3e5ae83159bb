from pathlib import Path
from textwrap import dedent

import pytest

from gradmem_bench.config import (
    Budget,
    FunctionReference,
    MethodRecipe,
    TrainingConfig,
    fingerprint,
    format_bytes,
    load_yaml,
    merge,
    parse_assignments,
    parse_bytes,
    parse_yaml,
    validated,
)
from gradmem_bench.errors import UserError
from gradmem_bench.reproduction import Experiment


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3E5", 3e5),
        ("-1.5e+2", -150.0),
        (".5e1", 5.0),
        ("1e-4x", "1e-4x"),
        ("'1e-4'", "1e-4"),
        ("e4", "e4"),
        ("7", 7),
        ("0.02", 0.02),
        ("null", None),
        ("[1, 2e-1]", [1, 0.2]),
    ],
)
def test_numbers_are_what_a_person_meant(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_function_tag_is_kept_as_text_and_not_imported():
    parsed = parse_yaml("process_docs: !function no_such_module.prepare")
    assert parsed == {"process_docs": "no_such_module.prepare"}
    assert isinstance(parsed["process_docs"], FunctionReference)


def test_a_python_tag_is_refused():
    with pytest.raises(UserError, match="line 1 is not valid YAML.*python/object/apply"):
        parse_yaml("!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("steps: 1\nsteps: 2\n", 2, "steps"),
        ("a:\n  b: 1\n  c: 2\n  'b': 3\n", 4, "b"),
        ("list:\n  - {x: 1, y: 2, x: 3}\n", 2, "x"),
    ],
)
def test_a_key_that_stands_twice_is_an_error(tmp_path, text, line, key):
    path = write(tmp_path / "twice.yaml", text)
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert str(caught.value) == f"{path}, line {line}: the key '{key}' stands here a second time."


def test_one_key_in_two_mappings_and_a_merge_key_are_no_repeats():
    text = """
    base: &base {steps: 1, lr: 1e-3}
    one: &one {<<: *base, steps: 2}
    two: {<<: *one, steps: 3}
    """
    assert parse_yaml(dedent(text)) == {
        "base": {"steps": 1, "lr": 1e-3},
        "one": {"steps": 2, "lr": 1e-3},
        "two": {"steps": 3, "lr": 1e-3},
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [1, 2\nb: 3\n", "line 2 is not valid YAML"),
        (b"{[1, 2]: 3}\n", "line 1 is not valid YAML: found unhashable key"),
        (b"a: \x01\n", "is not valid YAML: control characters are not allowed"),
        (b"a: 2026-13-45\n", "is not valid YAML: month must be in 1..12"),
        (b"a: \xff\n", "is not UTF-8 text: invalid start byte at byte 3"),
        (b"- a\n- b\n", "holds list, but a mapping"),
        (b"", "holds NoneType, but a mapping"),
        (b"include: 3\n", "'include' is 3, but a file name"),
        (b"include: missing.yaml\n", "missing.yaml, which .*broken.yaml includes"),
    ],
)
def test_a_broken_file_is_named_with_the_reason(tmp_path, content, sentence):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="There is no file .*absent.yaml"):
        load_yaml(tmp_path / "absent.yaml")


def test_include_lays_own_keys_over_the_included_ones(tmp_path):
    write(tmp_path / "common" / "_a.yaml", "one: a\ntwo: a\nsettings: {x: 1, y: 2}\n")
    write(tmp_path / "common" / "_b.yaml", "include: _a.yaml\ntwo: b\nthree: b\n")
    write(tmp_path / "_c.yaml", "three: c\nfour: c\n")
    path = write(tmp_path / "top.yaml", "include: [common/_b.yaml, _c.yaml]\nfour: top\nsettings: {x: 5}\n")
    assert load_yaml(path) == {"one": "a", "two": "b", "three": "c", "four": "top", "settings": {"x": 5}}


def test_a_file_is_read_as_lm_eval_reads_it(tmp_path):
    lm_eval_loader = pytest.importorskip("lm_eval.tasks._yaml_loader", reason="needs the extra lm-eval")
    write(tmp_path / "_base.yaml", "output_type: generate_until\ndataset_kwargs: {pairs: 4, keys: 2}\n")
    path = write(tmp_path / "task.yaml", "task: some\ninclude: _base.yaml\ndataset_kwargs: {pairs: 8}\n")
    assert load_yaml(path) == lm_eval_loader.load_yaml(path, resolve_func=False)


def test_a_file_that_includes_itself_is_refused(tmp_path):
    write(tmp_path / "a.yaml", "include: b.yaml\n")
    write(tmp_path / "b.yaml", "include: a.yaml\n")
    with pytest.raises(UserError, match="a.yaml includes itself, by way of .*b.yaml"):
        load_yaml(tmp_path / "a.yaml")


# ------------------------------------------------------------------------------- merging and --set


def test_merge_goes_into_mappings_and_replaces_the_rest():
    below = {"a": {"x": 1, "y": {"z": 2}}, "list": [1, 2], "plain": 1}
    above = {"a": {"y": {"w": 3}}, "list": [3], "plain": {"now": "a mapping"}, "new": None}
    assert merge(below, above) == {
        "a": {"x": 1, "y": {"z": 2, "w": 3}},
        "list": [3],
        "plain": {"now": "a mapping"},
        "new": None,
    }
    assert below == {"a": {"x": 1, "y": {"z": 2}}, "list": [1, 2], "plain": 1}


def test_assignments_become_one_nested_mapping():
    given = ["training.steps=5", "training.learning_rate=1e-4", "name=a=b", "k=[1, {x: 2}]", "e="]
    assert parse_assignments(given) == {
        "training": {"steps": 5, "learning_rate": 1e-4},
        "name": "a=b",
        "k": [1, {"x": 2}],
        "e": None,
    }


@pytest.mark.parametrize("text", ["inner_steps", "=5", "a..b=1", ".a=1", "a.=1", ""])
def test_an_assignment_without_key_and_value_is_refused(text):
    with pytest.raises(UserError, match=f"--set takes key=value.*'{text}'"):
        parse_assignments([text])


def test_an_assignment_with_broken_yaml_names_its_key():
    with pytest.raises(UserError, match="--set training.betas, line 1 is not valid YAML"):
        parse_assignments(["training.betas=[0.9, "])


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(
    ("model", "values", "sentence"),
    [
        (TrainingConfig, {"step": 5}, "here has no key 'step'. Did you mean 'steps'?"),
        (
            TrainingConfig,
            {"curriculum": [{"task": {}}, {"task": {}, "untill": 0.5}]},
            "here has no key 'curriculum.1.untill'. Did you mean 'until'?",
        ),
        (
            Experiment,
            {"figure": "f", "title": "T", "scales": {"tiny": {"about": "A", "runs": [{"name": "x", "axis": {}}]}}},
            "here has no key 'scales.tiny.runs.0.axis'. Did you mean 'axes'?",
        ),
        (TrainingConfig, {"steps": -1}, "here: 'steps' is -1, but: input should be greater than or equal to 0."),
        (
            TrainingConfig,
            {"schedule": "cosin"},
            "here: 'schedule' is 'cosin', but: input should be 'constant', 'cosine' or 'linear'.",
        ),
        (MethodRecipe, {"name": "x", "clas": "a:B"}, "here has no key 'clas'. Did you mean 'class'?"),
        (MethodRecipe, {"name": "x"}, "here lacks the key 'class'."),
        (
            MethodRecipe,
            {"name": "x", "class": "my.Method"},
            "here: 'class' is 'my.Method', but: expected module:Class, for example my_package.methods:MyMethod.",
        ),
    ],
)
def test_a_configuration_that_is_off_gets_one_sentence(model, values, sentence):
    with pytest.raises(UserError) as caught:
        validated(model, values, "here")
    assert str(caught.value) == sentence


def test_a_configuration_knows_its_defaults_and_cannot_change():
    values = {"steps": 3, "betas": [0.8, 0.9], "curriculum": [{"task": {"pairs": 2}}]}
    config = validated(TrainingConfig, values, "here")
    assert (config.steps, config.betas, config.batch_size) == (3, (0.8, 0.9), 64)
    assert config.curriculum[0].task == {"pairs": 2}
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 4


def test_fingerprint_sees_values_and_not_their_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]})}) == 5


# ----------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("text", "size"),
    [("673", 673), ("4KiB", 4096), ("4 kib", 4096), ("1.5MiB", 1572864), ("2kB", 2000), ("1GiB", 2**30), (" 8 B ", 8)],
)
def test_sizes_in_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "4k", "-1", "4 KiB 2", "1,5KiB", "0", "0.5", "1.0001KiB", "1e3", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=f"'{text}'"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (673, "673 B"),
        (999.7, "1000 B"),
        (1023, "1023 B"),
        (4096, "4 KiB"),
        (999.8 * 1024, "1000 KiB"),
        (2.95 * 1024**2, "2.95 MiB"),
        (3 * 1024**4, "3072 GiB"),
    ],
)
def test_sizes_for_people(size, text):
    assert format_bytes(size) == text


def test_a_budget_says_its_bounds():
    assert str(Budget(bytes=4096, positions=8)) == "4 KiB, 8 positions"
    assert str(Budget()) == "none"
    with pytest.raises(UserError, match="'positions' is 0"):
        validated(Budget, {"positions": 0}, "the budget")
