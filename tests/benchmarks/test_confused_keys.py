import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from gradmem_bench.errors import UserError
from gradmem_bench.results import find_records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location("confused_keys", ROOT / "benchmarks" / "confused_keys.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def published(name: str) -> tuple[Path, object]:
    folder = ROOT / "leaderboards" / name
    return folder, next(iter(find_records([folder]).values()))


def test_rows_meet_the_contexts_that_they_are_about(script):
    folder, record = published("small/kv_small/gradmem-458e50e9")
    found = script.answers(folder, record)
    # Were a row joined to another context, hardly any prediction would be its key's value.
    assert sum(answer.right for answer in found) / len(found) == record.metrics["exact_match"].value
    assert {len(answer.pairs) for answer in found} == {8}


def test_a_memory_that_mixes_up_two_keys_is_found_out(script):
    """Of four keys, `a` and `b` share a slot that holds the value of whichever comes first in the alphabet."""
    contexts = [{"a": "1", "b": "2", "c": "3"}, {"a": "4", "c": "5", "d": "6"}, {"b": "7", "c": "8", "d": "9"}] * 4
    found = []
    for number, pairs in enumerate(contexts):
        slots = {key: "a" if key in "ab" else key for key in pairs}
        held = {slots[key]: pairs[key] for key in sorted(pairs, reverse=True)}
        found += [script.Answer(f"{number}", key, pairs, held[slots[key]]) for key in pairs]
    assert script.confused(found) == {"b"}
    wrong = [answer for answer in found if not answer.right]
    assert {(answer.key, answer.said) for answer in wrong} == {("b", "1")}
    assert {frozenset(answer.others({"a", "b"})) for answer in wrong} == {frozenset({"1"})}


def test_what_holds_no_keys_is_refused_by_name(script):
    folder, record = published("babi_qa1/gradmem-5c25f229")
    with pytest.raises(UserError, match="gradmem-5c25f229: babi_qa1 has no keys and values"):
        script.answers(folder, record)
