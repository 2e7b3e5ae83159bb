"""What a record says of costs: the sizes of states, the phases, and what follows from them."""

from collections.abc import Sequence
from typing import Literal

from gradmem_bench.config import StateDtype
from gradmem_bench.metrics import recalled_bits
from gradmem_bench.results.part import Part
from gradmem_bench.statistics import Estimate


class Measured(Part):
    """One size over all contexts."""

    mean: float
    min: float
    max: float

    @classmethod
    def of(cls, sizes: Sequence[float]) -> "Measured":
        """Of at least one size."""
        return cls(mean=sum(sizes) / len(sizes), min=min(sizes), max=max(sizes))


class MeasuredFootprint(Part):
    """What the states cost, measured on the states (design law 2)."""

    state_bytes: Measured
    """Serialised payload per context, in bytes."""
    read_positions: Measured
    """Positions before the query at READ, per context."""
    read_kv_bytes: Measured
    """Bytes of KV that those positions hold while answering, per context."""
    context_tokens: float
    """Mean length of a context, in the backbone's tokens."""
    bytes_per_context_token: float
    """State bytes over context tokens, summed over contexts."""
    state_dtype: StateDtype = "float32"
    """What the state's floating-point tensors were stored as, where that is narrower than their own dtype."""


class Quantity(Part):
    """A number, or why there is none."""

    value: float | None
    """The number."""
    reason: str | None = None
    """Why there is none."""


class PhaseCosts(Part):
    """What one phase costs, measured apart from all others, for one row of its batch: a context or a query."""

    flops: Quantity
    """Floating-point operations of the matrix products for the context of median length, two for each multiplication;
    attention counts masked positions too, whatever kernel the phase is otherwise run with."""
    seconds: float
    """Median wall-clock seconds."""
    seconds_low: float
    """Their lower quartile."""
    seconds_high: float
    """Their upper quartile."""
    repetitions: int
    """Times that the whole batch was timed, after a warm-up; 1 where one took more than five seconds."""
    batch_size: int
    """Rows that were worked on together."""
    peak_bytes: Quantity
    """Device memory above what was allocated before, at its highest, of the whole batch."""


class Alternative(Part):
    """Another way to the same answers, measured on the same contexts, queries and backbone."""

    write: PhaseCosts | None
    """WRITE of one context; `None` where nothing is written."""
    read: PhaseCosts | None
    """READ of one query; `None` where the backbone cannot do it, for the reason that the quantities give."""
    break_even_flops: Quantity
    """The fewest queries of one context for which WRITE once and READ each time take fewer FLOPs than this."""
    break_even_seconds: Quantity
    """The same in seconds."""
    state_bytes_saved: Quantity
    """Bytes per context that are stored less than here, its state being in the same dtype; negative where more are."""
    read_kv_bytes_saved: Quantity
    """Bytes of KV per query that are resident less than here while it is answered."""


class Costs(Part):
    """What WRITE and READ cost."""

    write_seconds_per_context: float
    """Seconds of WRITE per context, at `batch_size`."""
    read_seconds_per_query: float
    """Seconds of READ and generation per query, at `batch_size`."""
    batch_size: int
    """Contexts written, or queries answered, at a time."""
    context_tokens: float | None = None
    """Mean length of the contexts that costs were measured on, in the backbone's tokens."""
    answer_tokens: int | None = None
    """The most tokens that were generated for a query: those of the longest target, and the end of the text."""
    whole_answers: bool = False
    """Whether READ made all of them for every query; in earlier records an answer ended where the weights ended it."""
    write: PhaseCosts | None = None
    """WRITE, for one context: from its tokens to its state, which is not yet serialised."""
    read: PhaseCosts | None = None
    """READ, for one query: from a state's bytes to the generated answer."""
    reread_text: Alternative | None = None
    """The context's text, stored as it is and read again before every query."""
    keep_kv_cache: Alternative | None = None
    """The context's KV cache, stored; `None` for the method that does that."""

    def flops(self, phase: Literal["write", "read"]) -> Quantity:
        """The operations of one WRITE or READ, or why they are not known."""
        found: PhaseCosts | None = getattr(self, phase)
        if found is None:
            return Quantity(value=None, reason="the phases were not measured apart")
        return found.flops


class Capacity(Part):
    """What a state holds of values that are independent of each other and each uniform over its choices.

    A value that is recalled with probability p is known to at least log2 M - h(p) - (1 - p) log2(M - 1) bits (Fano's
    inequality, M the number of choices, h the binary entropy): nothing at chance, all of log2 M where p is 1.
    """

    values: int
    """Values in a context."""
    value_bits: float
    """log2 M, in bits."""
    recalled_bits: float | None
    """The least that states hold of all values of their context, in bits, at the measured exact match."""
    recalled_bits_low: float | None
    """The same at the lower bound of exact match."""
    recalled_bits_high: float | None
    """The same at its upper bound."""
    bits_per_state_byte: Quantity
    """`recalled_bits` over the mean state bytes."""

    @classmethod
    def of(cls, values: int, value_bits: float, exact_match: Estimate, state_bytes: float) -> "Capacity":
        """Of states of a mean size, from which so many of their values are recalled."""
        low, value, high = (
            None if share is None else values * recalled_bits(share, value_bits)
            for share in (exact_match.low, exact_match.value, exact_match.high)
        )
        if value is None:
            density = Quantity(value=None, reason=exact_match.reason)
        elif not state_bytes:
            density = Quantity(value=None, reason="the state has no bytes")
        else:
            density = Quantity(value=value / state_bytes)
        return cls(
            values=values,
            value_bits=value_bits,
            recalled_bits=value,
            recalled_bits_low=low,
            recalled_bits_high=high,
            bits_per_state_byte=density,
        )
