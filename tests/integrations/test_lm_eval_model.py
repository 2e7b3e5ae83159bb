"""The model `gradmem_bench` in lm-eval, on local tasks."""

import json
import math
from pathlib import Path

import pytest
import torch
from commands import command

from gradmem_bench.errors import UserError
from gradmem_bench.results import find_records, read_examples
from gradmem_bench.tasks.declaration import load_task

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install gradmem-bench[lm-eval]")


def model(method: str, **arguments):
    from lm_eval.api.registry import get_model

    from gradmem_bench.integrations.lm_eval_front import register

    register()
    return get_model("gradmem_bench")(method=method, device="cpu", **arguments)


def evaluated(lm, path: Path):
    """What lm-eval makes of the model on the task in `path`."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load([str(path)])
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=0)
    return evaluate(lm, loaded, bootstrap_iters=0)


def declared(folder: Path, kind: str, rows: list[dict], **keys: str) -> Path:
    """A task of one's own in lm-eval's format, over `rows`."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"doc_to_text": '"{{query}}"', "doc_to_target": "target", "target_delimiter": '""'} | keys
    path = folder / f"{kind}.yaml"
    path.write_text(
        f"task: own_{kind}\noutput_type: {kind}\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        + "".join(f"{key}: {value}\n" for key, value in keys.items())
    )
    return path


# ----------------------------------------------------------------------------------- equal to our own


@pytest.mark.parametrize("method", ["gradmem", "truncated_text", "full_kv"])
def test_scores_and_answers_are_those_of_a_run(runs, pairs, method):
    record, folder = runs[method]
    lm = model(method, checkpoint=str(folder), budget="512B")
    found = evaluated(lm, pairs)
    rows = {row.example_id: row for row in read_examples(folder)}
    samples = found["samples"]["two_pairs"]
    assert len(samples) == len(rows) == 140
    for sample in samples:
        row = rows[sample["doc"]["id"]]
        assert sample["filtered_resps"] == [row.prediction]
        assert (sample["exact_match"], sample["f1"]) == (row.exact_match, row.f1)
    results = found["results"]["two_pairs"]
    assert results["exact_match,none"] == pytest.approx(record.metrics["exact_match"].value, abs=1e-12)
    assert results["f1,none"] == pytest.approx(record.metrics["f1"].value, abs=1e-12)
    info = lm.get_model_info()
    assert info["contexts"] == record.task.contexts == 70
    assert info["state_bytes"]["mean"] == pytest.approx(record.footprint.state_bytes.mean)
    assert info["read_positions"]["max"] == record.footprint.read_positions.max


def test_the_trained_method_answers_some_and_not_all(runs):
    # Else the test above would compare constants.
    scores = [record.metrics["exact_match"].value for record, _ in runs.values()]
    assert len(set(scores)) > 1 and 0 < max(scores)


def test_answers_do_not_depend_on_the_batch(runs, pairs):
    _, folder = runs["gradmem"]
    one, many = (
        [sample["filtered_resps"] for sample in found["samples"]["two_pairs"]]
        for found in (
            evaluated(model("gradmem", checkpoint=str(folder), batch_size=size), pairs) for size in (1, "auto")
        )
    )
    assert one == many


@pytest.fixture(scope="module")
def run_in_bfloat16(runs, pairs, tmp_path_factory) -> tuple[list, Path]:
    """The rows of the trained gradmem evaluated in bfloat16, and the checkpoint."""
    _, folder = runs["gradmem"]
    output = tmp_path_factory.mktemp("bfloat16")
    done = command(
        "run", "--method=gradmem", f"--task={pairs}", f"--load={folder}", "--budget=512B", "--dtype=bfloat16",
        f"--output={output}",
    )  # fmt: skip
    assert (done.code, done.errors) == (0, "")
    ((path, _),) = find_records([output]).items()
    return read_examples(path.parent), folder


def test_answers_in_bfloat16_are_those_of_a_run_in_bfloat16(run_in_bfloat16, pairs):
    rows, folder = run_in_bfloat16
    found = evaluated(model("gradmem", checkpoint=str(folder), budget="512B", dtype="bfloat16"), pairs)
    answers = {sample["doc"]["id"]: sample["filtered_resps"] for sample in found["samples"]["two_pairs"]}
    assert answers == {row.example_id: [row.prediction] for row in rows}


