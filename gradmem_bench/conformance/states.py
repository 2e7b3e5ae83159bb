"""The laws of a state: what it is made of, and what it does not depend on.

Each builds the method anew, tries one thing, and says in a sentence what the method did when it broke it.
"""

from collections.abc import Sequence

import torch

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.conformance.law import Broken, NotTried, law
from gradmem_bench.conformance.subject import Asked, Subject, answers, difference, gap, rebuilt, scales, what, write
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState
from gradmem_bench.tasks.base import Document, Query
from gradmem_bench.tasks.batching import EncodedDocument

# ----------------------------------------------------------------------------------- state and bytes


@law("runs", "It is built, writes contexts, and answers from what it wrote")
def runs(subject: Subject) -> None:
    try:
        with torch.device("meta"):
            subject.method_class(subject.shape, subject.parameters)
        method = subject.build()
    except UserError as refusal:
        raise NotTried(f"it refuses this backbone: {refusal}") from None
    asked = subject.asked(0)
    contexts = Tokens.from_lists(asked.contexts)
    with torch.no_grad():
        state = method.write(contexts)
        if not isinstance(state, MemoryState) or len(state) != len(contexts):
            raise Broken(f"WRITE of {len(contexts)} contexts gives {what(state)} and not a MemoryState of as many.")
        prefix = method.read(state)
        if not isinstance(prefix, Prefix) or len(prefix) != len(contexts):
            raise Broken(f"READ of {len(contexts)} states gives {what(prefix)} and not a Prefix of as many.")
        method.backbone.generate(prefix, Tokens.from_lists(asked.queries), 3)
        rebuilt = method.reconstruction_loss(state, contexts)
        blank = method.blank(len(contexts))
        if blank is not None and (len(blank), blank.kind) != (len(state), state.kind):
            raise Broken(
                f"What it says WRITE begins with is {what(blank)}, and not {len(state)} states of the names, dtypes "
                "and shapes of what it writes."
            )
    if rebuilt is not None and (rebuilt.shape != (len(contexts),) or not bool(torch.isfinite(rebuilt).all())):
        raise Broken(f"Its reconstruction loss is {what(rebuilt)} and not one finite number a context.")
    found = answers(method, state, asked.queries, asked.targets)
    if not all(bool(torch.isfinite(row).all()) for row in found):
        raise Broken("The answers behind what it read cost an infinite number of nats.")


@law("bytes", "A state goes through its bytes unchanged", "runs")
def bytes_(subject: Subject) -> None:
    method, asked = subject.build(), subject.asked(2)
    with torch.no_grad():
        state = method.write(Tokens.from_lists(asked.contexts))
        data = state.to_bytes()
        try:
            crossed = MemoryState.from_bytes(data)
        except UserError as error:
            raise Broken(f"The bytes of its states cannot be read together: {error}") from None
        if crossed.to_bytes() != data:
            raise Broken("Its state is another one when it was written to bytes, read back, and written again.")
        apart = gap(
            answers(method, state, asked.queries, asked.targets), answers(method, crossed, asked.queries, asked.targets)
        )
    if apart:
        raise Broken(
            f"READ answers otherwise from the state that WRITE returned than from its bytes ({apart}): something that "
            "READ uses is not in the bytes."
        )


