import json
import math
import shutil
from contextlib import contextmanager, nullcontext

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from commands import command, files, in_two
from methods.matrix import byte_tokenizer
from rich.console import Console
from transformers import AutoModelForCausalLM

from gradmem_bench.config import BackboneConfig, PretrainingRecipe, StrictModel
from gradmem_bench.corpus import stream, text_files
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone, weights_hash
from gradmem_bench.methods.no_memory import NoMemory
from gradmem_bench.pretraining import RECORD_FILE, bits_per_byte, perform, resolve
from gradmem_bench.registry import pretraining_recipe, recipe_folder
from gradmem_bench.reporting.progress import RunDisplay
from gradmem_bench.training import PROGRESS_FILE

WORDS = ["the ", "cat ", "sat ", "on ", "a ", "mat. "]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of texts that a few steps learn something of, with some held out."""
    folder = tmp_path_factory.mktemp("texts")
    draw = torch.Generator().manual_seed(0)
    for name, count in (("train", 60), ("validation", 6)):
        rows = ["".join(WORDS[int(torch.randint(6, (), generator=draw))] for _ in range(40)) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A small preset with a tokenizer of one token a byte."""
    folder = tmp_path_factory.mktemp("preset")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    path = folder / "small.yaml"
    path.write_text(
        f"name: small\nbackbone: {{name: llama-1x32, tokenizer: {folder / 'tokenizer'}, max_positions: 64}}\n"
        "sequence_tokens: 31\n"
        "training: {steps: 40, batch_size: 8, learning_rate: 1.e-2, schedule: cosine, evaluate_every: 10, "
        "validation_contexts: 16}\n"
    )
    return path


class KilledAt(RunDisplay):
    """A display behind which the training is broken off at a step."""

    def __init__(self, step: int) -> None:
        super().__init__(Console(quiet=True))
        self.step = step

    @contextmanager
    def training(self, config):
        def report(progress, loss, validated):
            if progress.step == self.step:
                raise KeyboardInterrupt

        yield report


def pretrained(preset, texts, output, display=None, dtype="float32", **settings):
    AcceleratorState._reset_state(reset_partial_state=True)
    plan = resolve(pretraining_recipe(str(preset)), texts, settings, 0, "cpu", dtype)
    return perform(plan, output, display or RunDisplay(Console(quiet=True)))


def test_bits_per_byte_are_those_of_the_plain_model_window_by_window():
    on = load_backbone(BackboneConfig(name="gpt2-1x32", init_std=0.3), byte_tokenizer(), "cpu", 0)
    text = stream(iter([["the cat sat", "é on a mat"]]), on.tokenizer)
    found = bits_per_byte(NoMemory(on, StrictModel()), text, 7, 2, nullcontext)
    ids, nats = torch.from_numpy(text.ids.astype("int64")), 0.0
    for start in range(0, len(ids) - 1, 7):
        window = ids[start : start + 8]
        with torch.no_grad():
            logits = on.model(window[None]).logits[0, :-1]
        nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    assert found == pytest.approx(nats / math.log(2) / 22, rel=1e-5)


def test_a_pretrained_model_has_learned_is_loaded_by_its_folder_and_gives_its_figure_again(texts, preset, tmp_path):
    record = pretrained(preset, texts, tmp_path / "lm")
    scores = [row["score"] for row in record["history"]]
    losses = [row["loss"] for row in record["history"]]
    # Uniform over 258 tokens would be 8 bits a byte.
    assert 8 > scores[0] > scores[-1] and losses[-1] < losses[0]
    assert record["bits_per_byte"] < 4
    assert (record["steps"], record["tokens"]) == (40, 40 * 8 * 32)
    assert record["trained_on"]["documents"] == 60 and record["held_out"]["documents"] == 6
    files = sorted(path.name for path in (tmp_path / "lm").iterdir())
    assert PROGRESS_FILE not in files and {"config.json", "model.safetensors", "tokenizer.json", RECORD_FILE} <= set(
        files
    )

    on = load_backbone(BackboneConfig(name=str(tmp_path / "lm")), None, "cpu", 0)
    assert weights_hash(on.model) == record["weights_hash"]
    held_out = stream(text_files(texts).documents(held_out=True), on.tokenizer)
    again = bits_per_byte(NoMemory(on, StrictModel()), held_out, 31, 8, nullcontext)
    assert again == pytest.approx(record["bits_per_byte"], rel=1e-6)
    # Its own folder is all that transformers needs.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    ids = torch.from_numpy(held_out.ids[:20].astype("int64"))[None]
    assert torch.equal(plain(ids).logits, on.model(ids).logits)
    # The same command finds it done; another one is refused.
    assert pretrained(preset, texts, tmp_path / "lm") == record
    with pytest.raises(UserError, match="holds another pretraining"):
        pretrained(preset, texts, tmp_path / "lm", training={"steps": 41})


