"""For the tests of your own package: does a method keep the laws?

from gradmem_bench.testing import check_method

def test_the_laws():
    check_method("my_method")
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradmem_bench.config import BackboneConfig, StrictModel, merge, validated
from gradmem_bench.conformance.check import LAWS, Finding, check
from gradmem_bench.conformance.law import Law
from gradmem_bench.conformance.subject import BACKBONES, RECURRENT, backbone_config
from gradmem_bench.errors import UserError
from gradmem_bench.experiment import choose
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.plan import Options
from gradmem_bench.registry import resolve

__all__ = ["LAWS", "Finding", "check_method", "findings"]


def check_method(
    method: str | type[MemoryMethod],
    parameters: Mapping[str, Any] | None = None,
    backbones: Sequence[str | BackboneConfig] | None = None,
    include_paths: Sequence[Path] = (),
) -> list[Finding]:
    """Tries every law on a method, on each backbone.

    Args:
        method: a name as `--method` takes it, or the class.
        parameters: laid over those of its recipe.
        backbones: names as `--backbone` takes them; `None` is a small random one of each family that it can stand on.
        include_paths: folders with YAML files of your own.

    Returns:
        What came of each law, the skipped ones with the reason.

    Raises:
        AssertionError: it breaks laws; the message is a sentence for each.
        UserError: there is no such method, or its parameters are wrong.
    """
    found = findings(method, parameters, backbones, include_paths)
    broken = [finding for finding in found if finding.outcome == "FAIL"]
    if broken:
        told = "\n".join(f"  {one.law.name}, on {one.backbone}: {one.sentence}" for one in broken)
        raise AssertionError(f"{method if isinstance(method, str) else method.__name__} breaks laws.\n{told}")
    return found


def findings(
    method: str | type[MemoryMethod],
    parameters: Mapping[str, Any] | None = None,
    backbones: Sequence[str | BackboneConfig] | None = None,
    include_paths: Sequence[Path] = (),
    report: Callable[[str, Law], None] = lambda backbone, law: None,
) -> list[Finding]:
    """What `check_method` tries, without its verdict; `report` is told each backbone and law before it is tried."""
    method_class, settings = _method(method, dict(parameters or {}), include_paths)
    if backbones is None:
        backbones = RECURRENT if method_class.needs == "recurrence" else BACKBONES
    configs = [one if isinstance(one, BackboneConfig) else backbone_config(one) for one in backbones]
    return check(method_class, settings, configs, report)


def _method(
    method: str | type[MemoryMethod], parameters: dict[str, Any], include_paths: Sequence[Path]
) -> tuple[type[MemoryMethod], StrictModel]:
    name = method
    if isinstance(method, str):
        chosen = choose(resolve("method", method, include_paths), Options())
        method, parameters = chosen.method_class, merge(chosen.recipe.parameters, parameters)
    if not (isinstance(method, type) and issubclass(method, MemoryMethod)):
        raise UserError(f"{name} is no MemoryMethod (see gradmem_bench/methods/base.py).")
    return method, validated(method.Parameters, parameters, f"method '{name}'")
