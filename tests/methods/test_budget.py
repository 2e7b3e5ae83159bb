"""Footprints as declared and as measured, and what `fit` makes of a budget."""

import pytest
import torch
from methods.matrix import EVERY_BACKBONE, METHODS, backbone, build, byte_tokenizer, families, key_value_task, text_of
from tokenizers.processors import TemplateProcessing

from gradmem_bench.batch import Tokens
from gradmem_bench.config import BackboneConfig, Budget
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.truncated_text import TruncatedText, TruncatedTextParameters
from gradmem_bench.state import MemoryState

SETTINGS = {
    "truncated_text-5-tokens": ("truncated_text", {"max_tokens": 5}),
    "truncated_text-nothing": ("truncated_text", {"max_tokens": 0}),
    "gradmem-1-vector": ("gradmem", {"memory_vectors": 1}),
    "rmt-7-vectors": ("rmt", {"memory_vectors": 7, "passes": 1}),
} | {name: (name, {}) for name in METHODS}


NORMS = {"gpt2": "ln_1", "gpt_neox": "input_layernorm", "llama": "input_layernorm", "mamba": "norm"}
"""What a layer of each family puts its input through first."""


def longest_write(method, context: list[int]) -> int:
    """The longest sequence that WRITE puts through the model."""
    seen = [0]
    hook = (
        method.backbone.blocks[0]
        .get_submodule(NORMS[method.backbone.config.model_type])
        .register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0].shape[1]))
    )
    method.write(Tokens.from_lists([context]))
    hook.remove()
    return max(seen)


@pytest.mark.parametrize(("case", "family"), [(case, one) for case in SETTINGS for one in families(SETTINGS[case][0])])
@pytest.mark.parametrize("begin", [False, True], ids=["plain", "start-token"])
def test_what_is_declared_is_what_is_measured(family, begin, case):
    name, settings = SETTINGS[case]
    tokenizer = byte_tokenizer(begin=True) if begin else key_value_task().tokenizer()
    on = load_backbone(EVERY_BACKBONE[family], tokenizer, "cpu", 0).requires_grad_(False)
    method = build(name, on, **settings)
    for length in (1, 6, 30):
        text = text_of(length, length)
        (context,) = on.encode_contexts([text])
        state = method.write(Tokens.from_lists([context]))
        (data,) = state.to_bytes()
        header = 4 + int.from_bytes(data[:4], "little")
        declared = method.footprint(method.settings, on, len(context), len(text.encode()))
        if case.startswith("truncated") and settings and begin:
            # A start token is one of the tokens and none of the bytes: for text the bytes are an upper bound.
            assert len(data) - header <= declared.state_bytes
        elif case.startswith("truncated_text-"):
            assert len(data) - header == min(length, settings["max_tokens"])
        else:
            assert len(data) - header == declared.state_bytes == state.nbytes()[0]
        assert method.read(MemoryState.from_bytes([data])).positions.tolist() == [declared.read_positions]
        assert longest_write(method, context) == declared.write_positions


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_declared_of_a_narrower_state_is_what_is_measured(name, dtype):
    family = "llama-one-kv-head" if "llama-one-kv-head" in families(name) else "mamba"
    method = build(name, backbone(family))
    text = text_of(9, 1)
    (context,) = method.backbone.encode_contexts([text])
    declared = method.footprint(method.settings, method.backbone, 9, len(text)).stored(dtype)
    (data,) = method.write(Tokens.from_lists([context])).to_bytes(dtype)
    assert len(data) - 4 - int.from_bytes(data[:4], "little") == declared.state_bytes
    assert method.read(MemoryState.from_bytes([data])).positions.tolist() == [declared.read_positions]
    # Text stays what it is; numbers become fewer bytes than half of those of float32, or half.
    full = method.footprint(method.settings, method.backbone, 9, len(text)).state_bytes
    assert declared.state_bytes == full if name in ("truncated_text", "no_memory") else declared.state_bytes <= full / 2


