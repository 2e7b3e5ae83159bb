"""Batches that are prepared while those before them are trained on."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch.utils.data import DataLoader, Dataset

from gradmem_bench.batch import Batch
from gradmem_bench.errors import UserError

PROCESSES_FOR_A_GPU = 8
"""A GPU is done with a batch sooner than one process is with making it."""


def prepared(
    make: Callable[[Hashable], Batch], steps: Iterable[Hashable], processes: int | None = None
) -> Iterator[Batch]:
    """The batch of each step, in their order.

    Args:
        make: a batch from its step alone.
        steps: as many as may be asked for; what was prepared and is not asked for is let go.
        processes: that prepare them; `None` is a thread, which takes no core from a training on the CPU.
    """
    if processes is None:
        yield from _in_a_thread(make, steps)
        return
    # They are forked: what a batch is made of is there already, and they do not touch the device.
    batches = DataLoader(
        _Made(make),
        sampler=steps,
        batch_size=None,
        num_workers=processes,
        prefetch_factor=4,
        multiprocessing_context="fork",
    )
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _in_a_thread(make: Callable[[Hashable], Batch], steps: Iterable[Hashable]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as executor:
        future = None
        for step in steps:
            coming = executor.submit(make, step)
            if future is not None:
                yield future.result()
            future = coming
        if future is not None:
            yield future.result()


class _Made(Dataset):
    def __init__(self, make: Callable[[Hashable], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: Hashable) -> Batch | UserError:
        try:
            return self.make(step)
        except UserError as error:
            # Raised in a worker, its one sentence would come with the worker's traceback.
            return error
