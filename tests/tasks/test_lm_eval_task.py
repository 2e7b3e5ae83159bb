"""lm-eval's own tasks with the context cut out of the prompt, on local rows of the published form."""

import json
from pathlib import Path

import pytest
from commands import command

from gradmem_bench.errors import UserError
from gradmem_bench.experiment import Known
from gradmem_bench.registry import resolve
from gradmem_bench.results import find_records, read_examples
from gradmem_bench.tasks.base import Document, Task
from gradmem_bench.tasks.identity import declaration_hashes

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install gradmem-bench[lm-eval]")

NO_DATE = {"day": "", "month": "", "year": ""}
MARY = "Mary moved to the hall.\nJohn left.\n"
DROP = {
    "query_id": "d1",
    "passage": "The Bears won 24 to 10.",
    "question": "How many points did the Bears score?",
    "answer": {"number": "24", "date": NO_DATE, "spans": []},
    "validated_answers": {"number": ["", "24"], "date": [NO_DATE, NO_DATE], "spans": [["24 points", "the win"], []]},
}
TALK = {
    "story": "Tom has a cat. It is red.",
    "questions": {"input_text": ["Who has a cat?", "What color?"]},
    "answers": {"input_text": ["Tom", "red"]},
    "additional_answers": {"0": {"input_text": ["Tom", "It is red"]}},
}
PROBLEMS = [
    {"question": "Who left?", "options": ["Ann", "Bob", "Cy", "Di"], "answer": "B"},
    {"question": "Where is Bob?", "options": ["Rome", "Oslo", "Lima", "Kyiv"], "answer": "C"},
]
RACE = {"article": "Bob left for Lima.", "problems": str(PROBLEMS)}
BABI = [
    {"passage": MARY, "question": "Where is Mary?", "answer": "hall"},
    {"passage": MARY, "question": "Who left?", "answer": "John"},
    {"passage": "Ann sat.\n", "question": "Who sat?", "answer": "Ann"},
]
BOOLQ = {"passage": "Iron rusts.", "question": "does iron rust", "label": 1}
MULTIRC = {"paragraph": "Ann ate.", "question": "Who ate?", "answer": "Bob", "label": 0}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Puts rows where the data folder has a data set's split."""
    monkeypatch.setenv("GRADMEM_BENCH_DATA", str(tmp_path / "data"))

    def put(dataset: str, **splits: list[dict]) -> None:
        folder = tmp_path / "data" / dataset
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return put


def load(name: str, **settings) -> Task:
    return Known().task(Path(resolve("task", name).target), settings)


def only(task: Task) -> tuple[Document, tuple]:
    (document,) = task.documents("test")
    return document, document.queries


def test_drop_asks_the_question_alone_and_accepts_every_answer(data):
    data("EleutherAI/drop", train=[DROP], validation=[DROP])
    task = load("lm_eval:drop")
    document, (query,) = only(task)
    assert document.context == "The Bears won 24 to 10."
    assert query.text == "How many points did the Bears score?"
    assert query.targets == ("24", "24 points, the win")
    assert (task.until, task.target_delimiter, task.name) == ((".",), "", "lm_eval_drop")
    # lm-eval's own models generate so many where a task does not say.
    assert task.max_new_tokens == 256
    assert task.own_score(query, " 24", []) == 1.0
    # DROP's F1: one word of two, where numbers have to agree.
    assert task.own_score(query, "24 goals", []) == pytest.approx(0.67)
    assert task.own_score(query, "10", []) == 0.0


def test_coqa_keeps_the_conversation_and_removes_the_story(data):
    data("EleutherAI/coqa", train=[TALK], validation=[TALK])
    task = load("lm_eval:coqa")
    document, (query,) = only(task)
    assert document.context == "Tom has a cat. It is red."
    assert query.text == "Q: Who has a cat?\n\nA: Tom\n\nQ: What color?\n\nA:"
    assert query.targets == ("red", "It is red")
    assert task.own_score(query, " red\nQ: more", []) == pytest.approx((2 / 4 + 1) / 2)


def test_race_is_a_choice_by_log_likelihood(data):
    data("EleutherAI/race/high", test=[RACE])
    task = load("lm_eval:race")
    document, (query,) = only(task)
    assert document.context == "Article: Bob left for Lima."
    assert query.text == "Question: Who left?\nAnswer: Bob\nWhere is Bob?"
    assert query.choices == (" Rome", " Oslo", " Lima", " Kyiv") and query.targets == ("Lima",)
    assert (task.until, task.max_new_tokens) == ((), 32)
    assert task.own_score(query, "", [(-3.0, False), (-2.0, False), (-1.0, True), (-4.0, False)]) == 1.0
    assert task.own_score(query, "", [(-3.0, False), (-0.5, True), (-1.0, False), (-4.0, False)]) == 0.0
    with pytest.raises(UserError, match="no data for 'train'.*give --no-train"):
        task.documents("train")


