"""WRITE, bytes, READ: the one way in which a method is scored (design law 1)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.metrics import exact_match, f1
from gradmem_bench.prefix import Prefix
from gradmem_bench.results import ExampleRow
from gradmem_bench.state import MemoryState
from gradmem_bench.tasks.base import Query, Task
from gradmem_bench.tasks.batching import EncodedDocument


def up_to_end(text: str, ends: Sequence[str]) -> str:
    """What stands before the first of `ends`."""
    for end in ends:
        # An answer may begin with the delimiter's white space; an end that is white space comes after it.
        start = len(text) - len(text.lstrip())
        cut = text.find(end, start)
        text = text if cut < 0 else text[:cut]
    return text


def likeliest(query: Query, likelihoods: Sequence[tuple[float, bool]]) -> str | None:
    """The choice with the highest log-likelihood; `None` where there is none."""
    pairs = zip(query.choices, likelihoods, strict=True)
    return max(pairs, key=lambda pair: pair[1][0], default=(None,))[0]


@dataclass(frozen=True)
class Written:
    """What is left of a batch of contexts after WRITE, and the queries that will be asked of it."""

    documents: Sequence[EncodedDocument]
    states: list[bytes]
    state_bytes: list[int]
    reconstruction: list[float | None]


class Evaluator:
    """Scores a method on encoded documents.

    Args:
        method: in evaluation mode from here on.
        task: for its metrics and where its answers end; `None` where another harness asks and scores.
        batch_size: contexts in one WRITE, queries in one READ.
        budget: how states are serialised, and what stops the evaluation where they are over it, the table's floor and
            ceiling apart.
        autocast: entered around the method's own computation.
    """

    def __init__(
        self,
        method: MemoryMethod,
        task: Task | None,
        batch_size: int,
        budget: Budget | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.method = method.eval()
        self.backbone: Backbone = method.backbone
        self.task = task
        self.batch_size = batch_size
        self.budget = method.asked_of(budget or Budget())
        self.autocast = autocast

    def batches(self, documents: Iterable[EncodedDocument]) -> Iterator[list[EncodedDocument]]:
        """The documents by length of context, so that little is padding."""
        ordered = sorted(documents, key=lambda document: len(document.context))
        for first in range(0, len(ordered), self.batch_size):
            yield ordered[first : first + self.batch_size]

    @torch.no_grad()
    def write_state(self, contexts: Tokens) -> MemoryState:
        """WRITE itself: B contexts in, B states out."""
        with self.autocast():
            return self.method.states(contexts)

    @torch.no_grad()
    def blank(self) -> bytes | None:
        """A state that nothing was written into; `None` where the method begins with nothing."""
        with self.autocast():
            state = self.method.blank(1)
        return None if state is None else state.to_bytes(self.budget.state_dtype)[0]

    def write(self, documents: Sequence[EncodedDocument], reconstruct: bool = True) -> Written:
        """Contexts in, bytes out; the contexts go no further."""
        contexts = Tokens.from_lists([document.context for document in documents], self.backbone.device)
        state, dtype = self.write_state(contexts), self.budget.state_dtype
        sizes, states = state.nbytes(dtype), state.to_bytes(dtype)
        if self.budget.bytes is not None and max(sizes) > self.budget.bytes:
            raise UserError(
                f"The method wrote a state of {format_bytes(max(sizes))}, "
                f"over its budget of {format_bytes(self.budget.bytes)}."
            )
        losses = None
        if reconstruct:
            with torch.no_grad(), self.autocast():
                losses = self.method.reconstruction_loss(MemoryState.from_bytes(states, self.backbone.device), contexts)
        return Written(documents, states, sizes, [None] * len(documents) if losses is None else losses.tolist())

    @torch.no_grad()
    def read_prefix(self, states: Sequence[bytes]) -> Prefix:
        """What stands before each query, from the bytes alone."""
        with self.autocast():
            prefix = self.method.read(MemoryState.from_bytes(states, self.backbone.device))
        self._check_positions(int(prefix.positions.max()))
        return prefix

    @torch.no_grad()
    def kv_bytes_per_position(self) -> int:
        """What one position holds in memory while READ runs, in the precision that `autocast` leaves a cache in; 0
        for a recurrent backbone."""
        if self.backbone.recurrent:
            return 0
        with self.autocast():
            cache = self.backbone.prefill(Tokens.repeated([0], 1, self.backbone.device)).cache
        return sum(part.nbytes for layer in cache for part in layer)

    def _prefix(self, states: Sequence[bytes] | None, rows: Sequence[int]) -> Prefix:
        """What stands before the queries of `rows`: each one's state, or no memory where there are no states."""
        return self.backbone.start(len(rows)) if states is None else self.read_prefix([states[row] for row in rows])

    def generate(self, prefix: Prefix, queries: Tokens, max_new_tokens: int) -> list[list[int]]:
        """The ids that answer each query behind its prefix."""
        with self.autocast():
            return self.backbone.generate(prefix, queries, max_new_tokens)

    @torch.no_grad()
    def read(
        self,
        states: Sequence[bytes] | None,
        queries: Sequence[list[int]],
        targets: Sequence[list[int]],
        generate: bool,
    ) -> Iterator[tuple[Tensor, Tensor, list[int] | None, int]]:
        """Answers each query from the state of the same row.

        Args:
            states: that of each query's row; `None` is no memory at all.
        Yields:
            For each query: nats (t,) and whether right (t,) of its target's tokens, the generated ids, READ positions.
        """
        device = self.backbone.device
        for first in range(0, len(queries), self.batch_size):
            rows = range(len(queries))[first : first + self.batch_size]
            asked = Tokens.from_lists([queries[row] for row in rows], device)
            wanted = Tokens.from_lists([targets[row] for row in rows], device)
            prefix = self._prefix(states, rows)
            answers = self.generate(prefix, asked, self.task.max_new_tokens) if generate else None
            with self.autocast():
                losses, right = self.backbone.token_losses(prefix, asked, wanted)
            lengths, positions = wanted.lengths.tolist(), prefix.positions.tolist()
            losses, right = losses.cpu(), right.cpu()
            for row, length in enumerate(lengths):
                yield losses[row, :length], right[row, :length], answers and answers[row], positions[row]

    @torch.no_grad()
    def likelihoods(
        self, states: Sequence[bytes] | None, queries: Sequence[list[int]], choices: Sequence[list[list[int]]]
    ) -> list[list[tuple[float, bool]]]:
        """Of each query's choices the log-likelihood in nats, and whether greedy decoding gives it.

        Args:
            states: that of each query's row; `None` is no memory at all.
        """
        device = self.backbone.device
        owners = [row for row, offered in enumerate(choices) for _ in offered]
        every = [ids for offered in choices for ids in offered]
        found: list[list[tuple[float, bool]]] = [[] for _ in queries]
        for first in range(0, len(every), self.batch_size):
            rows = owners[first : first + self.batch_size]
            asked = Tokens.from_lists([queries[row] for row in rows], device)
            wanted = Tokens.from_lists(every[first : first + self.batch_size], device)
            prefix = self._prefix(states, rows)
            with self.autocast():
                losses, right = self.backbone.token_losses(prefix, asked, wanted)
            nats, greedy = -losses.double().sum(dim=1), (right | ~wanted.mask).all(dim=1)
            for row, likelihood, is_greedy in zip(rows, nats.tolist(), greedy.tolist(), strict=True):
                found[row].append((likelihood, is_greedy))
        return found

    def _check_positions(self, positions: int) -> None:
        if self.budget.positions is not None and positions > self.budget.positions:
            raise UserError(f"READ takes {positions} positions, over the budget of {self.budget.positions}.")

    def answer_text(self, ids: list[int]) -> str:
        """The generated answer: what stands before the first of the task's ends."""
        text = self.whole_text(ids)
        return text.strip() if self.task.text_metrics else text

    def whole_text(self, ids: list[int]) -> str:
        """The same with the white space around it, as lm-eval scores it."""
        return up_to_end(self.backbone.decode(ids), self.task.until)

    def rows(self, documents: Sequence[EncodedDocument]) -> list[ExampleRow]:
        """Writes one batch of contexts, and reads every query of each from its own state."""
        written = self.write(documents)
        owner = [index for index, document in enumerate(documents) for _ in document.queries]
        queries = [ids for document in documents for ids in document.queries]
        targets = [ids for document in documents for ids in document.targets]
        asked: list[Query] = [query for document in documents for query in document.document.queries]
        states = [written.states[index] for index in owner]
        chosen = self.likelihoods(states, queries, [ids for document in documents for ids in document.choices])
        read = self.read(states, queries, targets, generate=True)
        rows = []
        for index, query, offered, (losses, right, answer, positions) in zip(owner, asked, chosen, read, strict=True):
            document = documents[index]
            prediction = self.answer_text(answer)
            rows.append(
                ExampleRow(
                    example_id=query.id,
                    context_id=document.document.id,
                    prediction=prediction,
                    targets=list(query.targets),
                    choice=likeliest(query, offered),
                    task_score=self.task.own_score(query, self.whole_text(answer), offered),
                    exact_match=exact_match(prediction, query.targets, self.task.text_metrics),
                    f1=f1(prediction, query.targets, self.task.text_metrics),
                    teacher_forced_exact_match=bool(right.all()),
                    token_accuracy=float(right.float().mean()),
                    target_bits_per_token=float(losses.double().mean()) / torch.log(torch.tensor(2.0)).item(),
                    target_tokens=len(right),
                    context_tokens=len(document.context),
                    context_truncated=document.truncated,
                    state_bytes=written.state_bytes[index],
                    read_positions=positions,
                    reconstruction_nats_per_token=written.reconstruction[index],
                )
            )
        return rows

    def teacher_forced_score(self, documents: Sequence[EncodedDocument]) -> float:
        """The share of queries whose target's tokens are all the most probable ones; what training selects by."""
        right, asked = 0, 0
        for batch in self.batches(documents):
            written = self.write(batch, reconstruct=False)
            states = [state for state, document in zip(written.states, batch, strict=True) for _ in document.queries]
            queries = [ids for document in batch for ids in document.queries]
            targets = [ids for document in batch for ids in document.targets]
            for _, correct, _, _ in self.read(states, queries, targets, generate=False):
                right += bool(correct.all())
                asked += 1
        return right / asked
