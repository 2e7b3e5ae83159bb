"""Functions of tensors as CUDA graphs: a training step is thousands of small kernels, and to start them one by one
takes longer than to run them.

A graph is one run of a function, recorded with the address of all that it touched. It is run again by copying new
inputs to where the first ones stood; parameters are read where they are, so that an optimiser that updates them in
place is seen. What is recorded therefore takes all that changes as an input, and never waits for the device. A graph of
autograd over the same parameters that is still alive keeps it from being recorded (data parallelism holds one).

Nothing is believed that was not seen: a graph's first run is compared with the function's own, and where that fails or
disagrees, one warning is given and the owner's functions are run as they stand from then on.
"""

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map_only

from gradmem_bench.precision import alike, in_force

SIGHTS = 3
"""A shape is recorded when it comes for the third time: the first runs compile, and some shapes never come again."""
_GRAPHS = 8
"""Shapes of one owner that are recorded; each keeps its inputs and outputs on the device."""
_TOLERANCE, _ROUNDED = 1e-3, 5e-2
"""Of the norm of a difference, relative, since sums come in any order; the second where their terms are rounded."""


@dataclass
class _Recorded:
    """A graph, with the tensors that it reads from and writes to."""

    graph: "torch.cuda.CUDAGraph"
    inputs: list[Tensor]
    outputs: Any

    def run(self, inputs: Sequence[Tensor]) -> Any:
        for held, new in zip(self.inputs, inputs, strict=True):
            held.copy_(new)
        self.graph.replay()
        # The next graph may overwrite what this one returned.
        return tree_map_only(Tensor, torch.clone, self.outputs)


@dataclass
class _Owner:
    """What is known of the functions of one object."""

    sights: dict[int, int] = field(default_factory=dict)
    """By the hash of a shape: there may be many."""
    graphs: dict[Hashable, _Recorded] = field(default_factory=dict)
    pool: tuple[int, int] = field(default_factory=torch.cuda.graph_pool_handle)
    """The memory of its graphs: they run one after another, and what they return is copied at once."""
    refused: bool = False


_owners: "WeakKeyDictionary[object, _Owner]" = WeakKeyDictionary()
_stands = False


def replayed(
    owner: object,
    name: str,
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    settings: Hashable = None,
) -> Any:
    """`function(*inputs)`, by a CUDA graph where its shapes come again and again; elsewhere as it stands.

    Args:
        owner: whose function it is, and which says by `recordable` that this may be done; its graphs go with it.
        name: of the function, for the warning too.
        function: returns tensors that no graph of autograd hangs on, in dicts, lists, tuples or dataclasses of
            PyTorch's own kind. It has no side effects and, once its caches are filled, reads no value of a tensor.
        inputs: all tensors that change from call to call otherwise than in place.
        parameters: the tensors that it reads beside them; they are updated in place, or moved as a whole.
        settings: what else it depends on, its owner's training mode and the precisions apart.
    """
    # What counts operations (FlopCounterMode) has to see them, and within one graph no other is begun.
    counted = _get_current_dispatch_mode() is not None
    allowed = getattr(owner, "recordable", False) and not _stands and not counted
    if not inputs[0].is_cuda or not allowed or torch.cuda.is_current_stream_capturing():
        return function(*inputs)
    # With the strides that copies of them have: for others, what is compiled would be compiled again.
    inputs = [one.contiguous() for one in inputs]
    known = _owners.setdefault(owner, _Owner())
    if known.refused:
        return function(*inputs)
    autocast, rounded = in_force("cuda")
    mode = autocast, torch.is_grad_enabled(), getattr(owner, "training", None), rounded
    shapes = *((one.shape, one.dtype) for one in inputs), *((one.data_ptr(), one.requires_grad) for one in parameters)
    key = name, settings, mode, shapes
    if key in known.graphs:
        return known.graphs[key].run(inputs)
    with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None, cache_enabled=False):
        # A weight cast once for several of its uses would be one that is cast outside the graph.
        expected = function(*inputs)
        seen = hash(key)
        known.sights[seen] = known.sights.get(seen, 0) + 1
        if known.sights[seen] < SIGHTS or len(known.graphs) >= _GRAPHS:
            return expected
        recorded = None
        try:
            recorded = _record(function, inputs, known.pool)
            fault = _fault(expected, recorded.run(inputs), _ROUNDED if rounded else _TOLERANCE)
        except RuntimeError as error:
            fault = str(error).strip().partition("\n")[0][:200].rstrip(".")
    if fault:
        known.refused = True
        known.graphs.clear()
        if recorded is None:
            _give_back(known.pool)
        warnings.warn(f"{name} is not run as a CUDA graph: {fault}. It is run as it stands.", stacklevel=2)
    else:
        known.graphs[key] = recorded
    return expected


def forget(owner: object) -> None:
    """Gives the memory of an owner's graphs back to the device; what was refused stays so."""
    if (known := _owners.get(owner)) is not None:
        _owners[owner] = _Owner(refused=known.refused)


@contextmanager
def as_it_stands() -> Iterator[None]:
    """Within it no function is run as a graph, whose memory would not be seen as taken by its run."""
    global _stands
    before, _stands = _stands, True
    try:
        yield
    finally:
        _stands = before


def _record(function: Callable[..., Any], inputs: Sequence[Tensor], pool: tuple[int, int]) -> _Recorded:
    held = [one.detach().clone() for one in inputs]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # Nothing is to be freed on the device while it records.
    gc.collect()
    torch.cuda.empty_cache()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin(pool=pool)
        try:
            outputs = function(*held)
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            _end_what_failed()
            raise
        graph.capture_end()
    torch.cuda.synchronize()
    return _Recorded(graph, held, outputs)


def _end_what_failed() -> None:
    """A recording that failed leaves PyTorch's random numbers as if it went on; one that ends puts them right."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    torch.zeros((), device="cuda")
    graph.capture_end()


def _give_back(pool: tuple[int, int]) -> None:
    """Frees what a recording that failed had reserved: PyTorch before #190348 keeps it (seen with 2.11, by the same
    call), and a later one, which has freed it by itself, refuses."""
    gc.collect()
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
    torch.cuda.empty_cache()


def _fault(expected: Any, found: Any, tolerance: float) -> str | None:
    """What is wrong with a graph's outputs, or `None`."""
    ours, theirs = ([one.float() for one in tree_leaves(tree) if isinstance(one, Tensor)] for tree in (found, expected))
    if not alike(ours, theirs, tolerance, max(float(one.norm()) for one in theirs)):
        return "its outputs differ from those of the function itself"
    return None
