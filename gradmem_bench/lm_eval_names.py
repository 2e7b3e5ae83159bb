"""Names of lm-eval's own tasks: where each is declared, and which part of its prompt is the context.

Nothing of lm-eval is imported before a name is looked up that is not in the table here.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gradmem_bench.errors import UserError, did_you_mean

PREFIX = "lm_eval:"
"""What `--task` begins with for a task of lm-eval's."""

OWN = "gradmem_bench:"


@dataclass(frozen=True)
class Known:
    """An lm-eval task that works with its context removed, as a test of this package shows on rows of its form."""

    file: str
    """Where it is declared, below lm-eval's folder of tasks; `OWN` and a name below this package's."""
    context: str
    """A column, or a jinja2 template over a document: what is cut out of its prompt, and written."""
    metric: str = ""
    """lm-eval's own metric that is reported; empty is the first that the task gives."""
    targets: str = ""
    """A template for the accepted answers, where the task's doc_to_target is not one."""


_NEEDLE = "{{input.rpartition('\\nWhat ')[0]}}\n"

KNOWN = {
    "squad_completion": Known("squad_completion/squad_completion.yaml", "context", "contains"),
    # Its doc_to_target joins the keys of a mapping; what is scored are the accepted answers, each some spans.
    "drop": Known("drop/default.yaml", "passage", "f1", "{{answers | map('join', ', ') | list}}"),
    "coqa": Known(f"{OWN}lm_eval_coqa.yaml", "{{story}}\n\n", "f1"),
    "race": Known("race/race.yaml", "Article: {{article}}\n\n", "acc"),
    "babi": Known("babi/babi.yaml", "Passage: {{passage}}", "exact_match"),
    "boolq": Known("super_glue/boolq/default.yaml", "{{passage}}\n", "acc"),
    "multirc": Known("super_glue/multirc/default.yaml", "{{paragraph}}\n", "acc"),
    **{
        f"niah_single_{number}": Known(f"ruler/niah_single_{number}.yaml", _NEEDLE, "string match")
        for number in (1, 2, 3)
    },
    **{
        f"niah_multikey_{number}": Known(f"ruler/niah_multikey_{number}.yaml", _NEEDLE, "string match")
        for number in (1, 2, 3)
    },
}
"""Those that are known to work; any other takes `--set task.context=COLUMN`."""


def task_file(name: str) -> Path:
    """The YAML file of lm-eval's task `name`, or `name` itself where it is one's path.

    Raises:
        UserError: lm-eval is not installed, or has no such task, or means a group.
    """
    found = find_spec("lm_eval")
    if found is None:
        raise UserError(f"--task {PREFIX}{name} needs lm-eval: pip install 'gradmem-bench[lm-eval]'.")
    if Path(name).suffix == ".yml":
        raise UserError(f"lm-eval finds tasks in files that end in .yaml alone; rename {name}.")
    if Path(name).suffix == ".yaml":
        return Path(name)
    if name in KNOWN and KNOWN[name].file.startswith(OWN):
        return Path(__file__).parent / "tasks" / KNOWN[name].file.removeprefix(OWN)
    if name in KNOWN:
        file = Path(found.submodule_search_locations[0]) / "tasks" / KNOWN[name].file
        if file.is_file():
            return file
    # Reading all of lm-eval's own tasks takes 17 s and more.
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if name not in manager.all_subtasks:
        kind = "is a group of tasks" if name in manager.all_tasks else "is none"
        raise UserError(f"lm-eval's '{name}' {kind}; name one task.{did_you_mean(name, KNOWN)}")
    return manager.task_index[name].yaml_path
