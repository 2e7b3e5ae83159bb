"""Reconstruction: the only query is for the context itself, to be written down again from the memory.

What is generated is the whole context, greedily and without the true tokens before each; `token_accuracy` is the
teacher-forced figure that GradMem's paper reports.
"""

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from gradmem_bench.tasks.base import Document, Query, Split
from gradmem_bench.tasks.kv_retrieval import KeyValueDocuments, KeyValueRetrieval

if TYPE_CHECKING:
    from datasets import Dataset

_QUERY = "|"


class KeyValueReconstruction(KeyValueRetrieval):
    """The contexts of key-value retrieval, to be rebuilt: `!KK:VV!...!KK:VV!` behind the query `|`."""

    @property
    def independent_values(self) -> None:
        return None

    @property
    def max_new_tokens(self) -> int:
        # The closing mark of a context is not asked for; the end-of-text token is.
        settings = self.settings
        return (settings.key_length + settings.value_length + 3) * (
            settings.pairs + round(settings.pairs * settings.noise)
        ) + 1

    def documents(self, split: Split) -> "RebuiltDocuments":
        return RebuiltDocuments(super().documents(split))


class RebuiltDocuments(Sequence[Document]):
    """Documents whose one query has the context as its answer; a slice is a list."""

    queries_per_context = 1

    def __init__(self, documents: KeyValueDocuments) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int | slice) -> Any:
        found = self._documents[index]
        return [_rebuilt(one) for one in found] if isinstance(index, slice) else _rebuilt(found)


def _rebuilt(document: Document) -> Document:
    answer = Query(f"{document.id}-all", _QUERY, (document.context.removesuffix("|"),))
    return Document(document.id, document.context, (answer,))


def dataset(**settings: Any) -> dict[str, "Dataset"]:
    """lm-eval's `custom_dataset`, as gradmem_bench.tasks.kv_retrieval.dataset."""
    import datasets

    from gradmem_bench.tasks.kv_retrieval import KeyValueSettings

    known = {key: value for key, value in settings.items() if key in KeyValueSettings.model_fields}
    task = KeyValueReconstruction({"task": "kv_rebuild", "dataset_kwargs": known})
    return {
        split: datasets.Dataset.from_list(
            [
                {
                    "id": one.queries[0].id,
                    "context": one.context,
                    "query": _QUERY,
                    "targets": [one.queries[0].targets[0]],
                }
                for one in task.documents(split)[: task.settings.test_contexts if split == "train" else None]
            ]
        )
        for split in ("train", "validation", "test")
    }


def passages(dataset: "Dataset", words: int) -> "Dataset":
    """Every paragraph's words, so many at a time, each passage once; what is left at its end is no passage.

    The first passage of every paragraph stands before the second of any: so the first rows are of many paragraphs.
    """
    taken: list[list[str]] = []
    for paragraph in dict.fromkeys(dataset["context"]):
        split = paragraph.split()
        taken.append([" ".join(split[first : first + words]) for first in range(0, len(split) - words + 1, words)])
    inorder = dict.fromkeys(passage for rank in zip_longest(*taken) for passage in rank if passage is not None)
    rows = [{"context": passage, "query": _QUERY, "targets": [passage]} for passage in inorder]
    return type(dataset).from_list(rows)


words_8, words_16, words_32, words_64 = (partial(passages, words=count) for count in (8, 16, 32, 64))
