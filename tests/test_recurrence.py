"""Mamba from a state, against transformers' own on whole sequences, and the gradient through a state."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from gradmem_bench.recurrence import run, state_shapes

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SHAPES = [
    {},
    {"expand": 4, "state_size": 5, "conv_kernel": 3},
    {"residual_in_fp32": False, "use_bias": True, "use_conv_bias": False, "hidden_act": "gelu", "time_step_rank": 3},
]


def model_of(**shape):
    torch.manual_seed(2)
    config = MambaConfig(vocab_size=40, hidden_size=24, num_hidden_layers=3, initializer_range=0.4, **shape)
    return AutoModelForCausalLM.from_config(config).backbone.requires_grad_(False)


def inputs_of(model, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(1))
    return model.embeddings(ids), torch.ones(rows, length, dtype=torch.bool)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sequence_in_parts_is_the_sequence_at_once(shape):
    model = model_of(**shape)
    embeddings, mask = inputs_of(model, 2, 13)
    expected = model(inputs_embeds=embeddings).last_hidden_state
    for cuts in ([13], [1, 1, 11], [2, 7, 4], [12, 1]):
        state, parts, start = None, [], 0
        for length in cuts:
            part, state = run(model, embeddings[:, start : start + length], mask[:, start : start + length], state)
            parts.append(part)
            start += length
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, **CLOSE)
        assert [tuple(tensor.shape[1:]) for tensor in state[0]] == list(state_shapes(model))


def test_the_state_is_the_one_that_transformers_ends_with():
    model = model_of()
    embeddings, mask = inputs_of(model, 2, 9)
    cache = model(inputs_embeds=embeddings, use_cache=True).cache_params
    _, state = run(model, embeddings, mask)
    for layer, (window, scanned) in zip(cache.layers, state, strict=True):
        torch.testing.assert_close(scanned, layer.recurrent_states[0], **CLOSE)
        # transformers keeps one input more than any later token looks at.
        torch.testing.assert_close(window, layer.conv_states[0][..., 1:], **CLOSE)


def test_padding_anywhere_changes_neither_outputs_nor_state():
    model = model_of()
    embeddings, _ = inputs_of(model, 1, 6)
    expected, ending = run(model, embeddings, torch.ones(1, 6, dtype=torch.bool))
    for mask in ([1] * 6 + [0] * 3, [0] * 3 + [1] * 6, [1, 0, 1, 1, 0, 1, 0, 1, 1]):
        mask = torch.tensor([mask], dtype=torch.bool)
        padded = torch.full((1, 9, 24), 7.0)
        padded[mask] = embeddings[0]
        found, state = run(model, padded, mask)
        torch.testing.assert_close(found[mask], expected[0], **CLOSE)
        for layer, other in zip(state, ending, strict=True):
            torch.testing.assert_close(layer, other, **CLOSE)
    # A row of nothing but padding leaves the state it was given.
    _, state = run(model, padded, torch.zeros(1, 9, dtype=torch.bool), ending)
    for layer, other in zip(state, ending, strict=True):
        assert torch.equal(layer[0], other[0]) and torch.equal(layer[1], other[1])


def test_the_gradient_through_a_state_is_that_of_the_whole_sequence():
    model = model_of().requires_grad_(True)
    embeddings, mask = inputs_of(model, 2, 9)
    weight = torch.randn(2, 4, 24)

    def gradients(hidden: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad((hidden[:, -4:] * weight).sum(), list(model.parameters())[1:])

    expected = gradients(model(inputs_embeds=embeddings).last_hidden_state)
    _, state = run(model, embeddings[:, :5], mask[:, :5])
    found = gradients(run(model, embeddings[:, 5:], mask[:, 5:], state)[0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-3)


def test_finite_differences_agree_with_the_first_and_the_second_derivative():
    model = copy.deepcopy(model_of()).double()
    for block in model.layers:
        block.residual_in_fp32 = False
    start = torch.randn(1, 2, 24, dtype=torch.float64)
    _, state = run(model, start, torch.ones(1, 2, dtype=torch.bool))
    mask = torch.tensor([[True, False, True]])

    def out(embeddings, window, scanned):
        states = ((window, scanned), *state[1:])
        return run(model, embeddings, mask, states)[0][mask]

    # The norms are in single precision whatever the model is, as transformers has them.
    inputs = [torch.randn(1, 3, 24, dtype=torch.float64), *(tensor.double() for tensor in state[0])]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    options = {"eps": 1e-2, "atol": 2e-2, "rtol": 2e-2}
    assert torch.autograd.gradcheck(out, inputs, fast_mode=True, **options)
    assert torch.autograd.gradgradcheck(out, inputs, fast_mode=True, **options)
