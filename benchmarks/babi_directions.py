"""Which questions of bAbI's QA4 a method answers: those that take the direction, or only the others.

    python benchmarks/babi_directions.py leaderboards/babi_qa4

A story names three places in two sentences: "The office is north of the kitchen. The garden is south of the kitchen."
Asked of a place at an end, the answer is the one in the middle. Asked of the middle, it is one of the two ends. Where
the middle stands before "is north of" in one sentence and behind it in the other, the order of the question's words
tells which; where it stands on the same side in both, as above, nothing but the direction does.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gradmem_bench.errors import UserError
from gradmem_bench.registry import resolve
from gradmem_bench.results import ExampleRow, RunRecord, find_records, read_examples
from gradmem_bench.tasks.declaration import load_task

KINDS = ("an end is asked", "the middle, words tell", "the middle, only the direction tells")
_SENTENCE = re.compile(r"The (\w+) is \w+ of the (\w+)\.")


@dataclass(frozen=True)
class Asked:
    """What a question is of."""

    kind: str
    ends: frozenset[str]


def classified(context: str, query: str) -> Asked:
    """A story's question; raises UserError where the story is not two sentences about three places."""
    sentences = _SENTENCE.findall(context)
    if len(sentences) != 2 or len(middle := set(sentences[0]) & set(sentences[1])) != 1:
        raise UserError(f"This is no story of bAbI's QA4: {context}")
    (place,) = middle
    ends = frozenset(set(sentences[0]) ^ set(sentences[1]))
    if place not in re.findall(r"\w+", query):
        return Asked(KINDS[0], ends)
    return Asked(KINDS[2 if sentences[0].index(place) == sentences[1].index(place) else 1], ends)


def line(record: RunRecord, rows: list[ExampleRow], asked: dict[str, Asked]) -> list[str]:
    """The cells of one training."""
    name = record.method.name
    for parameter in ("inner_steps", "evaluation_inner_steps"):
        if (value := record.method.parameters.get(parameter)) is not None:
            name += f", {parameter} {value}"
    name += f", seed {record.training.seed}" if record.training else ""
    shares = []
    for kind in KINDS:
        right = [row.exact_match for row in rows if asked[row.example_id].kind == kind]
        shares.append(f"{sum(right) / len(right):.3f}" if right else "–")
    wrong = [row for row in rows if asked[row.example_id].kind == KINDS[2] and not row.exact_match]
    other = sum(row.prediction in asked[row.example_id].ends for row in wrong)
    return [name, f"{record.metrics['exact_match'].value:.3f}", *shares, f"{other} of {len(wrong)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+", help="runs on babi_qa4, or folders of them")
    paths = parser.parse_args().paths
    asked = {
        query.id: classified(document.context, query.text)
        for document in load_task(Path(resolve("task", "babi_qa4").target)).documents("test")
        for query in document.queries
    }
    kinds = [one.kind for one in asked.values()]
    table = Table("training", "exact match", *(f"{kind} ({kinds.count(kind)})" for kind in KINDS), "wrong: other end")
    for path, record in find_records(paths).items():
        if record.task.name != "babi_qa4":
            raise SystemExit(f"{path} is of {record.task.name}, and not of babi_qa4")
        table.add_row(*line(record, read_examples(path.parent), asked))
    Console().print(table)


if __name__ == "__main__":
    main()
