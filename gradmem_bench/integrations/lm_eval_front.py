"""lm-eval's own command line, with the model `gradmem_bench` known to it.

lm-eval 0.4.13 reads no entry points; a later one finds the model by this package's, in the group `lm_eval.models`.
"""

import sys
from collections.abc import Sequence
from functools import partial

from gradmem_bench.errors import UserError

MODEL = "gradmem_bench"
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
    """`lm_eval ARGUMENTS`, as its own command would run it."""
    register()
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    typed, manager = sys.argv, lm_eval.tasks.TaskManager
    sys.argv = ["lm_eval", *arguments]
    try:
        if not _needs_defaults(list(arguments)):
            lm_eval.tasks.TaskManager = partial(manager, include_defaults=False)
        cli_evaluate()
    finally:
        sys.argv, lm_eval.tasks.TaskManager = typed, manager


def _needs_defaults(arguments: list[str]) -> bool:
    """Whether a task that is asked for is not in the user's own folder: lm-eval takes 17 s and more to read its own."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.tasks import TaskManager

    if not {"--tasks", "-t"} & set(arguments):
        return True
    # The parser reads, and may add to, sys.argv.
    given = HarnessCLI().parse_args()
    folder, names = getattr(given, "include_path", None), getattr(given, "tasks", None)
    if not folder or not names:
        return True
    own = TaskManager(include_path=folder, include_defaults=False)
    return not all(name.endswith(".yaml") or own.match_tasks([name]) for name in names)