def test_what_was_trained_in_bfloat16_is_kept_in_it_and_scored_as_it_is_kept(texts, preset, tmp_path):
    whole = pretrained(preset, texts, tmp_path / "whole")
    half = pretrained(preset, texts, tmp_path / "half", dtype="bfloat16")
    bytes_of = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert bytes_of[1] < 0.6 * bytes_of[0]
    on = load_backbone(BackboneConfig(name=str(tmp_path / "half")), None, "cpu", 0)
    assert {parameter.dtype for parameter in on.model.parameters()} == {torch.float32}
    assert weights_hash(on.model) == half["weights_hash"] != whole["weights_hash"]
    held_out = stream(text_files(texts).documents(held_out=True), on.tokenizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = bits_per_byte(NoMemory(on, StrictModel()), held_out, 31, 8, nullcontext)
    assert again == pytest.approx(half["bits_per_byte"], rel=1e-6)


def test_two_processes_pretrain_the_model_of_one(texts, preset, tmp_path):
    given = ["--preset", preset, "--data", texts, "--device", "cpu", "--steps", "10", "--seconds", "100000"]
    in_two("pretrain", *given, "--output", tmp_path / "two")
    assert command("pretrain", *given, "--output", tmp_path / "one").code == 0
    two, one = (json.loads((tmp_path / name / RECORD_FILE).read_text()) for name in ("two", "one"))
    assert (two["processes"], one["processes"]) == (2, 1) and two["tokens"] == one["tokens"]
    # Of the whole batch, and not of the first one's half.
    assert [row["loss"] for row in two["history"]] == pytest.approx([row["loss"] for row in one["history"]], rel=1e-4)
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-3)


def test_a_killed_pretraining_goes_on_to_the_same_weights(texts, preset, tmp_path):
    whole = pretrained(preset, texts, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrained(preset, texts, tmp_path / "killed", KilledAt(27))
    assert (tmp_path / "killed" / PROGRESS_FILE).exists() and not (tmp_path / "killed" / RECORD_FILE).exists()
    # As if it had been killed behind the model and before its record.
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "killed")
    resumed = pretrained(preset, texts, tmp_path / "killed")
    for key in ("weights_hash", "bits_per_byte", "steps", "tokens", "best_step"):
        assert resumed[key] == whole[key], key
    assert [(row["loss"], row["score"]) for row in resumed["history"]] == [
        (row["loss"], row["score"]) for row in whole["history"]
    ]


@pytest.mark.parametrize("held", [["config.json"], ["model.safetensors"], ["a.safetensors", "config.json"]])
def test_a_model_that_lies_in_the_output_is_left_as_it_is(texts, preset, tmp_path, held):
    for name in held:
        (tmp_path / name).write_text(name)
    before = files(tmp_path)
    with pytest.raises(UserError, match=f"holds a model that was not made here .{min(held)}.; name another --output"):
        pretrained(preset, texts, tmp_path, training={"steps": 1})
    assert files(tmp_path) == before


@pytest.mark.parametrize("shape", ["gpt2-1x32", "mamba-1x32"])
def test_other_families_too(texts, preset, tmp_path, shape):
    # A Mamba has no positions to bound.
    own = preset.read_text().replace("llama-1x32", shape)
    own = own.replace(", max_positions: 64", "") if shape.startswith("mamba") else own
    (tmp_path / "own.yaml").write_text(own)
    record = pretrained(tmp_path / "own.yaml", texts, tmp_path / "lm", training={"steps": 20})
    assert record["bits_per_byte"] < record["history"][0]["score"]
    assert load_backbone(BackboneConfig(name=str(tmp_path / "lm")), None, "cpu", 0).identity["name"] == "lm"


