"""Making what is missing of a figure: run after run, each from the checkpoint that its recipe names."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gradmem_bench.archive import Archive
from gradmem_bench.checkpoints import METHOD_FILE, misfit, shapes_of
from gradmem_bench.errors import UserError
from gradmem_bench.experiment import resolve
from gradmem_bench.loading import load_backbone
from gradmem_bench.plan import Options, Plan
from gradmem_bench.reconstruction import PARTS_FILE, write_parts
from gradmem_bench.reporting.progress import RunDisplay
from gradmem_bench.reproduction import Run, Scale
from gradmem_bench.running import perform


class Maker:
    """Makes runs into one folder.

    Args:
        output: where runs are kept.
        archive: what is there already; each new record is added to it.
        device: `cpu` or `cuda`.
    """

    def __init__(self, output: Path, archive: Archive, device: str, display: RunDisplay) -> None:
        self.output, self.archive, self.device, self.display = output, archive, device, display

    def make(self, runs: Sequence[Run]) -> Counter[str]:
        """Makes runs in their order, and goes on where one cannot be made; as far as it shows, that is told before any.

        Returns:
            Why runs could not be made, each with how many they are.
        """
        with self.display.working("whether each run can be made"):
            refused = self.refused(runs)
        for reason, ones in refused.items():
            self.display.note(f"missing ({len(ones)} of {len(runs)} runs, {names_of(ones)}): {reason}")
        reasons = Counter({reason: len(ones) for reason, ones in refused.items()})
        left = without(runs, refused)
        for number, run in enumerate(left, start=1):
            try:
                plan = self.plan(run)
                self.display.begin(plan, number, len(left))
                told = ", ".join(f"{key} {value}" for key, value in run.setting.items())
                self.display.note(f"{run.name} · {told + ' · ' if told else ''}seed {run.seed}")
                record = perform(plan, self.output, self.display)
            except UserError as error:
                reasons[str(error)] += 1
                self.display.note("missing, as before" if reasons[str(error)] > 1 else f"missing: {error}")
                continue
            self.archive.records[plan.folder(self.output) / "run.json"] = record
        return reasons

    def plan(self, run: Run) -> Plan:
        """The run as `gradmem-bench run` would plan it.

        Raises:
            UserError: a name or a setting is wrong, data or weights are not to be had, or the run that it starts from
                is missing or has left no checkpoint.
        """
        load = None
        if run.start is not None:
            found = self.archive.find(run.start)
            load = found and found[0].parent
            if load is None or not (load / METHOD_FILE).exists():
                raise UserError(
                    f"{run.name} starts from a checkpoint of {run.start.name} that is not here; name another --output, "
                    "and that run is made again."
                )
        return self._resolved(run, load)

    def refused(self, runs: Sequence[Run]) -> dict[str, list[Run]]:
        """The runs that cannot be made, by the reason, as far as it shows before anything is trained."""
        rows: dict[Any, list[Run]] = {}
        for run in runs:
            rows.setdefault(run.row, []).append(run)
        reasons: dict[str, list[Run]] = {}
        for alike in rows.values():
            try:
                self._check(alike[0])
            except UserError as error:
                reasons.setdefault(str(error), []).extend(alike)
        return reasons

    def _check(self, run: Run) -> None:
        """Raises UserError where the run cannot be made, or cannot start from the one that it is to start from."""
        plan = self._resolved(run, None)
        if run.start is None:
            return
        if fault := misfit(_shapes(plan), _shapes(self._resolved(run.start, None))):
            raise UserError(f"{run.name} cannot start from {run.start.name}: {fault}.")

    def _resolved(self, run: Run, load: Path | None) -> Plan:
        known = self.archive.known
        method, task = known.entry("method", run.method), known.entry("task", run.task)
        inherited = () if load else run.inherited(method.name)
        options = Options(
            backbone=run.backbone,
            settings=(*inherited, *run.assignments(method.name)),
            load=load,
            limit=run.limit,
            seed=run.seed,
            device=self.device,
            dtype=run.dtype,
        )
        plan = resolve(method, task, options, known)
        if trained := sorted(run.evaluation.keys() - plan.method_class.evaluation_parameters):
            raise UserError(
                f"'{trained[0]}' of {run.name} stands under evaluate, but is part of the training; put it under axes."
            )
        return plan

    def measure_parts(self, runs: Sequence[Run]) -> None:
        """Measures what the reconstruction loss of each run is made of, where its checkpoint is here."""
        for run in runs:
            found = self.archive.find(run)
            if found is None:
                continue
            folder = found[0].parent
            if (folder / PARTS_FILE).exists() or not (folder / METHOD_FILE).exists():
                continue
            plan = self.plan(run)
            backbone = load_backbone(plan.backbone, plan.task.tokenizer(), self.device, run.seed)
            method = plan.method_class(backbone, plan.parameters).to(self.device)
            with self.display.working(f"reconstruction of {run.name}"):
                write_parts(method, plan.task, folder, run.limit)


def without(runs: Sequence[Run], refused: dict[str, list[Run]]) -> list[Run]:
    """The runs whose rows are not among those that cannot be made."""
    rows = {run.row for ones in refused.values() for run in ones}
    return [run for run in runs if run.row not in rows]


def names_of(runs: Sequence[Run]) -> str:
    """The first rows that these are, for people."""
    told = [", ".join([run.name, *(f"{key} {value}" for key, value in run.setting.items())]) for run in runs]
    names = list(dict.fromkeys(told))
    more = len(names) - 3
    return "; ".join(names[:3]) + (f"; {more} row{'s' * (more > 1)} more" if more > 0 else "")


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Of all parameters that a checkpoint of this run has."""
    with torch.device("meta"):
        return shapes_of(plan.method_class(plan.shape, plan.parameters))


def unmeasured(scale: Scale, output: Path) -> list[list[str]]:
    """The calls of benchmarks/meta_gradient.py of which a folder has no record."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("meta_gradient-*.json")]
    made = [record["command"] for record in records if record.get("complete", True)]
    return [call for call in scale.benchmark if not any(command[2 : 2 + len(call)] == call for command in made)]


def benchmark(scale: Scale, output: Path, device: str) -> dict[str, int]:
    """Runs benchmarks/meta_gradient.py as the scale says, where there is no record of the same command.

    Returns:
        Why calls could not be made, each with how many they are.
    """
    checkout, script = Path(__file__).parents[1], "benchmarks/meta_gradient.py"
    if not (checkout / script).exists():
        return {f"{script} is in a checkout of gradmem-bench alone": len(scale.benchmark)} if scale.benchmark else {}
    reasons: dict[str, int] = {}
    # From the checkout, so that no record names this machine's folders.
    where = os.path.relpath(output, checkout)
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    for arguments in unmeasured(scale, output):
        command = [sys.executable, script, *arguments, "--device", device, "--output", where]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=variables, cwd=checkout, check=False)
        if done.returncode:
            reason = f"{script} {' '.join(arguments)} ended with {done.returncode}"
            reasons[reason] = reasons.get(reason, 0) + 1
    return reasons
