"""The contract of a task: documents, each a context that is removed and the queries asked of it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Query:
    """One question to a memory."""

    id: str
    """Unique within the task and split; pairs the rows of two methods."""
    text: str
    """What stands after the memory, up to where the answer begins."""
    targets: tuple[str, ...]
    """Every accepted answer; the first is the one trained on and teacher-forced."""
    choices: tuple[str, ...] = ()
    """What may be chosen by log-likelihood, each as it stands behind the text (lm-eval's multiple choice)."""


@dataclass(frozen=True)
class Document:
    """A context that is written once, and every query that is asked of it."""

    id: str
    context: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Source:
    """Where a split's documents come from, for the record (design law 6)."""

    location: str
    """Hub id, path relative to the data folder, or `generated`."""
    revision: str | None
    """The hub commit that was loaded; `None` for local files and generated data."""
    content_hash: str | None
    """SHA-256 of the local file, or of the generator's settings."""
    rows: int
    """Queries in the split, before any limit."""

    @property
    def identity(self) -> str | None:
        """What tells these data from others of their location."""
        return self.content_hash or self.revision


class Task(ABC):
    """A context-removal task, as declared in one YAML file in lm-eval's format.

    A subclass says where documents come from; everything else is in the declaration, whose keys are lm-eval's.
    """

    settings_key: ClassVar[str] = "dataset_kwargs"
    """The YAML key that `--set task.KEY=VALUE` and a curriculum's stages write to."""

    def __init__(self, declaration: dict[str, Any], path: Path | None = None) -> None:
        """`declaration` is the YAML file's mapping (see `gradmem_bench.tasks.declaration`), `path` where it stands."""
        self.declaration = declaration
        self.path = path

    @property
    def name(self) -> str:
        return self.declaration["task"]

    @property
    def metadata(self) -> dict[str, Any]:
        """The free `metadata:` of the YAML: `version`, the default `backbone` and `training`, a citation."""
        return self.declaration.get("metadata", {})

    @property
    def target_delimiter(self) -> str:
        """What stands between a query and its target (lm-eval's key of that name)."""
        return self.declaration.get("target_delimiter", " ")

    @property
    def text_metrics(self) -> bool:
        """Whether answers are scored under SQuAD's normalisation (text) or letter by letter (symbols)."""
        return self.metadata.get("normalize_answers", True)

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer, the end-of-text token included."""
        return self.declaration["generation_kwargs"]["max_gen_toks"]

    @property
    def until(self) -> tuple[str, ...]:
        """Strings at which a generated answer ends, the end-of-text token apart."""
        until = self.declaration["generation_kwargs"]["until"]
        return (until,) if isinstance(until, str) else tuple(until)

    @property
    def truncate_contexts(self) -> bool:
        """Whether a context longer than the backbone's positions is cut (and counted) rather than refused."""
        return self.metadata.get("truncate_contexts", False)

    @property
    def own_metric(self) -> str:
        """The name of the metric that `own_score` gives; empty where the task has none of its own."""
        return ""

    def own_score(self, query: Query, answer: str, likelihoods: Sequence[tuple[float, bool]]) -> float | None:
        """The task's own metric of an answer, or of its choices: the log-likelihood of each, and whether greedy."""
        return None

    @property
    def independent_values(self) -> tuple[int, float] | None:
        """How many values a context holds, independent and each uniform over its choices, and the bits of one.

        `None` where the answers are not known to be such values.
        """
        return None

    @abstractmethod
    def documents(self, split: Split) -> Sequence[Document]:
        """The split's documents; indexable, and cheap to take slices of. Raises UserError where it has none."""

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Where `documents(split)` comes from."""

    def content_hash(self, split: Split) -> str | None:
        """SHA-256 of the file that holds the split here; `None` where there is none, and no hub is asked."""
        return None

    def seen_in_training(self, split: Split) -> frozenset[str] | None:
        """Ids of the split's queries that `documents("train")` hold with the same context; `None`: not known."""
        return None

    @property
    def declared_settings(self) -> dict[str, Any]:
        """The settings that its file, or whoever made it, names; others are at their defaults."""
        return self.declaration.get(self.settings_key) or {}

    @property
    def declared(self) -> dict[str, Any]:
        """All that its file declares, with what it includes, but for the settings."""
        return {key: value for key, value in self.declaration.items() if key != self.settings_key}

    def code_files(self) -> list[Path]:
        """The files of the code that makes its documents, those of its class and of functions that it declares."""
        return [Path(inspect.getfile(type(self)))]

    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The task's own tokenizer for backbones that have none, or `None`."""
        return None
