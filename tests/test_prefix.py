"""A prefix is one of two things, and what follows it stands where it stood behind all that was run."""

import pytest
import torch
from methods.matrix import byte_tokenizer

from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Tokens
from gradmem_bench.config import BackboneConfig
from gradmem_bench.errors import UserError
from gradmem_bench.loading import load_backbone
from gradmem_bench.prefix import Prefix

CONTEXT = Tokens(torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0)), torch.ones(2, 9).bool())
KEPT = torch.tensor([0, 3, 4, 8])


def test_a_prefix_is_embeddings_or_a_cache():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="either"):
        Prefix(mask)
    with pytest.raises(ValueError, match="either"):
        Prefix(mask, embeddings=torch.zeros(1, 2, 4), cache=())
    with pytest.raises(ValueError, match="left out of"):
        Prefix(mask, embeddings=torch.zeros(1, 2, 4), skipped=torch.ones(1))


def loaded(family: str, **settings) -> Backbone:
    on = load_backbone(BackboneConfig(name=f"{family}-2x32", **settings), byte_tokenizer(), "cpu", 0)
    on.model.set_attn_implementation("eager")
    return on.eval()


def thinned(on: Backbone) -> Prefix:
    """The context's KV cache with some of its entries."""
    whole = on.prefill(CONTEXT)
    cache = tuple((keys[:, :, KEPT], values[:, :, KEPT]) for keys, values in whole.cache)
    return Prefix(whole.mask[:, KEPT], cache=cache, skipped=torch.full((2,), CONTEXT.ids.shape[1] - len(KEPT)))


def masked(on: Backbone, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states of a context and what follows, (B, T + q), where what follows sees those entries alone."""
    total, context = ids.shape[1], CONTEXT.ids.shape[1]
    seen = torch.ones(total, total).tril().bool()
    seen[context:, :context] &= torch.isin(torch.arange(context), KEPT)
    bias = (
        torch.zeros(1, 1, total, total).masked_fill(~seen, torch.finfo(torch.float32).min).expand(len(ids), -1, -1, -1)
    )
    return on.model.base_model(input_ids=ids, attention_mask=bias).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_what_follows_a_cache_with_entries_left_out_stands_where_it_stood(family):
    on = loaded(family)
    query = Tokens(torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.ones(2, 3).bool())
    states, _ = on.hidden(thinned(on), on.embed(query.ids), query.mask)
    expected = masked(on, torch.cat([CONTEXT.ids, query.ids], dim=1))[:, -3:]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    # As if nothing had been left out it would be another.
    nearer = Prefix(thinned(on).mask, cache=thinned(on).cache)
    assert not torch.allclose(on.hidden(nearer, on.embed(query.ids), query.mask)[0], expected, atol=1e-3)

    ids = torch.cat([CONTEXT.ids, query.ids], dim=1)
    for _ in range(3):
        ids = torch.cat([ids, on.head(masked(on, ids)[:, -1:]).argmax(dim=-1)], dim=1)
    whole = [row[: row.index(on.end_id)] if on.end_id in row else row for row in ids[:, -3:].tolist()]
    assert on.generate(thinned(on), query, 3) == whole
    assert on.generate(thinned(on).select(torch.tensor([1])), query.select(torch.tensor([1])), 3) == whole[1:]


@torch.no_grad()
def test_positions_that_were_left_out_are_counted_against_the_models_room():
    on = loaded("gpt2", max_positions=12)
    fits, over = (Tokens(torch.full((2, count), 5), torch.ones(2, count).bool()) for count in (3, 4))
    on.hidden(thinned(on), on.embed(fits.ids), fits.mask)
    with pytest.raises(UserError, match="take 13 positions"):
        on.hidden(thinned(on), on.embed(over.ids), over.mask)
