"""The backbone: a Hugging Face causal LM and its tokenizer, behind one way of running a prefix and a query.

Every sequence that reaches the model is a *prefix* (what a memory became: embedding vectors, a KV cache, or the state
of a recurrent model) and then tokens or embeddings. Padding may stand anywhere between them: masks keep it from being
seen and positions are counted over what is not padding, so that a row's result does not depend on its batch.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, MambaModel, PreTrainedModel, PreTrainedTokenizerBase

from gradmem_bench import recurrence
from gradmem_bench.batch import Tokens
from gradmem_bench.cross_entropy import linear_cross_entropy
from gradmem_bench.errors import UserError
from gradmem_bench.prefix import Cache, Prefix


class Backbone(nn.Module):
    """A causal LM of any size.

    Args:
        model: a Hugging Face causal LM; its dropout is switched off, because WRITE and READ must see one function.
        tokenizer: the tokenizer it is used with.
        identity: what the record says of it (name, revision, weights hash).
    Raises:
        UserError: the model has no bound on its positions, or its logits are not what its head makes of the last
            hidden states behind input embeddings.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: dict | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.identity = identity or {}
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            # Some layers keep their dropout as a number that is used while `training` is set.
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
        self._check()

    def _check(self) -> None:
        kind = type(self.model).__name__
        if not (self.recurrent or isinstance(getattr(self.config, "max_position_embeddings", None), int)):
            raise UserError(f"{kind} is not supported: its configuration has no max_position_embeddings.")
        if self.device.type == "meta":
            return
        ids = torch.arange(4, device=self.device)[None] % self.vocabulary_size
        # Magnified, so that a bend in what follows the head shows where the logits themselves are small.
        magnifier = self.head.register_forward_hook(lambda head, inputs, logits: 1000 * logits)
        with torch.no_grad():
            whole = self.model(ids, use_cache=False).logits
            ours = self.head(self.hidden(None, self.embed(ids), torch.ones_like(ids, dtype=torch.bool))[0])
        magnifier.remove()
        if not torch.allclose(whole, ours, atol=1e-3 * float(ours.abs().max()), rtol=0):
            raise UserError(
                f"{kind} is not supported: its logits are not one linear map of the last hidden states behind its "
                "input embeddings."
            )

    # ------------------------------------------------------------------------------------- its shape

    @property
    def config(self):  # noqa: ANN201 - the class differs from family to family
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def width(self) -> int:
        """d, the size of one input embedding."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def vocabulary_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def recurrent(self) -> bool:
        """Whether it has a state of one size (Mamba) where others have attention over all positions."""
        return isinstance(self.model.base_model, MambaModel)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers themselves, each called with its input (B, T, d) first."""
        lists = (module for module in self.model.base_model.modules() if isinstance(module, nn.ModuleList))
        return next(blocks for blocks in lists if len(blocks) == self.layers)

    @property
    def attention_heads(self) -> int:
        return 0 if self.recurrent else self.config.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads

    @property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def max_positions(self) -> int:
        """As many as there are numbers for a recurrent one, which counts none."""
        return sys.maxsize if self.recurrent else self.config.max_position_embeddings

    @property
    def kv_bytes_per_position(self) -> int:
        """`2 · layers · kv_heads · head_dim · itemsize`: what one position holds, in the precision of the weights."""
        if self.recurrent:
            return 0
        itemsize = next(self.model.parameters()).element_size()
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    @property
    def head(self) -> nn.Linear:
        """The language-model head: (..., d) -> (..., vocabulary)."""
        return self.model.get_output_embeddings()

    # ---------------------------------------------------------------------------------------- tokens

    @property
    def start_ids(self) -> list[int]:
        """What the tokenizer itself puts before a text (Llama 3's begin-of-text token; nothing for GPT-2)."""
        return list(self.tokenizer("").input_ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return self.tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []

    def encode_contexts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that stand at the beginning of a sequence."""
        start = self.start_ids
        return [start + ids for ids in self.encode(texts)]

    def start(self, rows: int) -> Prefix:
        """What stands before a query where there is no memory, so many times: the beginning of a text, `start_ids`."""
        tokens = Tokens.repeated(self.start_ids, rows, self.device)
        return Prefix(tokens.mask, embeddings=self.embed(tokens.ids))

    @property
    def end_id(self) -> int:
        """The end-of-text token, which every target ends with."""
        return self.tokenizer.eos_token_id

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, d)."""
        return self.model.get_input_embeddings()(ids)

    # ------------------------------------------------------------------------------------ the one run

    def hidden(
        self, prefix: Prefix | None, embeddings: Tensor, mask: Tensor, keep_cache: bool = False
    ) -> tuple[Tensor, DynamicCache | Cache | None]:
        """Runs a prefix and what follows it.

        Args:
            prefix: for B rows, or `None`.
            embeddings: (B, T, d), what follows.
            mask: (B, T), bool.
            keep_cache: whether to return the keys and values of everything, or the recurrent state behind it.
        Returns:
            The last hidden states of every position that was run: (B, P + T, d) behind embeddings, (B, T, d) behind
            a cache or nothing; and the cache.
        Raises:
            UserError: a row is longer than the model has positions, or the prefix has another width.
        """
        past = DynamicCache() if keep_cache and not self.recurrent else None
        whole_mask = mask
        if prefix is not None:
            whole_mask = torch.cat([prefix.mask, mask], dim=1)
            if prefix.cache is None:
                if prefix.embeddings.shape[-1] != self.width:
                    raise UserError(
                        f"A prefix's vectors have {prefix.embeddings.shape[-1]} numbers each, and the backbone's "
                        f"embeddings have {self.width}."
                    )
                embeddings = torch.cat([prefix.embeddings.to(embeddings.dtype), embeddings], dim=1)
            else:
                past = prefix.cache if self.recurrent else DynamicCache(ddp_cache_data=prefix.cache)
        states, past = self._run(embeddings, whole_mask, past, prefix)
        return states, past if keep_cache else None

    def _run(
        self, embeddings: Tensor, mask: Tensor, past: DynamicCache | Cache | None, prefix: Prefix | None
    ) -> tuple[Tensor, DynamicCache | Cache | None]:
        """The model's one call: embeddings (B, T, d) behind `past`, under a mask of both, (B, P + T)."""
        if self.recurrent:
            return recurrence.run(self.model.base_model, embeddings, mask[:, -embeddings.shape[1] :], past)
        memory, skipped = (None, None) if prefix is None else (prefix.layer_memory, prefix.skipped)
        self._check_room(mask, skipped)
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        if skipped is not None:
            positions = positions + skipped[:, None]

        def add(layer: int, hidden: Tensor) -> Tensor:
            return hidden + memory.read(layer, hidden).to(hidden.dtype)

        with self.at_layers(before=add if memory is not None else None):
            output = self.model.base_model(
                inputs_embeds=embeddings,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=past,
                use_cache=past is not None,
            )
        return output.last_hidden_state, past

    @contextmanager
    def at_layers(
        self,
        before: Callable[[int, Tensor], Tensor] | None = None,
        after: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[None]:
        """Within it, `before` gives each layer its input, (B, T, d), from what it would have been, and `after` is
        shown what the layer made of it."""

        def first(layer: int) -> Callable:
            return lambda block, inputs: (before(layer, inputs[0]), *inputs[1:])

        def then(layer: int) -> Callable:
            return lambda block, inputs, output: after(layer, output[0] if isinstance(output, tuple) else output)

        hooks = []
        for layer, block in enumerate(self.blocks if before or after else ()):
            if before is not None:
                hooks.append(block.register_forward_pre_hook(first(layer)))
            if after is not None:
                hooks.append(block.register_forward_hook(then(layer)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check_room(self, mask: Tensor, skipped: Tensor | None) -> None:
        # The width is known without waiting for the device; only what is wider than the model has to be counted.
        if mask.shape[1] <= self.max_positions and skipped is None:
            return
        if (longest := int((mask.sum(dim=1) + (0 if skipped is None else skipped)).max())) > self.max_positions:
            raise UserError(
                f"Memory, query and answer take {longest} positions, but {self.identity.get('name', 'the backbone')} "
                f"has {self.max_positions}."
            )

    def prefill(self, tokens: Tokens) -> Prefix:
        """The tokens' KV cache, or the recurrent state behind them, as a prefix."""
        _, cache = self.hidden(None, self.embed(tokens.ids), tokens.mask, keep_cache=True)
        if self.recurrent:
            return Prefix(tokens.mask[:, :0], cache=cache)
        return Prefix(tokens.mask, cache=tuple((layer.keys, layer.values) for layer in cache.layers))

    def run_once(self, prefix: Prefix) -> Prefix:
        """The same prefix as the cache that running its embeddings leaves, for several queries of a context to share.

        It is itself where there is nothing to share (a cache, a recurrent state, layers that read for themselves), and
        where gradient checkpointing runs layers again, for which transformers keeps no cache.
        """
        alone = prefix.embeddings is None or prefix.layer_memory is not None or not prefix.mask.shape[1]
        if alone or self.recurrent or self.model.is_activation_checkpointing:
            return prefix
        # In the dtype of tokens, as what is not run once is: a projection's product may be rounded, under autocast.
        nothing = torch.empty_like(prefix.embeddings[:, :0], dtype=self.model.dtype)
        states, cache = self.hidden(prefix, nothing, prefix.mask[:, :0], keep_cache=True)
        return Prefix(
            prefix.mask,
            cache=tuple((layer.keys, layer.values) for layer in cache.layers),
            last=_last(states, prefix),
        )

    def _predictors(
        self, prefix: Prefix, tokens: Tokens, keep_cache: bool = False
    ) -> tuple[Tensor, Tensor, DynamicCache | Cache | None]:
        """The hidden states that predict: (B, 1 + T, d), the prefix's last position and then each token's.

        Also whether the first of them exists, (B,) bool: it does not behind an empty prefix, nor behind a cache alone.
        """
        states, cache = self.hidden(prefix, self.embed(tokens.ids), tokens.mask, keep_cache)
        width = states.shape[1] - tokens.ids.shape[1]
        first = prefix.last if width == 0 else _last(states, prefix)
        if first is None:
            exists = torch.zeros(len(states), dtype=torch.bool, device=states.device)
            return F.pad(states, (0, 0, 1, 0)), exists, cache
        return torch.cat([first[:, None], states[:, width:]], dim=1), prefix.positions > 0, cache

    # ------------------------------------------------------------------------------ losses and answers

    def token_losses(
        self, prefix: Prefix, queries: Tokens | None, targets: Tokens, head: nn.Linear | None = None
    ) -> tuple[Tensor, Tensor]:
        """What each target token costs, teacher-forced behind a prefix and a query.

        Args:
            prefix: for R rows.
            queries: (R, q); `None` is no query: the first target token is predicted from the prefix's last position.
            targets: (R, t).
            head: another head than the model's own.
        Returns:
            Nats (R, t), 0 at padding and at a first token that nothing stands before; and whether the token is the
            most probable one, (R, t), bool.
        """
        tokens = targets if queries is None else queries.then(targets)
        # What would follow a row's last token is not asked for. One column stays: not every model runs none.
        if (width := tokens.ids.shape[1]) > 1:
            # On a GPU sides of eights are faster, and a batch of different lengths has been filled up to them.
            filled = tokens.ids.is_cuda and (prefix.mask.shape[1] + width) % 8 == 0
            tokens = tokens.without_last(column=filled)
        states, first_exists, _ = self._predictors(prefix, tokens)
        offset = 0 if queries is None else queries.lengths[:, None]
        index = (offset + torch.arange(targets.ids.shape[1], device=states.device)).expand_as(targets.ids)
        known = targets.mask & ((index > 0) | first_exists[:, None])
        index = index.clamp(max=states.shape[1] - 1)
        predicting = states.gather(1, index[..., None].expand(-1, -1, states.shape[2]))
        losses, right = linear_cross_entropy(predicting, head or self.head, targets.ids)
        return losses * known, right & known

    def target_loss(self, prefix: Prefix, queries: Tokens, targets: Tokens) -> Tensor:
        """(): mean nats over all target tokens of all rows."""
        losses, _ = self.token_losses(prefix, queries, targets)
        return losses.sum() / targets.mask.sum()

    def text_losses(self, prefix: Prefix, text: Tokens, head: nn.Linear | None = None) -> Tensor:
        """(B, T): nats of each token of a text behind its prefix, teacher-forced; 0 at padding."""
        return self.token_losses(prefix, None, text, head)[0]

    def text_loss(self, prefix: Prefix, text: Tokens, head: nn.Linear | None = None) -> Tensor:
        """(B,): mean nats per token of each row's own text behind its prefix (the WRITE loss of GradMem, eq. 4).

        The mean runs over the row's own tokens, so that neither its value nor its gradient depends on the batch.
        """
        return self.text_losses(prefix, text, head).sum(dim=1) / text.lengths.clamp(min=1)

    @torch.no_grad()
    def generate(
        self, prefix: Prefix, queries: Tokens, max_new_tokens: int, all_tokens: bool = False
    ) -> list[list[int]]:
        """Greedy continuations of each query behind its prefix, up to (without) the end-of-text token.

        Args:
            all_tokens: whether all `max_new_tokens` are made even where every row has ended before, as what it costs
                should not depend on what is said.
        """
        states, _, cache = self._predictors(prefix, queries, keep_cache=True)
        rows = torch.arange(len(queries), device=states.device)
        last = states[rows, queries.lengths]
        mask = torch.cat([prefix.mask, queries.mask], dim=1)
        finished = torch.zeros(len(queries), dtype=torch.bool, device=states.device)
        chosen = []
        for step in range(max_new_tokens):
            token = self.head(last).argmax(dim=-1)
            finished = finished | (token == self.end_id)
            chosen.append(token)
            if step == max_new_tokens - 1 or (not all_tokens and bool(finished.all())):
                break
            mask = F.pad(mask, (0, 1), value=True)
            states, cache = self._run(self.embed(token[:, None]), mask, cache, prefix)
            last = states[:, 0]
        answers = torch.stack(chosen, dim=1).tolist()
        return [answer[: answer.index(self.end_id)] if self.end_id in answer else answer for answer in answers]


def _last(states: Tensor, prefix: Prefix) -> Tensor:
    """Of the hidden states that begin with a prefix's, (B, P + T, d), the one at its last position, (B, d)."""
    rows = torch.arange(len(states), device=states.device)
    return states[rows, (prefix.positions - 1).clamp(min=0)]