@law("size", "Its bytes are all that a state is, and no more than it declares", "bytes")
def size(subject: Subject) -> None:
    method, seen = subject.build(), []
    for seed, length in enumerate((1, 9, 9, 40)):
        context = subject.asked(seed, (length,)).contexts[0]
        longest = _longest_run(method, context)
        with torch.no_grad():
            state = method.write(Tokens.from_lists([context]))
            (data,) = state.to_bytes()
            positions = int(method.read(MemoryState.from_bytes([data])).positions[0])
        payload = len(data) - 4 - int.from_bytes(data[:4], "little")
        if state.nbytes() != [payload]:
            raise Broken(f"It says that a state has {state.nbytes()[0]:,} bytes, and {payload:,} are serialised.")
        # No text makes more bytes of as many tokens than the declaration is given here.
        text = len(method.backbone.decode(context).encode())
        declared = subject.method_class.footprint(subject.parameters, subject.shape, len(context), text)
        for name, measured, most in (
            ("state bytes", payload, declared.state_bytes),
            ("READ positions", positions, declared.read_positions),
            ("WRITE positions", longest, declared.write_positions),
        ):
            if measured > most:
                raise Broken(
                    f"Its footprint declares at most {most:,} {name} for a context of {len(context)} tokens, and "
                    f"{measured:,} are measured."
                )
        seen.append(MemoryState.from_bytes([data]))
    _nothing_in_the_header(seen)


def _nothing_in_the_header(states: Sequence[MemoryState]) -> None:
    """Names, dtypes and shapes are sent beside the counted bytes: they must not tell contexts apart by themselves."""
    first = states[0]
    for state in states[1:]:
        if state.tensors.keys() != first.tensors.keys():
            raise Broken(
                f"The names of a state's tensors tell contexts apart: {[*first.tensors]} and {[*state.tensors]}."
            )
        for name, kind in state.kind.items():
            if kind != first.kind[name]:
                raise Broken(f"The shape or the dtype of '{name}' tells contexts apart, and is not among the bytes.")
    lengths = {int(state.lengths[0]) for state in states if state.lengths is not None}
    if len(lengths) > 1 and not any(first.tensors[name][:, :1].shape[2:].numel() for name in first.ragged):
        raise Broken("The length of tensors without any bytes tells contexts apart, and is not among the bytes.")


def _longest_run(method: MemoryMethod, context: list[int]) -> int:
    """The longest sequence that WRITE puts through the backbone."""
    seen = [0]

    def look(model: torch.nn.Module, inputs: tuple, named: dict) -> None:
        given = next(
            value for value in (named.get("inputs_embeds"), named.get("input_ids"), *inputs) if value is not None
        )
        past = named.get("past_key_values")
        seen.append(given.shape[1] + (past.get_seq_length() if past is not None else 0))

    hook = method.backbone.model.base_model.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        method.write(Tokens.from_lists([context]))
    hook.remove()
    return max(seen)


# --------------------------------------------------------------------- what a state does not depend on


@law("repeatable", "A context has one state, whenever it is written", "bytes")
def repeatable(subject: Subject) -> None:
    method, asked, others = subject.build(), subject.asked(3), subject.asked(4, (30, 5, 17))
    first, again = write(method, asked.contexts), write(method, asked.contexts)
    between, third = write(method, others.contexts), write(method, asked.contexts)
    scale = scales(first)
    for one, two, three in zip(first, again, third, strict=True):
        if apart := difference(one, two, scale):
            raise Broken(f"Written twice, a context gets two different states ({apart}): WRITE is not deterministic.")
        if apart := difference(one, three, scale):
            raise Broken(f"The state of a context depends on what was written before it ({apart}).")
    own = answers(method, first, asked.queries, asked.targets)
    answers(method, between, others.queries, others.targets)
    if apart := gap(own, answers(method, first, asked.queries, asked.targets)):
        raise Broken(f"READ answers otherwise from one and the same state after another was read ({apart}).")


@law("batch", "Neither state nor answer depends on what else is in the batch", "repeatable")
def batch(subject: Subject) -> None:
    asked = subject.asked(5, (12, 12, 12))
    method = subject.build()
    together = write(method, asked.contexts)
    alone = [write(method, [context])[0] for context in asked.contexts]
    scale = scales(alone)
    for row, (one, other) in enumerate(zip(together, alone, strict=True)):
        if apart := difference(one, other, scale):
            owner = [place for place, own in enumerate(alone) if not difference(one, own, scale)]
            if owner:
                raise Broken(f"Context {row + 1} of a batch gets the state of context {owner[0] + 1}.")
            raise Broken(f"A context's state depends on what is written beside it in the batch ({apart}).")
    if apart := _apart_in_a_batch(method, alone, asked):
        raise Broken(f"{apart}, by what is read beside its state in the batch.")


