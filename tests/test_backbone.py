"""READ against the plain language model on the concatenated ids, and what a backbone refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from methods.matrix import BACKBONES, backbone, build, byte_tokenizer, ids_of, key_value_task
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconMambaConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
)

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.prefix import Prefix
from gradmem_bench.state import MemoryState

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
TINY = {"vocab_size": 72, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def plain_losses(on: Backbone, ids: list[int], last: int) -> torch.Tensor:
    """Nats of the last tokens of a sequence, from the model as transformers runs it."""
    sequence = torch.tensor([ids])
    with torch.no_grad():
        logits = on.model(input_ids=sequence).logits[0, :-1]
    return F.cross_entropy(logits, sequence[0, 1:], reduction="none")[-last:]


def plain_right(on: Backbone, ids: list[int], last: int) -> list[bool]:
    with torch.no_grad():
        likeliest = on.model(input_ids=torch.tensor([ids])).logits[0, :-1].argmax(dim=-1)
    return (likeliest == torch.tensor(ids[1:]))[-last:].tolist()


def prefixes(on: Backbone, memory: list[int]) -> dict[str, Prefix]:
    """The same tokens before a query: as GradMem's vectors with no step taken, as KV cache, as text."""
    tokens = Tokens.from_lists([memory])
    gradmem = build("gradmem", on, memory_vectors=len(memory), inner_steps=0)
    with torch.no_grad():
        gradmem.memory.vectors.copy_(on.embed(tokens.ids)[0])
        made = {"vectors": gradmem.read(gradmem.write(tokens))}
        for name in ("full_kv", "truncated_text"):
            method = build(name, on)
            made[name] = method.read(MemoryState.from_bytes(method.write(tokens).to_bytes()))
    return made


@pytest.mark.parametrize("family", BACKBONES)
def test_losses_behind_a_prefix_are_those_of_the_whole_sequence(family):
    on = backbone(family)
    memory, query, target = ids_of(on, 9, 4, 5)
    # The model's own choice, so that not every target token is wrong.
    target[0] = int(on.model(torch.tensor([memory + query])).logits[0, -1].argmax())
    expected = plain_losses(on, memory + query + target, 5)
    for name, prefix in prefixes(on, memory).items():
        with torch.no_grad():
            losses, right = on.token_losses(prefix, Tokens.from_lists([query]), Tokens.from_lists([target]))
            mean = on.target_loss(prefix, Tokens.from_lists([query]), Tokens.from_lists([target]))
        torch.testing.assert_close(losses[0], expected, **CLOSE, msg=name)
        torch.testing.assert_close(mean, expected.mean(), **CLOSE, msg=name)
        assert right[0].tolist() == plain_right(on, memory + query + target, 5)
        assert right[0, 0] and not right.all()
        assert prefix.positions.tolist() == [9]


@pytest.mark.parametrize("family", BACKBONES)
def test_the_first_token_of_a_text_is_predicted_from_the_memory_s_last_position(family):
    on = backbone(family)
    memory, text = ids_of(on, 4, 7)
    with torch.no_grad():
        loss = on.text_loss(prefixes(on, memory)["vectors"], Tokens.from_lists([text]))
    torch.testing.assert_close(loss[0], plain_losses(on, memory + text, 7).mean(), **CLOSE)


@pytest.mark.parametrize("family", BACKBONES)
def test_generation_is_transformers_own(family):
    on = backbone(family)
    memory, query = ids_of(on, 9, 4)

    def expected(end: int) -> list[int]:
        ids = torch.tensor([memory + query])
        options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": end, "pad_token_id": 0}
        made = on.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
        return made[: made.index(end)] if end in made else made

    endless = expected(on.end_id)
    # Another end: a token that does come, so that one row is through before the other.
    ends_early = copy.copy(on)
    ends_early.tokenizer = copy.deepcopy(on.tokenizer)
    later = next(token for token in endless[1:] if token != endless[0]) if len(set(endless)) > 1 else endless[0]
    ends_early.tokenizer.eos_token = on.tokenizer.convert_ids_to_tokens(later)
    other = ids_of(on, 6, seed=4)[0]
    for one in (on, ends_early):
        for name, prefix in prefixes(on, memory).items():
            rows = prefix.select(torch.tensor([0, 0]))
            answers = one.generate(rows, Tokens.from_lists([query, other]), 8)
            assert answers[0] == expected(one.end_id), name
    assert len(expected(later)) < len(endless)


