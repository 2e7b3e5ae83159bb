"""What `run` and `profile` begin with: each run that their options ask for, checked before any of them is made."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradmem_bench.commands.options import Device, StoredAs, torch_device
from gradmem_bench.config import Budget, parse_bytes
from gradmem_bench.errors import UserError

if TYPE_CHECKING:
    from gradmem_bench.plan import Plan


def budgets_of(
    budget: list[str] | None, max_positions: list[int] | None, state_dtype: list[StoredAs] | None
) -> list[Budget]:
    """Every combination, each once, in the order given."""
    sizes = [parse_bytes(text) for text in budget or []] or [None]
    dtypes = [dtype.value for dtype in state_dtype or [StoredAs.float32]]
    every = product(sizes, max_positions or [None], dtypes)
    return list(dict.fromkeys(Budget(bytes=size, positions=count, state_dtype=dtype) for size, count, dtype in every))


def plans_of(
    methods: list[str], tasks: list[str], budgets: list[Budget], include: list[Path], device: Device, **options: Any
) -> list["Plan"]:
    """Every method on every task at every budget, each different run once; `options` are those of experiment.Options.

    Raises UserError for whatever is wrong with one of them, and for two tasks of one name, before anything is run.
    """
    from gradmem_bench.registry import resolve as find

    # Names first: torch takes seconds to import.
    found = [find("method", name, include) for name in dict.fromkeys(methods)]
    wanted = _tasks(tasks, include)
    from rich.console import Console

    from gradmem_bench.experiment import Known, resolve
    from gradmem_bench.plan import Options

    where = torch_device(device)
    names, known, plans, places = tuple(one.name for one in found), Known(), {}, {}
    every = list(product(wanted, budgets, found))
    with Console(stderr=True).status("") as status:
        for number, (task, budget, method) in enumerate(every, start=1):
            status.update(f"planning {number} of {len(every)}")
            plan = resolve(method, task, Options(budget=budget, methods=names, device=where, **options), known)
            first = places.setdefault(plan.task.name, plan.task.path)
            if first.resolve() != plan.task.path.resolve():
                raise UserError(
                    f"{first} and {plan.task.path} both declare a task '{plan.task.name}', whose rows would not belong "
                    "in one table; give one another name, or run each by a command of its own."
                )
            # Floor and ceiling are the same run at every budget.
            plans.setdefault((plan.recipe.name, plan.task.name, plan.config_hash), plan)
    return list(plans.values())


def _tasks(names: list[str], include: list[Path]) -> list:
    """The entries that task names and group names stand for, each once."""
    from gradmem_bench.registry import located
    from gradmem_bench.registry import resolve as find

    found = {}
    # Names first: a plugin that has to be imported may be slow.
    for entry in [find("task", name, include) for name in names]:
        entry = located(entry)
        for one in [find("task", member, include) for member in entry.members] or [entry]:
            found[one.target] = one
    return list(found.values())