def test_babi_groups_the_questions_of_one_story(data):
    data("Muennighoff/babi", train=BABI, valid=BABI[:1], test=BABI)
    task = load("lm_eval:babi")
    mary, ann = task.documents("test")
    assert (mary.context, ann.context) == ("Passage: Mary moved to the hall.\nJohn left.", "Passage: Ann sat.")
    assert [query.text for query in mary.queries] == [
        "Question: Where is Mary?\nAnswer:",
        "Question: Who left?\nAnswer:",
    ]
    # lm-eval's exact match takes the space as well.
    assert [task.own_score(mary.queries[0], answer, []) for answer in (" hall", "hall", " John")] == [1.0, 0.0, 0.0]
    assert [len(task.documents(split)) for split in ("train", "validation")] == [2, 1]
    assert task.source("test").rows == 3
    assert task.source("test").content_hash != task.source("validation").content_hash


@pytest.mark.parametrize(
    "name, dataset, row, context, text, choices, target",
    [
        ("boolq", "boolq", BOOLQ, "Iron rusts.", "Question: does iron rust?\nAnswer:", (" no", " yes"), "yes"),
        (
            "multirc",
            "multirc",
            MULTIRC,
            "Ann ate.",
            "Question: Who ate?\nAnswer:",
            (" Bob\nIs the answer correct? yes", " Bob\nIs the answer correct? no"),
            "Bob\nIs the answer correct? yes",
        ),
    ],
)
def test_super_glue_with_a_passage_is_a_choice(data, name, dataset, row, context, text, choices, target):
    data(f"aps/super_glue/{dataset}", train=[row], validation=[row])
    document, (query,) = only(load(f"lm_eval:{name}"))
    assert (document.context, query.text) == (context, text)
    assert query.choices == choices and query.targets == (target,)


LOCAL = """
import datasets
from lm_eval.tasks.squad_completion.task import SQUADCompletion

class Local(SQUADCompletion):
    def download(self, *arguments, **keys):
        self.dataset = datasets.load_dataset("json", data_files={"validation": "%s"})
"""


def test_squad_completion_is_completed_from_the_state(tmp_path):
    context = "Super Bowl 50 was a game. The Broncos won."
    row = {"context": context, "text": f"{context} The team that won was the ", "value": "Broncos"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "local.py").write_text(LOCAL % (tmp_path / "rows.jsonl"))
    path = tmp_path / "here.yaml"
    path.write_text("task: squad_completion\nclass: !function local.Local\n")
    task = load(f"lm_eval:{path}")
    document, (query,) = only(task)
    assert document.context == context
    assert (query.text, query.targets) == ("The team that won was the", ("Broncos",))
    # What lm-eval 0.4.13 asks for: its default, not the 48 tokens that the task means where there is none.
    assert (task.until, task.max_new_tokens) == (("\n\n",), 256)
    assert [task.own_score(query, answer, []) for answer in (" Denver broncos of", " Panthers")] == [1.0, 0.0]


def test_a_needle_is_found_in_the_state_alone(shared):
    pytest.importorskip("wonderwords", reason="lm-eval's RULER needs it: pip install lm_eval[ruler]")
    settings = {"tokenizer": str(shared / "models" / "gpt2-tokenizer"), "max_seq_lengths": [256]}
    task = load("lm_eval:niah_single_1", metadata=settings)
    document = task.documents("test")[0]
    (query,) = document.queries
    assert document.context.startswith("A special magic number is hidden") and query.targets[0] in document.context
    assert query.text.startswith("What is the special magic number for ") and query.text.endswith("text is")
    assert query.targets[0] not in query.text
    assert task.own_score(query, f" It is {query.targets[0]}.", []) == 1.0
    assert task.own_score(query, " It is 7.", []) == 0.0


# ------------------------------------------------------------------------- a task that no table knows


def own(folder: Path, rows: list[dict], **keys: str) -> Path:
    """A conversation about a text, in a YAML of the user's for lm-eval: what QuAC looks like."""
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"{{train: {folder / 'train.jsonl'}, test: {folder / 'test.jsonl'}}}"
    keys = {"doc_to_text": r'"{{background}}\n\n{{history}}Q: {{question}}\nA:"', "doc_to_target": "answer"} | keys
    path = folder / "talk.yaml"
    path.write_text(
        f"task: talk\ndataset_path: json\ndataset_kwargs: {{data_files: {files}}}\ntraining_split: train\n"
        "test_split: test\ngeneration_kwargs: {until: ['\\n'], max_gen_toks: 4}\n"
        + "".join(f"{key}: {value}\n" for key, value in keys.items())
    )
    return path


