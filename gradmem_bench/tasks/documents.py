"""Tasks whose documents are rows of a data set, grouped by context."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from gradmem_bench.config import FunctionReference, StrictModel, validated
from gradmem_bench.errors import UserError
from gradmem_bench.hashing import file_hash
from gradmem_bench.tasks.base import Document, Query, Source, Split
from gradmem_bench.tasks.sources import DATA_VARIABLE, SUFFIXES, Row, Rows, load_from_hub, local_file, read_local
from gradmem_bench.tasks.splits import SplitTask
from gradmem_bench.tasks.templates import columns, listed, renderer

_FILE_FORMATS = ("json", "parquet")


class DocumentsSettings(StrictModel):
    """`dataset_kwargs` of a task that reads a data set."""

    data_files: dict[str, str] = {}
    """Split -> JSONL or Parquet file, relative to the YAML's folder; with `dataset_path: json` or `parquet`."""
    revision: str | None = None
    """The hub commit, branch or tag to load."""


class Documents(SplitTask):
    """Rows with a context, a query and its accepted answers; rows with one and the same context are one Document.

    Rows come from `<data folder>/<dataset_path>/<split>.jsonl` (`.jsonl.xz`, `.parquet`) when the data folder has
    any split of the data set, else from the hub; a split that the local folder lacks counts as not declared.
    """

    def __init__(self, declaration: dict[str, Any], path: Path | None = None) -> None:
        super().__init__(declaration, path)
        where = self._where
        self.settings = validated(
            DocumentsSettings, declaration.get(self.settings_key, {}), f"{where}: {self.settings_key}"
        )
        self._dataset = declaration.get("dataset_path")
        if self._dataset is None:
            raise UserError(f"{where} needs a dataset_path, or a metadata.class that makes its own documents.")
        if (self._dataset in _FILE_FORMATS) != bool(self.settings.data_files):
            raise UserError(
                f"{where}: dataset_path '{_FILE_FORMATS[0]}' or '{_FILE_FORMATS[1]}' and data_files go together."
            )
        self._rows: dict[str, Rows] = {}

    def source(self, split: Split) -> Source:
        """Where the split comes from; the location says so where it is a part of a data split."""
        plan, documents = self._plan(split), self.documents(split)
        rows = self._read(plan.data_split)
        location = f"{rows.location}:{plan.data_split}" if rows.content_hash is None else rows.location
        return Source(
            location + plan.part, rows.revision, rows.content_hash, sum(len(document.queries) for document in documents)
        )

    def content_hash(self, split: Split) -> str | None:
        file = self._file(self._plan(split).data_split)
        return file_hash(file) if file is not None and file.is_file() else None

    def code_files(self) -> list[Path]:
        declared = {key: self.declaration.get(key) for key in ("process_docs", "doc_to_text", "doc_to_target")}
        files = [
            function_file(reference, self._beside, f"{self._where}: {key}")
            for key, reference in declared.items()
            if isinstance(reference, FunctionReference)
        ]
        return [*super().code_files(), *filter(None, files)]

    # ------------------------------------------------------------------------------------------ splits

    @cached_property
    def _splits(self) -> dict[str, str | None]:
        """train, validation, test -> the data's name for it; `None` where it has none."""
        keys = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
        splits = {split: self.declaration.get(key) for split, key in keys.items()}
        if self.settings.data_files or self._is_local:
            splits = {split: name if name and self._file(name) else None for split, name in splits.items()}
        return splits

    def _missing(self, split: Split) -> str:
        key = {"train": "training_split", "validation": "training_split", "test": "validation_split"}[split]
        name = self.declaration.get(key)
        if name is None:
            return f"it declares no {key}"
        return f"there is no file for its {key} '{name}' ({'; '.join(self._looked_at(name))})"

    # -------------------------------------------------------------------------------------------- rows

    @property
    def _folder(self) -> str:
        name = self.declaration.get("dataset_name")
        return f"{self._dataset}/{name}" if name else self._dataset

    @cached_property
    def _is_local(self) -> bool:
        # One split found locally decides for all: a table must not mix a local subset with the hub's data.
        keys = ("training_split", "validation_split", "test_split")
        return any(local_file(self._folder, name) for key in keys if (name := self.declaration.get(key)))

    @property
    def _beside(self) -> Path | None:
        return self.path.parent if self.path else None

    def _file(self, data_split: str) -> Path | None:
        if not self.settings.data_files:
            return local_file(self._folder, data_split)
        file = self.settings.data_files.get(data_split)
        return (self._beside or Path()) / file if file else None

    def _looked_at(self, data_split: str) -> list[str]:
        if self.settings.data_files:
            return [f"data_files names {', '.join(sorted(self.settings.data_files))}"]
        folder = os.environ.get(DATA_VARIABLE)
        if not folder:
            return [f"{DATA_VARIABLE} is not set"]
        return [f"{Path(folder) / self._folder / data_split}{{{','.join(SUFFIXES)}}} does not exist"]

    def _read(self, data_split: str) -> Rows:
        if data_split not in self._rows:
            file = self._file(data_split)
            if self.settings.data_files:
                rows = read_local(file, self.settings.data_files[data_split])
            elif file is not None:
                rows = read_local(file, f"{self._folder}/{file.name}")
            else:
                name, revision = self.declaration.get("dataset_name"), self.settings.revision
                rows = load_from_hub(self._dataset, name, data_split, revision, self._looked_at(data_split))
            self._rows[data_split] = rows
        return self._rows[data_split]

    def _process(self, rows: Rows) -> list[Row]:
        reference = self.declaration.get("process_docs")
        if reference is None:
            return rows.rows
        import datasets
        import pyarrow

        function = resolve_function(reference, self._beside, f"{self._where}: process_docs")
        quiet = not datasets.are_progress_bars_disabled()
        if quiet:
            datasets.disable_progress_bars()
        try:
            return function(datasets.Dataset.from_list(rows.rows)).to_list()
        except pyarrow.ArrowException as error:
            raise UserError(f"{rows.location}: a column holds values of different kinds ({error}).") from error
        except KeyError as error:
            raise UserError(
                f"{rows.location} has no column {error}, which process_docs ({reference}) needs."
            ) from error
        finally:
            if quiet:
                datasets.enable_progress_bars()

    # --------------------------------------------------------------------------------------- documents

    def _group(self, data_split: str) -> list[Document]:
        found = self._read(data_split)
        unit = "document" if self.declaration.get("process_docs") else "line"
        render_text = self._field("doc_to_text", "{{query}}")
        render_target = self._field("doc_to_target", None)
        queries: dict[str, list[Query]] = {}
        seen: dict[str, int] = {}
        for index, row in enumerate(self._process(found)):
            where = f"{found.location}, {unit} {index + 1}"
            context = row.get("context")
            if not isinstance(context, str) or not context:
                raise UserError(f"{where}: the column 'context' should hold a text, {_what(row, 'context')}.")
            if render_target is None:
                key = "targets" if "targets" in row else "target"
                targets, shown = row.get(key), _what(row, key)
            else:
                key, targets = "doc_to_target", render_target(row, where)
                shown = f"and gives {targets!r}"
            # A mapping, or what has no parts, is no list of texts: a mapping's keys would be taken for answers.
            several = tuple(targets) if isinstance(targets, list | tuple) else ()
            targets = (targets,) if isinstance(targets, str) else several
            if not targets or not all(isinstance(target, str) and target for target in targets):
                asked = "'targets' (or 'target')" if render_target is None and key == "target" else f"'{key}'"
                raise UserError(f"{where}: {asked} should hold a text or a list of texts, {shown}.")
            identity = str(row["id"]) if row.get("id") is not None else f"{data_split}-{index}"
            if identity in seen:
                raise UserError(f"{where}: the id '{identity}' stands at {unit} {seen[identity]} already.")
            seen[identity] = index + 1
            text = render_text(row, where)
            if not isinstance(text, str):
                raise UserError(f"{where}: doc_to_text should give a text, and gives {text!r}.")
            if context in text:
                raise UserError(
                    f"{where}: the query holds the context, which is removed before it is asked; leave it out."
                )
            queries.setdefault(context, []).append(Query(identity, text, targets))
        if not queries:
            raise UserError(f"{found.location}: no document is left after process_docs.")
        return [Document(sha256(c.encode()).hexdigest()[:16], c, tuple(asked)) for c, asked in queries.items()]

    def _field(self, key: str, default: str | None) -> Callable[[Row, str], Any] | None:
        """What `doc_to_text` or `doc_to_target` makes of a row: a function's value, a column's, or a template's."""
        declared = self.declaration.get(key, default)
        if declared is None:
            return None
        if isinstance(declared, FunctionReference):
            function = resolve_function(declared, self._beside, f"{self._where}: {key}")

            def call(row: Row, where: str) -> Any:
                try:
                    return function(row)
                except KeyError as error:
                    raise UserError(f"{where} has no column {error}, which {key} ({declared}) needs.") from error

            return call
        make = renderer(declared, key, self._where)
        if key == "doc_to_text" and "context" in columns(declared):
            raise UserError(
                f"{self._where}: doc_to_text holds the context, which is removed before a query is asked; leave it out."
            )

        def render(row: Row, where: str) -> Any:
            if declared in row:
                return row[declared]
            if declared.isidentifier():
                # To lm-eval it would be the answer itself, the same for every row.
                raise UserError(f"{where}: {key} names the column '{declared}'; the columns are {', '.join(row)}.")
            text = make(row, where)
            return listed(text) if key == "doc_to_target" else text

        return render


