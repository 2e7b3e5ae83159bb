"""Task files: lm-eval's YAML format, checked strictly, and the Task that a file declares.

The keys are those of lm-eval 0.4.13's TaskConfig. A key that would change what the model is asked there and is
not honoured here (few-shot examples, a description, choices...) is refused unless it holds lm-eval's own default,
so that one file never means two things. `metric_list`, `process_results` and `filter_list` say how lm-eval scores.
"""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gradmem_bench.config import (
    BackboneConfig,
    StrictModel,
    TrainingConfig,
    load_yaml,
    merge,
    validated,
)
from gradmem_bench.errors import UserError, did_you_mean
from gradmem_bench.lm_eval_names import PREFIX
from gradmem_bench.registry import Entry, load_object, task_description
from gradmem_bench.tasks.base import Task
from gradmem_bench.tasks.documents import Documents


class GenerationConfig(StrictModel):
    """How answers are generated; always greedily."""

    until: str | list[str]
    """Strings at which an answer ends, the end-of-text token apart."""
    max_gen_toks: int = Field(ge=1)
    """The most tokens of an answer, the end-of-text token included."""
    do_sample: Literal[False] = False
    temperature: float = Field(default=0, ge=0, le=0)


class TaskDeclaration(StrictModel):
    """One task file."""

    task: str
    task_alias: str | None = None
    tag: str | list[str] | None = None
    custom_dataset: str | None = None
    """lm-eval's way to generated data; the Task class is named by `metadata.class`."""
    dataset_path: str | None = None
    """A hub id, also a folder below the data folder; or `json` or `parquet` with `dataset_kwargs.data_files`."""
    dataset_name: str | None = None
    """The hub configuration, and a folder below `dataset_path`."""
    dataset_kwargs: dict[str, Any] = {}
    """The task's settings: what the class that reads it declares as its `Settings`."""
    training_split: str | None = None
    """What the data call the split that is trained on."""
    validation_split: str | None = None
    """The split that models are selected on; it is reported where there is no `test_split`, and they are then selected
    on a part of `training_split` that they are not trained on."""
    test_split: str | None = None
    """The reported split."""
    fewshot_split: str | None = None
    process_docs: str | None = None
    doc_to_text: str = "{{query}}"
    """A column, a jinja2 template over a row, or a `!function` of it."""
    doc_to_target: str | None = None
    """The same for the accepted answers; without it, the column `targets` or `target`."""
    doc_to_image: None = None
    doc_to_audio: None = None
    doc_to_choice: None = None
    unsafe_code: Literal[False] = False
    process_results: str | None = None
    use_prompt: None = None
    description: Literal[""] = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    fewshot_config: None = None
    num_fewshot: Literal[0] | None = None
    metric_list: list[dict[str, Any]] | None = None
    output_type: Literal["generate_until"] = "generate_until"
    generation_kwargs: GenerationConfig
    repeats: Literal[1] = 1
    filter_list: list[dict[str, Any]] | None = None
    should_decontaminate: Literal[False] = False
    doc_to_decontamination_query: None = None
    gen_prefix: None = None
    metadata: dict[str, Any] = {}
    """What lm-eval leaves free; these keys are read here, and others may stand beside them."""


class TaskMetadata(StrictModel):
    """The keys of a task file's `metadata:` that are read here; others may stand beside them."""

    version: float | int | str = 0
    description: str | dict[str, str] = ""
    """What the task is, in a line; where tasks share it through `include`, a line for each by its name."""
    citation: str = ""
    implementation: str | None = Field(default=None, alias="class", pattern=r"^[\w.]+:\w+$")
    """`module:Class` of a Task that makes its own documents; without it the task reads a data set."""
    normalize_answers: bool = True
    """Score under SQuAD's normalisation (text) rather than letter by letter (symbols)."""
    truncate_contexts: bool = False
    """Cut, and count, contexts longer than the backbone's positions rather than refuse them."""
    backbone: dict[str, Any] = {}
    """The default backbone, as in BackboneConfig."""
    training: dict[str, Any] = {}
    """The default training, as in TrainingConfig."""


def check_declaration(values: dict[str, Any], where: str) -> None:
    """Raises UserError, one sentence naming `where` and the key, when `values` is no task declaration."""
    _check_generation(values.get("generation_kwargs", {}), where)
    validated(TaskDeclaration, values, where)
    known = {field.alias or name for name, field in TaskMetadata.model_fields.items()}
    metadata = values.get("metadata", {})
    for key in set(metadata) - known:
        # Free keys are lm-eval's custom; one that all but spells a known key is a slip that would go unnoticed.
        if get_close_matches(str(key), known, n=1, cutoff=0.8):
            raise UserError(f"{where}: metadata has no key '{key}'.{did_you_mean(str(key), known)}")
    validated(TaskMetadata, {key: metadata[key] for key in known & set(metadata)}, f"{where}: metadata")
    if metadata.get("backbone"):
        validated(BackboneConfig, metadata["backbone"], f"{where}: metadata.backbone")
    validated(TrainingConfig, metadata.get("training", {}), f"{where}: metadata.training")


def _check_generation(given: Any, where: str) -> None:
    """Refuses what leaves open when an answer ends: lm-eval fills it in, and each of its models does."""
    # What is no mapping, or has a misspelt key, has a sentence of its own.
    if not isinstance(given, dict) or given.keys() - GenerationConfig.model_fields.keys():
        return
    filled = {"until": ["\n"], "max_gen_toks": 32} | given
    if filled.keys() != given.keys():
        raise UserError(
            f"{where} leaves open when an answer ends, which lm-eval would fill in; write generation_kwargs: "
            f"{json.dumps(filled, default=str)}, or values of your own."
        )


def load_task(path: Path, settings: dict[str, Any] | None = None) -> Task:
    """The task declared in `path`, with `settings` laid over its `dataset_kwargs`; lm-eval's own behind `lm_eval:`.

    Raises:
        UserError: the file is missing or is no task declaration, a setting is unknown, or the class it names cannot
            be imported. No data are read yet.
    """
    if str(path).startswith(PREFIX):
        from gradmem_bench.tasks.lm_eval_task import LmEvalTask

        return LmEvalTask(path, settings)
    values = load_yaml(path)
    if "group" in values:
        raise UserError(f"{path} declares the group '{values['group']}', not a task; name one of {values.get('task')}.")
    check_declaration(values, str(path))
    if settings:
        try:
            return _task(merge(values, {Task.settings_key: settings}), path)
        except UserError as error:
            told = ", ".join(f"task.{key}={value}" for key, value in settings.items())
            raise UserError(f"With {told}, {error}") from None
    return _task(values, path)


def _task(values: dict[str, Any], path: Path) -> Task:
    if isinstance(values.get("metadata", {}).get("description"), dict):
        described = {"description": task_description(values, values["task"])}
        values["metadata"] = values["metadata"] | described
    implementation = values.get("metadata", {}).get("class")
    if implementation is None:
        return Documents(values, path)
    task_class = load_object(implementation, Entry("task", values["task"], str(path), str(path.parent)))
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise UserError(f"{path}: metadata.class is {implementation}, which is no subclass of {Task.__module__}.Task.")
    return task_class(values, path)
