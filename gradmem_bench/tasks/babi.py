"""bAbI stories as BABILong publishes them (`yurakuratov/babilong_qa*_0k`: no distracting text)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def process_docs(dataset: "Dataset") -> "Dataset":
    """Strips the space that ends every context and query; `target` becomes the one accepted answer."""

    def document(row: dict) -> dict:
        return {
            "context": row["context"].strip(),
            "query": row["query"].strip(),
            "targets": [row["target"].strip()],
        }

    return dataset.map(document)
