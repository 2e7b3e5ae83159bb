"""Another process: what a method does where nothing is left of WRITE but the bytes.

`python -m gradmem_bench.conformance.elsewhere` imports torch and the library, and no method. Each request is then
answered by a fork of it, which imports the method anew: a request costs milliseconds and finds no trace of another.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from gradmem_bench import checkpoints
from gradmem_bench.config import BackboneConfig
from gradmem_bench.conformance.subject import Subject, answers, write
from gradmem_bench.methods.base import MemoryMethod

# After the import of torch a fork is safe on Linux alone; elsewhere each request starts a process.
_FORKS = sys.platform == "linux" and hasattr(os, "fork")


class Elsewhere:
    """The process, from this one's side; it is started at once and asked when it is there."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="gradmem-bench-check-")
        self.errors = Path(self.folder.name) / "errors"
        self.process = self._start()

    def _start(self) -> subprocess.Popen:
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOKENIZERS_PARALLELISM": "false"}
        with self.errors.open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self.folder.name,
                env=os.environ | variables,
                text=True,
            )

    def ask(self, subject: Subject, weights: Path, **request: Any) -> dict[str, Any]:
        """What a new process answers: `states`, or `answers`; or `error`; and what `write` tried to leave `behind`.

        Args:
            weights: the method's checkpoint.
            request: `contexts` to write, after `warm` ones whose traces are allowed; or `states` to read, with
                `queries` and `targets`.
        """
        if self.process.poll() is not None:
            self.process = self._start()
        reply = Path(self.folder.name) / "reply.json"
        reply.unlink(missing_ok=True)
        method_class = subject.method_class
        request |= {
            "reply": str(reply),
            "path": sys.path,
            "module": method_class.__module__,
            "file": sys.modules[method_class.__module__].__file__,
            "class": method_class.__qualname__,
            "parameters": subject.parameters.model_dump(mode="json"),
            "backbone": subject.config.model_dump(mode="json", exclude_unset=True),
            "weights": str(weights),
        }
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            self.process.stdout.readline()
            if not _FORKS:
                # It ends with its first answer; to a process that is about to, no other request is sent.
                self.process.wait()
            return json.loads(reply.read_text())
        except (OSError, ValueError):
            last = [line for line in self.errors.read_text(errors="replace").splitlines() if line.strip()][-1:]
            return {"error": f"the process ended without an answer ({last[0] if last else 'and without a word'})"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.folder.cleanup()


@cache
def elsewhere() -> Elsewhere:
    """The one process that serves this one, as long as it lives."""
    import atexit

    started = Elsewhere()
    atexit.register(started.close)
    return started


# ------------------------------------------------------------------------------- in the other process


def _serve() -> None:
    # What a method prints is not taken for an answer.
    done = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        if not _FORKS:
            _answer(json.loads(line))
        elif child := os.fork():
            os.waitpid(child, 0)
        else:
            _answer(json.loads(line))
            os._exit(0)
        done.write("done\n")
        done.flush()
        if not _FORKS:
            return


def _answer(request: dict[str, Any]) -> None:
    behind: list[str] = []
    try:
        method = _method(request)
        if "states" in request:
            states = [bytes.fromhex(state) for state in request["states"]]
            found = answers(method, states, request["queries"], request["targets"])
            reply = {"answers": [row.tolist() for row in found]}
        else:
            # Caches that any text fills, and modules that are imported late.
            write(method, request["warm"])
            with _nothing_left_behind(behind):
                reply = {"states": [state.hex() for state in write(method, request["contexts"])]}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    Path(request["reply"]).write_text(json.dumps(reply | {"behind": behind}))


def _method(request: dict[str, Any]) -> MemoryMethod:
    sys.path[:] = request["path"]
    method_class = _class(request["module"], Path(request["file"]), request["class"])
    parameters = method_class.Parameters(**request["parameters"])
    weights = Path(request["weights"])
    subject = Subject(method_class, parameters, BackboneConfig(**request["backbone"]), weights.parent)
    method = subject.build(seed=1)
    checkpoints.restore(method, checkpoints.load(weights)[0], weights)
    return method


def _class(module: str, file: Path, name: str) -> type[MemoryMethod]:
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        # A script, or a test that was imported from its file.
        spec = importlib.util.spec_from_file_location(module if module != "__main__" else "__mp_main__", file)
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
        return attrgetter(name)(loaded)


_LEAVING = (
    "os.link", "os.mkdir", "os.putenv", "os.rename", "os.setxattr", "os.symlink", "os.truncate", "os.utime", "os.fork",
    "os.posix_spawn", "os.system", "socket.connect", "socket.sendto", "sqlite3.connect", "subprocess.Popen",
)  # fmt: skip
"""Audit events of what is seen outside the process."""


@contextmanager
def _nothing_left_behind(behind: list[str]) -> Iterator[None]:
    """Refuses, and notes in `behind`, what another process could find: files above all."""
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if not watching:
            return
        if event == "open" and not isinstance(arguments[0], int):
            path, mode, flags = arguments
            changing = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if changing and str(path) != os.devnull:
                behind.append(f"opened {path!r} for writing")
                raise PermissionError(f"WRITE may not open {path!r} for writing")
        elif event in _LEAVING:
            behind.append(f"called {event}{arguments!r}"[:200])
            raise PermissionError(f"WRITE may not call {event}")

    sys.addaudithook(watch)
    # Files that are opened by compiled code raise no event; the kernel refuses to write to them.
    limits = None
    if _FORKS:
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    except Exception as error:
        # The contexts before were written without a word.
        if not behind:
            behind.append(f"raised {type(error).__name__} where no file can be written ({error})")
        raise
    finally:
        watching = False
        if limits is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # What every answer needs, so that no fork imports it again.
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel, GPTNeoXForCausalLM, LlamaForCausalLM  # noqa: F401

    _serve()
