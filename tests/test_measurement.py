import math
import time
from functools import partial

import pytest
import torch
from methods.matrix import METHODS, RECURRENT, backbone, build, families, key_value_task

from gradmem_bench.batch import Tokens
from gradmem_bench.config import BackboneConfig, Budget
from gradmem_bench.evaluation import Evaluator
from gradmem_bench.loading import load_backbone
from gradmem_bench.measurement import PHASES, Sample, break_even, capacity, measure
from gradmem_bench.metrics import recalled_bits
from gradmem_bench.results import Costs, MeasuredFootprint, MetricResult
from gradmem_bench.state import MemoryState
from gradmem_bench.tasks.batching import encode_documents

# Contexts of 3 * 8 + 1 tokens, queries of 5 (`?!KK:`), answers of 3 and the end.
PAIRS = {"pairs": 3, "value_length": 3, "alphabet": 10}
TASK = key_value_task(dataset_kwargs=PAIRS, metadata={"normalize_answers": False})
T, Q, ANSWER = 25, 5, 4


def measured(method, batch_size=2, budget=None, task=TASK, count=6) -> tuple[Costs, MeasuredFootprint, list[str]]:
    encoded = encode_documents(task.documents("test")[:count], task, method.backbone)
    phases = []
    costs, footprint = measure(Evaluator(method, task, batch_size, budget), encoded, phases.append)
    return costs, footprint, phases


# ------------------------------------------------------------------------------------------------ FLOPs


class Llama:
    """What a Llama computes, by hand: two operations for each multiplication of a matrix product."""

    def __init__(self, on) -> None:
        d, h, g, e = on.width, on.config.num_attention_heads, on.kv_heads, on.head_dim
        # Queries and output, keys and values, and the three maps of the gated network of four times the width.
        self.maps = on.layers * 2 * (2 * d * h * e + 2 * d * g * e + 3 * d * 4 * d)
        self.pairs = on.layers * 2 * 2 * h * e  # for each query position and each key position: scores, and sums
        self.head = 2 * d * on.vocabulary_size

    def forward(self, positions: int, behind: int = 0) -> int:
        return positions * self.maps + positions * (behind + positions) * self.pairs

    def answer(self, positions: int, behind: int, tokens: int) -> int:
        """Greedy generation: the prompt, then one token after another behind it."""
        rest = sum(self.forward(1, behind + positions + token) for token in range(tokens - 1))
        return self.forward(positions, behind) + rest + tokens * self.head


@pytest.mark.parametrize("family", ["llama", "llama-one-kv-head"])
def test_flops_are_those_of_a_count_by_hand(family):
    on = backbone(family)
    llama, m, K = Llama(on), 3, 2

    # WRITE of GradMem: K times forward and the gradient with respect to the memory alone. For each map that is one more
    # product, for the head as well, and for each of attention's two products two more. The last token is not run.
    costs, _, _ = measured(build("gradmem", on))
    S = m + T - 1
    step = 2 * S * llama.maps + 3 * S * S * llama.pairs + 2 * T * llama.head
    assert costs.write.flops.value == K * step
    # READ: m vectors and the query, then token by token.
    assert costs.answer_tokens == ANSWER and costs.whole_answers and costs.context_tokens == T
    assert costs.read.flops.value == llama.answer(m + Q, 0, ANSWER)

    # RMT: two passes over memory, context and memory, and a map of width d for each of the last.
    costs, _, _ = measured(build("rmt", on))
    assert costs.write.flops.value == 2 * (llama.forward(2 * m + T) + 2 * m * on.width**2)
    # At READ the map stands between the state and the backbone.
    assert costs.read.flops.value == llama.answer(m + Q, 0, ANSWER) + 2 * m * on.width**2

    # Against the text: everything for every query. Against its KV cache: the context once, then the query behind it.
    text, cache = costs.reread_text, costs.keep_kv_cache
    assert text.write is None and text.read.flops.value == llama.answer(T + Q, 0, ANSWER)
    assert cache.write.flops.value == llama.forward(T)
    assert cache.read.flops.value == llama.answer(Q, T, ANSWER)

    costs, _, _ = measured(build("full_kv", on))
    assert (costs.write.flops.value, costs.read.flops.value) == (llama.forward(T), llama.answer(Q, T, ANSWER))
    assert costs.keep_kv_cache is None

    costs, _, _ = measured(build("no_memory", on))
    assert (costs.write.flops.value, costs.read.flops.value) == (0, llama.answer(Q, 0, ANSWER))


