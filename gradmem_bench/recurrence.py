"""Mamba from a state: the weights of transformers' model, run so that a sequence may go on from where another ended.

transformers' own (5.23) begins its scan at zero whenever it is given more than one token, whatever its cache holds,
updates that cache in place, which no backward pass survives, and lets a state decay over padding. Here a state is a
function's argument and its result, and padding leaves it as it was.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MambaModel
from transformers.models.mamba.modeling_mamba import MambaMixer

State = tuple[tuple[Tensor, Tensor], ...]
"""Of each layer: the last inputs of its convolution, (B, d_inner, kernel - 1), and its scan's, (B, d_inner, n)."""


def state_shapes(model: MambaModel) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of one context's state in one layer: (d_inner, kernel - 1) and (d_inner, n)."""
    config = model.config
    return (config.intermediate_size, config.conv_kernel - 1), (config.intermediate_size, config.state_size)


def run(model: MambaModel, embeddings: Tensor, mask: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Runs B sequences, each from its state.

    Args:
        embeddings: (B, T, d), T > 0.
        mask: (B, T), bool; padding may stand anywhere.
        state: where the sequences go on from; `None` is their beginning.
    Returns:
        The last hidden states, (B, T, d), and the states behind each row's last token.
    """
    if state is None:
        zeros = [embeddings.new_zeros(len(embeddings), *shape) for shape in state_shapes(model)]
        state = tuple((zeros[0], zeros[1]) for _ in model.layers)
    # A convolution looks at neighbours: each row's tokens are moved together, and back at the end.
    order = torch.argsort(~mask, dim=1, stable=True)
    hidden = _ordered(embeddings, order)
    mask = mask.gather(1, order)
    states = []
    for block, before in zip(model.layers, state, strict=True):
        residual = hidden.to(torch.promote_types(hidden.dtype, torch.float32)) if block.residual_in_fp32 else hidden
        mixed, after = _mix(block.mixer, block.norm(hidden.to(block.norm.weight.dtype)), mask, *before)
        hidden = residual + mixed
        states.append(after)
    return _ordered(model.norm_f(hidden), order.argsort(dim=1)), tuple(states)


def _ordered(sequence: Tensor, order: Tensor) -> Tensor:
    return sequence.gather(1, order[..., None].expand_as(sequence))


def _mix(
    mixer: MambaMixer, hidden: Tensor, mask: Tensor, window: Tensor, scanned: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One layer's selective state space (Gu and Dao 2023, algorithm 2) on rows whose padding is on the right."""
    inputs, gate = mixer.in_proj(hidden).chunk(2, dim=2)
    # (B, d_inner, kernel - 1 + T): what the convolution sees of the past, and the rest.
    seen = torch.cat([window.to(inputs.dtype), inputs.transpose(1, 2)], dim=2)
    last = mask.sum(dim=1)[:, None] + torch.arange(window.shape[2], device=mask.device)
    window = seen.gather(2, last[:, None].expand_as(window))
    convolution = mixer.conv1d
    inputs = F.conv1d(seen, convolution.weight, convolution.bias, groups=convolution.groups)
    inputs = mixer.act(inputs).transpose(1, 2)
    step, key, query = mixer.x_proj(inputs).split(
        [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], dim=2
    )
    wide = torch.promote_types(hidden.dtype, torch.float32)
    # In no time at all a state neither decays nor takes anything in: that is what padding is given.
    step = F.softplus(mixer.dt_proj(step).to(wide)) * mask[..., None]
    decay = torch.exp(step[..., None] * -torch.exp(mixer.A_log.to(wide)))
    taken = (step * inputs)[..., None] * key[:, :, None]
    states = []
    # Unbound: the backward pass of an index would fill a tensor of all T for each of them.
    for kept, new in zip(decay.unbind(1), taken.unbind(1), strict=True):
        scanned = kept * scanned + new
        states.append(scanned)
    outputs = (torch.stack(states, dim=1) * query[:, :, None]).sum(dim=3) + inputs * mixer.D
    return mixer.out_proj((outputs * F.silu(gate)).to(hidden.dtype)), (window.to(wide), scanned)
