"""Making what is missing of a figure: run after run, each from the checkpoint that its recipe names."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gradmem_bench.archive import Archive
from gradmem_bench.checkpoints import METHOD_FILE
from gradmem_bench.errors import UserError
from gradmem_bench.experiment import resolve as resolve_plan
from gradmem_bench.loading import load_backbone
from gradmem_bench.plan import Options, Plan
from gradmem_bench.reconstruction import PARTS_FILE, write_parts
from gradmem_bench.registry import resolve
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
        self._unreadable: dict[tuple[str, str], str] = {}

    def make(self, runs: Sequence[Run]) -> Counter[str]:
        """Makes runs in their order, and goes on where one cannot be made; which those are is told before any training.

        Returns:
            Why runs could not be made, each with how many they are.
        """
        reasons: Counter[str] = Counter()
        with self.display.working("whether each run can be made"):
            refused = self.refused(runs)
        for reason, count in refused.items():
            self.display.note(f"missing ({count} of {len(runs)} runs): {reason}")
        for number, run in enumerate(runs, start=1):
            try:
                plan = self.plan(run)
                self.display.begin(plan, number, len(runs))
                told = ", ".join(f"{key} {value}" for key, value in run.setting.items())
                self.display.note(f"{run.name} · {told + ' · ' if told else ''}seed {run.seed}")
                record = perform(plan, self.output, self.display)
            except UserError as error:
                reasons[str(error)] += 1
                before = reasons[str(error)] > 1 or str(error) in refused
                self.display.note("missing, as before" if before else f"missing: {error}")
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

    def refused(self, runs: Sequence[Run]) -> Counter[str]:
        """What `make` would return, as far as it shows before anything is trained."""
        reasons: Counter[str] = Counter()
        counts = Counter(run.row for run in runs)
        for run in {one.row: one for one in runs}.values():
            try:
                self._resolved(run, None)
            except UserError as error:
                reasons[str(error)] += counts[run.row]
        return reasons

    def _resolved(self, run: Run, load: Path | None) -> Plan:
        method, task = resolve("method", run.method), resolve("task", run.task)
        options = Options(
            backbone=run.backbone,
            settings=run.assignments(method.name),
            load=load,
            limit=run.limit,
            seed=run.seed,
            device=self.device,
            dtype=run.dtype,
        )
        # A hub that does not answer is asked once, and not for every run.
        asked = run.task, run.backbone or ""
        if asked in self._unreadable:
            raise UserError(self._unreadable[asked])
        try:
            return resolve_plan(method, task, options, self.archive.known)
        except UserError as error:
            if "hub" in str(error):
                self._unreadable[asked] = str(error)
            raise

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


def unmeasured(scale: Scale, output: Path) -> list[list[str]]:
    """The calls of benchmarks/meta_gradient.py of which a folder has no record."""
    made = [json.loads(path.read_text(encoding="utf-8"))["command"] for path in output.glob("meta_gradient-*.json")]
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