def test_the_cache_given_to_a_read_is_not_changed_by_it():
    on = backbone("llama")
    memory, query = ids_of(on, 9, 4)
    prefix = prefixes(on, memory)["full_kv"]
    before = [tensor.clone() for layer in prefix.cache for tensor in layer]
    on.generate(prefix, Tokens.from_lists([query]), 4)
    after = [tensor for layer in prefix.cache for tensor in layer]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_vectors_of_another_width_are_named():
    on = backbone("llama")
    prefix = Prefix(torch.ones(1, 2, dtype=torch.bool), embeddings=torch.zeros(1, 2, on.width + 1))
    with pytest.raises(UserError, match=f"have {on.width + 1} numbers each, and .* have {on.width}"):
        on.generate(prefix, Tokens.from_lists([ids_of(on, 4)[0]]), 4)


@pytest.mark.parametrize("family", BACKBONES)
def test_only_rows_are_bounded_by_the_positions_and_never_their_padding(family):
    config = BACKBONES[family].model_copy(update={"max_positions": 16})
    on = load_backbone(config, key_value_task().tokenizer(), "cpu", 0).requires_grad_(False)
    memories, queries = ids_of(on, 10, 2), ids_of(on, 2, 10)
    method = build("truncated_text", on)

    def answers(rows: slice) -> list[list[int]]:
        prefix = method.read(method.write(Tokens.from_lists(memories[rows])))
        return on.generate(prefix, Tokens.from_lists(queries[rows]), 5)

    # 10 + 10 columns, but 12 tokens in a row; with 4 answers fed back they are 16.
    assert answers(slice(0, 2)) == answers(slice(0, 1)) + answers(slice(1, 2))
    prefix = method.read(method.write(Tokens.from_lists(memories)))
    with pytest.raises(UserError, match=r"17 positions, but .* has 16"):
        on.generate(prefix, Tokens.from_lists([[5] * 3, [5] * 10]), 6)
    # What follows a target's last token is not asked for, and takes no position.
    with pytest.raises(UserError, match=r"19 positions, but .* has 16"):
        on.token_losses(prefix, Tokens.from_lists(queries), Tokens.from_lists([[5] * 8, [5]]))
    # 10 + 2 + 5 are 17, in whatever batch.
    for targets in ([[5] * 5, [5]], [[5] * 5, [5] * 5]):
        assert on.token_losses(prefix, Tokens.from_lists(queries), Tokens.from_lists(targets))[0].isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=72, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5),
        GPTNeoXConfig(**TINY, intermediate_size=32, attention_dropout=0.5, hidden_dropout=0.5),
        OPTConfig(**TINY, ffn_dim=32, word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5),
    ],
    ids=lambda config: config.model_type,
)
def test_write_and_read_see_one_function_in_training_too(config):
    on = Backbone(AutoModelForCausalLM.from_config(config), key_value_task().tokenizer()).train()
    assert on.model.training
    embeddings, mask = on.embed(torch.arange(10)[None]), torch.ones(1, 10, dtype=torch.bool)
    with torch.no_grad():
        one, other = on.hidden(None, embeddings, mask)[0], on.hidden(None, embeddings, mask)[0]
        evaluated = on.eval().hidden(None, embeddings, mask)[0]
    assert torch.equal(one, other) and torch.equal(one, evaluated)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**TINY, intermediate_size=32, head_dim=8, num_key_value_heads=1, final_logit_softcapping=30.0),
        CohereConfig(**TINY, intermediate_size=32, logit_scale=0.0625),
        FalconMambaConfig(vocab_size=72, hidden_size=16, num_hidden_layers=1),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_is_more_than_a_linear_head_on_hidden_states_is_refused(config):
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=f"{type(model).__name__} is not supported"):
        Backbone(model, key_value_task().tokenizer())
    # What the check did to the head is undone.
    assert not model.get_output_embeddings()._forward_hooks


def test_texts_that_begin_a_sequence_get_the_tokenizer_s_start_token_and_others_do_not():
    on = load_backbone(BackboneConfig(name="llama-1x32"), byte_tokenizer(begin=True), "cpu", 0)
    (plain,) = on.encode(["no"])
    assert len(plain) == 2
    assert on.encode_contexts(["no"]) == [[0, *plain]]
    assert on.decode([0, *plain, 1]) == "no"


@pytest.mark.parametrize(
    ("name", "settings", "bytes_per_position"),
    [
        # 2 x layers x key-value heads x head size x 4 bytes
        ("gpt2-12x768", {}, 72 * 1024),
        ("llama-2x64", {"heads": 4, "kv_heads": 1}, 2 * 2 * 1 * 16 * 4),
        ("neox-3x64", {"heads": 2}, 2 * 3 * 2 * 32 * 4),
    ],
)
def test_what_a_position_holds_is_known_without_weights(name, settings, bytes_per_position):
    on = load_backbone(BackboneConfig(name=name, **settings), key_value_task().tokenizer(), "meta", 0)
    assert on.kv_bytes_per_position == bytes_per_position
    assert on.device.type == "meta"


