"""Fresh environments: what is installed into one is there for its commands alone, and nothing is downloaded."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import gradmem_bench

_OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Environment:
    """A virtual environment over this one: torch and all else are seen, and not installed again."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Environment":
        # Without pip: this environment's own is seen as well.
        venv.create(folder, with_pip=False)
        made = cls(folder)
        below = [Path(gradmem_bench.__file__).parents[1], sysconfig.get_path("purelib"), *site.getsitepackages()]
        (made.packages / "below.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(map(str, below))))
        return made

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def python(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` of the environment, with what it printed and its exit code."""
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        line = [self.folder / "bin" / "python", *map(str, arguments)]
        return subprocess.run(
            line,
            env=variables | _OFFLINE,
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )

    def install(self, project: Path) -> None:
        """`pip install PROJECT`, from a copy: building leaves folders beside the sources."""
        copy = self.folder / "sources" / project.name
        shutil.copytree(project, copy)
        done = self.python("-m", "pip", "install", "--quiet", "--no-build-isolation", copy)
        assert done.returncode == 0, done.stderr