def test_flops_do_not_depend_on_the_batch_where_nothing_is_padding():
    one, four = (measured(build("gradmem", backbone("gpt2")), size)[0] for size in (1, 4))
    assert (one.batch_size, four.batch_size) == (1, 4)
    assert one.write.flops == four.write.flops and one.read.flops == four.read.flops


def test_what_reading_costs_does_not_depend_on_when_the_weights_end_an_answer():
    on = load_backbone(BackboneConfig(name="llama-1x32"), TASK.tokenizer(), "cpu", 0)
    long, _, _ = measured(build("rmt", on))
    # The first of equal logits is chosen, and it ends the text: every answer is empty.
    on.tokenizer.eos_token = on.tokenizer.convert_ids_to_tokens(0)
    with torch.no_grad():
        on.head.weight.zero_()
    short, _, _ = measured(build("rmt", on))
    for one, other in ((long, short), (long.reread_text, short.reread_text), (long.keep_kv_cache, short.keep_kv_cache)):
        assert one.read.flops == other.read.flops


def test_layers_that_training_runs_again_cost_nothing_at_evaluation():
    found = []
    for checkpointing in (False, True):
        on = load_backbone(BackboneConfig(name="gpt2-2x32"), TASK.tokenizer(), "cpu", 0)
        found.append(measured(build("gradmem", on, gradient_checkpointing=checkpointing))[0])
    plain, again = found
    assert plain.write.flops == again.write.flops and plain.read.flops == again.read.flops


# ------------------------------------------------------------------------------------- times and memory


class Slow(METHODS["no_memory"][0]):
    """20 ms in each WRITE of a batch, 5 ms in each READ, and what it was called with."""

    def write(self, contexts: Tokens) -> MemoryState:
        self.calls = [*getattr(self, "calls", []), "write"]
        time.sleep(0.02)
        return super().write(contexts)

    def read(self, state: MemoryState):
        self.calls.append("read")
        time.sleep(0.005)
        return super().read(state)


def test_each_phase_is_timed_apart_and_after_a_warm_up():
    on = backbone("llama")
    method = Slow(on, Slow.Parameters())
    costs, _, phases = measured(method, batch_size=4)
    assert phases == list(PHASES)
    for phase, least, most in ((costs.write, 0.02, 0.025), (costs.read, 0.005, 0.02)):
        assert phase.batch_size == 4 and phase.repetitions == 10
        assert least / 4 <= phase.seconds_low <= phase.seconds <= phase.seconds_high
        assert phase.seconds_low < most / 4 + 0.005
    assert costs.write_seconds_per_context == costs.write.seconds
    assert costs.read_seconds_per_query == costs.read.seconds
    # WRITE: a warm-up, ten runs, one that is counted; then once more for the states. Only then READ, once to look at.
    assert method.calls == ["write"] * 13 + ["read"] * 13


def test_a_phase_that_takes_long_is_timed_less_often(monkeypatch):
    for seconds, repetitions in ((0.05, 3), (0.01, 1)):
        monkeypatch.setattr("gradmem_bench.measurement._SECONDS", seconds)
        method = Slow(backbone("llama"), Slow.Parameters())
        costs, _, _ = measured(method)
        assert costs.write.repetitions == repetitions
        assert 0.01 <= costs.write.seconds_low <= costs.write.seconds <= costs.write.seconds_high
        # Beside them the warm-up, the one for the count and the one for the states.
        assert method.calls.count("write") == repetitions + 3


def test_what_only_the_first_run_takes_is_not_counted(monkeypatch):
    monkeypatch.setattr("gradmem_bench.measurement._SECONDS", 0.1)
    method = Slow(backbone("llama"), Slow.Parameters())
    write, waits = method.write, iter([0.5])

    def compiled_first(contexts):
        time.sleep(next(waits, 0))
        return write(contexts)

    monkeypatch.setattr(method, "write", compiled_first)
    costs, _, _ = measured(method)
    assert costs.write.seconds_high * costs.write.batch_size < 0.5


def test_without_a_gpu_there_is_no_peak_and_a_reason():
    costs, _, _ = measured(build("rmt", backbone("llama")))
    for phase in (costs.write, costs.read, costs.keep_kv_cache.write):
        assert phase.peak_bytes.value is None
        assert phase.peak_bytes.reason == "peak memory is measured on CUDA devices, and this was on cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_counts_the_same_and_has_a_peak(name):
    config = BackboneConfig(name="llama-2x64", kv_heads=1)
    found = []
    for device in ("cpu", "cuda"):
        on = load_backbone(RECURRENT["mamba"] if name == "mamba" else config, TASK.tokenizer(), device, 0)
        costs, _, _ = measured(build(name, on).to(device), batch_size=4)
        found.append([costs.write.flops.value, costs.read.flops.value])
    assert found[0] == found[1]
    # READ keeps the keys and values of prefix, query and answer, for all rows; WRITE at least what it returns.
    assert costs.read.peak_bytes.value >= 4 * (Q + ANSWER - 1) * on.kv_bytes_per_position
    assert costs.write.peak_bytes.value > 0 or name in ("no_memory", "truncated_text")


