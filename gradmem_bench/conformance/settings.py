"""The laws of what a method is set to: its budget, the precision and the device."""

import torch

from gradmem_bench.config import Budget, StrictModel, format_bytes
from gradmem_bench.conformance.law import Broken, NotTried, law
from gradmem_bench.conformance.subject import Subject, answers, gap, write
from gradmem_bench.conformance.traces import check_loss
from gradmem_bench.errors import UserError
from gradmem_bench.state import MemoryState

_CONTEXT = 48
"""Symbols of a context that a budget is tried on, where the backbone has positions for a few times as many."""


@law("budget", "`fit` never exceeds its budget, and uses it", "size", "batch")
def budget(subject: Subject) -> None:
    if subject.method_class.role != "method":
        raise NotTried(f"no budget is asked of the {subject.method_class.role}")
    length = min(_CONTEXT, subject.shape.max_positions // 8)
    size, positions = _cost(subject, subject.parameters, length)
    if not (size and positions):
        raise NotTried("its states are empty, or take no position")
    bounds = {Budget(bytes=count) for count in (size // 4, size - 1, size, size + 1, 4 * size) if count}
    bounds |= {Budget(positions=count) for count in (positions // 4, positions, 4 * positions) if count}
    bounds |= {
        Budget(bytes=size, positions=max(1, positions // 2)),
        Budget(bytes=max(1, size // 2), positions=positions),
    }
    fits: dict[Budget, StrictModel] = {}
    used: dict[Budget, tuple[int, int]] = {}
    for bound in sorted(bounds, key=str):
        try:
            fits[bound] = subject.method_class.fit(subject.parameters, bound, subject.shape)
        except UserError as refusal:
            if (bound.bytes or size) >= size and (bound.positions or positions) >= positions:
                raise Broken(f"`fit` finds nothing for {bound}, which its own parameters keep to: {refusal}") from None
            continue
        used[bound] = found = _cost(subject, fits[bound], length)
        if found[0] > (bound.bytes or found[0]) or found[1] > (bound.positions or found[1]):
            raise Broken(
                f"Fitted to {bound}, it writes a state of {format_bytes(found[0])} that takes {found[1]} positions."
            )
    for bound, index, unit in ((Budget(bytes=size), 0, "bytes"), (Budget(positions=positions), 1, "positions")):
        own = (size, positions)[index]
        if used[bound][index] < own:
            raise Broken(f"Fitted to {own} {unit}, which its own parameters take, it uses {used[bound][index]}.")
    # On a longer context, of which there is more to keep than the smaller budget holds.
    smaller, larger = (_cost(subject, fits[Budget(bytes=count)], 4 * length) for count in (size, 4 * size))
    if larger[0] <= smaller[0] and larger[1] < len(_context(subject, 4 * length)):
        raise Broken(
            f"`fit` does not use its budget: of {format_bytes(4 * size)} it takes {format_bytes(larger[0])}, as of "
            f"{format_bytes(size)}."
        )


def _context(subject: Subject, length: int) -> list[int]:
    return subject.asked(12, (length,)).contexts[0]


def _cost(subject: Subject, parameters: StrictModel, length: int) -> tuple[int, int]:
    """State bytes and READ positions of a context of so many symbols."""
    method = subject.build(parameters)
    (data,) = write(method, [_context(subject, length)])
    with torch.no_grad():
        positions = int(method.read(MemoryState.from_bytes([data])).positions[0])
    return len(data) - 4 - int.from_bytes(data[:4], "little"), positions


@law("bfloat16", "It runs in bfloat16: states as large as declared, a finite loss", "size", "gradient")
def bfloat16(subject: Subject) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    method, asked = subject.build().to(device), subject.asked(13)
    with torch.autocast(device, torch.bfloat16):
        states = write(method, asked.contexts)
        found = answers(method, states, asked.queries, asked.targets)
    if not all(bool(torch.isfinite(row).all()) for row in found):
        raise Broken("In bfloat16 its answers cost an infinite number of nats.")
    for state, context in zip(states, asked.contexts, strict=True):
        payload = len(state) - 4 - int.from_bytes(state[:4], "little")
        text = len(method.backbone.decode(context).encode())
        declared = subject.method_class.footprint(subject.parameters, subject.shape, len(context), text).state_bytes
        if payload > declared:
            raise Broken(f"In bfloat16 a state has {payload:,} bytes, and its footprint declares {declared:,}.")
    method.train()
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    with torch.autocast(device, torch.bfloat16):
        loss = method.loss(asked.batch().to(device))
    check_loss(loss.total, trained)


@law("gpu", "On a GPU it does what it does on the CPU", "repeatable", "gradient")
def gpu(subject: Subject) -> None:
    if not torch.cuda.is_available():
        raise NotTried("this machine's torch sees no GPU")
    asked = subject.asked(14)
    on_cpu, on_gpu = subject.build(), subject.build().to("cuda")
    states = write(on_cpu, asked.contexts), write(on_gpu, asked.contexts)
    expected = answers(on_cpu, states[0], asked.queries, asked.targets)
    for method, where in ((on_gpu, "there"), (on_cpu, "on the CPU")):
        # Two devices add in different orders, and steps of descent carry that on.
        if apart := gap(expected, answers(method, states[1], asked.queries, asked.targets), 2e-2):
            raise Broken(f"From states that were written on the GPU it answers otherwise {where}: {apart}.")
    trained = {name: parameter for name, parameter in on_gpu.train().named_parameters() if parameter.requires_grad}
    check_loss(on_gpu.loss(asked.batch().to("cuda")).total, trained)
