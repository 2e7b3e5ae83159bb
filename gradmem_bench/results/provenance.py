"""What made a number: the code and the machine."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import gradmem_bench
from gradmem_bench.results.schema import CodeVersion, Environment

if TYPE_CHECKING:
    import torch


@cache
def code_version() -> CodeVersion:
    """The package's version and, when it is run from a checkout, that checkout's commit as it was when first asked for:
    what is edited while a run goes on is not what runs."""
    root = Path(gradmem_bench.__file__).parents[1]
    commit = dirty = None
    # An installed package may lie below a repository that has nothing to do with it: only its own root counts.
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "--verify", "HEAD") or None
        # Results written into the checkout do not change the code; new methods and tasks do.
        changes = _git(root, "status", "--porcelain", "--", "gradmem_bench", "methods", "tasks")
        dirty = None if changes is None else bool(changes)
    return CodeVersion(version=gradmem_bench.__version__, commit=commit, dirty=dirty)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; `None` when there is no git or it fails."""
    # Within a hook, GIT_DIR and its kin name another repository than the one in `root`.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], env=environ, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def processor() -> str:
    """The processor's model, or its architecture where the system does not say more."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def environment(device: "torch.device | str", dtype: "torch.dtype | str") -> Environment:
    """This machine, with the device and dtype that a run used on it."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        # The instructions that torch takes of it: they set how sums are rounded, and trainings drift apart with that.
        name = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return Environment(
        device=f"{device.type} ({name})",
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        transformers=version("transformers"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        threads=torch.get_num_threads(),
    )
