"""The example rows behind a table, joined query by query."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gradmem_bench.errors import UserError
from gradmem_bench.results import ExampleRow, RunRecord

if TYPE_CHECKING:
    from numpy import ndarray


class Examples:
    """The example rows of the records in a table, every record's in the same order.

    Args:
        read: the example rows of a record.
    """

    def __init__(self, read: Callable[[RunRecord], Sequence[ExampleRow]]) -> None:
        self._read = read
        self._rows: dict[str, list[ExampleRow]] = {}
        self._first: RunRecord | None = None

    def rows(self, record: RunRecord, instead: str = "") -> list[ExampleRow]:
        """In the order of the first record that was asked for.

        Args:
            instead: a sentence for a message, how the table is made without them, if it can be.
        Raises:
            UserError: they are not the answers that the record counts, or not to the first record's queries.
        """
        if record.run_id not in self._rows:
            try:
                rows = list(self._read(record))
            except UserError as error:
                raise UserError(
                    f"{str(error).rstrip('.')}. Fetch the file, or make the run again. {instead}".rstrip()
                ) from None
            right = sum(row.exact_match for row in rows)
            stated = record.metrics["exact_match"]
            wrong = stated.value is not None and abs(right - stated.value * stated.n) > 1e-6 * stated.n
            if len(rows) != stated.n or wrong:
                share = "no share" if stated.value is None else f"{stated.value:.4f}"
                raise UserError(
                    f"The examples of {record.run_id} do not add up to its record: {right} of {len(rows)} are right, "
                    f"where it says {share} of {stated.n}."
                )
            if self._first is not None:
                rows = self._ordered(record, rows)
            self._first = self._first or record
            self._rows[record.run_id] = rows
        return self._rows[record.run_id]

    def _ordered(self, record: RunRecord, rows: list[ExampleRow]) -> list[ExampleRow]:
        by_id = {row.example_id: row for row in rows}
        ordered = []
        for one in self._rows[self._first.run_id]:
            other = by_id.get(one.example_id)
            if other is None or (other.context_id, other.targets) != (one.context_id, one.targets):
                trouble = "is not among the second's" if other is None else "has another context or other targets there"
                raise UserError(
                    f"The records {self._first.run_id} and {record.run_id} cannot be compared query by query: "
                    f"{one.example_id} {trouble}."
                )
            ordered.append(other)
        if len(rows) != len(ordered):
            raise UserError(
                f"The records {self._first.run_id} and {record.run_id} cannot be compared query by query: they answer "
                f"{len(ordered)} and {len(rows)} queries."
            )
        return ordered

    def scores(self, records: Iterable[RunRecord], name: str, instead: str = "") -> tuple["ndarray", list[str]]:
        """A metric's values (S, n), one row a record, and the contexts (n,); what belongs to a context counts once.

        Queries that have no such value in one of the records are left out: a task's own metric may not be for all.

        Raises UserError as `rows` does, with the sentence `instead`.
        """
        import numpy as np

        table = [self.rows(record, instead) for record in records]
        chosen = range(len(table[0]))
        if name == "reconstruction_nats_per_token":
            chosen = list({row.context_id: index for index, row in enumerate(table[0])}.values())
        chosen = [index for index in chosen if all(getattr(rows[index], name) is not None for rows in table)]
        values = np.array([[getattr(rows[index], name) for index in chosen] for rows in table], dtype=np.float64)
        return values, [table[0][index].context_id for index in chosen]
