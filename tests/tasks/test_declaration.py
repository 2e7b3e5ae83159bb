import re
import sys
from pathlib import Path

import pytest
import yaml

from gradmem_bench.errors import UserError
from gradmem_bench.tasks.declaration import load_task
from gradmem_bench.tasks.documents import Documents
from gradmem_bench.tasks.kv_retrieval import KeyValueRetrieval

TASKS = Path(__file__).parents[2] / "tasks"


def write(folder: Path, **values) -> Path:
    path = folder / "mine.yaml"
    base = {"task": "mine", "dataset_path": "someone/mine", "generation_kwargs": {"until": [], "max_gen_toks": 32}}
    path.write_text(yaml.safe_dump(base | values))
    return path


@pytest.mark.parametrize(
    "path", [path for path in sorted(TASKS.glob("*.yaml")) if path.stem != "babi"], ids=lambda path: path.stem
)
def test_every_shipped_task_declares_itself_under_its_files_name(path):
    task = load_task(path)
    assert task.name == path.stem
    assert isinstance(task, KeyValueRetrieval if path.stem.startswith("kv_") else Documents)
    assert task.metadata["version"] == (2.0 if path.stem.startswith("text_") else 1.0)
    assert task.metadata["backbone"]["name"] in ("gpt2", "llama-4x128", "kv_recall")
    assert task.text_metrics == (not path.stem.startswith(("kv_", "text_")))
    longest = {"babi": 8, "squad": 32, "kv": 4, "text": 128}[re.match("[a-z]+", path.stem)[0]]
    assert task.max_new_tokens == (11 if path.stem == "kv_rebuild" else longest)


def test_the_group_names_the_tasks_that_stand_beside_it():
    values = yaml.safe_load((TASKS / "babi.yaml").read_text())
    assert values["task"] == [path.stem for path in sorted(TASKS.glob("babi_qa*.yaml"))]
    with pytest.raises(UserError, match="group 'babi', not a task.*babi_qa1"):
        load_task(TASKS / "babi.yaml")


def test_settings_are_laid_over_the_files_own():
    task = load_task(TASKS / "kv_retrieval.yaml", {"pairs": 3})
    assert (task.settings.pairs, task.settings.key_length) == (3, 2)
    assert load_task(TASKS / "kv_retrieval.yaml").settings.pairs == 8


def test_a_users_own_class_is_used(tmp_path, monkeypatch):
    (tmp_path / "rome_task.py").write_text(
        "from gradmem_bench.tasks.base import Document, Query, Source, Task\n"
        "class Rome(Task):\n"
        "    def documents(self, split):\n"
        "        return [Document('a', 'Ann is in Rome.', (Query('a-0', 'Where is Ann?', ('Rome',)),))]\n"
        "    def source(self, split):\n"
        "        return Source('generated', None, None, 1)\n"
    )
    monkeypatch.setattr("sys.path", [*sys.path])
    # The module stands beside the YAML.
    task = load_task(write(tmp_path, metadata={"class": "rome_task:Rome"}))
    assert task.documents("test")[0].context == "Ann is in Rome."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"doc_to_txt": "x"}, "mine.yaml has no key 'doc_to_txt'. Did you mean 'doc_to_text'"),
        ({"num_fewshot": 5}, "'num_fewshot' is 5"),
        ({"description": "Answer!"}, "'description' is 'Answer!'"),
        ({"output_type": "multiple_choice"}, "'output_type' is 'multiple_choice'"),
        (
            {"generation_kwargs": {"do_sample": True, "until": [], "max_gen_toks": 3}},
            "'generation_kwargs.do_sample' is True",
        ),
        ({"generation_kwargs": {"until": [], "max_gen_toks": 0}}, "'generation_kwargs.max_gen_toks' is 0"),
        (
            {"generation_kwargs": {"max_gen_toks": 3}},
            "mine.yaml leaves open when an answer ends, which lm-eval would fill in; write generation_kwargs: "
            '{"until": ["\\n"], "max_gen_toks": 3}',
        ),
        ({"generation_kwargs": {}}, 'write generation_kwargs: {"until": ["\\n"], "max_gen_toks": 32}'),
        (
            {"generation_kwargs": {"max_tokens": 3}},
            "no key 'generation_kwargs.max_tokens'. Did you mean 'max_gen_toks'",
        ),
        ({"dataset_kwargs": {"revison": "main"}}, "no key 'revison'. Did you mean 'revision'"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "no key 'trust_remote_code'"),
        ({"metadata": {"truncate_context": True}}, "no key 'truncate_context'. Did you mean 'truncate_contexts'"),
        ({"metadata": {"training": {"step": 3}}}, "no key 'step'. Did you mean 'steps'"),
        ({"metadata": {"backbone": {"name": "gpt2", "head": 3}}}, "no key 'head'. Did you mean 'heads'"),
        ({"metadata": {"class": "no_such_module:Task"}}, "importing no_such_module raised ModuleNotFoundError"),
        ({"metadata": {"class": "json:JSONDecoder"}}, "json:JSONDecoder, which is no subclass"),
        ({"dataset_path": None}, "needs a dataset_path"),
        ({"dataset_path": "json"}, "data_files go together"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence_that_names_it(tmp_path, values, message):
    path = write(tmp_path, **values)
    with pytest.raises(UserError) as error:
        load_task(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_setting_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="no key 'paris'. Did you mean 'pairs'"):
        load_task(TASKS / "kv_retrieval.yaml", {"paris": 4})


def test_metadata_of_ones_own_may_stand_beside_what_is_read(tmp_path):
    assert load_task(write(tmp_path, metadata={"collected_by": "me"})).metadata["collected_by"] == "me"