def test_likelihoods_in_bfloat16_are_those_of_a_run_in_bfloat16(run_in_bfloat16, pairs, tmp_path):
    rows, folder = run_in_bfloat16
    asked = [
        {"context": document.context, "query": query.text, "target": query.targets[0]}
        for document in load_task(pairs).documents("test")
        for query in document.queries
    ]
    path = declared(tmp_path, "loglikelihood", asked, metric_list="[{metric: perplexity}]")

    def likelihoods(dtype: str) -> list[float]:
        lm = model("gradmem", checkpoint=str(folder), budget="512B", dtype=dtype)
        return [sample["filtered_resps"][0][0] for sample in evaluated(lm, path)["samples"]["own_loglikelihood"]]

    by_run = [-row.target_bits_per_token * row.target_tokens * math.log(2) for row in rows]
    assert likelihoods("bfloat16") == pytest.approx(by_run, abs=1e-5)
    differences = [abs(one - other) for one, other in zip(likelihoods("float32"), by_run, strict=True)]
    assert 1e-3 < max(differences) < 0.5


# -------------------------------------------------------------------------------- the kinds of request


def by_hand(lm, context: str, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T - 1, V) of what follows each of `ids` behind the whole context, by the model itself."""
    backbone = lm.evaluator.backbone
    before = backbone.encode_contexts([context])[0]
    with torch.no_grad():
        logits = backbone.model(torch.tensor([before + ids])).logits[0]
    return logits.log_softmax(dim=-1)[len(before) : -1]


def test_choices_are_scored_behind_the_state(local_model, tmp_path):
    rows = [
        {"context": "!a:bc!|", "query": "?!a:", "target": 1, "choices": ["d", "bc", "e"]},
        {"context": "!a:dd!|", "query": "?!a:", "target": 0, "choices": ["d", "bcb", "e"]},
    ]
    path = declared(tmp_path, "multiple_choice", rows, doc_to_choice="choices", metric_list="[{metric: acc}]")
    lm = model("full_kv", backbone=str(local_model))
    for sample, row in zip(evaluated(lm, path)["samples"]["own_multiple_choice"], rows, strict=True):
        expected = []
        for choice in row["choices"]:
            asked, answer = lm.evaluator.backbone.encode([row["query"], choice])
            likelihoods = by_hand(lm, row["context"], asked + answer)[len(asked) - 1 :]
            nats = sum(float(likelihoods[place, token]) for place, token in enumerate(answer))
            expected.append((nats, likelihoods.argmax(dim=-1).tolist() == answer))
        for found, (nats, greedy) in zip(sample["filtered_resps"], expected, strict=True):
            assert found[0] == pytest.approx(nats, abs=1e-4)
            assert found[1] == greedy
        best = max(range(3), key=lambda index: expected[index][0])
        assert sample["acc"] == float(best == row["target"])


def test_an_empty_prompt_is_the_end_of_text(local_model, tmp_path):
    path = declared(tmp_path, "loglikelihood", [{"context": "!a:bc!|", "query": "", "target": "bc"}])
    lm = model("full_kv", backbone=str(local_model))
    ((nats, _),) = evaluated(lm, path)["samples"]["own_loglikelihood"][0]["filtered_resps"]
    answer = lm.evaluator.backbone.encode(["bc"])[0]
    likelihoods = by_hand(lm, "!a:bc!|", [lm.evaluator.backbone.end_id, *answer])
    assert nats == pytest.approx(sum(float(likelihoods[place, token]) for place, token in enumerate(answer)), abs=1e-4)


def test_reconstruction_scores_every_token_of_the_context_once(local_model, tmp_path):
    context = "!a:bc!!d:ef!|"
    rows = [{"context": context, "query": "", "target": context}, {"context": "!a:bb!|", "query": "", "target": "ab"}]
    path = declared(tmp_path, "loglikelihood_rolling", rows)
    lm = model("full_kv", backbone=str(local_model))
    found = evaluated(lm, path)["samples"]["own_loglikelihood_rolling"]
    for sample, row in zip(found, rows, strict=True):
        ids = lm.evaluator.backbone.encode([row["target"]])[0]
        likelihoods = by_hand(lm, row["context"], [lm.evaluator.backbone.end_id, *ids])
        expected = sum(float(likelihoods[place, token]) for place, token in enumerate(ids))
        assert sample["filtered_resps"] == [pytest.approx(expected, abs=1e-4)]


def test_a_text_that_does_not_fit_is_rebuilt_in_windows(local_model, tmp_path):
    # 100 positions of context and 128 in all: windows of 27 tokens behind the end-of-text token.
    context, text = "a" * 100, "bcdefgh" * 8
    path = declared(tmp_path, "loglikelihood_rolling", [{"context": context, "query": "", "target": text}])
    lm = model("full_kv", backbone=str(local_model))
    (nats,) = evaluated(lm, path)["samples"]["own_loglikelihood_rolling"][0]["filtered_resps"]
    ids = lm.evaluator.backbone.encode([text])[0]
    whole = [lm.evaluator.backbone.end_id, *ids]
    expected = 0.0
    for first in range(0, 56, 27):
        last = min(first + 27, 56)
        # A window predicts ids[first:last]; of what stands before them it takes the nearest.
        start = 0 if first == 0 else last - 27
        likelihoods = by_hand(lm, context, whole[start : last + 1])
        expected += sum(float(likelihoods[place - start, ids[place]]) for place in range(first, last))
    assert nats == pytest.approx(expected, abs=1e-3)


COUNTING = """
from pathlib import Path
from gradmem_bench.methods.full_kv import FullKV

