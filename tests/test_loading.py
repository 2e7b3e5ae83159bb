import json
import pickle
import zipfile
from pathlib import Path
from shutil import copytree

import huggingface_hub.constants
import pytest
import torch
from methods.matrix import byte_tokenizer, ids_of, key_value_task
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from gradmem_bench.batch import Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.loading import contents, load_backbone


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small Llama with its tokenizer in a folder, as save_pretrained leaves them."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=70, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path / "small-llama"
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    key_value_task().tokenizer().save_pretrained(folder)
    return folder


def load(name, seed=0, device="cpu", **settings):
    return load_backbone(BackboneConfig(name=str(name), **settings), key_value_task().tokenizer(), device, seed)


def refusal(name, **settings) -> str:
    with pytest.raises(UserError) as error:
        load(name, **settings)
    return str(error.value)


def change(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------------------ a folder


def test_a_folder_is_the_model_that_was_saved(saved):
    on = load(saved)
    plain = AutoModelForCausalLM.from_pretrained(saved)
    (ids,) = ids_of(on, 9)
    assert torch.equal(on.model(torch.tensor([ids])).logits, plain(torch.tensor([ids])).logits)
    assert (on.layers, on.width, on.kv_heads, on.head_dim, on.max_positions) == (2, 32, 2, 8, 64)
    assert on.decode(on.encode(["!a:b!"])[0]) == "!a:b!" and on.end_id == 1
    assert on.identity["name"] == on.identity["tokenizer"] == "small-llama" and on.identity["revision"] is None


def test_the_hash_is_of_the_weights(saved):
    first = load(saved).identity["weights_hash"]
    assert load(saved).identity["weights_hash"] == first

    def nudge(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-4

    change(saved, nudge)
    assert load(saved).identity["weights_hash"] != first


def test_half_precision_weights_are_run_in_float32(saved):
    AutoModelForCausalLM.from_pretrained(saved).to(torch.bfloat16).save_pretrained(saved)
    on = load(saved)
    assert {parameter.dtype for parameter in on.parameters()} == {torch.float32}
    # 2 x layers x key-value heads x head size x 4 bytes
    assert on.kv_bytes_per_position == load(saved, device="meta").kv_bytes_per_position == 2 * 2 * 2 * 8 * 4


def test_on_meta_the_weights_are_not_read(saved):
    (saved / "model.safetensors").unlink()
    on = load(saved, device="meta")
    assert all(parameter.device.type == "meta" for parameter in on.parameters()) and on.layers == 2


def test_pickled_weights_are_never_read(saved, tmp_path):
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    # Neither good ones...
    torch.save(weights, saved / "pytorch_model.bin")
    assert "safetensors" in refusal(saved)
    # ...nor those that run something when they are opened.
    sign = tmp_path / "was-run"

    class Payload:
        def __reduce__(self):
            return Path.touch, (sign,)

    with zipfile.ZipFile(saved / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
    sentence = refusal(saved)
    assert str(saved) in sentence and "safetensors" in sentence
    assert not sign.exists()


def test_a_folder_s_own_code_is_never_run(saved, tmp_path, monkeypatch):
    sign = tmp_path / "was-run"
    (saved / "modeling_own.py").write_text(f"open({str(sign)!r}, 'w')\nfrom transformers import LlamaConfig as Own\n")
    config = json.loads((saved / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"},
    }
    (saved / "config.json").write_text(json.dumps(config))
    # Whoever is asked would agree.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert str(saved) in refusal(saved)
    assert not sign.exists()


def test_weights_that_lack_some_are_refused_rather_than_drawn_at_random(saved):
    change(saved, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "'model.layers.1.mlp.up_proj.weight'" in refusal(saved)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_text("no weights"),
        lambda file: save_file({"model.norm.weight": torch.ones(5)}, file, metadata={"format": "pt"}),
    ],
    ids=["cut", "text", "other shapes"],
)
def test_damaged_weights_are_refused(saved, spoil):
    spoil(saved / "model.safetensors")
    assert str(saved) in refusal(saved)


def test_a_tokenizer_without_an_end_is_refused(saved):
    for file in saved.glob("*token*"):
        file.unlink()
    assert "no tokenizer" in refusal(saved)
    byte_tokenizer().save_pretrained(saved)
    config = json.loads((saved / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (saved / "tokenizer_config.json").write_text(json.dumps(config))
    (saved / "special_tokens_map.json").unlink(missing_ok=True)
    assert "no end-of-text token" in refusal(saved)


def test_a_folder_s_shape_is_its_own(saved):
    for key, value in {"heads": 2, "kv_heads": 1, "max_positions": 32, "init_std": 0.1, "tokenizer": "x"}.items():
        assert f"backbone.{key} " in refusal(saved, **{key: value})


def test_a_hub_s_name_stands_for_the_commit_that_is_there(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "models--someone--lm"
    commits = ("a" * 40, "b" * 40)
    for commit in commits:
        copytree(saved, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    for commit in commits:
        (cached / "refs" / "main").write_text(commit)
        shape = load("someone/lm", device="meta")
        # What the record says of it, and what is part of a run.
        assert shape.identity["revision"] == contents(BackboneConfig(name="someone/lm"), shape) == commit


def test_a_pretrained_model_goes_on_as_it_was_trained_to(shared):
    on = load(shared / "models" / "stories260K")
    assert sum(parameter.numel() for parameter in on.parameters()) == 260_032
    # Its tokenizer puts nothing before a text, though the model was trained behind <s>.
    assert on.start_ids == [] and on.tokenizer.bos_token_id == 1
    text = "Once upon a time, there was a little girl named"
    memory, query = Tokens.from_lists([[1]]), Tokens.from_lists(on.encode([text]))
    (answer,) = on.generate(on.prefill(memory), query, 8)
    assert on.decode(answer).startswith("Lily")


# ------------------------------------------------------------------------------------- random models


@pytest.mark.parametrize("name", ["llama-2x32", "gpt2-2x32", "neox-2x32", "mamba-2x32"])
def test_random_weights_are_a_function_of_the_seed_alone(name):
    torch.manual_seed(11)
    one = load(name, 4)
    drawn = torch.rand(3)
    torch.manual_seed(12)
    other, third = load(name, 4), load(name, 5)
    torch.manual_seed(11)
    # The stream of whoever loads is left where it was.
    assert torch.equal(torch.rand(3), drawn)
    states = [on.state_dict() for on in (one, other, third)]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[2][key]) for key, tensor in states[0].items())


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("lama-2x64", {}, ["family 'lama'", "Did you mean 'llama'?"]),
        ("bert-2x64", {}, ["family 'bert'", "gpt2, llama, mamba, neox"]),
        ("llama-2x64", {"heads": 5}, ["llama-2x64 with 5 heads"]),
        ("llama-2x64", {"heads": 64}, ["even head size", "divisor of 32"]),
        ("llama-2x65", {}, ["even head size", "an even width, such as 66"]),
        ("llama-0x64", {}, ["llama-0x64"]),
        ("gpt2-1x0", {}, ["gpt2-1x0"]),
        ("gpt2-2x64", {"kv_heads": 1}, ["backbone.kv_heads=1", "llama"]),
        ("llama-2x64", {"heads": 4, "kv_heads": 3}, ["backbone.kv_heads=3", "4 heads"]),
        ("mamba-2x64", {"heads": 4}, ["backbone.heads", "mamba-2x64", "no attention"]),
        ("mamba-2x64", {"max_positions": 64}, ["backbone.max_positions", "no attention"]),
        ("llama-2x64", {"state_size": 4}, ["backbone.state_size", "llama-2x64", "no Mamba"]),
        (
            "llama-2x64",
            {"tokenizer": "nowhere/tokenizer"},
            ["'nowhere/tokenizer'", "backbone.tokenizer", "--tokenizer"],
        ),
        ("nothing", {}, ["'nothing'", "llama-2x64"]),
        ("no/such/folder", {}, ["'no/such/folder'", "llama-2x64"]),
        ("llama-2", {}, ["'llama-2'", "llama-2x64"]),
    ],
)
def test_a_name_that_is_nothing_is_refused_in_one_sentence(name, settings, parts):
    sentence = refusal(name, **settings)
    assert all(part in sentence for part in parts)
    assert "\n" not in sentence and len(sentence) < 500


@pytest.mark.parametrize(("family", "std"), [("llama", 0.02), ("gpt2", 0.02), ("neox", 0.02), ("mamba", 0.1)])
def test_without_another_the_initial_weights_are_as_wide_as_the_family_has_them(family, std):
    on = load(f"{family}-1x64")
    assert on.embed(torch.arange(70)).std().item() == pytest.approx(std, rel=0.1)


def test_a_random_model_is_made_as_it_was_asked_for():
    on = load("llama-3x48", heads=6, kv_heads=2, max_positions=77, init_std=0.3)
    assert (on.layers, on.width, on.kv_heads, on.head_dim, on.max_positions) == (3, 48, 2, 8, 77)
    assert on.model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert on.vocabulary_size == 70 == len(on.tokenizer)


def test_a_mamba_is_made_as_it_was_asked_for_and_comes_back_from_its_folder(tmp_path):
    on = load("mamba-3x24", state_size=5, conv_kernel=3, expand=4, init_std=0.3)
    assert (on.layers, on.width, on.recurrent, on.kv_bytes_per_position) == (3, 24, True, 0)
    mixer = on.blocks[2].mixer
    assert (mixer.intermediate_size, mixer.ssm_state_size, mixer.conv_kernel_size) == (96, 5, 3)
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.3, rel=0.05)
    on.model.save_pretrained(tmp_path / "saved")
    on.tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.recurrent
    contexts, query = Tokens.from_lists(ids_of(on, 9)), Tokens.from_lists(ids_of(on, 3, seed=1))
    assert again.generate(again.prefill(contexts), query, 6) == on.generate(on.prefill(contexts), query, 6)


def test_the_tokenizer_of_a_built_in_backbone_is_known_by_its_name():
    on = load_backbone(BackboneConfig(name="llama-1x32", tokenizer="wiki_2m"), None, "meta", 0)
    assert on.vocabulary_size == 4096 and on.encode(["the Danube"]) != on.encode(["the Rhine"])