def turns(count: int) -> list[dict]:
    return [
        {"background": f"box {row} holds {row % 7}", "history": "", "question": "what?", "answer": str(row % 7)}
        for row in range(count)
    ]


def test_the_context_of_any_task_can_be_declared(tmp_path):
    path = own(tmp_path, turns(3))
    with pytest.raises(UserError, match="Nothing says which part.*'talk'.*task.context=COLUMN.*drop"):
        load(f"lm_eval:{path}")
    with pytest.raises(UserError, match="test document 1: the prompt does not hold the context 'A: box 0"):
        load(f"lm_eval:{path}", context="A: {{background}}").documents("test")
    with pytest.raises(UserError, match="'backgroud' is undefined; columns: background"):
        load(f"lm_eval:{path}", context="{{backgroud}}").documents("test")
    task = load(f"lm_eval:{path}", context="background", metric="exact_match")
    first = task.documents("test")[0]
    assert (first.context, first.queries[0].text) == ("box 0 holds 0", "Q: what?\nA:")
    with pytest.raises(UserError, match="no metric 'exact_mach'.*exact_match"):
        wrong = load(f"lm_eval:{path}", context="{{background}}", metric="exact_mach")
        wrong.own_score(wrong.documents("test")[0].queries[0], "0", [])
    falling = own(tmp_path, turns(3), metric_list="[{metric: exact_match, higher_is_better: false}]")
    with pytest.raises(UserError, match="no metric 'exact_match'.*better the higher it is.*none"):
        wrong = load(f"lm_eval:{falling}", context="{{background}}", metric="exact_match")
        wrong.own_score(wrong.documents("test")[0].queries[0], "0", [])


def test_a_task_is_told_from_one_of_its_name_by_what_it_declares_and_by_its_functions(tmp_path):
    (tmp_path / "rules.py").write_text("def score(doc, results):\n    return {'exact_match': 1.0}\n")
    path = own(tmp_path, turns(3), process_results="!function rules.score", metric_list="[{metric: exact_match}]")

    def hashes():
        return declaration_hashes(load(f"lm_eval:{path}", context="background"))

    first = hashes()
    assert hashes() == first
    path.write_text(path.read_text().replace("until: ['\\n']", "until: ['.']"))
    ends = hashes()
    assert ends.whole != first.whole and ends.trained == first.trained
    path.write_text(path.read_text().replace("max_gen_toks: 4", "max_gen_toks: 5"))
    longer = hashes()
    assert longer.whole != ends.whole and longer.trained != ends.trained
    (tmp_path / "rules.py").write_text("def score(doc, results):\n    return {'exact_match': 0.25}\n")
    assert hashes().whole != longer.whole


def test_another_file_of_that_name_beside_it_and_splits_of_two_formats_are_not_taken(tmp_path, data):
    rows = [{"text": "Ann is in Rome.", "ask": "Where is Ann?", "answer": "Rome"}]
    data("talks", test=rows)
    folder = tmp_path / "tasks"
    folder.mkdir()
    keys = "task: talk\ndataset_path: talks\ntest_split: test\ndoc_to_target: answer\n"
    for name, words in (("a_first", "OLD"), ("b_mine", "NEW")):
        (folder / f"{name}.yaml").write_text(keys + f'doc_to_text: "{{{{text}}}} {words} {{{{ask}}}}"\n')
    with pytest.raises(UserError, match="a_first.yaml declares a task 'talk' as well.*b_mine.yaml; give one of them"):
        load(f"lm_eval:{folder / 'b_mine.yaml'}", context="text").documents("test")
    (folder / "a_first.yaml").unlink()
    [document] = load(f"lm_eval:{folder / 'b_mine.yaml'}", context="text").documents("test")
    assert document.queries[0].text == "NEW Where is Ann?"

    (folder / "b_mine.yaml").write_text((folder / "b_mine.yaml").read_text() + "training_split: train\n")
    (tmp_path / "data" / "talks" / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="all splits of a data set in one format; here are .*test.jsonl.*train.parquet"):
        load(f"lm_eval:{folder / 'b_mine.yaml'}", context="text").documents("test")


def test_a_file_that_lm_eval_would_not_find_is_refused():
    with pytest.raises(UserError, match="files that end in .yaml alone; rename talk.yml"):
        load("lm_eval:talk.yml")


def test_an_unknown_name_is_told_before_anything_else():
    with pytest.raises(UserError, match="no key 'contexts'. Did you mean 'context'"):
        load("lm_eval:drop", contexts="{{passage}}")
    with pytest.raises(UserError, match="There is no file nowhere.yaml"):
        load("lm_eval:nowhere.yaml")


# ----------------------------------------------------------------------------------- from end to end


