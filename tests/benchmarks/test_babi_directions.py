import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from gradmem_bench.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location("babi_directions", ROOT / "benchmarks" / "babi_directions.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


TWICE_BEHIND = "The office is north of the kitchen. The garden is south of the kitchen. "
BEFORE_AND_BEHIND = "The office is north of the kitchen. The garden is north of the office. "


@pytest.mark.parametrize(
    ("story", "question", "kind"),
    [
        (TWICE_BEHIND, "What is the office north of? ", "an end is asked"),
        (TWICE_BEHIND, "What is north of the kitchen? ", "the middle, only the direction tells"),
        (TWICE_BEHIND, "What is the kitchen south of? ", "the middle, only the direction tells"),
        (BEFORE_AND_BEHIND, "What is the office north of? ", "the middle, words tell"),
        (BEFORE_AND_BEHIND, "What is north of the office? ", "the middle, words tell"),
        (BEFORE_AND_BEHIND, "What is north of the kitchen? ", "an end is asked"),
    ],
)
def test_what_a_question_takes(script, story, question, kind):
    found = script.classified(story, question)
    middle = "kitchen" if story == TWICE_BEHIND else "office"
    assert (found.kind, found.ends) == (kind, {"office", "kitchen", "garden"} - {middle})


def test_a_story_of_another_kind_is_refused(script):
    with pytest.raises(UserError, match="no story of bAbI's QA4"):
        script.classified("Mary went to the kitchen. John went to the office. ", "Where is Mary? ")
