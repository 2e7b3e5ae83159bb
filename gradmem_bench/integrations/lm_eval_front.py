"""lm-eval's own command line, with the model `gradmem_bench` known to it.

lm-eval 0.4.13 reads no entry points; a later one finds the model by this package's, in the group `lm_eval.models`.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradmem_bench.config import load_yaml
from gradmem_bench.errors import UserError
from gradmem_bench.registry import recipe_folder
from gradmem_bench.tasks.lm_eval_task import local_data

MODEL = "gradmem_bench"
_LOCAL = "local_data"
_TARGET = "gradmem_bench.integrations.lm_eval_model:GradmemBench"


def register() -> None:
    """Makes `gradmem_bench` a model of lm-eval's in this process; nothing of it is imported before it is used.

    Raises:
        UserError: lm-eval is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401 - lm-eval registers its own models only while there are none
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise UserError(f"This needs lm-eval: pip install 'gradmem-bench[lm-eval]' ({error}).") from None
    if MODEL not in model_registry:
        model_registry.register(MODEL, target=_TARGET)


def run(arguments: Sequence[str]) -> None:
    """`lm_eval ARGUMENTS`, as its own command would run it.

    The built-in tasks are there without --include_path, and tasks read the data folder where it has their data.
    """
    register()
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate
    from lm_eval._cli import HarnessCLI

    typed, manager = sys.argv, lm_eval.tasks.TaskManager
    sys.argv = ["lm_eval", *arguments]
    try:
        # The parser reads, and may add to, sys.argv.
        given = HarnessCLI().parse_args()
        names, folder = _asked(given)
        if names and not folder:
            folder = str(recipe_folder("task"))
            sys.argv += ["--include_path", folder]
        defaults = {"include_defaults": False} if names and _has_all(folder, names) else {}
        lm_eval.tasks.TaskManager = partial(_over_local_data(manager), **defaults)
        cli_evaluate()
    finally:
        sys.argv, lm_eval.tasks.TaskManager = typed, manager


def _asked(given: Namespace) -> tuple[list[str], str | None]:
    """The tasks and the folder of more tasks that are named, on the command line or else in the file of --config."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    config = getattr(given, "config", None)
    values = EvaluatorConfig.load_yaml_config(config) if config else {}
    names = getattr(given, "tasks", None) or values.get("tasks") or []
    folder = getattr(given, "include_path", None) or values.get("include_path")
    every = [names] if isinstance(names, str) else names
    return [name for one in every for name in one.split(",")], folder


def _over_local_data(manager: type) -> type:
    """lm-eval's TaskManager, but that a task named by itself reads the data folder's files where there are any."""

    class LocalTaskManager(manager):
        def load(self, task_list: Any) -> Any:
            specs = task_list if isinstance(task_list, list) else [task_list]
            keys = {spec: self._keys(spec) for spec in specs if isinstance(spec, str)}
            local = [{"task": name, **own} for name, own in keys.items() if own]
            # A group is lm-eval's own way to change keys of a task that is found by its name.
            group = [{"group": _LOCAL, "task": local}] if local else []
            loaded = super().load([spec for spec in specs if not (isinstance(spec, str) and keys[spec])] + group)
            for part in ("groups", "group_map"):
                loaded[part].pop(_LOCAL, None)
            return loaded

        def _keys(self, name: str) -> dict[str, Any]:
            entry = self.task_index.get(name)
            if name not in self.all_subtasks or entry.yaml_path is None:
                return {}
            try:
                return local_data(load_yaml(Path(entry.yaml_path)))
            except UserError:
                # lm-eval's own files are not held to this package's rules.
                return {}

    return LocalTaskManager


def _has_all(folder: str, names: Sequence[str]) -> bool:
    """Whether every task is in the folder, or a file: then lm-eval need not take 17 s and more to read its own."""
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=folder, include_defaults=False)
    return all(name.endswith(".yaml") or own.match_tasks([name]) for name in names)
