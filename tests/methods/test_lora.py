"""Adapters that are there in WRITE and not at READ."""

import copy
import sys
from importlib.util import find_spec

import pytest
import torch
from methods.matrix import BACKBONES, backbone, build, ids_of, key_value_task
from methods.plain import plain_loss
from transformers.pytorch_utils import Conv1D

from gradmem_bench import checkpoints
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.gradmem import GradMem, GradMemParameters

LORA = {"write_lora_rank": 2, "write_lora_alpha": 8.0}
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft: pip install 'gradmem-bench[lora]'")


def batch_of(method) -> Batch:
    parts = [ids_of(method.backbone, *lengths, seed=seed) for seed, lengths in enumerate(((9, 5), (3, 2), (2, 1)))]
    return Batch(*(Tokens.from_lists(rows) for rows in parts), torch.arange(2))


def merged(method) -> torch.nn.Module:
    """A plain model whose weights are W + alpha / r · B A."""
    model = copy.deepcopy(method.backbone.model)
    tensors = dict(method.adapted.model.named_parameters())
    changed = 0
    for name, module in model.named_modules():
        if f"{name}.lora_A.write.weight" in tensors:
            down, up = tensors[f"{name}.lora_A.write.weight"], tensors[f"{name}.lora_B.write.weight"]
            added = (8.0 / 2) * up @ down
            with torch.no_grad():
                module.weight += added.T if isinstance(module, Conv1D) else added
            changed += 1
    assert changed == sum(".lora_A." in name for name in tensors) > 0
    return model


@needs_peft
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_write_runs_the_merged_weights_and_read_the_backbone_s_own(family):
    on = copy.deepcopy(backbone(family))
    method = build("gradmem", on, **LORA)
    (context,) = ids_of(on, 9)
    memory = method.memory.vectors
    plain = build("gradmem", on)
    plain.backbone = copy.deepcopy(on)
    plain.backbone.model = merged(method)
    plain.load_state_dict(
        {key: value for key, value in method.state_dict().items() if key.startswith(("memory", "write_head"))},
        strict=False,
    )
    with torch.no_grad():
        own, adapted = plain_loss(plain, memory, context), plain_loss(method, memory, context)
        torch.testing.assert_close(adapted, own, rtol=1e-4, atol=1e-5)
    contexts = Tokens.from_lists([context])
    written = method.write(contexts)
    torch.testing.assert_close(written.tensors["memory"], plain.write(contexts).tensors["memory"], rtol=1e-3, atol=1e-4)
    # Without adapters WRITE would have been another, and READ is to the bit what it is without them.
    bare = build("gradmem", on)
    assert (bare.write(contexts).tensors["memory"] - written.tensors["memory"]).abs().max() > 1e-3
    queries, targets = (Tokens.from_lists(ids_of(on, 3, seed=seed)) for seed in (1, 2))
    answers = [one.backbone.target_loss(one.read(written), queries, targets) for one in (method, bare)]
    assert torch.equal(*answers)


@needs_peft
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_adapters_change_nothing_before_they_are_trained(family):
    written = []
    contexts = Tokens.from_lists(ids_of(backbone(family), 9))
    for settings in ({}, LORA):
        torch.manual_seed(0)
        method = GradMem(copy.deepcopy(backbone(family)), GradMemParameters(**settings)).eval()
        written.append(method.write(contexts).tensors["memory"])
    torch.testing.assert_close(*written)


@needs_peft
@pytest.mark.parametrize("frozen", [True, False])
def test_the_weights_are_one_and_only_what_is_not_frozen_learns(frozen):
    on = load_backbone(BACKBONES["llama"], key_value_task().tokenizer(), "cpu", seed=3)
    count = sum(parameter.numel() for parameter in on.parameters())
    method = build("gradmem", on, freeze_backbone=frozen, write_head=False, **LORA).train()
    adapters = {name: one for name, one in method.named_parameters() if name.startswith("adapted.")}
    # Rank 2 on q, k, v, o, gate, up and down of two layers of width 32 with two of four heads for keys and values.
    each = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 128))
    assert sum(one.numel() for one in adapters.values()) == 2 * each
    assert sum(one.numel() for one in method.parameters()) == count + 2 * each + 3 * 32
    method.loss(batch_of(method)).total.backward()
    assert all(one.grad is not None and one.grad.any() for one in adapters.values())
    learned = [one.grad is not None for one in method.backbone.parameters()]
    assert not any(learned) if frozen else all(learned)
    assert all(one.requires_grad != frozen for one in method.backbone.parameters())
    # Moved to another precision, the two backbones still share what they shared.
    method.double()
    with torch.no_grad():
        method.backbone.model.model.layers[0].mlp.up_proj.weight.fill_(3)
    assert (method.adapted.model.model.layers[0].mlp.up_proj.base_layer.weight == 3).all()


@needs_peft
@pytest.mark.parametrize("engine", ["unrolled", "recompute"])
def test_the_gradient_of_the_adapters_against_finite_differences(engine):
    on = load_backbone(
        BackboneConfig(name="gpt2-1x16", heads=2, max_positions=64, init_std=0.3),
        key_value_task().tokenizer(),
        "cpu",
        1,
    )
    settings = {"freeze_backbone": True, "inner_learning_rate": 0.5, "engine": engine, **LORA}
    method = build("gradmem", on, **settings).double().train()
    batch = batch_of(method)
    method.loss(batch).total.backward()
    for name, parameter in method.named_parameters():
        if not name.startswith("adapted."):
            continue
        direction, values = parameter.grad / parameter.grad.norm(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
            values.append(float(method.loss(batch).total.detach()))
            with torch.no_grad():
                parameter -= sign * 1e-5 * direction
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(parameter.grad.norm()), rel=1e-5), name


def test_a_recurrent_backbone_is_refused():
    for settings in (LORA, {"gradient_checkpointing": True}):
        with pytest.raises(UserError, match="MambaForCausalLM"):
            build("gradmem", copy.deepcopy(backbone("mamba")), **settings)


@needs_peft
def test_a_checkpoint_holds_the_backbone_once_and_the_adapters(tmp_path):
    method = build("gradmem", copy.deepcopy(backbone("gpt2")), **LORA)
    tensors = checkpoints.trained_tensors(method)
    assert sum("wte" in name for name in tensors) == 1 and sum(".lora_A." in name for name in tensors) == 8
    checkpoints.save(tmp_path / "method.safetensors", tensors, {})
    contexts = Tokens.from_lists(ids_of(method.backbone, 9))
    expected = method.write(contexts).tensors["memory"]
    other = GradMem(copy.deepcopy(backbone("gpt2")), method.settings).eval()
    assert not torch.equal(other.write(contexts).tensors["memory"], expected)
    checkpoints.restore(other, checkpoints.load(tmp_path / "method.safetensors")[0], tmp_path)
    assert torch.equal(other.write(contexts).tensors["memory"], expected)


@needs_peft
def test_adapters_on_a_backbone_without_weights():
    on = load_backbone(BACKBONES["llama"], key_value_task().tokenizer(), "meta", seed=3)
    with torch.device("meta"):
        method = GradMem(on, GradMemParameters(**LORA))
    assert {one.device.type for one in method.parameters()} == {"meta"}


def test_without_peft_the_extra_is_named(monkeypatch):
    # What the import system itself does where a module is missing.
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"write_lora_rank .* pip install 'gradmem-bench\[lora\]'"):
        build("gradmem", copy.deepcopy(backbone("gpt2")), **LORA)
