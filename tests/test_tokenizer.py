import json
import runpy
import sys

import pytest
from transformers import AutoTokenizer

from gradmem_bench.config import BackboneConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.registry import recipe_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that the script leaves, of a text in which one word is frequent and of a held-out one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = folder / "texts"
    texts.mkdir()
    for name, word in (("train", "gradient"), ("validation", "zebra")):
        (texts / f"{name}.jsonl").write_text(json.dumps({"text": f"a {word} is a {word} " * 20}) + "\n")
    arguments = ["tokenizer.py", str(texts), str(folder / "made"), "--entries", "280"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(str(recipe_folder("backbone") / "tokenizer.py"), run_name="__main__")
    return folder / "made"


def test_a_frequent_word_is_one_token_and_a_held_out_one_is_not(made):
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert len(tokenizer(" gradient").input_ids) == 1
    assert len(tokenizer(" zebra").input_ids) > 1


@pytest.mark.parametrize("text", [" naïve 東京\n\n1066", "zebra's  gradient"])
def test_any_text_comes_back_to_the_letter(made, text):
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_backbone_takes_it_as_it_is(made):
    backbone = load_backbone(BackboneConfig(name="llama-1x32", tokenizer=str(made)), None, "cpu", 0)
    assert backbone.end_id == backbone.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert backbone.vocabulary_size == len(backbone.tokenizer) <= 280
