"""Every method on every family of backbones, small and random, and the tokenizers that they are tried with."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from gradmem_bench.backbone import Backbone
from gradmem_bench.config import BackboneConfig, merge
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.armt import ARMT
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.methods.full_kv import FullKV
from gradmem_bench.methods.gradmem import GradMem
from gradmem_bench.methods.mamba import Mamba
from gradmem_bench.methods.mean_pool import MeanPool
from gradmem_bench.methods.no_memory import NoMemory
from gradmem_bench.methods.rmt import RMT
from gradmem_bench.methods.truncated_text import TruncatedText
from gradmem_bench.tasks.kv_retrieval import KeyValueRetrieval

# Large weights: attention then looks at some positions far more than at others, and an error in a mask shows.
_SHAPE = {"heads": 4, "max_positions": 128, "init_std": 0.2}
BACKBONES = {
    "gpt2": BackboneConfig(name="gpt2-2x32", **_SHAPE),
    "neox": BackboneConfig(name="neox-2x32", **_SHAPE),
    "llama": BackboneConfig(name="llama-2x32", kv_heads=2, **_SHAPE),
    "llama-one-kv-head": BackboneConfig(name="llama-2x32", kv_heads=1, **_SHAPE),
}
"""The families with attention."""
RECURRENT = {"mamba": BackboneConfig(name="mamba-2x32", init_std=0.3, state_size=4)}
EVERY_BACKBONE = {**BACKBONES, **RECURRENT}
CONTROL = {"write_control_before": 1, "write_control_after": 2, "read_control_before": 2, "read_control_after": 1}
METHODS: dict[str, tuple[type[MemoryMethod], dict]] = {
    "gradmem": (GradMem, {"memory_vectors": 3, "inner_steps": 2, "inner_learning_rate": 0.3, "memory_std": 0.2}),
    "rmt": (RMT, {"memory_vectors": 3, "passes": 2, "memory_std": 0.2}),
    "mean_pool": (MeanPool, {"memory_vectors": 3}),
    # The same with as many of their settings as go together.
    "gradmem-knobs": (
        GradMem,
        {
            "memory_vectors": 3,
            "memory_std": 0.2,
            "inner_steps": 2,
            "evaluation_inner_steps": 3,
            "inner_learning_rate": 0.3,
            "learned_inner_learning_rate": "per_step",
            "inner_clip_norm": 0.1,
            "second_order_steps": 1,
            "projection": "per_sample",
            **CONTROL,
        },
    ),
    "rmt-knobs": (
        RMT,
        {
            "memory_vectors": 3,
            "memory_std": 0.2,
            "passes": 2,
            "projection": "read_write",
            "residual": True,
            "write_head": True,
            "reconstruction_weight": 0.5,
            **CONTROL,
        },
    ),
    "full_kv": (FullKV, {}),
    "truncated_text": (TruncatedText, {}),
    "no_memory": (NoMemory, {}),
    "mamba": (Mamba, {}),
    "armt": (ARMT, {"memory_vectors": 3, "memory_dimension": 4, "memory_std": 0.2}),
    "armt in segments": (ARMT, {"memory_vectors": 3, "memory_dimension": 4, "segment_tokens": 5}),
}


def families(name: str) -> list[str]:
    """The backbones that a method can stand on."""
    kinds = {"attention": [*BACKBONES], "recurrence": [*RECURRENT], None: [*EVERY_BACKBONE]}
    return kinds[METHODS[name][0].needs]


PAIRS = [(family, name) for name in METHODS for family in families(name)]
"""Every family of backbones with every method that can stand on it."""


def key_value_task(**declaration) -> KeyValueRetrieval:
    base = {"task": "kv_retrieval", "target_delimiter": "", "generation_kwargs": {"until": [], "max_gen_toks": 32}}
    return KeyValueRetrieval(merge(base, declaration))


@cache
def backbone(name: str) -> Backbone:
    """The one random backbone of a family; tests that change weights take a fresh one from `load_backbone`."""
    return load_backbone(EVERY_BACKBONE[name], key_value_task().tokenizer(), "cpu", seed=3).requires_grad_(False)


def build(name: str, on: Backbone, **settings) -> MemoryMethod:
    """A method with all its own weights moved away from where they start, so that none is the identity."""
    method_class, parameters = METHODS[name]
    torch.manual_seed(5)
    method = method_class(on, method_class.Parameters(**{**parameters, **settings}))
    with torch.no_grad():
        for key, parameter in method.named_parameters():
            if not key.startswith("backbone."):
                parameter += 0.05 * torch.randn_like(parameter)
    return method.eval()


def text_of(length: int, seed: int) -> str:
    """So many random symbols, one token each for the key-value tokenizer."""
    symbols = "0123456789abcdefghijklmnopqrstuvwxyz"
    drawn = torch.randint(len(symbols), (length,), generator=torch.Generator().manual_seed(seed))
    return "".join(symbols[index] for index in drawn)


def ids_of(on: Backbone, *lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token sequences, one of each length."""
    return on.encode([text_of(length, 100 * seed + place) for place, length in enumerate(lengths)])


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = (), begin: bool = False) -> PreTrainedTokenizerFast:
    """Each byte one token but for `merges`; with `begin` every text starts with <s>, as Llama's tokenizers have it."""
    entries = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(BPE({entry: number for number, entry in enumerate(entries)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
