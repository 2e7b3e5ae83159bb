"""GradMem written out plainly: one context, no padding, transformers' own forward, and a loop."""

import torch
import torch.nn.functional as F


def plain_loss(method, vectors: torch.Tensor, context: list[int]) -> torch.Tensor:
    """The WRITE loss of vectors (m, d) that stand in the backbone, with transformers' own forward on no padding."""
    model, control = method.writer.model, method.write_control
    ids = torch.tensor(context)
    sides = [vectors[:0] if side is None else side.vectors for side in (control.before, control.after)]
    sequence = torch.cat([sides[0], vectors, sides[1], model.get_input_embeddings()(ids)])[None]
    hidden = model.base_model(inputs_embeds=sequence).last_hidden_state[0]
    head = model.lm_head if method.write_head is None else method.write_head
    return F.cross_entropy(head(hidden[-len(ids) - 1 : -1]), ids)


def plain_write(method, context: list[int], steps: int) -> torch.Tensor:
    """Algorithm 1 on one context: a loop."""
    memory = method.memory.vectors
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(plain_loss(method, memory, context), memory, create_graph=True)
        memory = memory - method.settings.inner_learning_rate * gradient
    return memory


def plain_write_with_knobs(method, context: list[int], rates: list) -> torch.Tensor:
    """Algorithm 1 with torch's own optimisers and one tensor for each thing that descends; rates of each step."""
    settings = method.settings
    parts = [method.memory.vectors.detach().clone()]
    if settings.projection == "per_sample":
        parts += [method.projection.weight.detach().clone(), method.projection.bias.detach().clone()[None]]
    parts = [part.requires_grad_() for part in parts]
    # A learning rate of 1, so that what a step adds can be multiplied by any.
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[settings.inner_optimizer](parts, lr=1.0)
    for step in rates:
        optimizer.zero_grad()
        vectors = parts[0]
        if settings.projection == "per_sample":
            vectors = F.linear(vectors, parts[1], parts[2][0])
        elif settings.projection == "shared":
            vectors = method.projection(vectors)
        plain_loss(method, vectors, context).backward()
        if settings.inner_clip_value is not None:
            torch.nn.utils.clip_grad_value_(parts, settings.inner_clip_value)
        if settings.inner_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parts, settings.inner_clip_norm)
        before = [part.detach().clone() for part in parts]
        optimizer.step()
        with torch.no_grad():
            for part, old, rate in zip(parts, before, step, strict=False):
                part.copy_(old + rate * (part - old))
    parts = [part.detach() for part in parts]
    return F.linear(parts[0], parts[1], parts[2][0]) if settings.projection == "per_sample" else parts[0]
