"""Every engine gives the gradient of the plain double backward: float64, GPT-2, padded contexts.

Over all parameters, the start and the learned rates, for every option of the descent and of what descends; on two
layers, and on one where only the step is traced, at seconds a layer.
"""

import shutil
import warnings

import pytest
import torch
from methods.matrix import CONTROL, build, key_value_task
from methods.test_gradmem import batch_of

from gradmem_bench.config import BackboneConfig
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods import gradmem

STEPS = 3
ONE_LAYER = "gpt2-1x16"
ADAM = {"inner_optimizer": "adam", "inner_learning_rate": 0.03}
OPTIONS = {
    "sgd": {},
    "one rate learned": {"learned_inner_learning_rate": "one"},
    "a rate a step learned": {"learned_inner_learning_rate": "per_step"},
    "a rate a vector learned": {"learned_inner_learning_rate": "per_vector"},
    "adam": {**ADAM, "learned_inner_learning_rate": "one"},
    "backbone's head": {"write_head": False},
    "shared map": {"projection": "shared"},
    "own map": {"projection": "per_sample", **ADAM},
    "control tokens": CONTROL,
    "clipped": {"inner_clip_value": 0.01, "inner_clip_norm": 0.05},
    "reconstruction": {"reconstruction_weight": 0.5},
    "first order": {"order": "first", "learned_inner_learning_rate": "one"},
    "last one": {"second_order_steps": 1},
    "last two, adam": {"second_order_steps": 2, **ADAM},
}


def fresh(engine: str, steps: int = STEPS, family: str = "gpt2-2x16", **settings):
    shape = BackboneConfig(name=family, heads=2, max_positions=64, init_std=0.3)
    on = load_backbone(shape, key_value_task().tokenizer(), "cpu", 1)
    method = build("gradmem", on, inner_steps=steps, engine=engine, **{"inner_learning_rate": 0.5, **settings})
    return method.double().train()


def gradients(method) -> dict[str, torch.Tensor]:
    loss = method.loss(batch_of(method)).total
    loss.backward()
    found = {name: one.grad for name, one in method.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), **found}


def differ(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of all tensors, each against its own norm."""
    assert found.keys() == expected.keys()
    # A tensor of rounding alone (a bias that softmax does not feel) is held against the largest.
    floor = 1e-4 * max(float(one.norm()) for one in expected.values())
    return max(float((found[name] - one).norm() / one.norm().clamp(min=floor)) for name, one in expected.items())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_recompute_agrees_with_unrolled(options):
    expected = gradients(fresh("unrolled", **options))
    assert "memory.vectors" in expected
    assert differ(gradients(fresh("recompute", **options)), expected) < 1e-9


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_compiled_agrees_with_unrolled(options, traced):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = gradients(fresh("compiled", family=ONE_LAYER, **options))
    assert differ(found, gradients(fresh("unrolled", family=ONE_LAYER, **options))) < 1e-9


def test_the_compiled_step_agrees_with_unrolled_in_training_and_at_evaluation():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler")
    method, plain = (fresh(engine, family=ONE_LAYER) for engine in ("compiled", "unrolled"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert differ(gradients(method), gradients(plain)) < 1e-9
        contexts = batch_of(method).contexts
        with torch.no_grad():
            written = method.eval().write(contexts).tensors["memory"]
    torch.testing.assert_close(written, plain.eval().write(contexts).tensors["memory"].detach(), rtol=1e-9, atol=1e-12)


def test_a_loss_in_micro_batches_is_that_of_the_whole_batch(traced, monkeypatch):
    # Contexts of different lengths, of which one has two queries and more target tokens than the other.
    settings = {"reconstruction_weight": 0.5, "learned_inner_learning_rate": "one", "family": ONE_LAYER}
    expected = gradients(fresh("unrolled", **settings))
    monkeypatch.setattr(gradmem, "_IN_CACHE", 1)
    method = fresh("compiled", **settings)
    assert method.micro_batch(batch_of(method).contexts) == 1
    assert differ(gradients(method), expected) < 1e-9
    # Accumulated, and with a weight of its own, as a trainer does.
    for _ in range(2):
        (0.5 * method.loss(batch_of(method)).total).backward()
    assert (
        differ(
            {name: one.grad for name, one in method.named_parameters() if one.grad is not None},
            {name: 2 * one for name, one in expected.items() if name != "loss"},
        )
        < 1e-9
    )
    parts = method.loss(batch_of(method)).parts
    whole = fresh("unrolled", **settings).loss(batch_of(method)).parts
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(
        {name: float(part) for name, part in whole.items()}
    )


def test_llama_agrees_up_to_its_norm_in_float32(traced):
    # transformers computes Llama's norm in float32 in a float64 model too.
    expected = gradients(fresh("unrolled", family="llama-1x16"))
    for engine in ("recompute", "compiled"):
        assert differ(gradients(fresh(engine, family="llama-1x16")), expected) < 1e-5


def test_finite_differences_of_the_outer_loss_are_its_gradient():
    # Of the plain double backward; the other engines have its loss and its gradient to 1e-9.
    method = fresh("unrolled", learned_inner_learning_rate="one")
    found, directions = gradients(method), set()
    torch.manual_seed(2)
    for name, parameter in method.named_parameters():
        if name not in ("memory.vectors", "log_learning_rate") and not name.endswith(("c_fc.weight", "wte.weight")):
            continue
        direction = torch.randn_like(parameter)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
            losses.append(float(method.loss(batch_of(method)).total.detach()))
            with torch.no_grad():
                parameter -= sign * 1e-5 * direction
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope == pytest.approx(float((found[name] * direction).sum()), rel=1e-5, abs=1e-8)
        directions.add(name)
    assert len(directions) == 5


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["unrolled", "recompute", "compiled"])
def test_training_on_a_gpu_is_training_on_a_cpu(engine):
    # Several updates, two backward passes each: what a captured graph overwrites would show.
    weights = []
    for device, by in (("cpu", "unrolled"), ("cuda", engine)):
        method = fresh(by).to(device)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
        for _ in range(3):
            for _ in range(2):
                method.loss(batch_of(method).to(device)).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append({name: one.detach().cpu() for name, one in method.named_parameters()})
    assert differ(weights[1], weights[0]) < 1e-8


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["unrolled", "recompute", "compiled"])
def test_bfloat16_products_on_a_gpu_give_the_gradient_of_float32_within_two_percent(engine):
    found = []
    for half in (False, True):
        method = fresh(engine, inner_learning_rate=0.1).float().cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            loss = method.loss(batch_of(method).to("cuda")).total
        loss.backward()
        found.append(torch.cat([one.grad.flatten() for one in method.parameters() if one.grad is not None]))
        assert method.memory.vectors.grad.dtype == torch.float32
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.02