def resolve_function(reference: str, folder: Path | None, where: str) -> Callable:
    """The function behind lm-eval's `!function a.b.name`: `a/b.py` in `folder` first, then the importable module `a.b`.

    Raises UserError, naming `where`, when neither has it.
    """
    if not isinstance(reference, FunctionReference):
        raise UserError(f"{where} is '{reference}', but a function was expected: !function package.module.name.")
    module_name, _, name = reference.rpartition(".")
    file = _file_beside(module_name, folder)
    try:
        if file is not None:
            spec = importlib.util.spec_from_file_location(str(file.resolve().with_suffix("")), file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise UserError(f"{where} names the function '{reference}', which cannot be imported ({error}).") from error


def function_file(reference: str, folder: Path | None, where: str) -> Path | None:
    """The file that `resolve_function` finds the function in; `None` where its module has none (`builtins`).

    Raises UserError, naming `where`, when there is no such module.
    """
    module_name = reference.rpartition(".")[0]
    if (file := _file_beside(module_name, folder)) is not None:
        return file
    try:
        found = getattr(importlib.import_module(module_name), "__file__", None)
    except (ImportError, ValueError) as error:
        raise UserError(f"{where} names the function '{reference}', which cannot be imported ({error}).") from error
    return Path(found) if found else None


def _file_beside(module_name: str, folder: Path | None) -> Path | None:
    file = folder / f"{module_name.replace('.', '/')}.py" if folder and module_name else None
    return file if file is not None and file.is_file() else None


def _what(row: Row, column: str) -> str:
    return f"and holds {row[column]!r}" if column in row else f"and is missing; the columns are {', '.join(row)}"
