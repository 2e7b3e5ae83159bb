"""Batches prepared ahead: the same ones in the same order, whoever prepares them."""

import multiprocessing
import os
import threading
from contextlib import closing
from itertools import count, islice

import pytest
import torch

from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.errors import UserError
from gradmem_bench.prefetching import prepared


def batch_of(step: tuple[int, int]) -> Batch:
    """A batch that tells its step, and who made it."""
    tokens = Tokens.from_lists([[*step, number] for number in range(1 + step[0])])
    return Batch(tokens, tokens, tokens, torch.tensor([os.getpid(), threading.get_ident() % 2**31]))


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_every_step_has_its_batch_in_order(processes):
    steps = [(number, 10 * number) for number in range(12)]
    found = list(prepared(batch_of, iter(steps), processes))
    assert [batch.contexts.rows() for batch in found] == [batch_of(step).contexts.rows() for step in steps]
    makers = {int(batch.context_of[0]) for batch in found}
    assert makers == {os.getpid()} if processes is None else (os.getpid() not in makers and len(makers) == processes)


@pytest.mark.parametrize("processes", [None, 2])
def test_steps_without_an_end_are_let_go(processes):
    before = threading.active_count()
    with closing(prepared(batch_of, ((0, number) for number in count()), processes)) as batches:
        assert [batch.queries.rows()[0][1] for batch in islice(batches, 5)] == [0, 1, 2, 3, 4]
    assert multiprocessing.active_children() == []
    assert processes or threading.active_count() <= before


@pytest.mark.parametrize("processes", [None, 2])
def test_what_goes_wrong_in_the_making_is_said_where_the_batch_is_asked_for(processes):
    def broken(step: int) -> Batch:
        if step == 2:
            raise ValueError("no batch of step 2")
        return batch_of((0, step))

    batches = prepared(broken, iter(range(4)), processes)
    assert [next(batches).queries.rows()[0][1] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="no batch of step 2"):
        next(batches)


@pytest.mark.parametrize("processes", [None, 1])
def test_what_a_user_has_to_mend_comes_as_its_one_sentence(processes):
    def refused(step: int) -> Batch:
        raise UserError(f"The context {step} is too long.")

    with pytest.raises(UserError) as raised:
        next(prepared(refused, iter(range(2)), processes))
    assert str(raised.value) == "The context 0 is too long."