def test_what_is_measured_leaves_the_method_as_it_was():
    on = load_backbone(BackboneConfig(name="llama-1x32"), TASK.tokenizer(), "cpu", 0)
    method = build("gradmem", on)
    before = {name: (parameter.clone(), parameter.requires_grad) for name, parameter in method.named_parameters()}
    measured(method)
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1] is True
        assert parameter.grad is None


def test_the_sample_is_of_median_length():
    on = backbone("llama")
    task = key_value_task(dataset_kwargs={**PAIRS, "noise": 1})
    documents = [
        type(document)(document.id, document.context[: 3 + 5 * place], document.queries)
        for place, document in enumerate(task.documents("test")[:7])
    ]
    encoded = encode_documents(documents[::-1], task, on)
    lengths = [len(document.context) for document in Sample.median(encoded, 3, on.device).documents]
    assert lengths == [13, 18, 23]
    everything = Sample.median(encoded, 50, on.device)
    assert len(everything.documents) == 7
    assert [len(document.context) for document in everything.one().documents] == [18]


# ----------------------------------------------------------------------------------- bytes, and what pays


@pytest.mark.parametrize(
    ("family", "name"), [(one, name) for name in METHODS for one in families(name) if one in ("gpt2", "llama")]
)
def test_the_bytes_that_read_holds_are_those_of_the_cache_it_makes(family, name):
    on = backbone(family)
    method = build(name, on)
    _, footprint, _ = measured(method, batch_size=3)
    encoded = encode_documents(TASK.documents("test")[:3], TASK, on)
    queries = Tokens.from_lists([document.queries[0] for document in encoded])
    with torch.no_grad():
        prefix = method.read(method.write(Tokens.from_lists([document.context for document in encoded])))
        _, cache = on.hidden(prefix, on.embed(queries.ids), queries.mask, keep_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # All rows are equally long, so that nothing is padding.
    assert footprint.read_kv_bytes.mean == held / 3 * (1 - Q / layer_length(cache))
    assert footprint.read_positions.mean == layer_length(cache) - Q


def layer_length(cache) -> int:
    return cache.layers[0].keys.shape[2]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_under_autocast_a_cache_is_as_large_as_the_state_that_keeps_it(family):
    on = backbone(family)
    encoded = encode_documents(TASK.documents("test")[:2], TASK, on)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    _, footprint = measure(Evaluator(build("full_kv", on), TASK, 2, autocast=autocast), encoded, lambda phase: None)
    assert footprint.read_kv_bytes == footprint.state_bytes
    # GPT-2 keeps two bytes a number; rotary positions leave keys in four.
    assert footprint.read_kv_bytes.mean == T * on.kv_bytes_per_position / (2 if family == "gpt2" else 1)


def test_bytes_saved_are_against_the_text_and_a_cache_of_the_same_dtype():
    on = backbone("llama")
    for dtype, vector, head in (("float32", 128, 32), ("int8", 34, 10), ("int4", 18, 6)):
        costs, footprint, _ = measured(build("rmt", on), budget=Budget(state_dtype=dtype))
        own = 3 * vector
        assert (footprint.state_bytes.mean, footprint.state_dtype) == (own, dtype)
        # Two layers with two heads of eight numbers, of keys and of values.
        assert costs.keep_kv_cache.state_bytes_saved.value == T * 2 * 2 * 2 * head - own
        assert costs.reread_text.state_bytes_saved.value == T - own
        for other in (costs.keep_kv_cache, costs.reread_text):
            assert other.read_kv_bytes_saved.value == (T - 3) * on.kv_bytes_per_position


def test_text_that_does_not_fit_is_no_alternative_and_says_why():
    # 3 vectors and a context of 25 fit into 30 positions, and so do the vectors, a query and its answer.
    on = load_backbone(BackboneConfig(name="llama-1x32", max_positions=30), TASK.tokenizer(), "cpu", 0)
    costs, _, _ = measured(build("gradmem", on))
    assert costs.read.flops.value > 0
    for other in (costs.reread_text, costs.keep_kv_cache):
        assert other.read is None
        for quantity in (other.break_even_flops, other.break_even_seconds, other.state_bytes_saved):
            assert quantity.value is None
            assert "positions, but llama-1x32 has 30" in quantity.reason


@pytest.mark.parametrize("costs", [
    (10, 1, 0, 3), (10, 1, 0, 2), (10, 1, 0, 11), (10, 1, 0, 12), (0, 1, 0, 2), (0, 1, 5, 1), (0, 1, 5, 2),
    (9, 2, 0, 2), (0, 2, 0, 2), (0, 2, 10, 1), (0, 3, 10, 1), (0, 2, 1, 1), (9, 2, 10, 1), (5, 2, 0, 1), (1, 0, 0, 1),
])  # fmt: skip
def test_from_how_many_queries_on_it_pays_as_found_by_trying(costs):
    write, read, other_write, other_read = costs
    cheaper = [write + n * read < other_write + n * other_read for n in range(1, 200)]
    found = break_even(*costs, "FLOPs")
    if cheaper[-1]:
        first = cheaper.index(True) + 1
        assert found.value == first and found.reason is None and all(cheaper[first - 1 :])
        return
    assert found.value is None
    assert f"one READ takes {read} FLOPs, and {other_read} FLOPs there" in found.reason
    most = sum(cheaper)
    assert found.reason.startswith(f"up to {most} queries and no more" if most else "never")


def test_what_pays_follows_from_what_was_measured():
    costs, _, _ = measured(build("gradmem", backbone("llama")))
    text, cache = costs.reread_text, costs.keep_kv_cache
    n = text.break_even_flops.value
    gained = [
        queries * text.read.flops.value - costs.write.flops.value - queries * costs.read.flops.value
        for queries in (n - 1, n)
    ]
    assert gained[0] <= 0 < gained[1]
    # Behind a cache the query alone is run, behind vectors they are too: in FLOPs that never pays.
    assert cache.break_even_flops.value is None and cache.break_even_flops.reason.startswith("never: one READ takes")


def test_times_that_cannot_be_told_apart_make_no_number():
    # The alternative of a text method without bounds is itself.
    costs, _, _ = measured(build("truncated_text", backbone("llama")))
    found = costs.reread_text.break_even_seconds
    overlap = (
        costs.read.seconds_low <= costs.reread_text.read.seconds_high
        and costs.reread_text.read.seconds_low <= costs.read.seconds_high
    )
    assert overlap == (found.reason is not None and found.reason.startswith("too close to call: one READ takes"))
    assert costs.reread_text.break_even_flops.value is None  # never cheaper, as both are the same


# --------------------------------------------------------------------------------------------- capacity


@pytest.mark.parametrize("choices", [2, 3, 16, 1000])
@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_recalled_bits_are_the_information_of_a_channel_with_even_errors(accuracy, choices):
    """The answers are right with `accuracy` and else any other alike: there Fano's bound is reached."""
    joint = torch.full((choices, choices), (1 - accuracy) / (choices - 1) / choices, dtype=torch.float64)
    joint.fill_diagonal_(accuracy / choices)
    product = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    information = float(torch.where(joint > 0, joint * (joint / product).log2(), 0).sum())
    expected = information if accuracy > 1 / choices else 0
    assert recalled_bits(accuracy, math.log2(choices)) == pytest.approx(expected, abs=1e-9)


def result(low, value, high) -> MetricResult:
    return MetricResult(value=value, low=low, high=high, n=9, clusters=3, method="", reason="no", version=1)


def test_bits_per_state_byte():
    # 3 values of 3 of 10 symbols: 3 log2 1000 bits when all are recalled.
    found = capacity(TASK, result(0.5, 1.0, 1.0), 32.0)
    assert (found.values, found.value_bits) == (3, pytest.approx(math.log2(1000)))
    assert found.recalled_bits == found.recalled_bits_high == pytest.approx(3 * math.log2(1000))
    assert found.recalled_bits_low == pytest.approx(3 * recalled_bits(0.5, math.log2(1000)))
    assert found.bits_per_state_byte.value == pytest.approx(3 * math.log2(1000) / 32)
    nothing = capacity(TASK, result(0.0, 0.0, 0.1), 0.0)
    assert nothing.recalled_bits == 0
    assert (nothing.bits_per_state_byte.value, nothing.bits_per_state_byte.reason) == (None, "the state has no bytes")
    unknown = capacity(TASK, result(None, None, None), 32.0)
    assert unknown.recalled_bits is None and unknown.bits_per_state_byte.reason == "no"


def test_only_values_that_are_known_to_be_independent_have_bits(local_task):
    from gradmem_bench.tasks.declaration import load_task

    assert capacity(load_task(local_task), result(0.5, 0.6, 0.7), 32.0) is None