class Counting(FullKV):
    def write(self, contexts):
        with Path(__file__).with_name("writes").open("a") as file:
            file.write(f"{len(contexts)}\\n")
        return super().write(contexts)
"""


def test_requests_of_one_context_share_one_write(local_model, tmp_path):
    (tmp_path / "counting.py").write_text(COUNTING)
    (tmp_path / "counting.yaml").write_text("name: counting\nclass: counting:Counting\n")
    rows = [
        {"context": f"!a:{value}!|", "query": f"?!{key}:", "target": 0, "choices": ["a", "b", "c"]}
        for key in "ade"
        for value in "bc"
    ]
    path = declared(tmp_path, "multiple_choice", rows, doc_to_choice="choices", metric_list="[{metric: acc}]")
    lm = model("counting", backbone=str(local_model), include_path=str(tmp_path))
    assert len(evaluated(lm, path)["samples"]["own_multiple_choice"]) == 6
    assert (tmp_path / "writes").read_text() == "2\n"


# --------------------------------------------------------------------------------------------- cache


def ten_contexts(folder: Path) -> Path:
    rows = [{"context": f"!a:{symbol}!|", "query": "?!a:", "target": "7"} for symbol in "0123456789"]
    return declared(folder, "loglikelihood", rows, metric_list="[{metric: perplexity}]")


def cached(lm, path: Path, folder: Path) -> tuple[list[float], int]:
    """Log-likelihoods through lm-eval's cache, made as `simple_evaluate` makes it; and the contexts written."""
    import lm_eval.api.model

    samples = evaluated(lm_eval.api.model.CachingLM(lm, str(folder / "cache.db")), path)["samples"]
    return [sample["filtered_resps"][0][0] for sample in samples["own_loglikelihood"]], lm.get_model_info()["contexts"]


def test_the_cache_tells_contexts_and_memories_apart(local_model, tmp_path):
    path = ten_contexts(tmp_path)
    samples = evaluated(model("full_kv", backbone=str(local_model)), path)["samples"]["own_loglikelihood"]
    uncached = [sample["filtered_resps"][0][0] for sample in samples]
    assert len({sample["arguments"][0][0] for sample in samples}) == 1 and len(set(uncached)) == 10
    assert cached(model("full_kv", backbone=str(local_model)), path, tmp_path) == (uncached, 10)
    assert cached(model("full_kv", backbone=str(local_model)), path, tmp_path) == (uncached, 0)
    other, written = cached(model("truncated_text", backbone=str(local_model), max_tokens=3), path, tmp_path)
    assert written == 10 and other != uncached


def test_a_cache_that_does_not_tell_contexts_apart_is_refused(local_model, tmp_path):
    from lm_eval.api.model import CachingLM

    from gradmem_bench.integrations.lm_eval_cache import ContextCachingLM

    (plain,) = (one for one in ContextCachingLM.__mro__ if one.__name__ == "CachingLM")
    assert CachingLM is not plain
    lm = plain(model("full_kv", backbone=str(local_model)), str(tmp_path / "cache.db"))
    with pytest.raises(UserError, match="does not tell contexts apart"):
        evaluated(lm, ten_contexts(tmp_path))


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "row, keys, sentence",
    [
        ({"passage": "!a:b!|"}, {}, "no text in a column 'context'.*--task lm_eval:own_generate_until"),
        ({"context": "!a:b!|"}, {"doc_to_text": '"{{context}}{{query}}"'}, "holds the context itself"),
        ({"context": "!a:b!|"}, {"generation_kwargs": "{do_sample: true, until: []}"}, "generated greedily"),
        ({"context": "a" * 130}, {}, "has 130 tokens, but at most .* truncate_contexts=true"),
    ],
)
def test_what_is_no_context_removal_is_refused(local_model, tmp_path, row, keys, sentence):
    keys = {"generation_kwargs": "{until: [], max_gen_toks: 2}"} | keys
    path = declared(tmp_path, "generate_until", [{"query": "?!a:", "target": "b"} | row], **keys)
    with pytest.raises(UserError, match=sentence):
        evaluated(model("full_kv", backbone=str(local_model)), path)


