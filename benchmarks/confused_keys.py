"""Which keys a memory does not tell apart, from the records of a key-value task.

    python benchmarks/confused_keys.py leaderboards/small/kv_small

A key is *confused* where less than 0.9 of the questions for it are answered right. Which keys are is decided on every
other context, and what follows from it is measured on the rest: how often a confused key is answered right with another
of them in its context and without, how often every other key is, and how many of the wrong answers to confused keys are
the value of another of them. Chance would make the last figure the share of such values in a context's wrong ones.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gradmem_bench.errors import UserError
from gradmem_bench.registry import resolve
from gradmem_bench.results import RunRecord, find_records, read_examples
from gradmem_bench.statistics import estimate
from gradmem_bench.tasks.declaration import load_task

TOLD_APART = 0.9


@dataclass(frozen=True)
class Answer:
    """One question, and what was said."""

    context: str
    key: str
    pairs: dict[str, str]
    """Every key of the context and its value."""
    said: str

    @property
    def right(self) -> bool:
        return self.said == self.pairs[self.key]

    def others(self, keys: set[str]) -> set[str]:
        """The values that belong to other keys of the context out of `keys`, and not to this one too."""
        return {self.pairs[key] for key in keys & self.pairs.keys() if key != self.key} - {self.pairs[self.key]}


def answers(folder: Path, record: RunRecord) -> list[Answer]:
    """The rows of a record beside the contexts that they are about, which are generated again.

    Raises:
        UserError: the record is of another task, or of data that are not generated any more.
    """
    if "pairs" not in record.task.settings:
        raise UserError(f"{folder}: {record.task.name} has no keys and values")
    task = load_task(Path(resolve("task", record.task.name).target), record.task.settings)
    if task.source(record.task.split).content_hash != record.task.source.content_hash:
        raise UserError(f"{folder}: no record of the key-value data that this version generates")
    asked = {}
    for document in task.documents(record.task.split)[: record.task.contexts]:
        # A query is `?!key:`.
        keys = {query.id: query.text[2:-1] for query in document.queries}
        if len(keys) < task.settings.pairs:
            raise UserError(
                f"{folder}: not every key of a context is asked for, so that not all of its pairs are known"
            )
        pairs = {keys[query.id]: query.targets[0] for query in document.queries}
        asked |= {query: (key, pairs) for query, key in keys.items()}
    return [Answer(row.context_id, *asked[row.example_id], said=row.prediction) for row in read_examples(folder)]


def confused(found: Sequence[Answer]) -> set[str]:
    """The keys that are answered right less often than TOLD_APART."""
    right: dict[str, list[bool]] = defaultdict(list)
    for answer in found:
        right[answer.key].append(answer.right)
    return {key for key, own in right.items() if sum(own) < TOLD_APART * len(own)}


def share(values: Sequence[bool], contexts: Sequence[str]) -> str:
    """The share with its interval over contexts, and of how many."""
    if not values:
        return "none such"
    found = estimate(values, contexts, "proportion")
    interval = "" if found.low is None else f"[{found.low:.2f}, {found.high:.2f}]\n"
    return f"{found.value:.3f}\n{interval}n = {found.n:,}"


def line(folder: Path, record: RunRecord) -> list[str]:
    """A record's row of the table."""
    found = answers(folder, record)
    contexts = list(dict.fromkeys(answer.context for answer in found))
    chosen = set(contexts[::2])
    keys = confused([answer for answer in found if answer.context in chosen])
    rest = [answer for answer in found if answer.context not in chosen]
    own = [answer for answer in rest if answer.key in keys]
    beside = [answer for answer in own if answer.others(keys)]
    groups = [
        beside,
        [answer for answer in own if not answer.others(keys)],
        [answer for answer in rest if answer.key not in keys],
    ]
    wrong = [answer for answer in beside if not answer.right]
    return [
        f"{record.method.name}\n{record.config_hash[:8]}\nseed {record.training.seed}",
        f"{record.metrics['exact_match'].value:.3f}",
        " ".join(sorted(keys)) if len(keys) <= 6 else f"{len(keys)} of {len({answer.key for answer in found})}",
        *(share([answer.right for answer in group], [answer.context for answer in group]) for group in groups),
        share([answer.said in answer.others(keys) for answer in wrong], [answer.context for answer in wrong]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("records", nargs="+", type=Path, help="folders of runs, or folders that hold some")
    console = Console()
    table = Table(
        "run",
        "exact\nmatch",
        "confused\nkeys",
        "right, another\nbeside it",
        "right, none\nbeside it",
        "right,\nother keys",
        "wrong with\nanother's value",
        box=None,
        pad_edge=False,
    )
    try:
        for path, record in find_records(parser.parse_args().records).items():
            if record.training and record.method.role == "method":
                table.add_row(*line(path.parent, record))
    except UserError as error:
        parser.error(str(error))
    console.print(table)


if __name__ == "__main__":
    main()
