"""Trying a method's laws, one after another, on every backbone."""

import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gradmem_bench.config import BackboneConfig, StrictModel
from gradmem_bench.conformance.elsewhere import elsewhere
from gradmem_bench.conformance.law import Broken, Law, NotTried
from gradmem_bench.conformance.settings import bfloat16, budget, gpu
from gradmem_bench.conformance.states import batch, bytes_, padding, query, repeatable, runs, size
from gradmem_bench.conformance.subject import Subject
from gradmem_bench.conformance.traces import gradient, isolation, saving, swap
from gradmem_bench.methods.base import MemoryMethod

LAWS = (
    runs, bytes_, size, repeatable, batch, padding, query, gradient, saving, isolation, swap, budget, bfloat16, gpu,
)  # fmt: skip
"""Every law, in the order in which they are tried."""

Outcome = Literal["pass", "FAIL", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What came of one law on one backbone."""

    law: Law
    backbone: str
    outcome: Outcome
    sentence: str = ""
    """What the method did, or why the law was not tried; empty for `pass`."""


def check(
    method_class: type[MemoryMethod],
    parameters: StrictModel,
    backbones: Sequence[BackboneConfig],
    report: Callable[[str, Law], None] = lambda backbone, law: None,
) -> list[Finding]:
    """Every law on every backbone, in their order.

    A law that cannot be told from a broken one is skipped: what is left are the laws that the method itself breaks.

    Args:
        report: called before each trial.
    Raises:
        UserError: a backbone is not to be had, which is no fault of the method's.
    """
    elsewhere()  # It imports torch while the first laws are tried.
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="gradmem-bench-check-") as folder, _alone():
        for config in backbones:
            subject = Subject(method_class, parameters, config, Path(folder))
            _ = subject.shape
            earlier: dict[str, Finding] = {}
            for law in LAWS:
                report(config.name, law)
                earlier[law.name] = _try(law, subject, earlier)
                findings.append(earlier[law.name])
    if all(finding.outcome == "skipped" for finding in findings):
        # A refusal is a reason on one backbone; on every one it is no method.
        return [replace(finding, outcome="FAIL") if finding.law == runs else finding for finding in findings]
    return findings


def _try(law: Law, subject: Subject, earlier: dict[str, Finding]) -> Finding:
    name = subject.config.name
    if missing := [earlier[needed] for needed in law.needs if earlier[needed].outcome != "pass"]:
        broken = f"cannot be told while '{missing[0].law.name}' is broken"
        return Finding(law, name, "skipped", broken if missing[0].outcome == "FAIL" else missing[0].sentence)
    try:
        law.trial(subject)
    except Broken as broken:
        return Finding(law, name, "FAIL", str(broken))
    except NotTried as reason:
        return Finding(law, name, "skipped", str(reason))
    except Exception as error:
        # A method may raise anything.
        return Finding(law, name, "FAIL", f"It raised {type(error).__name__}: {error} ({_place(error, subject)}).")
    return Finding(law, name, "pass")


def _place(error: Exception, subject: Subject) -> str:
    """The line of the method's file that the error came through last, or where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules[subject.method_class.__module__], "__file__", None)
    frame = next((one for one in reversed(frames) if one.filename == own), frames[-1])
    return f"{Path(frame.filename).name}, line {frame.lineno}"


@contextmanager
def _alone() -> Iterator[None]:
    """Leaves the caller's random numbers as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
