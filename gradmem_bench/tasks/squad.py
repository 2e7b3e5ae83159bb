"""SQuAD with the paragraph removed at READ, whole or cut to one sentence."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

# The end of a sentence: . ! or ?, closing quotes or brackets, white space, and then anything but a small letter...
_END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[^\sa-z])")
# ...unless the full stop belongs to an initial (U.S., J. Smith) or to one of these abbreviations.
_ABBREVIATION = re.compile(
    r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Gov|Sen|Rep|Gen|Col|Lt|Rev|Hon|Jr|Sr|vs|c|ca|cf|No|Vol|e\.g|i\.e)$"
)


def removed(dataset: "Dataset") -> "Dataset":
    """The whole paragraph is the context; every distinct reference answer is accepted, the first one first."""
    return _documents(dataset, short=False)


def removed_short(dataset: "Dataset") -> "Dataset":
    """The sentence that holds the first reference answer is the context (see `sentence`).

    The sentence is chosen with the label, as in the paper's short SQuAD: WRITE cannot fail to find the right place,
    and a score here says nothing about long contexts.
    """
    return _documents(dataset, short=True)


def context_question(dataset: "Dataset") -> "Dataset":
    """The paragraph and then the question are what is written: WRITE may keep what the question asks for, and no more.

    Each question makes a context of its own. By this design WRITE sees the query; such scores stand beside no others.
    """
    return _with_question(dataset, "{context}\nQuestion: {query}")


def question_context(dataset: "Dataset") -> "Dataset":
    """The same with the question before the paragraph."""
    return _with_question(dataset, "Question: {query}\n{context}")


def _with_question(dataset: "Dataset", form: str) -> "Dataset":
    return removed(dataset).map(lambda row: {"context": form.format(**row)})


def sentence(paragraph: str, start: int, length: int) -> str:
    """The sentence around `paragraph[start:start + length]`, without white space at its ends.

    A sentence ends with `.`, `!` or `?` (and quotes or brackets that close there) before white space and anything but
    a small letter; not after a single capital letter or a common abbreviation. It always holds the whole stretch: an
    end within it is passed over.
    """
    ends = [
        match.end()
        for match in _END.finditer(paragraph)
        if not (match[0].startswith(".") and _ABBREVIATION.search(paragraph[: match.start()]))
    ]
    first = max((end for end in ends if end <= start), default=0)
    last = min((end for end in ends if end >= start + length), default=len(paragraph))
    return paragraph[first:last].strip()


def _documents(dataset: "Dataset", short: bool) -> "Dataset":
    def document(row: dict) -> dict:
        answers = row["answers"]["text"]
        context = row["context"]
        if short:
            context = sentence(context, row["answers"]["answer_start"][0], len(answers[0]))
        return {"context": context, "query": row["question"].strip(), "targets": list(dict.fromkeys(answers))}

    return dataset.map(document)