@pytest.mark.parametrize("name", ["gradmem", "rmt"])
@pytest.mark.parametrize(
    ("dtype", "vectors"),
    # One vector of width 32: 128, 64, 2 + 32 and 2 + 16 bytes.
    [("float32", 8), ("bfloat16", 16), ("int8", 30), ("int4", 56)],
)
def test_more_vectors_fit_where_they_are_narrower(name, dtype, vectors):
    on = backbone("llama")
    budget = Budget(bytes=1024, state_dtype=dtype)
    fitted = build(name, on).fit(build(name, on).settings, budget, on)
    assert fitted.memory_vectors == vectors
    (context,) = on.encode_contexts([text_of(5, 0)])
    for count, fits in ((vectors, True), (vectors + 1, False)):
        state = build(name, on, memory_vectors=count).write(Tokens.from_lists([context]))
        assert (state.nbytes(dtype)[0] <= 1024) == fits
    # A bound on positions does not move, and no bound changes nothing.
    for other in (Budget(positions=3, state_dtype=dtype), Budget(state_dtype=dtype)):
        assert build(name, on).fit(fitted, other, on).memory_vectors == (3 if other.positions else vectors)
    with pytest.raises(UserError, match=f"holds no vector: one of width 32 in {dtype} is "):
        build(name, on).fit(fitted, Budget(bytes=17, state_dtype=dtype), on)


@pytest.mark.parametrize("name", ["gradmem", "rmt", "mean_pool"])
@pytest.mark.parametrize(
    ("budget", "vectors"),
    [
        # One vector of width 32 in float32 is 128 bytes.
        (Budget(bytes=128), 1),
        (Budget(bytes=1000), 7),
        (Budget(bytes=1024), 8),
        (Budget(positions=5), 5),
        (Budget(bytes=1024, positions=5), 5),
        (Budget(bytes=300, positions=5), 2),
        (Budget(), 3),
    ],
    ids=str,
)
def test_as_many_vectors_as_the_budget_holds(name, budget, vectors):
    on = backbone("llama")
    method = build(name, on)
    fitted = method.fit(method.settings, budget, on)
    assert fitted.memory_vectors == vectors
    # Nothing else is changed, and a state of that size keeps to the budget while one vector more would not.
    assert fitted == method.settings.model_copy(update={"memory_vectors": vectors})
    if budget != Budget():
        kept = [within(build(name, on, memory_vectors=count), budget) for count in (vectors, vectors + 1)]
        assert kept == [True, False]


def within(method, budget: Budget) -> bool:
    (context,) = method.backbone.encode_contexts([text_of(9, 0)])
    state = method.write(Tokens.from_lists([context]))
    positions = int(method.read(state).positions[0])
    return state.nbytes()[0] <= (budget.bytes or 10**9) and positions <= (budget.positions or 10**9)


@pytest.mark.parametrize("name", ["gradmem", "rmt", "mean_pool"])
def test_a_budget_below_one_vector_is_refused(name):
    method = build(name, backbone("llama"))
    with pytest.raises(UserError, match="127 B holds no vector: one of width 32 in float32 is 128 B"):
        method.fit(method.settings, Budget(bytes=127), backbone("llama"))


@pytest.mark.parametrize("name", ["full_kv", "no_memory"])
def test_floor_and_ceiling_are_as_they_are(name):
    method = build(name, backbone("llama"))
    assert method.fit(method.settings, Budget(bytes=1, positions=1), backbone("llama")) == method.settings
    assert method.role in ("floor", "ceiling")


# One token a byte: a is 1, é is 2, € is 3 and 😀 is 4.
MIXED = "aé€😀b"


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (Budget(bytes=1), "a"),
        (Budget(bytes=2), "a"),
        (Budget(bytes=3), "aé"),
        (Budget(bytes=9), "aé€"),
        (Budget(bytes=10), "aé€😀"),
        (Budget(bytes=11), MIXED),
        (Budget(bytes=4096), MIXED),
        (Budget(positions=2), "a"),
        (Budget(positions=9), "aé€"),
        (Budget(positions=10), "aé€😀"),
        (Budget(bytes=6, positions=4), "aé"),
        (Budget(), MIXED),
    ],
    ids=str,
)
def test_text_is_cut_between_characters_and_fills_the_budget(budget, kept):
    on = load_backbone(BackboneConfig(name="gpt2-1x32"), byte_tokenizer(), "cpu", 0)
    method = TruncatedText(on, TruncatedText.fit(TruncatedTextParameters(), budget, on))
    state = method.write(Tokens.from_lists(on.encode([MIXED])))
    assert state.texts() == [kept]
    assert state.nbytes() == [len(kept.encode())]
    # Each byte is a token and a position.
    assert method.read(state).positions.tolist() == [len(kept.encode())]