@pytest.mark.parametrize("family", BACKBONES)
def test_what_a_position_holds_is_what_transformers_keeps_of_one(family):
    on = backbone(family)
    with torch.no_grad():
        cache = on.model(torch.arange(7)[None], use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert on.kv_bytes_per_position * 7 == kept


def test_gpt2_has_as_many_parameters_as_it_should(shared):
    config = BackboneConfig(name="gpt2-12x768", tokenizer=str(shared / "models" / "gpt2-tokenizer"))
    on = load_backbone(config, None, "meta", 0)
    assert sum(parameter.numel() for parameter in on.parameters()) == 124_439_808
    assert on.width == 768 and on.vocabulary_size == 50257 and on.start_ids == []


def test_a_first_token_that_nothing_stands_before_costs_nothing_and_is_never_right():
    on = backbone("llama")
    text, other = ids_of(on, 6, 4)
    empty = prefixes(on, other)["vectors"]
    # One row without any prefix, and one behind four tokens.
    prefix = Prefix(torch.tensor([[False] * 4, [True] * 4]), embeddings=empty.embeddings.expand(2, -1, -1))
    with torch.no_grad():
        losses, right = on.token_losses(prefix, None, Tokens.from_lists([text, text]))
    assert losses[0, 0] == 0 and not right[0, 0]
    torch.testing.assert_close(losses[0, 1:], plain_losses(on, text, 5), **CLOSE)
    torch.testing.assert_close(losses[1], plain_losses(on, other + text, 6), **CLOSE)
    cached = build("full_kv", on)
    with torch.no_grad():
        losses, _ = on.token_losses(
            cached.read(cached.write(Tokens.from_lists([other]))), None, Tokens.from_lists([text])
        )
    # A cache has no hidden state of its last position left to predict from.
    assert losses[0, 0] == 0
    torch.testing.assert_close(losses[0, 1:], plain_losses(on, other + text, 5), **CLOSE)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_prefix_that_is_run_once_for_all_its_queries_costs_what_each_query_alone_does(family):
    on = copy.deepcopy(backbone(family)).requires_grad_()
    # The second context is shorter, and has the last of the three queries.
    vectors = torch.stack([on.embed(torch.tensor(ids)) for ids in ids_of(on, 6, 6, seed=1)]).detach()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    queries, targets = ids_of(on, 4, 2, 3, seed=2), ids_of(on, 2, 3, 2, seed=3)

    def losses(prefix: Prefix, owners: list[int], rows: list[int]) -> list[torch.Tensor]:
        """Nats of each row's target behind its query, and behind none."""
        behind, wanted = prefix.select(torch.tensor(owners)), Tokens.from_lists([targets[row] for row in rows])
        asked, _ = on.token_losses(behind, Tokens.from_lists([queries[row] for row in rows]), wanted)
        alone, _ = on.token_losses(behind, None, wanted)
        return [one[: len(targets[row])] for both in (asked, alone) for one, row in zip(both, rows, strict=True)]

    found = []
    for once in (False, True):
        leaf = vectors.clone().requires_grad_()
        prefix = Prefix(mask, embeddings=leaf)
        if once:
            each = losses(on.run_once(prefix), [0, 0, 1], [0, 1, 2])
        else:
            pairs = [losses(prefix, [owner], [row]) for row, owner in enumerate((0, 0, 1))]
            each = [one for both in zip(*pairs, strict=True) for one in both]
        used = [leaf, *on.blocks.parameters()]
        found.append([*each, *torch.autograd.grad(torch.cat(each).sum(), used)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_prefix_that_is_run_once_is_run_in_the_precision_of_one_that_is_not():
    on = backbone("llama")
    (ids,) = ids_of(on, 6)
    rounded = Prefix(torch.ones(1, 6, dtype=torch.bool), embeddings=on.embed(torch.tensor([ids])).bfloat16())
    exact = Prefix(rounded.mask, embeddings=rounded.embeddings.float())
    with torch.no_grad():
        for one, other in zip(on.run_once(rounded).cache, on.run_once(exact).cache, strict=True):
            assert all(torch.equal(mine, its) for mine, its in zip(one, other, strict=True))


def test_run_once_leaves_alone_what_holds_nothing_to_share():
    on = backbone("llama")
    (memory,) = ids_of(on, 5)
    cached = prefixes(on, memory)["full_kv"]
    nothing = Prefix(torch.ones(1, 0, dtype=torch.bool), embeddings=torch.zeros(1, 0, on.width))
    armt = build("armt", on)
    layered = armt.read(armt.write(Tokens.from_lists([memory])))
    for prefix in (cached, nothing, layered):
        assert on.run_once(prefix) is prefix
