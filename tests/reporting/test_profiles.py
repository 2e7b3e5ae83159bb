import io

import pytest
from records import BACKBONE, ENVIRONMENT, measured
from rich.console import Console

from gradmem_bench.config import Budget
from gradmem_bench.reporting.profiles import format_count, to_rich
from gradmem_bench.results import (
    Alternative,
    CodeVersion,
    Costs,
    MeasuredFootprint,
    MethodRecord,
    PhaseCosts,
    ProfileRecord,
    Quantity,
)


def phase(flops: float, seconds: float, peak: float | None) -> PhaseCosts:
    return PhaseCosts(
        flops=Quantity(value=flops),
        seconds=seconds,
        seconds_low=seconds * 0.9,
        seconds_high=seconds * 1.1,
        repetitions=10,
        batch_size=8,
        peak_bytes=Quantity(value=peak, reason=None if peak else "not on this device"),
    )


def quantity(value: float | str) -> Quantity:
    return Quantity(value=None, reason=value) if isinstance(value, str) else Quantity(value=value)


def alternative(flops: float | str, seconds: float | str, saved: float) -> Alternative:
    return Alternative(
        write=None,
        read=phase(1e6, 0.002, None),
        break_even_flops=quantity(flops),
        break_even_seconds=quantity(seconds),
        state_bytes_saved=quantity(saved),
        read_kv_bytes_saved=quantity(-saved),
    )


def profile(method: str, budget: Budget | None, task: str = "squad_removed", peak: float | None = 3e9, **others):
    return ProfileRecord(
        command=["gradmem-bench", "profile"],
        code=CodeVersion(version="1", commit=None, dirty=None),
        method=MethodRecord(
            name=method, implementation="a:B", parameters=others.get("parameters", {}), role="method", citation=""
        ),
        task=task,
        backbone=BACKBONE,
        budget=budget,
        footprint=MeasuredFootprint(
            state_bytes=measured(2_000_000, 2_000_000),
            read_positions=measured(8, 8),
            read_kv_bytes=measured(50_000_000, 50_000_000),
            context_tokens=200.0,
            bytes_per_context_token=10.0,
        ),
        costs=Costs(
            write_seconds_per_context=1.234,
            read_seconds_per_query=0.05,
            batch_size=8,
            context_tokens=200,
            answer_tokens=9,
            write=phase(4.56e11, 1.234, peak),
            read=phase(7.8e9, 0.05, peak),
            reread_text=others.get("text", alternative(17, 1234567, -5000)),
            keep_kv_cache=others.get("cache", alternative("never: too dear", "too close to call", 4_000_000)),
        ),
        environment=ENVIRONMENT,
    )


def drawn(*records: ProfileRecord) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(to_rich(records))
    return console.file.getvalue()


def test_large_numbers_and_long_names_are_whole_at_eighty_columns():
    budget = Budget(bytes=2_000_000, positions=1000, state_dtype="bfloat16")
    text = drawn(*(profile("a_method_of_a_long_name", budget, task) for task in ("squad_removed", "babi_qa1")))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    for cell in ("1.91 MiB", "47.7 MiB", "456 G", "7.8 G", "1.23e+03 [1.11e+03, 1.36e+03]", "2.79 GiB", "1.23 M"):
        assert cell in text
    # Each task is a section of each of the three tables.
    assert [line.strip() for line in text.splitlines()].count("squad_removed") == 3


def test_what_never_pays_is_a_mark_and_a_reason_said_once():
    text = drawn(profile("one", None), profile("other", None, cache=None, text=alternative("never: too dear", 3, 1)))
    pays = text.split("\n\n")[2].splitlines()
    assert [line.split() for line in pays if line.startswith(("one", " "))][-2:] == [
        ["one", "re-reading", "17", "1.23", "M", "−4.88", "KiB", "4.88", "KiB"],
        ["KV", "cache", "–", "a", "–", "b", "3.81", "MiB", "−3.81", "MiB"],
    ]
    # A method without a cache to compare with has one line.
    assert [line.split()[:5] for line in pays if line.startswith("other")] == [["other", "re-reading", "–", "a", "3"]]
    assert text.count("never: too dear.") == text.count("a never: too dear.") == 1
    assert text.count("b too close to call.") == 1


def test_the_settings_that_were_measured_are_told_once_a_method():
    budgets = [profile("one", None, parameters={"inner_steps": 5, "memory_vectors": m}) for m in (4, 8)]
    lines = drawn(*budgets, profile("other", None)).splitlines()
    assert [line.strip() for line in lines if "inner_steps" in line] == ["one: inner_steps 5, memory_vectors 4/8."]


def test_a_peak_that_was_not_measured_has_its_reason():
    text = drawn(profile("one", None, peak=None))
    assert "No peak: not on this device." in text and "0 B" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (999.6, "1 k"), (12_345, "12.3 k"), (4.56e11, "456 G"), (1e20, "1e+05 P")],
)
def test_counts_have_three_digits(value, text):
    assert format_count(value) == text
