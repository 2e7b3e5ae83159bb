"""A state and a query against the whole sequence at once, as transformers runs it."""

import pytest
import torch
import torch.nn.functional as F
from methods.matrix import BACKBONES, backbone, build, ids_of, key_value_task

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig, Budget
from gradmem_bench.errors import UserError
from gradmem_bench.experiment import resolve
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.full_kv import FullKV
from gradmem_bench.methods.mamba import Mamba
from gradmem_bench.plan import Options
from gradmem_bench.registry import resolve as find
from gradmem_bench.state import MemoryState

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def test_an_answer_from_the_bytes_is_that_of_the_whole_sequence():
    on = backbone("mamba")
    method = build("mamba", on)
    contexts, queries, targets = ids_of(on, 9, 4, 17), ids_of(on, 3, 5, 1, seed=1), ids_of(on, 4, 2, 3, seed=2)
    parts = [Tokens.from_lists(rows) for rows in (contexts, queries, targets)]
    with torch.no_grad():
        prefix = method.read(MemoryState.from_bytes(method.write(parts[0]).to_bytes()))
        losses, right = on.token_losses(prefix, parts[1], parts[2])
        answers = on.generate(prefix, parts[1], 6)
    assert prefix.positions.tolist() == [0, 0, 0]
    for row, (context, query, target) in enumerate(zip(contexts, queries, targets, strict=True)):
        sequence = torch.tensor([context + query + target])
        with torch.no_grad():
            logits = on.model(sequence).logits[0, :-1]
        plain = F.cross_entropy(logits, sequence[0, 1:], reduction="none")[-len(target) :]
        torch.testing.assert_close(losses[row, : len(target)], plain, **CLOSE)
        likeliest = (logits.argmax(dim=-1) == sequence[0, 1:])[-len(target) :]
        assert right[row, : len(target)].tolist() == likeliest.tolist()
        # Greedy, one whole sequence after another.
        expected: list[int] = []
        while len(expected) < 6:
            with torch.no_grad():
                token = int(on.model(torch.tensor([context + query + expected])).logits[0, -1].argmax())
            if token == on.end_id:
                break
            expected.append(token)
        assert answers[row] == expected


def test_training_goes_through_the_state():
    on = load_backbone(BackboneConfig(name="mamba-2x32", init_std=0.3), key_value_task().tokenizer(), "cpu", 3)
    method = build("mamba", on).train()
    contexts, queries, targets = ids_of(on, 9, 5), ids_of(on, 2, 4, 3, seed=1), ids_of(on, 2, 2, 2, seed=2)
    context_of = torch.tensor([0, 1, 1])
    batch = Batch(*(Tokens.from_lists(rows) for rows in (contexts, queries, targets)), context_of)
    method.loss(batch).total.backward()
    found = {name: parameter.grad.clone() for name, parameter in on.model.named_parameters()}
    on.zero_grad()
    losses = []
    for row, owner in enumerate(context_of.tolist()):
        sequence = torch.tensor([contexts[owner] + queries[row] + targets[row]])
        losses.append(F.cross_entropy(on.model(sequence).logits[0, -3:-1], sequence[0, -2:], reduction="sum"))
    (sum(losses) / 6).backward()
    for name, parameter in on.model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-4 * scale + 1e-8, rtol=1e-3, msg=name)


def test_the_paper_s_size_is_the_recipe_s_own():
    plan = resolve(find("method", "mamba"), find("task", "kv_retrieval"), Options())
    assert plan.backbone == BackboneConfig(name="mamba-4x128", expand=4)
    # 4 layers of 512 channels: 16 of the scan, and 3 of the 4 that the convolution sees.
    assert plan.footprint.state_bytes == 4 * 512 * (16 + 3) * 4
    assert plan.footprint.read_positions == 0 and plan.shape.kv_bytes_per_position == 0


def test_a_state_matched_mamba_can_be_asked_for_and_a_budget_is_kept_or_refused():
    settings = ("backbone.name=mamba-1x128", "backbone.state_size=4", "backbone.expand=4")
    plan = resolve(find("method", "mamba"), find("task", "kv_retrieval"), Options(settings=settings))
    assert plan.footprint.state_bytes == 512 * (4 + 3) * 4 == 14336
    assert Mamba.fit(plan.parameters, Budget(bytes=14336, positions=1), plan.shape) == plan.parameters
    with pytest.raises(UserError, match="does not hold the state of mamba-1x128, which is always 14 KiB"):
        Mamba.fit(plan.parameters, Budget(bytes=14335), plan.shape)


def test_a_method_on_a_backbone_that_it_cannot_use_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"^FullKV needs a backbone with attention, but mamba-2x32 is recurrent\.$"):
        FullKV(backbone("mamba"), FullKV.Parameters())
    with pytest.raises(UserError, match="Mamba is a recurrent language model itself, but llama-2x32 has attention"):
        Mamba(backbone("llama"), Mamba.Parameters())
    task, options = find("task", "kv_retrieval"), Options(backbone=BACKBONES["llama"].name, budget=Budget(bytes=10**6))
    with pytest.raises(UserError, match="^Mamba is a recurrent"):
        resolve(find("method", "mamba"), task, options)


def test_a_method_s_own_backbone_leaves_the_others_theirs():
    settings = ("mamba.backbone.name=mamba-1x32", "mamba.backbone.state_size=2")
    options = Options("llama-1x32", settings=settings, methods=("mamba", "rmt"))
    names = [
        resolve(find("method", name), find("task", "kv_retrieval"), options).backbone.name for name in ("mamba", "rmt")
    ]
    assert names == ["mamba-1x32", "llama-1x32"]
    # What is asked for all stands over the recipe's own.
    plan = resolve(find("method", "mamba"), find("task", "kv_retrieval"), Options("mamba-1x64"))
    assert plan.backbone == BackboneConfig(name="mamba-1x64")


def test_the_state_is_float32_under_autocast_too():
    method = build("mamba", backbone("mamba"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = method.write(Tokens.from_lists(ids_of(method.backbone, 9)))
    assert {tensor.dtype for tensor in state.tensors.values()} == {torch.float32}
    assert state.nbytes() == [method.footprint(method.settings, method.backbone, 9, 9).state_bytes]