def run(output: Path, *arguments) -> dict:
    done = command("run", *arguments, f"--output={output}", "--set=training.steps=2", "--set=training.batch_size=4")
    assert (done.code, done.errors) == (0, "")
    return {record.method.name: (record, path.parent, done) for path, record in find_records([output]).items()}


def test_generation_is_scored_by_lm_eval_as_well(tmp_path, local_model):
    path = own(tmp_path, turns(40))
    task = [f"--task=lm_eval:{path}", "--set=task.context=background", f"--backbone={local_model}", "--limit=8"]
    found = run(tmp_path / "runs", "--method=full_kv", "--method=no_memory", *task)
    record, folder, done = found["full_kv"]
    rows = read_examples(folder)
    assert len(rows) == record.metrics["task_score"].n == 8
    assert record.task.own_metric == "lm-eval's own" and "lm-eval's own" in done.output
    for row in rows:
        # lm-eval's exact match is to the letter, and ours is not; a random model may be right by both.
        assert row.task_score in (0.0, 1.0) and row.task_score <= row.exact_match
    assert record.task.source.location == "lm_eval:talk:test"
    assert record.task.settings["context"] == "background"


def test_a_choice_is_scored_by_its_log_likelihood(tmp_path, local_model):
    rows = [
        {"passage": f"box {row} is {'ab'[row % 2]}", "question": f"q{row % 3}", "label": row % 2, "options": ["a", "b"]}
        for row in range(24)
    ]
    path = own(
        tmp_path,
        rows,
        output_type="multiple_choice",
        doc_to_text=r'"{{passage}}\n{{question}}:"',
        doc_to_choice="options",
        doc_to_target="label",
        metric_list="[{metric: acc}]",
        generation_kwargs="null",
    )
    path.write_text(path.read_text().replace("generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\n", ""))
    task = [f"--task=lm_eval:{path}", "--set=task.context=passage", "--set=task.metric=acc"]
    record, folder, done = run(tmp_path / "runs", "--method=full_kv", *task, f"--backbone={local_model}")["full_kv"]
    picked = {row.example_id: row for row in read_examples(folder)}
    right = [picked[f"test-{number}"].choice == f" {row['options'][row['label']]}" for number, row in enumerate(rows)]
    assert [picked[f"test-{number}"].task_score for number in range(24)] == [float(one) for one in right]
    assert record.metrics["task_score"].value == pytest.approx(sum(right) / 24)
    # Of two choices one is right by chance half the time, or more often.
    assert record.swap_test.chance_score >= 0.5 and "right choices" in record.swap_test.outcome
    assert record.task.own_metric == "acc" and "acc" in done.output


def test_choices_are_those_of_lm_eval_with_its_own_model(tmp_path, local_model):
    """The full KV cache is the whole prompt: lm-eval's own `hf` scores the same choices alike."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [{"passage": f"box {row} ", "question": f"q{row}", "label": 0, "options": ["ab", "cd"]} for row in range(6)]
    path = own(
        tmp_path,
        rows,
        output_type="multiple_choice",
        doc_to_text='"{{passage}}{{question}}:"',
        doc_to_choice="options",
        doc_to_target="label",
        metric_list="[{metric: acc}]",
    )
    path.write_text(path.read_text().replace("generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\n", ""))
    loaded = TaskManager(include_defaults=False).load([str(path)])
    loaded["tasks"]["talk"].set_config(key="num_fewshot", value=0)
    loaded["tasks"]["talk"].set_fewshot_seed(seed=0)
    theirs = evaluate(HFLM(pretrained=str(local_model), device="cpu", batch_size=2), loaded, bootstrap_iters=0)

    from gradmem_bench.config import BackboneConfig
    from gradmem_bench.evaluation import Evaluator
    from gradmem_bench.loading import load_backbone
    from gradmem_bench.methods.full_kv import FullKV
    from gradmem_bench.tasks.batching import encode_documents

    task = load(f"lm_eval:{path}", context="{{passage}}")
    backbone = load_backbone(BackboneConfig(name=str(local_model)), None, "cpu", 0)
    evaluator = Evaluator(FullKV(backbone, FullKV.Parameters()), task, 4)
    for document, sample in zip(
        encode_documents(task.documents("test"), task, backbone), theirs["samples"]["talk"], strict=True
    ):
        states = evaluator.write([document]).states
        # The space at the context's end is not written: the prompts differ by that.
        ours = evaluator.likelihoods(states, [backbone.encode([f" {document.document.queries[0].text}"])[0]],
                                     document.choices)[0]  # fmt: skip
        for mine, other in zip(ours, sample["filtered_resps"], strict=True):
            assert mine[0] == pytest.approx(other[0], abs=1e-3)
            assert mine[1] == other[1]
