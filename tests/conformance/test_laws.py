"""For each law a small method that breaks it: that law is reported, no other, with a sentence that says what it did."""

import pytest
from cheats import BREAKS, clean_up

from gradmem_bench.conformance.check import LAWS
from gradmem_bench.testing import findings

CASES = [
    pytest.param(law, cheat, sentence, id=cheat.__name__, marks=[pytest.mark.gpu] if law == "gpu" else [])
    for law, cheats in BREAKS.items()
    for cheat, sentence in cheats
]
BACKBONE = ["gpt2-2x32"]


@pytest.fixture(autouse=True)
def no_files():
    yield
    clean_up()


@pytest.mark.parametrize(("law", "cheat", "sentence"), CASES)
def test_the_law_that_is_broken_is_reported_and_no_other(law, cheat, sentence):
    found = findings(cheat, backbones=BACKBONE)
    assert [one.law.name for one in found] == [one.name for one in LAWS]
    broken = {one.law.name: one.sentence for one in found if one.outcome == "FAIL"}
    assert list(broken) == [law], broken
    assert sentence in broken[law]
    assert broken[law].endswith((".", ".)")) and "\n" not in broken[law]
    assert all(one.sentence for one in found if one.outcome == "skipped")


def test_every_law_is_broken_by_one():
    assert {law.name for law in LAWS} == set(BREAKS)
