import random

import pytest
import torch

from gradmem_bench.batch import Batch, Tokens


def random_rows(seed: int, count: int, longest: int) -> list[list[int]]:
    """Rows of every length from none to `longest`; id 0 is among them, since padding is no special id."""
    generator = random.Random(seed)
    return [[generator.randrange(5) for _ in range(generator.randrange(longest + 1))] for _ in range(count)]


def check(tokens: Tokens, rows: list[list[int]]) -> None:
    """`tokens` holds `rows`, valid tokens first, and no column of padding alone."""
    width = max((len(row) for row in rows), default=0)
    assert tokens.ids.shape == tokens.mask.shape == (len(rows), width)
    assert tokens.ids.dtype == torch.int64 and tokens.mask.dtype == torch.bool
    assert tokens.mask.tolist() == [[column < len(row) for column in range(width)] for row in rows]
    assert [ids[: len(row)] for ids, row in zip(tokens.ids.tolist(), rows, strict=True)] == rows
    assert tokens.rows() == rows
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    assert len(tokens) == len(rows)


@pytest.mark.parametrize("rows", [[], [[]], [[], []], [[3]], [[0, 0], [], [1, 0, 2]], random_rows(1, 9, 7)])
def test_rows_go_in_and_come_out(rows):
    check(Tokens.from_lists(rows), rows)


@pytest.mark.parametrize("seed", range(8))
def test_then_is_each_row_followed_by_the_other_of_its_place(seed):
    left, right = random_rows(seed, 6, 5), random_rows(seed + 100, 6, 4)
    joined = Tokens.from_lists(left).then(Tokens.from_lists(right))
    check(joined, [one + other for one, other in zip(left, right, strict=True)])
    check(joined.then(joined), [(one + other) * 2 for one, other in zip(left, right, strict=True)])


def test_then_with_nothing():
    rows = [[1, 2], [], [3]]
    empty = Tokens.from_lists([[], [], []])
    check(Tokens.from_lists(rows).then(empty), rows)
    check(empty.then(Tokens.from_lists(rows)), rows)
    check(empty.then(empty), [[], [], []])


@pytest.mark.parametrize("seed", range(4))
def test_select_takes_rows_by_slice_index_and_mask(seed):
    rows = random_rows(seed, 7, 6)
    tokens = Tokens.from_lists(rows)
    check(tokens.select(slice(2, 5)), rows[2:5])
    check(tokens.select(slice(3, 3)), [])
    # Repeats and any order: how the contexts of many queries are laid out.
    check(tokens.select(torch.tensor([6, 0, 0, 3])), [rows[6], rows[0], rows[0], rows[3]])
    keep = [len(row) % 2 == 0 for row in rows]
    check(tokens.select(torch.tensor(keep)), [row for row, kept in zip(rows, keep, strict=True) if kept])


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (0, 1), (1, 3), (2, 4), (3, 4), (2, 2)])
def test_a_part_of_a_batch_keeps_the_queries_of_its_contexts(start, stop):
    contexts = [[1, 1, 1], [2], [3, 3], [4, 4, 4, 4]]
    # Context 2 is asked nothing, and the queries do not come in the order of the contexts.
    asked = [3, 0, 1, 0, 3, 3]
    queries, targets = random_rows(5, 6, 4), random_rows(6, 6, 3)
    batch = Batch(
        Tokens.from_lists(contexts), Tokens.from_lists(queries), Tokens.from_lists(targets), torch.tensor(asked)
    )
    part = batch.select(start, stop)

    kept = [row for row, context in enumerate(asked) if start <= context < stop]
    assert len(part) == stop - start
    check(part.contexts, contexts[start:stop])
    check(part.queries, [queries[row] for row in kept])
    check(part.targets, [targets[row] for row in kept])
    # Each query still stands at the context that it was asked of.
    assert [part.contexts.rows()[context] for context in part.context_of.tolist()] == [
        contexts[asked[row]] for row in kept
    ]


def test_ragged_sequences_are_padded_to_a_multiple_and_even_ones_are_not():
    ragged, even = Tokens.from_lists([[1, 2, 3], [4] * 9]), Tokens.from_lists([[1, 2, 3], [4, 5, 6]])
    assert ragged.evened(8).ids.shape == (2, 16) and ragged.evened(3).ids.shape == (2, 9)
    assert ragged.evened(8).rows() == ragged.rows()
    batch = Batch(ragged, even, even, torch.tensor([0, 1])).evened(4)
    assert (batch.contexts.ids.shape, batch.queries.ids.shape) == ((2, 12), (2, 3))
    assert (batch.contexts.rows(), batch.targets.rows()) == (ragged.rows(), even.rows())
