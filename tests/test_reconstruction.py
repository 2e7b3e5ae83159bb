"""What a reconstruction loss is made of."""

import pytest

from gradmem_bench.errors import UserError
from gradmem_bench.reconstruction import token_parts
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