def test_the_command_trains_and_its_folder_is_a_backbone(texts, preset, tmp_path):
    given = ["--preset", preset, "--data", texts, "--output", tmp_path / "lm", "--steps=4", "--device=cpu"]
    done = command("pretrain", *given, "--set=training.evaluate_every=2", "--dtype=bfloat16")
    assert (done.code, done.errors) == (0, "")
    assert "60 documents" in done.output and "bits per byte on 6 held-out documents" in done.output
    assert "step      4 · loss" in done.output
    record = json.loads((tmp_path / "lm" / RECORD_FILE).read_text())
    assert record["environment"]["dtype"] == "bfloat16" and record["steps"] == 4
    rows = [{"context": f"the cat {row}", "query": "the", "target": "cat"} for row in range(8)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: test.jsonl}\ntest_split: test\n"
        "generation_kwargs: {until: [], max_gen_toks: 32}\n"
    )
    run = command(
        "run", "--method=no_memory", "--task", tmp_path / "own.yaml", "--backbone", tmp_path / "lm", "--no-train",
        "--output", tmp_path / "runs",
    )  # fmt: skip
    assert (run.code, run.errors) == (0, "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--preset=llama_26n"], ["no preset 'llama_26n'", "Did you mean 'llama_26m'?"]),
        (["--data=nowhere"], ["--data nowhere", "no such file"]),
        (["--set=training.step=3"], ["no key 'step'", "Did you mean 'steps'?"]),
        (["--set=model.heads=3"], ["--set model", "no such section"]),
        (["--set=backbone=llama-2x64"], ["--set backbone needs a key of it"]),
        (["--set=training.queries_per_context=1"], ["training.queries_per_context means nothing to plain text"]),
        (["--set=backbone.max_positions=31"], ["31 tokens and 1 before them", "31 positions"]),
        (["--tokenizer=nowhere/at-all"], ["no tokenizer at 'nowhere/at-all'"]),
        (["--set=training.batch_size=4096"], ["fewer than one batch of 4096"]),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(texts, preset, tmp_path, given, words):
    done = command("pretrain", "--preset", preset, "--data", texts, "--output", tmp_path / "lm", "--device=cpu", *given)
    assert done.code == 2 and done.errors.count("\n") == 1
    assert [word for word in words if word not in done.errors] == []
    assert not (tmp_path / "lm" / RECORD_FILE).exists()


def test_the_presets_are_what_they_say(shared):
    sizes = {}
    for file in sorted(recipe_folder("backbone").glob("*.yaml")):
        recipe = pretraining_recipe(file.stem)
        assert isinstance(recipe, PretrainingRecipe) and recipe.name == file.stem
        tokenizer = {"tokenizer": str(shared / "models" / "gpt2-tokenizer")}
        plan = resolve(recipe, shared / "data" / "wiki_en", {"backbone": tokenizer}, 0, "cpu", "float32")
        sizes[file.stem] = sum(parameter.numel() for parameter in plan.shape.parameters()) / 1e6
        assert [len(plan.files.training), len(plan.files.held_out)] == [6, 1]
    assert {name: f"{name.split('_')[0]}_{size:.0f}m" for name, size in sizes.items()} == {name: name for name in sizes}


@pytest.mark.parametrize("name", ["wiki_2m", "wiki_14m"])
def test_a_model_of_wikipedia_is_that_of_its_record_and_knows_its_language(shared, name):
    record = json.loads((recipe_folder("backbone") / name / RECORD_FILE).read_text())
    backbone = load_backbone(BackboneConfig(name=name), None, "cpu", 0)
    assert weights_hash(backbone.model) == record["weights_hash"]
    length = pretraining_recipe(record["configuration"]["preset"]).sequence_tokens
    held_out = text_files(shared / "data" / "wiki_en").documents(held_out=True)
    some = stream(held_out, backbone.tokenizer, at_least=10_000)
    found = bits_per_byte(NoMemory(backbone, StrictModel()), some, length, 16, nullcontext)
    assert found == pytest.approx(record["bits_per_byte"], rel=0.1)
