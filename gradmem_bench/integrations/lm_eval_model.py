"""The model `gradmem_bench` of lm-eval: a memory writes each document's context, and answers from the state alone.

    lm_eval --model gradmem_bench --model_args method=gradmem,checkpoint=DIR,budget=4KiB --tasks squad_removed ...

A document's column `context` is written and then gone; the prompt is asked of its bytes. Requests of one context and
one kind share one WRITE.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gradmem_bench import checkpoints
from gradmem_bench.batch import Tokens
from gradmem_bench.config import Budget, fingerprint, parse_bytes, validated
from gradmem_bench.errors import UserError
from gradmem_bench.evaluation import Evaluator, up_to_end
from gradmem_bench.experiment import choose, longest_context
from gradmem_bench.integrations import lm_eval_cache
from gradmem_bench.loading import load_backbone, tokenizer_from_text
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.plan import Options
from gradmem_bench.prefix import Prefix
from gradmem_bench.registry import resolve
from gradmem_bench.tasks.base import Document
from gradmem_bench.tasks.batching import EncodedDocument, continuations

lm_eval_cache.install()

_AUTOMATIC_BATCH = 32
_DTYPES = ("float32", "bfloat16")
_logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class GradmemBench(LM):
    """A memory as lm-eval's model.

    Args:
        method: a method's name, or the path of its YAML.
        checkpoint: a run's folder or checkpoint file (what `--load` takes).
        budget: the most state bytes per context, for example `4KiB`; the method is fitted to it.
        max_positions: the most READ positions.
        state_dtype: what the state's vectors are stored as.
        backbone: a hub id or a local folder; by default the checkpoint's.
        include_path: a folder of the user's own method YAMLs.
        truncate_contexts: cut contexts that do not fit the backbone, rather than refuse them.
        batch_size: contexts in one WRITE, queries in one READ; `auto` is 32, as in `gradmem-bench run`.
        device: as torch names it; without a GPU, lm-eval's default `cuda:0` is the CPU.
        dtype: precision of the computation, `float32` or `bfloat16`; weights, memory and inner steps stay float32.
        seed: of a random backbone's weights, and of the method's own where nothing is loaded.
        settings: the method's parameters, and `backbone.KEY`, as `--set` takes them.
    Raises:
        UserError: a name, key or value is wrong, nothing fits the budget, or there is no backbone.
    """

    def __init__(
        self,
        method: str | None = None,
        checkpoint: str | None = None,
        budget: str | int | None = None,
        max_positions: int | None = None,
        state_dtype: str = "float32",
        backbone: str | None = None,
        include_path: str | None = None,
        truncate_contexts: bool = False,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        if method is None:
            raise UserError("--model gradmem_bench needs --model_args method=NAME (see `gradmem-bench list methods`).")
        if dtype not in _DTYPES:
            raise UserError(f"--model_args: dtype is '{dtype}', but one of {' and '.join(_DTYPES)} was expected.")
        self._device = torch.device(device or "cuda") if torch.cuda.is_available() else torch.device("cpu")
        options = Options(
            backbone=backbone,
            budget=validated(
                Budget,
                {
                    "bytes": None if budget is None else parse_bytes(str(budget)),
                    "positions": max_positions,
                    "state_dtype": state_dtype,
                },
                "--model_args",
            ),
            settings=tuple(f"{key}={value}" for key, value in settings.items()),
            load=None if checkpoint is None else Path(checkpoint),
            seed=seed,
            device=str(self._device),
            dtype=dtype,
        )
        memory, self._about = _loaded(method, options, [Path(include_path)] if include_path else [])
        size = _AUTOMATIC_BATCH if str(batch_size).startswith("auto") else int(batch_size)
        self._truncate = truncate_contexts
        autocast = partial(torch.autocast, self._device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        self.evaluator = Evaluator(memory, None, size, options.budget, autocast)
        self._written: dict[str, dict[str, int]] = {}
        self.tokenizer = memory.backbone.tokenizer

    @property
    def memory_key(self) -> str:
        """What an answer depends on beside context and prompt: the fingerprint of method, weights and budget."""
        return fingerprint(self._about)

    @property
    def tokenizer_name(self) -> str:
        return self.evaluator.backbone.identity["tokenizer"].replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval puts into its results beside the model's name: the memory, and what its states cost."""
        sizes = list(self._written.values())

        def of(name: str) -> dict[str, float]:
            values = [size[name] for size in sizes if name in size]
            return {"mean": sum(values) / len(values), "max": max(values)} if values else {}

        return self._about | {
            "contexts": len(sizes),
            "contexts_truncated": sum(size["truncated"] for size in sizes),
            "state_bytes": of("state_bytes"),
            "read_positions": of("read_positions"),
        }

    # -------------------------------------------------------------------------------------- requests

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each prompt, from the state of its document's context."""
        for request in requests:
            _check_generation(request)
        prompts = self._prompts([request.args[0] for request in requests])
        most = [normalize_gen_kwargs(request.args[1])["max_gen_toks"] for request in requests]

        def answer(prefix: Prefix, places: Sequence[int]) -> list[str]:
            asked = Tokens.from_lists([prompts[place] for place in places], self._device)
            generated = self.evaluator.generate(prefix, asked, max(most[place] for place in places))
            return [
                self._text(requests[place], ids[: most[place]]) for place, ids in zip(places, generated, strict=True)
            ]

        needed = [len(ids) + tokens for ids, tokens in zip(prompts, most, strict=True)]
        return self._answered(requests, needed, answer)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation behind its prompt: its log-likelihood in nats, and whether greedy decoding gives it."""
        for request in requests:
            _check_removed(request)
        texts = [request.args[0] for request in requests]
        prompts = self._prompts(texts)
        targets = continuations(self.evaluator.backbone, texts, prompts, [request.args[1] for request in requests])

        def answer(prefix: Prefix, places: Sequence[int]) -> list[tuple[float, bool]]:
            return self._scored(prefix, [prompts[place] for place in places], [targets[place] for place in places])

        needed = [len(one) + len(other) for one, other in zip(prompts, targets, strict=True)]
        return self._answered(requests, needed, answer)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text, every token scored once behind its document's state: how well the text is rebuilt.

        The first token stands behind the end-of-text token, as in lm-eval's own models. A text that does not fit is
        scored in windows, each behind the state.
        """
        backbone = self.evaluator.backbone
        texts = backbone.encode([request.args[0] for request in requests])

        def answer(prefix: Prefix, places: Sequence[int]) -> list[float]:
            totals = []
            for row, place in enumerate(places):
                room = backbone.max_positions - int(prefix.positions[row])
                if room < 2:
                    raise UserError(f"A state of {int(prefix.positions[row])} positions leaves no room for the text.")
                if not texts[place]:
                    totals.append(0.0)
                    continue
                pairs = get_rolling_token_windows(texts[place], backbone.end_id, min(room - 1, len(texts[place])), 1)
                before, after = zip(*map(make_disjoint_window, pairs), strict=True)
                own = prefix.select(torch.full((len(before),), row, device=prefix.mask.device))
                totals.append(sum(nats for nats, _ in self._scored(own, before, after)))
            return totals

        return self._answered(requests, [2] * len(requests), answer)

    # ---------------------------------------------------------------------------------- WRITE and READ

    def _answered(
        self,
        requests: Sequence[Instance],
        needed: Sequence[int],
        answer: Callable[[Prefix, Sequence[int]], list[Answer]],
    ) -> list[Answer]:
        """One WRITE a context, then `answer` for a few requests at a time, given by their places.

        The batches are those of `gradmem-bench run`, task by task, so that scores are equal to the last digit.

        Args:
            needed: positions that each request takes behind its context's state.
        """
        if self.cache_hook.dbdict is not None:
            if not all(map(lm_eval_cache.is_keyed, requests)):
                raise UserError("--use_cache: this lm-eval's cache does not tell contexts apart; leave it out.")
            if self._truncate:
                raise UserError(
                    "--use_cache with truncate_contexts: where a context is cut depends on what is asked beside it, "
                    "which the cache does not know; leave one of them out."
                )
        tasks: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            tasks.setdefault(request.task_name or "", []).append(place)
        answers: dict[int, Answer] = {}
        for own in tasks.values():
            places: dict[str, list[int]] = {}
            for place in own:
                places.setdefault(_context(requests[place]), []).append(place)
            encoded = self._encoded(list(places), max(needed[place] for place in own))
            answers |= self._read(encoded, places, answer)
        return [answers[place] for place in range(len(requests))]

    def _read(
        self,
        encoded: Sequence[EncodedDocument],
        places: Mapping[str, Sequence[int]],
        answer: Callable[[Prefix, Sequence[int]], list[Answer]],
    ) -> dict[int, Answer]:
        """What is answered to the requests at these places, by context."""
        answers: dict[int, Answer] = {}
        for batch in self.evaluator.batches(encoded):
            written = self.evaluator.write(batch, reconstruct=False)
            asked = [
                (document.document.context, state, place)
                for document, state in zip(batch, written.states, strict=True)
                for place in places[document.document.context]
            ]
            for document, size in zip(batch, written.state_bytes, strict=True):
                self._written[document.document.id] = {"state_bytes": size, "truncated": document.truncated}
            for some in self._chunks(asked):
                prefix = self.evaluator.read_prefix([state for _, state, _ in some])
                for (context, _, _), positions in zip(some, prefix.positions.tolist(), strict=True):
                    self._written[fingerprint(context)]["read_positions"] = positions
                chosen = [place for _, _, place in some]
                answers.update(zip(chosen, answer(prefix, chosen), strict=True))
        return answers

    def _chunks(self, asked: list[Any]) -> Iterator[list[Any]]:
        for first in range(0, len(asked), self.evaluator.batch_size):
            yield asked[first : first + self.evaluator.batch_size]

    def _encoded(self, contexts: list[str], room: int) -> list[EncodedDocument]:
        """The contexts in tokens, cut where that is allowed."""
        memory, encoded = self.evaluator.method, []
        limit = longest_context(type(memory), memory.settings, memory.backbone, room)
        for context, ids in zip(contexts, memory.backbone.encode_contexts(contexts), strict=True):
            if len(ids) > limit and not self._truncate:
                raise UserError(
                    f"A context has {len(ids)} tokens, but at most {limit} fit the backbone's "
                    f"{memory.backbone.max_positions} positions beside memory, prompt and answer; take a backbone with "
                    "more, or add truncate_contexts=true to --model_args."
                )
            document = Document(fingerprint(context), context, ())
            encoded.append(EncodedDocument(document, ids[:limit], [], [], len(ids) > limit, []))
        return encoded

    def _prompts(self, texts: list[str]) -> list[list[int]]:
        """Prompts in tokens; an empty one is the end-of-text token, as in lm-eval's own models."""
        backbone = self.evaluator.backbone
        return [ids or [backbone.end_id] for ids in backbone.encode(texts)]

    @torch.no_grad()
    def _scored(
        self, prefix: Prefix, prompts: Sequence[list[int]], targets: Sequence[list[int]]
    ) -> list[tuple[float, bool]]:
        asked, wanted = Tokens.from_lists(prompts, self._device), Tokens.from_lists(targets, self._device)
        with self.evaluator.autocast():
            nats, right = self.evaluator.backbone.token_losses(prefix, asked, wanted)
        greedy = (right | ~wanted.mask).all(dim=1)
        return list(zip((-nats.double().sum(dim=1)).tolist(), greedy.tolist(), strict=True))

    def _text(self, request: Instance, ids: list[int]) -> str:
        until = request.args[1].get("until") or ()
        return up_to_end(self.evaluator.backbone.decode(ids), (until,) if isinstance(until, str) else until)


