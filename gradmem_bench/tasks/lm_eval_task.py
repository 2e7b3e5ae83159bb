"""lm-eval's own tasks, with the context cut out of the prompt: it is written, and the rest is asked of its state.

lm-eval makes the prompt, the choices and the score; what is cut is declared (`context`, or the table of
`gradmem_bench.lm_eval_names`).
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradmem_bench.config import StrictModel, load_yaml, validated
from gradmem_bench.errors import UserError
from gradmem_bench.lm_eval_names import KNOWN, PREFIX
from gradmem_bench.tasks.base import Document, Query, Source, Split
from gradmem_bench.tasks.sources import local_file
from gradmem_bench.tasks.splits import SplitTask
from gradmem_bench.tasks.templates import listed, renderer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SUMMARIES = ("string match",)
"""Names here for metrics that lm-eval names by a context's length."""
_BESIDE_CHOICES = 32
"""The most tokens of the answer that is generated where lm-eval itself asks for the likeliest choice alone."""


class LmEvalSettings(StrictModel):
    """What `--set task.KEY` sets of lm-eval's task."""

    context: str
    """A column, or a jinja2 template over a document: what is cut out of its prompt, and written."""
    metric: str = ""
    """lm-eval's own metric that is reported; empty is the first that the task gives."""
    targets: str = ""
    """A template for the accepted answers, where the task's doc_to_target is not one."""
    truncate_contexts: bool = False
    """Cut, and count, contexts longer than the backbone's positions rather than refuse them."""
    metadata: dict[str, Any] = {}
    """What lm-eval's `--metadata` takes (RULER: `tokenizer`, `max_seq_lengths`)."""


