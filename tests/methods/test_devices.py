"""Nothing that trains or writes leaves the device, or waits for it: on the meta device, whose tensors have no values.

What mixes devices raises there as on a GPU, and so does what reads a value, which a CUDA graph must not do.
"""

from contextlib import nullcontext

import pytest
import torch
from methods.matrix import EVERY_BACKBONE, METHODS, build, families, key_value_task
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.loading import load_backbone

SETTINGS = {
    # Text is read on the CPU, and put into ids again.
    **{name: (name, {}) for name, (method_class, _) in METHODS.items() if method_class.recordable},
    "gradmem, unrolled": ("gradmem", {"engine": "unrolled", "reconstruction_weight": 0.5}),
    "gradmem, recomputed": ("gradmem", {"engine": "recompute", "learned_inner_learning_rate": "one"}),
    "gradmem, Adam": ("gradmem", {"engine": "recompute", "inner_optimizer": "adam", "inner_clip_value": 0.1}),
    "gradmem, shared map": ("gradmem", {"engine": "unrolled", "projection": "shared", "order": "first"}),
    "gradmem, without a meta-gradient": ("gradmem", {"order": "none"}),
    "gradmem, checkpoints": ("gradmem", {"engine": "unrolled", "gradient_checkpointing": True}),
}


class NothingCopied(TorchDispatchMode):
    """Within it no tensor goes from the CPU to the device: a graph would copy what stood there when it was recorded."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if function._overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            from_cpu = any(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in arguments)
            assert not (from_cpu and result.device.type == "meta"), "it is copied to the device"
        return result


def tokens(rows: int, width: int) -> Tokens:
    mask = torch.ones(rows, width, dtype=torch.bool, device="meta")
    return Tokens(torch.zeros(rows, width, dtype=torch.int64, device="meta"), mask)


@pytest.mark.parametrize("case", SETTINGS)
def test_a_loss_and_its_gradient_stay_on_the_device(case, monkeypatch):
    # What transformers does by itself while a graph is recorded: it leaves the values of masks alone.
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
    # The meta device has no precisions to choose from.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    name, settings = SETTINGS[case]
    family = families(name)[-1] if name == "mamba" else "llama"
    on = load_backbone(EVERY_BACKBONE[family], key_value_task().tokenizer(), "meta", 0)
    method_class, parameters = METHODS[name]
    engine = {"engine": "unrolled"} if method_class.__name__ == "GradMem" else {}
    method = method_class(on, method_class.Parameters(**{**parameters, **engine, **settings})).to("meta").train()
    assert {parameter.device.type for parameter in method.parameters()} == {"meta"}
    context_of = torch.zeros(4, dtype=torch.int64, device="meta")
    batch = Batch(tokens(2, 11), tokens(4, 5), tokens(4, 3), context_of)
    target_tokens = batch.targets.mask.sum()
    with NothingCopied():
        total, _ = method._share(batch, target_tokens, torch.full_like(target_tokens, 2))
        found = torch.autograd.grad(total, list(method.parameters()), allow_unused=True)
    assert total.device.type == "meta"
    assert {one.device.type for one in found if one is not None} == {"meta"}
    with torch.no_grad():
        state = method.eval().write(batch.contexts)
        # A state of no bytes is an empty text, which stands on the CPU.
        assert name == "no_memory" or {one.device.type for one in state.tensors.values()} == {"meta"}


def test_on_a_gpu_few_contexts_of_many_positions_are_worked_on_at_a_time():
    # 2^22 numbers of hidden states, and 2^25 scores of all heads: 4 of them, and none where there is no attention.
    for family, most in (("gpt2", [512, 8, 1]), ("mamba", [1024, 128, 16])):
        method = build("gradmem", load_backbone(EVERY_BACKBONE[family], key_value_task().tokenizer(), "cpu", seed=3))
        with FakeTensorMode():
            sizes = []
            for length in (125, 1021, 8189):
                ids = torch.zeros(2, length, dtype=torch.int64, device="cuda")
                sizes.append(method.micro_batch(Tokens(ids, ids == 0)))
        assert sizes == most