def test_a_context_that_does_not_fit_is_cut_where_that_is_allowed(local_model, tmp_path):
    row = {"context": "a" * 130, "query": "?!a:", "target": "b"}
    path = declared(tmp_path, "generate_until", [row], generation_kwargs="{until: [], max_gen_toks: 2}")
    lm = model("full_kv", backbone=str(local_model), truncate_contexts=True)
    evaluated(lm, path)
    assert lm.get_model_info()["contexts_truncated"] == 1
    # 128 positions, less 4 of the prompt and 2 of the answer.
    assert lm.get_model_info()["read_positions"]["max"] == 122


def test_what_another_task_asks_does_not_cut_a_context(local_model, tmp_path):
    from lm_eval.api.instance import Instance

    def request(task: str, most: int) -> Instance:
        arguments = ("?!a:", {"until": [], "max_gen_toks": most})
        return Instance("generate_until", {"context": "a" * 130}, arguments, 0, metadata=(task, 0, 1))

    lm = model("full_kv", backbone=str(local_model), truncate_contexts=True)
    alone = lm.generate_until([request("short", 2)])
    positions = lm.get_model_info()["read_positions"]["max"]
    together = lm.generate_until([request("short", 2), request("long", 40)])
    assert positions == 122 and together[0] == alone[0]
    # What is written last is the other task's.
    assert lm.get_model_info()["read_positions"]["max"] == 128 - 4 - 40


def test_a_cut_context_is_not_cached(local_model, tmp_path):
    lm = model("full_kv", backbone=str(local_model), truncate_contexts=True)
    with pytest.raises(UserError, match="--use_cache with truncate_contexts"):
        cached(lm, ten_contexts(tmp_path), tmp_path)


def test_an_empty_text_costs_nothing_to_rebuild(local_model):
    from lm_eval.api.instance import Instance

    lm = model("full_kv", backbone=str(local_model))
    requests = [Instance("loglikelihood_rolling", {"context": "!a:b!|"}, (text,), 0) for text in ("", "!a:b!|")]
    empty, text = lm.loglikelihood_rolling(requests)
    assert empty == 0.0 and text < 0


@pytest.mark.parametrize(
    "method, arguments, sentence",
    [
        ("gradmen", {}, "no method 'gradmen'.*Did you mean 'gradmem'"),
        (None, {}, "needs --model_args method=NAME"),
        ("full_kv", {}, "needs a backbone"),
        ("gradmem", {"backbone": "llama-1x32", "inner_step": 3}, "no key 'inner_step'. Did you mean 'inner_steps'"),
        ("gradmem", {"checkpoint": "nowhere"}, "no checkpoint nowhere"),
        ("gradmem", {"budget": "4 Kilo"}, "not a size in bytes"),
        ("gradmem", {"dtype": "float16"}, "dtype is 'float16', but one of float32 and bfloat16"),
    ],
)
def test_a_wrong_argument_is_one_sentence(method, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        model(method, **arguments)


def test_a_folder_with_one_run_of_the_method_is_its_checkpoint(runs, pairs):
    _, folder = runs["gradmem"]
    from_run, from_parent = (
        model("gradmem", checkpoint=str(path), budget="512B").memory_key for path in (folder, folder.parent)
    )
    assert from_run == from_parent
    more = folder.parent / "gradmem-00000000"
    more.mkdir()
    (more / "method.safetensors").write_bytes((folder / "method.safetensors").read_bytes())
    try:
        with pytest.raises(UserError, match="holds several runs of 'gradmem' .gradmem-00000000, .*name the folder"):
            model("gradmem", checkpoint=str(folder.parent))
    finally:
        (more / "method.safetensors").unlink()
        more.rmdir()