class LmEvalTask(SplitTask):
    """A task of lm-eval's whose prompts hold a context.

    Args:
        path: `lm_eval:` and the task's YAML file.
        settings: laid over what the table of known tasks has for it.
    Raises:
        UserError: nothing says what the context is, or a setting is unknown.
    """

    def __init__(self, path: Path, settings: dict[str, Any] | None = None) -> None:
        self._file = Path(str(path).removeprefix(PREFIX))
        self._name = load_yaml(self._file).get("task")
        if not isinstance(self._name, str):
            raise UserError(f"{self._file} declares no task of lm-eval's: the key 'task' is {self._name!r}.")
        known = KNOWN.get(self._name)
        values = {key: getattr(known, key) for key in ("context", "metric", "targets")} if known else {}
        values |= settings or {}
        if "context" not in values:
            raise UserError(
                f"Nothing says which part of the prompts of lm-eval's '{self._name}' is the context: add --set "
                f"task.context=COLUMN. Known: {', '.join(KNOWN)}."
            )
        self.settings = validated(LmEvalSettings, values, f"{PREFIX}{self._name}: {self.settings_key}")
        declaration = {
            "task": f"lm_eval_{self._name}",
            self.settings_key: self.settings.model_dump(),
            "metadata": {"version": f"lm-eval {version('lm_eval')}", "description": f"lm-eval's {self._name}"},
        }
        super().__init__(declaration, path)
        self._docs: dict[str, dict[str, Any]] = {}

    # -------------------------------------------------------------------------------- lm-eval's own task

    @cached_property
    def _task(self) -> "ConfigurableTask":
        import datasets
        from lm_eval.tasks import TaskManager

        from gradmem_bench.hub import wait_briefly

        wait_briefly()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        noisy = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        metadata = self.settings.metadata
        try:
            manager = TaskManager(include_path=str(self._file.parent), include_defaults=False, metadata=metadata)
            keys = local_data(load_yaml(self._file))
            if keys:
                self._check_found(manager.task_index[self._name].yaml_path)
            # A group is lm-eval's own way to change keys of a task; its members are found by name.
            changed = {"group": "changed", "task": [{"task": self._name, **keys}]}
            loaded = manager.load([changed if keys else str(self._file)])
        except (OSError, ValueError, ImportError, AssertionError, datasets.exceptions.DatasetGenerationError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(f"lm-eval's task '{self._name}' cannot be loaded: {reason}.") from None
        finally:
            if noisy:
                datasets.enable_progress_bars()
        (task,) = loaded["tasks"].values()
        task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=0)
        return task

    def _check_found(self, found: Path) -> None:
        """Raises UserError where lm-eval, which looks a task up by its name, would take another file's."""
        if found.resolve() != self._file.resolve():
            raise UserError(
                f"{found} declares a task '{self._name}' as well, which lm-eval would take for that of {self._file}; "
                "give one of them another name, or a folder of its own."
            )

    def _request(self, doc: dict[str, Any], where: str) -> "list[Instance]":
        """What lm-eval would ask of a document: one generation, or a log-likelihood for each choice."""
        prompt = self._task.fewshot_context(doc, num_fewshot=0, gen_prefix=self._task.doc_to_prefix(doc))
        made = self._task.construct_requests(doc=doc, ctx=prompt, metadata=(self._name, 0, 1))
        requests = made if isinstance(made, list) else [made]
        kinds = {request.request_type for request in requests}
        if kinds not in ({"generate_until"}, {"loglikelihood"}) or len({request.args[0] for request in requests}) > 1:
            raise UserError(
                f"{where}: lm-eval's task asks for {' and '.join(sorted(kinds))} of several prompts or kinds, but one "
                "prompt was expected, for an answer or for the choice of one."
            )
        return requests

    @cached_property
    def _generation(self) -> dict[str, Any]:
        """How the answer to the first document is generated, with the defaults of lm-eval's own models; nothing of it
        differs from document to document."""
        from lm_eval.models.utils import normalize_gen_kwargs

        split = self._splits["test"] or self._splits["validation"]
        first = self._request(next(iter(self._lm_eval_docs(split))), self._name)[0]
        if first.request_type != "generate_until":
            return {"until": [], "max_gen_toks": _BESIDE_CHOICES}
        return normalize_gen_kwargs(first.args[1])

    def _lm_eval_docs(self, data_split: str) -> Sequence[dict[str, Any]]:
        task = self._task
        return {"train": task.training_docs, "validation": task.validation_docs, "test": task.test_docs}[data_split]()

    # ------------------------------------------------------------------------------------ the contract

    @property
    def target_delimiter(self) -> str:
        return self._task.config.target_delimiter

    @property
    def max_new_tokens(self) -> int:
        return self._generation["max_gen_toks"]

    @property
    def until(self) -> tuple[str, ...]:
        return tuple(filter(None, self._generation["until"]))

    @property
    def truncate_contexts(self) -> bool:
        return self.settings.truncate_contexts

    @property
    def own_metric(self) -> str:
        return self.settings.metric or "lm-eval's own"

    def own_score(self, query: Query, answer: str, likelihoods: Sequence[tuple[float, bool]]) -> float | None:
        """lm-eval's own metric of the answer, or of the log-likelihoods (in nats, and whether greedy) of the choices.

        Raises:
            UserError: the task has no such metric, or none that is a number for one document, better the higher it is.
        """
        doc = self._docs[query.id]
        requests = self._request(doc, query.id)
        for request, response in zip(requests, likelihoods or [answer], strict=True):
            request.resps = [response]
        self._task._filters[0].apply(requests)
        (name,) = requests[0].filtered_resps
        scores = self._task.process_results(doc, [request.filtered_resps[name] for request in requests])
        rising = self._task.higher_is_better()
        # RULER gives -1 for the lengths that a document does not have.
        numbers = {
            key: float(score)
            for key, score in scores.items()
            if not isinstance(score, tuple) and score != -1 and rising.get(key) is not False
        }
        if self.settings.metric in numbers:
            return numbers[self.settings.metric]
        if not numbers or (self.settings.metric and self.settings.metric not in _SUMMARIES):
            raise UserError(
                f"lm-eval's task '{self._name}' has no metric '{self.settings.metric}' that is a number for one "
                f"document, better the higher it is; set task.metric to one of {', '.join(numbers) or 'none'}."
            )
        return next(iter(numbers.values()))

    def source(self, split: Split) -> Source:
        """The hash is of the documents as they are asked, whichever version of data and templates made them."""
        plan, documents = self._plan(split), self.documents(split)
        every = [
            [document.context, *([query.text, *query.targets, *query.choices] for query in document.queries)]
            for document in self._all(plan.data_split)
        ]
        content_hash = sha256(json.dumps(every).encode()).hexdigest()
        rows = sum(len(document.queries) for document in documents)
        return Source(f"{PREFIX}{self._name}:{plan.data_split}{plan.part}", None, content_hash, rows)

    @property
    def declared(self) -> dict[str, Any]:
        # The documents are hashed as they are asked; where they lie is no part of it.
        return {key: value for key, value in load_yaml(self._file).items() if not key.startswith("dataset_")}

    def code_files(self) -> list[Path]:
        found = (type(self._task), *_functions(vars(self._task.config)))
        return [Path(inspect.getfile(one)) for one in found]

    @cached_property
    def _splits(self) -> dict[str, str | None]:
        task = self._task
        has = (task.has_training_docs(), task.has_validation_docs(), task.has_test_docs())
        return {split: split if there else None for split, there in zip(_SPLITS, has, strict=True)}

    def _missing(self, split: Split) -> str:
        return "lm-eval's task has no such split" + ("; give --no-train" if split != "test" else "")

    def _group(self, data_split: str) -> list[Document]:
        cut = renderer(self.settings.context, "task.context", f"{PREFIX}{self._name}")
        targets = renderer(self.settings.targets, "task.targets", f"{PREFIX}{self._name}")
        queries: dict[str, list[Query]] = {}
        for index, doc in enumerate(self._lm_eval_docs(data_split)):
            identity, where = f"{data_split}-{index}", f"{PREFIX}{self._name}, {data_split} document {index + 1}"
            requests = self._request(doc, where)
            column, prompt = self.settings.context, requests[0].args[0]
            context = str(doc[column]) if column in doc else cut(doc, where)
            if not context.strip() or context not in prompt:
                raise UserError(
                    f"{where}: the prompt does not hold the context {context[:40]!r}; task.context should be a "
                    f"column or a template of a part of it, which begins {prompt[:40]!r}."
                )
            choices = tuple(request.args[1] for request in requests) if self._chooses(requests) else ()
            answers = listed(targets(doc, where)) if self.settings.targets else self._task.doc_to_target(doc)
            accepted = self._accepted(answers, choices, where)
            self._docs[identity] = doc
            query = Query(identity, prompt.replace(context, "").lstrip(), accepted, choices)
            queries.setdefault(context.strip(), []).append(query)
        return [Document(sha256(c.encode()).hexdigest()[:16], c, tuple(asked)) for c, asked in queries.items()]

    @staticmethod
    def _chooses(requests: "Sequence[Instance]") -> bool:
        return requests[0].request_type == "loglikelihood"

    def _accepted(self, answers: Any, choices: tuple[str, ...], where: str) -> tuple[str, ...]:
        """The accepted answers as texts, without the delimiter; a choice is given by its place."""
        several = answers if isinstance(answers, list | tuple) else [answers]
        texts = [
            choices[one].removeprefix(self.target_delimiter) if choices and isinstance(one, int) else str(one)
            for one in several
        ]
        if not any(texts):
            raise UserError(f"{where}: doc_to_target gives no answer ({answers!r}); set task.targets to a template.")
        return tuple(text for text in texts if text)


def _functions(value: Any) -> Iterator[Callable]:
    """The functions that a task's configuration holds, at whatever depth."""
    if inspect.isfunction(value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _functions(part)


def local_data(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that make lm-eval read the data folder's files, where it has some of the task's data set."""
    dataset, name = config.get("dataset_path"), config.get("dataset_name")
    if not dataset:
        return {}
    wanted = {config[key] for key in ("training_split", "validation_split", "test_split") if config.get(key)}
    files = {split: local_file(f"{dataset}/{name}" if name else dataset, split) for split in sorted(wanted)}
    found = {split: str(file) for split, file in files.items() if file}
    if not found:
        return {}
    if len({Path(file).suffix == ".parquet" for file in found.values()}) > 1:
        here = ", ".join(found.values())
        raise UserError(f"lm-eval reads all splits of a data set in one format; here are {here}.")
    kind = "parquet" if next(iter(found.values())).endswith(".parquet") else "json"
    # As in tasks of this package's own: a split that the folder lacks counts as not declared.
    missing = {
        key: None for key in ("training_split", "validation_split", "test_split") if config.get(key) not in found
    }
    return {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": found}, **missing}
