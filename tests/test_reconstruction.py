"""What a reconstruction loss is made of."""

import json

import pytest
import torch
from methods.matrix import build

from gradmem_bench import checkpoints
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.reconstruction import PARTS_FILE, measure_parts, token_parts, write_parts
from gradmem_bench.registry import recipe_folder
from gradmem_bench.tasks.declaration import load_task


def test_keys_values_and_marks_are_told_apart():
    task = load_task(recipe_folder("task") / "kv_retrieval.yaml", {"pairs": 2, "key_length": 1})
    context = task.documents("test")[0].context
    parts = token_parts(task, len(context))
    for text, part in zip(context, parts, strict=True):
        assert (text in "!:|") == (part == "marks")
    assert [context[index] for index, part in enumerate(parts) if part == "keys"] == [context[1], context[7]]
    with pytest.raises(UserError, match="has 14 tokens and not 13"):
        token_parts(task, 14)


def test_the_parts_are_those_of_the_contexts_that_there_are(tmp_path):
    task = load_task(recipe_folder("task") / "kv_small.yaml", {"pairs": 2, "test_contexts": 20})
    torch.manual_seed(0)
    method = build("gradmem", load_backbone(BackboneConfig(name="llama-1x32"), task.tokenizer(), "cpu", 0))
    checkpoints.save(tmp_path / checkpoints.METHOD_FILE, checkpoints.trained_tensors(method), {})
    for limit, contexts in ((None, 20), (8, 8)):
        write_parts(method, task, tmp_path, limit)
        found = json.loads((tmp_path / PARTS_FILE).read_text())
        assert found == {"nats_per_token": measure_parts(method, task, limit), "contexts": contexts}
        assert set(found["nats_per_token"]) == {"keys", "values", "marks"}
