"""Every built-in method keeps every law: as its recipe has it, and with settings that reach more of its code."""

import pytest
from methods.matrix import BACKBONES, METHODS

from gradmem_bench.registry import entries
from gradmem_bench.testing import check_method

NEEDS_MORE = {"gpu"}
"""What may be skipped for want of a machine."""


def skipped(found, role: str = "method") -> set[str]:
    return {one.law.name for one in found if one.outcome == "skipped"} - NEEDS_MORE


@pytest.mark.parametrize("name", [entry.name for entry in entries("method") if entry.origin == "built in"])
def test_every_built_in_method_keeps_the_laws(name):
    role_s_own = {"full_kv": {"budget"}, "no_memory": {"budget", "swap"}, "armt": {"budget"}, "mamba": {"budget"}}
    assert skipped(check_method(name)) == role_s_own.get(name, set())


@pytest.mark.parametrize("name", ["gradmem-knobs", "rmt-knobs", "armt in segments"])
def test_other_settings_keep_them_too(name):
    method_class, settings = METHODS[name]
    own = {"budget"} if method_class.__name__ == "ARMT" else set()
    assert skipped(check_method(method_class, settings, [BACKBONES["llama"]])) == own