def test_a_recipe_s_own_bounds_stay_where_the_budget_is_wider():
    on = load_backbone(BackboneConfig(name="gpt2-1x32"), byte_tokenizer(), "cpu", 0)
    fitted = TruncatedText.fit(TruncatedTextParameters(max_bytes=3, max_tokens=9), Budget(bytes=6, positions=4), on)
    assert fitted == TruncatedTextParameters(max_bytes=3, max_tokens=4)


@pytest.mark.parametrize("begin", [False, True])
def test_a_bound_in_bytes_is_one_of_positions_too(begin):
    on = load_backbone(BackboneConfig(name="llama-1x32"), byte_tokenizer(begin=begin), "cpu", 0)
    method = TruncatedText(on, TruncatedTextParameters(max_bytes=5))
    (ids,) = on.encode_contexts(["hello world"])
    found = method.read(method.write(Tokens.from_lists([ids]))).positions.tolist()
    assert found == [5 + begin]
    # At most one more: the mark of a word's beginning, which this tokenizer does not have.
    assert method.footprint(method.settings, on, len(ids), 11).read_positions == found[0] + 1


def test_a_start_token_counts_as_a_position_and_not_as_bytes():
    on = load_backbone(BackboneConfig(name="llama-1x32"), byte_tokenizer(begin=True), "cpu", 0)
    contexts = Tokens.from_lists(on.encode_contexts(["hello"]))
    for positions, kept in ((1, ""), (3, "he"), (6, "hello")):
        method = TruncatedText(on, TruncatedText.fit(TruncatedTextParameters(), Budget(positions=positions), on))
        state = method.write(contexts)
        assert state.texts() == [kept] and method.read(state).positions.tolist() == [positions]
    # No text fits into no token: what is left is the start token, and never the rest of the text.
    assert TruncatedText(on, TruncatedTextParameters(max_tokens=0)).write(contexts).texts() == [""]


def test_a_tokenizer_that_begins_with_more_than_the_budget_is_refused():
    tokenizer = byte_tokenizer(begin=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", 0)])
    on = load_backbone(BackboneConfig(name="llama-1x32"), tokenizer, "cpu", 0)
    with pytest.raises(UserError, match="holds no text: every text begins with 2 tokens"):
        TruncatedText.fit(TruncatedTextParameters(), Budget(positions=1), on)


def test_real_text_under_a_real_tokenizer_keeps_to_every_budget(shared):
    name = str(shared / "models" / "gpt2-tokenizer")
    on = load_backbone(BackboneConfig(name="gpt2-1x32", tokenizer=name), None, "cpu", 0)
    text = "  Naïve   café — 東京 😀😀\n\n  (1 + 2)   don't\tstop  "
    (ids,) = on.encode_contexts([text])
    assert TruncatedText(on, TruncatedTextParameters()).write(Tokens.from_lists([ids])).texts() == [text]
    for bound in range(0, len(text.encode()) + 2):
        for bounds in ({"max_bytes": bound}, {"max_tokens": bound}):
            method = TruncatedText(on, TruncatedTextParameters(**bounds))
            state = method.write(Tokens.from_lists([ids]))
            (kept,), (positions,) = state.texts(), method.read(state).positions.tolist()
            assert text.startswith(kept)
            assert (len(kept.encode()) if "max_bytes" in bounds else positions) <= bound
            if "max_bytes" in bounds and kept != text:
                # The next token that ends with a character would not have fitted.
                beginnings = [on.decode(ids[:count]) for count in range(len(ids) + 1)]
                longer = next(one for one in beginnings if len(one) > len(kept) and "\ufffd" not in one)
                assert len(longer.encode()) > bound


def test_a_cut_context_keeps_whole_characters_only():
    on = load_backbone(BackboneConfig(name="gpt2-1x32"), byte_tokenizer(), "cpu", 0)
    method = TruncatedText(on, TruncatedTextParameters())
    cut = Tokens.from_lists([on.encode([MIXED])[0][:8]])
    assert method.write(cut).texts() == ["aé€"]
    assert torch.equal(method.read(method.write(cut)).embeddings, on.embed(torch.tensor(on.encode(["aé€"]))))