@law("padding", "Nor on what stands where nothing stands", "batch")
def padding(subject: Subject) -> None:
    method, asked = subject.build(), subject.asked(6, (4, 21, 9))
    alone = [write(method, [context])[0] for context in asked.contexts]
    scale = scales(alone)
    contexts = Tokens.from_lists(asked.contexts)
    filled = Tokens(torch.where(contexts.mask, contexts.ids, torch.full_like(contexts.ids, 9)), contexts.mask)
    for tokens, cause in ((contexts, "on how much padding follows it"), (filled, "on the ids that the padding holds")):
        with torch.no_grad():
            padded = method.write(tokens).to_bytes()
        for one, other in zip(padded, alone, strict=True):
            if apart := difference(one, other, scale):
                raise Broken(f"The state of a context depends {cause} ({apart}).")
    if apart := _apart_in_a_batch(method, alone, asked):
        raise Broken(f"{apart}, by how far its state is padded beside longer ones.")


def _apart_in_a_batch(method: MemoryMethod, states: Sequence[bytes], asked: Asked) -> str | None:
    """Where answers, or the reconstruction, are others when all states are read together than when each is alone."""
    rows = list(zip(states, asked.contexts, asked.queries, asked.targets, strict=True))
    alone = [answers(method, [state], [query], [target])[0] for state, _, query, target in rows]
    if apart := gap(alone, answers(method, states, asked.queries, asked.targets)):
        return f"An answer is changed ({apart})"
    alone = [loss for state, context, _, _ in rows for loss in rebuilt(method, [state], [context])]
    if apart := gap(alone, rebuilt(method, states, asked.contexts)):
        return f"The reconstruction loss of a context is changed ({apart})"
    return None


@law("query", "A state does not depend on the queries", "batch")
def query(subject: Subject) -> None:
    asked, other = subject.asked(7), subject.asked(7, queries="others")
    plain = write(subject.build(), asked.contexts)
    scale = scales(plain)
    method = subject.build()
    evaluator = Evaluator(method, subject.task, len(plain))
    # As the harness does it: the documents, queries and all, are at hand where WRITE is called.
    first = evaluator.write(_documents(asked), reconstruct=False).states
    list(evaluator.read(first, asked.queries, asked.targets, generate=True))
    second = evaluator.write(_documents(other), reconstruct=False).states
    for one, before, after in zip(plain, first, second, strict=True):
        if apart := difference(one, before, scale):
            raise Broken(f"WRITE finds the queries where the harness keeps them: with them at hand {apart}.")
        if apart := difference(before, after, scale):
            raise Broken(f"The state depends on the queries: after one was asked, or with others to come, {apart}.")
    in_training = [_states_of_loss(subject.build().train(), one.batch()) for one in (asked, other)]
    for one, two in zip(*in_training, strict=True):
        if apart := difference(one, two, scale):
            raise Broken(f"In training the state depends on the queries: of one context with two sets of them {apart}.")


def _states_of_loss(method: MemoryMethod, batch: Batch) -> list[bytes]:
    """The states that WRITE gives within the loss."""
    seen: list[bytes] = []
    own = method.write

    def watched(contexts: Tokens) -> MemoryState:
        state = own(contexts)
        seen.extend(state.to_bytes())
        return state

    method.write = watched
    torch.manual_seed(0)
    method.loss(batch)
    return seen


def _documents(asked: Asked) -> list[EncodedDocument]:
    return [
        EncodedDocument(Document(str(row), "", (Query(str(row), "", ("",)),)), context, [query], [target], False, [[]])
        for row, (context, query, target) in enumerate(zip(asked.contexts, asked.queries, asked.targets, strict=True))
    ]
