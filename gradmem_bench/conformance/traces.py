"""The laws of what is left: of training, in the weights; of a context, in the bytes and nowhere else."""

import secrets
import sys
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

import torch
from torch import Tensor

from gradmem_bench import checkpoints
from gradmem_bench.conformance.elsewhere import elsewhere
from gradmem_bench.conformance.law import Broken, NotTried, law
from gradmem_bench.conformance.subject import Asked, Subject, answers, difference, gap, scales, what, write
from gradmem_bench.methods.base import MemoryMethod

# -------------------------------------------------------------------------------- weights and traces


@law("gradient", "The loss is finite, and its gradient reaches all that is trained", "runs")
def gradient(subject: Subject) -> None:
    method = subject.build().train()
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    loss = method.loss(subject.asked(8).batch())
    check_loss(loss.total, trained)
    missed = [name for name, one in trained.items() if one.grad is None or not bool(one.grad.count_nonzero())]
    if missed:
        shown = f"'{missed[0]}'" + (f" and {len(missed) - 1} more" if missed[1:] else "")
        raise Broken(
            f"No gradient reaches {shown}, though it requires one; call requires_grad_(False) on what is not trained."
        )


def check_loss(total: Tensor, trained: Mapping[str, Tensor]) -> None:
    if total.dim() or not bool(torch.isfinite(total)):
        raise Broken(f"Its loss is {what(total)} and not one finite number.")
    if not trained:
        return
    if not total.requires_grad:
        raise Broken("Its loss has no gradient, though it has parameters that require one.")
    total.backward()
    bad = [name for name, one in trained.items() if one.grad is not None and not bool(torch.isfinite(one.grad).all())]
    if bad:
        raise Broken(f"The gradient of its loss is not finite at '{bad[0]}'.")


@law("saving", "Saved and loaded, it gives the same answers", "gradient", "query")
def saving(subject: Subject) -> None:
    method, asked = subject.trained(), subject.asked(9)
    path = subject.save(method)
    loaded = subject.build(seed=1)
    checkpoints.restore(loaded, checkpoints.load(path)[0], path)
    own, theirs = write(method, asked.contexts), write(loaded, asked.contexts)
    scale = scales(own)
    buffers = ", ".join(f"'{name}'" for name, _ in method.named_buffers() if not name.startswith("backbone."))
    hint = f" (parameters are saved, and its buffers {buffers} are not)" if buffers else ""
    for one, other in zip(own, theirs, strict=True):
        if apart := difference(one, other, scale):
            raise Broken(f"Loaded from its checkpoint it writes another state: {apart}{hint}.")
    first, second = (answers(one, own, asked.queries, asked.targets) for one in (method, loaded))
    if apart := gap(first, second):
        raise Broken(f"Loaded from its checkpoint it answers otherwise: {apart}{hint}.")


@law("isolation", "Nothing of a context outlives WRITE but its bytes", "saving", "repeatable")
def isolation(subject: Subject) -> None:
    module = sys.modules[subject.method_class.__module__]
    if "<locals>" in subject.method_class.__qualname__ or not hasattr(module, "__file__"):
        raise NotTried("the class stands in a function, or in no file, where another process cannot find it")
    method = subject.trained()
    weights = subject.save(method)
    # New at every check: a cheat may have seen what was checked before.
    asked, warm = subject.asked(secrets.randbits(64)), subject.asked(10)
    written = elsewhere().ask(subject, weights, contexts=asked.contexts, warm=warm.contexts)
    if written.get("behind"):
        raise Broken(f"WRITE leaves something behind beside its bytes: it {written['behind'][0]}.")
    if "error" in written:
        raise Broken(f"WRITE fails in another process, with the weights alone: {written['error']}.")
    read = elsewhere().ask(subject, weights, states=written["states"], queries=asked.queries, targets=asked.targets)
    before = _traces(method)
    states = write(method, asked.contexts)
    here = answers(method, states, asked.queries, asked.targets)
    after = _traces(method)
    scale = scales(states)
    if "error" in read:
        apart = f"it fails with {read['error']}"
    else:
        apart = gap(here, [torch.tensor(row) for row in read["answers"]])
    if apart:
        raise Broken(
            f"READ does not answer from the bytes: in another process, which has them and the weights, {apart}; WRITE "
            f"keeps something {_where(subject, weights, asked, states, here, (before, after))}."
        )
    for one, other in zip(states, written["states"], strict=True):
        if apart := difference(one, bytes.fromhex(other), scale):
            raise Broken(f"In another process, with the same weights, WRITE gives another state: {apart}.")


def _traces(method: MemoryMethod) -> dict[str, tuple]:
    """What WRITE could change on the method and beside it: name -> a mark of what stands there."""
    marks: dict[str, tuple] = {}
    kinds = type(method), sys.modules[type(method).__module__]
    for where, values in (("", vars(method)), *((f"{kind.__name__}.", vars(kind)) for kind in kinds)):
        for name, value in values.items():
            marks[where + name] = (
                id(value),
                len(value) if isinstance(value, Sized) and not isinstance(value, Tensor) else 0,
            )
    for name, tensor in (*method.named_parameters(), *method.named_buffers()):
        marks[name] = (id(tensor), tensor._version)
    return marks


def _where(
    subject: Subject,
    weights: Path,
    asked: Asked,
    states: Sequence[bytes],
    here: Sequence[Tensor],
    marks: Sequence[Mapping[str, tuple]],
) -> str:
    """Where a method keeps what is not in the bytes: on itself, or elsewhere in the process."""
    before, after = marks
    changed = [f"'{name}'" for name in after if after[name] != before.get(name)]
    named = f" ({', '.join(changed[:3])} changed)" if changed else ""
    other = subject.build(seed=1)
    checkpoints.restore(other, checkpoints.load(weights)[0], weights)
    try:
        kept_in_process = gap(here, answers(other, states, asked.queries, asked.targets)) is None
    except Exception:
        # Without what the other object keeps it may fail in any way.
        kept_in_process = False
    return f"in the process, outside the method{named}" if kept_in_process else f"on the method itself{named}"


@law("swap", "Another context's state gives other answers", "isolation")
def swap(subject: Subject) -> None:
    if subject.method_class.role == "floor":
        raise NotTried("the floor answers without a state")
    method, asked = subject.build(), subject.asked(11, (14, 14, 14, 14))
    states = write(method, asked.contexts)
    if len(set(states)) == 1:
        raise Broken("WRITE gives every context the same state.")
    own = answers(method, states, asked.queries, asked.targets)
    if not gap(own, answers(method, [*states[1:], states[0]], asked.queries, asked.targets)):
        raise Broken("READ gives the same answers from another context's state: it does not answer from its state.")
