"""Which part of a data set is trained on, selected on and reported."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

from gradmem_bench.errors import UserError
from gradmem_bench.tasks.base import Document, Split, Task

HELD_OUT_FRACTION = 0.05
HELD_OUT_LIMIT = 500


class Plan(NamedTuple):
    """Which split of the data set serves as which split of the task."""

    data_split: str
    held_out: bool | None
    """True: only the documents held out of it; False: only the others; None: all of them."""

    @property
    def part(self) -> str:
        """What a source says of it behind the split's name."""
        return {None: "", True: " (held-out part)", False: " (without the held-out part)"}[self.held_out]


class SplitTask(Task):
    """A task over a data set's own splits.

    The reported split is never the one that models are selected on. Where there is a test split, `test` and
    `validation` are the data's own. Where there is none, `test` is the data's validation split, and `validation` is
    held out of the training split: the 5 % of its documents, at most 500, whose contexts have the smallest SHA-256.
    `train` is then the rest.
    """

    def __init__(self, declaration: dict[str, Any], path: Path | None = None) -> None:
        super().__init__(declaration, path)
        self._where = str(path or self.name)
        self._grouped: dict[str, list[Document]] = {}

    @property
    @abstractmethod
    def _splits(self) -> dict[str, str | None]:
        """train, validation, test -> the data's name for it; `None` where it has none."""

    @abstractmethod
    def _group(self, data_split: str) -> list[Document]:
        """The documents of one of the data's splits, each named by its context's SHA-256."""

    @abstractmethod
    def _missing(self, split: Split) -> str:
        """Why there are no data for `split`, as a clause."""

    def documents(self, split: Split) -> list[Document]:
        """The split's documents, in the order in which their contexts first appear."""
        plan = self._plan(split)
        documents = self._all(plan.data_split)
        if plan.held_out is None:
            return documents
        if len(documents) < 2:
            raise UserError(
                f"{self._where}: '{plan.data_split}' has {len(documents)} context, too few to hold one out for "
                "validation; it takes 2, or a validation split."
            )
        count = min(HELD_OUT_LIMIT, max(1, round(HELD_OUT_FRACTION * len(documents))))
        held_out = set(sorted(document.id for document in documents)[:count])
        return [document for document in documents if (document.id in held_out) == plan.held_out]

    def seen_in_training(self, split: Split) -> frozenset[str] | None:
        """Ids of the split's queries that the train split has too, by the letter; `None` where there is no train split.

        Data sets repeat themselves: of bAbI's QA4, which has few possible stories, most reported questions are seen.
        """
        try:
            trained = self.documents("train")
        except UserError:
            return None
        seen = {(document.id, query.text) for document in trained for query in document.queries}
        return frozenset(
            query.id
            for document in self.documents(split)
            for query in document.queries
            if (document.id, query.text) in seen
        )

    def _all(self, data_split: str) -> list[Document]:
        if data_split not in self._grouped:
            self._grouped[data_split] = self._group(data_split)
        return self._grouped[data_split]

    def _plan(self, split: Split) -> Plan:
        if split not in self._splits:
            raise UserError(f"There is no split '{split}'; a task has train, validation and test.")
        names = self._splits
        holds_out = names["test"] is None or names["validation"] is None
        if split == "test" and (names["test"] or names["validation"]):
            return Plan(names["test"] or names["validation"], None)
        if split == "validation" and not holds_out:
            return Plan(names["validation"], None)
        if split != "test" and names["train"]:
            return Plan(names["train"], (split == "validation") if holds_out else None)
        raise UserError(f"{self._where} has no data for '{split}': {self._missing(split)}.")
