"""Runs that are planned and not made, for the tests of what is known of one beforehand."""

import json

from commands import TASK

from gradmem_bench.config import BackboneConfig
from gradmem_bench.experiment import resolve
from gradmem_bench.loading import load_backbone
from gradmem_bench.plan import Options, Plan
from gradmem_bench.registry import resolve as find

SETTINGS = tuple(setting.removeprefix("--set=") for setting in TASK)


def plan(method="gradmem", *settings, task="kv_retrieval", backbone="llama-1x32", **options) -> Plan:
    given = (*SETTINGS, *settings) if task == "kv_retrieval" else settings
    return resolve(find("method", method), find("task", str(task)), Options(backbone, settings=given, **options))


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def write_rows(path, count, words=1):
    rows = [
        {"context": f"{path.stem}{row}" + "a" * words, "query": f"?{row}", "target": f"{row}"} for row in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_model(folder):
    """A backbone's folder with a configuration and a tokenizer, and no weights at all."""
    tokenizer = plan(backbone="llama-1x32").shape.tokenizer
    backbone = load_backbone(BackboneConfig(name="llama-1x32", max_positions=64), tokenizer, "meta", 0)
    backbone.model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_task(folder):
    """A task on JSONL files of one's own."""
    write_rows(folder / "train.jsonl", 20)
    write_rows(folder / "test.jsonl", 10)
    path = folder / "own.yaml"
    path.write_text(
        "task: own\ndataset_path: json\ndataset_kwargs:\n  data_files: {train: train.jsonl, test: test.jsonl}\n"
        "training_split: train\ntest_split: test\ngeneration_kwargs: {until: [], max_gen_toks: 32}\n"
        "metadata:\n  training: {steps: 3, batch_size: 4}\n"
    )
    return path