def _loaded(name: str, options: Options, include_paths: list[Path]) -> tuple[MemoryMethod, dict[str, Any]]:
    """The method with its weights, and what it is made of, JSON-able."""
    chosen = choose(resolve("method", name, include_paths), options)
    config = chosen.backbone(
        {}, "--model gradmem_bench needs a backbone: add checkpoint=DIR or backbone=NAME to --model_args."
    )
    tokenizer = tokenizer_from_text(chosen.about.get("tokenizer"))
    shape, parameters = load_backbone(config, tokenizer, "meta", 0), chosen.parameters
    chosen.method_class.check(shape)
    budget = chosen.method_class.asked_of(options.budget)
    if budget != Budget():
        parameters = chosen.method_class.fit(parameters, budget, shape)
    with torch.device("meta"):
        skeleton = chosen.method_class(shape, parameters)
    if chosen.checkpoint is not None:
        checkpoints.check_shapes(skeleton, chosen.checkpoint)
    torch.manual_seed(options.seed)
    backbone = load_backbone(config, tokenizer, options.device, options.seed)
    memory = chosen.method_class(backbone, parameters).to(options.device)
    if chosen.checkpoint is not None:
        tensors, _ = checkpoints.load(chosen.checkpoint, options.device)
        checkpoints.restore(memory, tensors, chosen.checkpoint)
    about = {
        "method": chosen.recipe.name,
        "implementation": chosen.recipe.implementation,
        "parameters": parameters.model_dump(mode="json"),
        "checkpoint": chosen.about.get("hash"),
        "backbone": backbone.identity,
        "budget": budget.model_dump(mode="json"),
        "seed": options.seed,
        "dtype": options.dtype,
    }
    return memory, about


def _context(request: Instance) -> str:
    context = request.doc.get("context") if isinstance(request.doc, dict) else None
    if not isinstance(context, str) or not context:
        raise UserError(
            f"The documents of lm-eval's task '{request.task_name}' have no text in a column 'context', which "
            f"gradmem_bench writes; gradmem-bench run --task lm_eval:{request.task_name} takes it from another."
        )
    return context


def _check_removed(request: Instance) -> None:
    if _context(request) in request.args[0]:
        raise UserError(
            f"The prompt of lm-eval's task '{request.task_name}' holds the context itself, so that nothing has to be "
            "remembered: leave it out of doc_to_text."
        )


def _check_generation(request: Instance) -> None:
    _check_removed(request)
    if request.args[1].get("do_sample") or (request.args[1].get("num_beams") or 1) != 1:
        raise UserError(f"Answers are generated greedily, but '{request.task_name}' asks for {request.args[1]}.")
